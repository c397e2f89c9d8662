"""
pytest-celery's nodes on plain processes: a server or a worker where the plugin expects a container.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import celery
from pytest_celery import CeleryTestContainer

from omni_tasks.embedded import EmbeddedServer
from tests.support.worker import Worker

__all__ = ["ServerNode", "WorkerNode"]


class _Process(CeleryTestContainer):
    """
    What a node asks of its container, but for starting and killing.
    """

    def __init__(self, name: str) -> None:
        """
        Be called *name*; the base would ask Docker.
        """
        self._name = name

    @property
    def id(self) -> str:
        """
        What else identifies it: its name.
        """
        return self._name

    @property
    def name(self) -> str:
        """
        Its name.
        """
        return self._name

    def reload(self) -> None:
        """
        Nothing is remembered, so nothing has to be asked anew.
        """

    def ready(self) -> bool:
        """
        Whether it answers: its start has waited for that.
        """
        return bool(self.status == "running")


class ServerNode(_Process):
    """
    Broker and result backend.
    """

    def __init__(self, server: EmbeddedServer) -> None:
        """
        Stand for *server*.
        """
        super().__init__("server")
        self._server = server

    @property
    def celeryconfig(self) -> dict[str, Any]:
        """
        Where it is.
        """
        return {"url": self._server.url, "host_url": self._server.url}

    @property
    def status(self) -> str:
        """
        In Docker's words.
        """
        return "running" if self._server.running else "exited"

    def kill(self, signal: str | int = "SIGKILL") -> None:  # noqa: ARG002 - the plugin's own signature
        """
        Take it away.
        """
        self._server.kill()

    def restart(self, timeout: int = 10) -> None:  # noqa: ARG002 - the plugin's own signature
        """
        Bring it back under its address, with what it has on disk.
        """
        self._server.restart()


class WorkerNode(_Process):
    """
    A ``celery worker``.
    """

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        """
        Start one.
        """
        super().__init__("worker")
        self._start: Callable[[], Worker] = lambda: Worker(environment, folder)
        self._worker = self._start()

    @property
    def status(self) -> str:
        """
        In Docker's words.
        """
        return "running" if self._worker.process.poll() is None else "exited"

    def logs(self) -> str:
        """
        What it has logged.
        """
        return self._worker.log

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """
        Send a signal to the whole process group: children survive their parent otherwise.
        """
        os.killpg(self._worker.process.pid, _number(signal))
        self._worker.process.wait(timeout=20)

    def restart(self, timeout: int = 10) -> None:  # noqa: ARG002 - the plugin's own signature
        """
        Stop it and start another.
        """
        self._worker.stop()
        self._worker = self._start()

    def teardown(self) -> None:
        """
        Stop it.
        """
        self._worker.stop()

    def version(self) -> str:
        """
        Celery's.
        """
        return str(celery.__version__)

    def worker_name(self) -> str:
        """
        The part of its host name before the at sign.
        """
        return "worker"

    def worker_queue(self) -> str:
        """
        The queue it serves.
        """
        return "celery"

    def log_level(self) -> str:
        """
        The level it was started with.
        """
        return "INFO"


def _number(name: str | int) -> int:
    return signal.Signals[name] if isinstance(name, str) else name
