"""
``Celery(task_cls="omni_tasks:CircuitBreakerTask")`` for an application that has no circuits.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from omni_tasks.embedded import EmbeddedServer
from tests.support.comparison import make_app, script
from tests.support.worker import Worker

pytestmark = pytest.mark.acceptance


@pytest.mark.soak
def test_tasks_without_a_circuit_are_plain_tasks(redis_server: EmbeddedServer, tmp_path: Path) -> None:
    """Results, retries, canvases, errors with their tracebacks, and inspection: the same as with Celery's own class."""
    seen = []
    for database, task_cls in ((7, ""), (8, "omni_tasks:CircuitBreakerTask")):
        url = redis_server.url.rpartition("/")[0] + f"/{database}"
        worker = Worker(
            {"COMPARISON_URL": url, "COMPARISON_TASK_CLS": task_cls},
            tmp_path,
            app="tests.support.comparison",
            concurrency=2,
        )
        app = make_app(url, task_cls or None)
        try:
            seen.append(script(app))
        finally:
            worker.stop()
            app.close()
    plain, ours = seen
    assert ours.pop("registered") == sorted([*plain.pop("registered"), "omni_tasks.monitor"])
    assert ours == plain
