"""
A dependency, a worker, a beat and an exporter, watched by a :class:`Watchtower`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery
from celery.result import AsyncResult

from demo.processes import Processes
from omni_tasks.embedded import EmbeddedServer, start_server
from tests.support.dependency import Dependency
from tests.support.eventually import eventually
from tests.support.http_server import HttpServer, Reply
from tests.support.watchtower import Watchtower, free_port
from tests.support.worker import ROOT

__all__ = ["CIRCUIT", "Rig", "rig"]

APP = "tests.support.app"

#: The circuit of that application.
CIRCUIT = "dep"

CELERY = [sys.executable, "-m", "celery", "-A", APP]

#: The package's own command, beside the Python it is installed for.
OMNI = Path(sys.executable).with_name("omni")


@dataclass(frozen=True)
class Rig:
    """
    What a test holds in its hands.
    """

    server: EmbeddedServer
    dependency: Dependency
    tower: Watchtower
    app: Celery
    sent: list[AsyncResult] = field(default_factory=list)

    def send(self, count: int) -> None:
        """
        Send tasks that call the dependency once.
        """
        self.sent.extend(self.app.send_task(f"{APP}.plain") for _ in range(count))

    def done(self) -> bool:
        """
        Whether every task that was sent has ended.
        """
        return all(result.ready() for result in self.sent)

    def forget(self) -> None:
        """
        Let go of the tasks: a result unsubscribes when it is collected, with many retries where its server is gone.
        """
        for result in self.sent:
            self.app.backend.remove_pending_result(result)

    def state(self) -> float | None:
        """
        The circuit's state, as Prometheus knows it.
        """
        return self.tower.value(f'circuit_breaker_state{{component="{CIRCUIT}"}}')


@contextmanager
def rig(tools: Path, folder: Path, **circuit: Any) -> Iterator[Rig]:
    """
    Start everything, and wait until Prometheus knows the circuit.

    Args:
        tools: Folder of Prometheus' and Alertmanager's programs.

        folder: For logs, data and the dependency's ledger.

        circuit: Options of the circuit.
    """
    with ExitStack() as stack:
        hook = stack.enter_context(HttpServer())
        hook.reply = Reply()
        server = stack.enter_context(start_server())
        processes = Processes(ROOT, folder)
        stack.callback(processes.stop)
        exporter = free_port()
        tower = Watchtower(tools, folder, hook, f"127.0.0.1:{exporter}")
        stack.callback(tower.close)
        environment = {
            **os.environ,
            "TEST_BROKER_URL": server.url,
            "TEST_FOLDER": str(folder),
            # The application has a task of another circuit, too.
            "OMNI_CIRCUITS": json.dumps({CIRCUIT: {"monitor_interval": 1, **circuit}, "outer": {}}),
            "RESILIENCE_MONITORING_INTERVAL": "1",
            "OMNI_ALERT_SINKS": f"log,alertmanager+http://{tower.alertmanager}",
        }
        processes.start("worker", [*CELERY, "worker", "--concurrency", "4"], environment)
        processes.start("beat", [*CELERY, "beat", "--pidfile=", "--schedule", str(folder / "schedule")], environment)
        log = processes.start("exporter", [str(OMNI), "exporter", "--port", str(exporter), "--app", APP], environment)
        # Only then, or the first alert would be about the exporter.
        eventually(lambda: "/metrics" in log.read_text(), within=30, what=f"exporter, see {log}")
        tower.start(processes)
        app = stack.enter_context(Celery("client", broker=server.url, backend=server.url, set_as_current=False))
        made = Rig(server, Dependency(folder), tower, app)
        stack.callback(made.forget)

        def known() -> bool:
            processes.check()
            return made.state() is not None

        eventually(known, within=30, what=f"series of the circuit, see {folder}")
        yield made
