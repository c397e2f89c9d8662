"""
Everything that a run needs, started: provider, worker, beat.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery import Celery

    from demo.interruption import Interruption
    from demo.plan import Plan
    from demo.processes import Processes
    from demo.server import Server

__all__ = ["Stage", "StageError"]

ROOT: Final = Path(__file__).resolve().parent.parent

_START_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.1

# Settings of the shell that would make this another run than the one described: above all real keys, which must
# not be used here, and proxies, which cannot reach a provider on this machine's loopback interface.
_FOREIGN: Final = re.compile(
    r"(OMNI|CELERY|OPENAI|DEEPSEEK|RESILIENCE|ENABLE_RESILIENCE|DEFAULT|ARTICLES)(_.*)?|(https?|all)_proxy",
    re.IGNORECASE,
)


log = logging.getLogger(__name__)


class StageError(RuntimeError):
    """
    Something did not come up in time; the message names it.
    """


class Stage:
    """
    The processes around one run, and how they know of each other.
    """

    def __init__(self, plan: Plan, server: Server, folder: Path) -> None:
        """
        Decide on names; nothing is started.

        Args:
            plan: What is going to happen.

            server: The Redis to run on.

            folder: The run's own.
        """
        self.articles = folder / "articles"
        self.node = f"{server.space or 'omni-demo'}@localhost"
        self._plan, self._server, self._folder = plan, server, folder
        self._environment: dict[str, str] = {}

    def start_provider(self, processes: Processes, interruption: Interruption) -> int:
        """
        Start the provider.

        Returns:
            Its port.

        Raises:
            StageError: It does not say its port.
        """
        argv = [sys.executable, "-m", "demo.provider", "--port", "0", "--latency", str(self._plan.latency)]
        log = processes.start("provider", argv, _inherited())
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            processes.check()
            if found := re.search(r"listening on 127\.0\.0\.1:(\d+)", log.read_text(errors="replace")):
                return int(found[1])
            interruption.pause(_POLL_S)
        raise StageError(f"the provider did not come up within {_START_TIMEOUT_S:.0f} s; see {log}")

    def load_application(self, provider_port: int) -> Celery:
        """
        Settle the environment of every process, this one included; then import the application, which reads it.
        """
        self._environment = _inherited() | self._settings(provider_port)
        os.environ.clear()
        os.environ.update(self._environment)
        # Now and not at the top: they read the environment when they are imported.  The tasks are needed to
        # rebuild the error of one that fails.
        import workers.tasks  # noqa: F401, PLC0415
        from workers import app  # noqa: PLC0415

        # The watch must not stand still for Celery's usual two minutes when the server does not answer.
        app.conf.update(redis_socket_timeout=2.0, redis_socket_connect_timeout=2.0)
        if self._server.space:
            app.conf.update(task_default_queue=self._server.space, task_queues=None, task_routes=None)
        return app

    def start_workers(self, processes: Processes) -> None:
        """
        Start worker, then beat.
        """
        celery = [sys.executable, "-m", "celery", "-A", "workers"]
        space = self._server.space
        queue, overrides = (["-Q", space], ["--", f"task.default_queue={space}"]) if space else ([], [])
        pool = ["--pool", "prefork", "-c", str(self._plan.concurrency)]
        worker = ["worker", *pool, "-n", self.node, "-l", "INFO", "--without-gossip", "--without-mingle", *queue]
        beat = ["beat", "-l", "INFO", "-s", str(self._folder / "beat-schedule"), "--pidfile="]
        processes.start("worker", [*celery, *worker, *overrides], self._environment)
        processes.start("beat", [*celery, *beat, *overrides], self._environment)

    def await_worker(self, app: Celery, processes: Processes, interruption: Interruption) -> None:
        """
        Wait until the worker answers.

        Raises:
            StageError: It does not.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            processes.check()
            interruption.check()
            if app.control.ping(destination=[self.node], timeout=0.5):
                return
        raise StageError(f"the worker did not answer within {_START_TIMEOUT_S:.0f} s; see its log")

    def forget(self, app: Celery, task_ids: Iterable[str]) -> None:
        """
        Remove the results from a server that is not this run's alone; they are not under its name.
        """
        if not self._server.space:
            return
        try:
            for task_id in task_ids:
                app.backend.forget(task_id)
        except Exception:
            # They expire within a day; the account must not fail for them.
            log.warning("could not remove the results from %s", self._server.label, exc_info=True)

    def _settings(self, provider_port: int) -> dict[str, str]:
        settings = {
            "CELERY_BROKER_URL": self._server.url,
            "CELERY_RESULT_BACKEND": self._server.url,
            "OPENAI_BASE_URL": f"http://127.0.0.1:{provider_port}/v1",
            "OPENAI_API_KEY": "demo",
            "OMNI_CIRCUITS": json.dumps(self._plan.circuits()),
            "RESILIENCE_MONITORING_INTERVAL": "2",
            "ARTICLES_DIR": str(self.articles),
        }
        if self._server.space:
            settings["OMNI_KEY_PREFIX"] = self._server.space
        return settings


def _inherited() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not _FOREIGN.fullmatch(name)}
    return kept | {"NO_PROXY": "127.0.0.1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
