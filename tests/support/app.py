"""
The application of the acceptance tests; configured by the environment of its process.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task
from kombu.transport.virtual import Message

from omni_tasks import CircuitBreakerTask, init_app
from omni_tasks.integration.lot import Lot
from tests.support.dependency import Dependency, DependencyDownError

app = Celery("acceptance")
app.conf.update(
    broker_url=os.environ["TEST_BROKER_URL"],
    result_backend=os.environ.get("TEST_RESULT_BACKEND", os.environ["TEST_BROKER_URL"]),
    broker_transport_options={
        "visibility_timeout": int(os.environ.get("TEST_VISIBILITY_TIMEOUT", "3600")),
        # kombu looks for abandoned messages every 100 s; a test cannot wait that long.
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    },
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=int(os.environ.get("TEST_PREFETCH", "4")),
    worker_send_task_events=True,
    task_send_sent_event=True,
    worker_hijack_root_logger=True,
)
init_app(app)
dependency = Dependency(Path(os.environ["TEST_FOLDER"]))


@app.task(base=CircuitBreakerTask, circuit="dep", bind=True, max_retries=0)
def plain(self: Task) -> dict[str, int]:
    """Call the dependency once; no retries of its own."""
    dependency.call(self.request.id)
    return {"retries": self.request.retries, "holds": getattr(self.request, "omni_holds", 0)}


@app.task(base=CircuitBreakerTask, circuit="dep", bind=True, max_retries=0, autoretry_for=(Exception,))
def autoretry(self: Task) -> dict[str, int]:
    """Call the dependency once; autoretry without a budget."""
    dependency.call(self.request.id)
    return {"retries": self.request.retries, "holds": getattr(self.request, "omni_holds", 0)}


@app.task(base=CircuitBreakerTask, circuit="dep", bind=True, max_retries=3)
def manual_retry(self: Task) -> dict[str, int]:
    """Call the dependency; retry by hand."""
    try:
        dependency.call(self.request.id)
    except DependencyDownError as error:
        raise self.retry(exc=error, countdown=0) from error
    return {"retries": self.request.retries, "holds": getattr(self.request, "omni_holds", 0)}


@app.task(base=CircuitBreakerTask, circuit="dep", bind=True, max_retries=0, acks_late=True, reject_on_worker_lost=True)
def late(self: Task) -> dict[str, int]:
    """Call the dependency; acknowledged when done, put back when the worker dies."""
    dependency.call(self.request.id)
    return {"retries": self.request.retries, "holds": getattr(self.request, "omni_holds", 0)}


@app.task(base=CircuitBreakerTask, circuit="dep", bind=True, max_retries=0, time_limit=1)
def limited(self: Task) -> None:
    """Call the dependency under a hard time limit of one second."""
    dependency.call(self.request.id)


@app.task(bind=True)
def unguarded(self: Task, seconds: float = 0.0) -> str:
    """A task of no circuit."""
    time.sleep(seconds)
    return str(self.request.id)


@app.task(base=CircuitBreakerTask, circuit="dep", bind=True, max_retries=0)
def poison(self: Task) -> None:
    """
    Reach the dependency, then fail for a reason of its own.
    """
    dependency.call(self.request.id)
    raise ValueError(self.request.id)


class Parent(CircuitBreakerTask):
    """
    A class-based task with a body of its own.
    """

    circuit = "dep"
    name = "tests.support.app.parent"

    def run(self) -> str:
        """
        Call the dependency.
        """
        dependency.call(self.request.id)
        return str(self.request.id)


class Child(Parent):
    """
    A task whose body uses its parent's.
    """

    name = "tests.support.app.child"

    def run(self) -> str:
        """
        Call the parent's body.
        """
        return super().run()


app.register_task(Child())


if os.environ.get("TEST_CRASH") == "after_park":
    _park = Lot.park

    def _park_and_die(self: Lot, circuit: str, message: Message, *, behind: bool = False) -> int:
        _park(self, circuit, message, behind=behind)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    Lot.park = _park_and_die  # type: ignore[method-assign] # the crash that is tested


if "TEST_SLOW_RETRY" in os.environ:
    _mark_as_retry = app.backend.mark_as_retry

    def _mark_slowly(*arguments: Any, **options: Any) -> Any:
        time.sleep(float(os.environ["TEST_SLOW_RETRY"]))
        return _mark_as_retry(*arguments, **options)

    type(app.backend).mark_as_retry = staticmethod(_mark_slowly)
