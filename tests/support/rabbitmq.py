"""
RabbitMQ for tests: the machine's own server, and nodes that a test may kill.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import amqp
import pytest
from kombu.connection import Connection

from omni_tasks.tied import spawn_tied
from tests.support.eventually import eventually

__all__ = ["AMQP_URL", "RabbitNode", "channel_to", "quorum_options", "require_rabbitmq"]

#: The machine's own server.
AMQP_URL = os.environ.get("OMNI_TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//")

#: Where Debian puts the programs; those on PATH change the user first.
_FOLDER = Path("/usr/lib/rabbitmq/bin")


def require_rabbitmq() -> None:
    """
    Skip the test where there is no server on a laptop; fail it in CI.
    """
    if not _answers(AMQP_URL):
        missing(f"no RabbitMQ at {AMQP_URL}; OMNI_TEST_AMQP_URL names another")


def missing(what: str) -> None:
    """
    Fail in CI, skip elsewhere.
    """
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


@contextlib.contextmanager
def channel_to(url: str) -> Iterator[amqp.Channel]:
    """
    A channel of the test's own.
    """
    with Connection(url, heartbeat=0, connect_timeout=2) as connection:
        yield connection.channel()


def quorum_options(queue: str) -> dict[str, str]:
    """
    Celery's configuration for a quorum queue of that name, with native delayed delivery.
    """
    return {
        "task_default_queue": queue,
        "task_default_queue_type": "quorum",
        "task_default_exchange": f"{queue}-topic",
        "task_default_exchange_type": "topic",
        "task_default_routing_key": queue,
    }


class RabbitNode:
    """
    A node of the test's own, on ports nobody else uses, with its data in *folder*.
    """

    def __init__(self, folder: Path) -> None:
        """
        Start it and wait until it takes connections: ten seconds on a quiet machine.
        """
        if not (_FOLDER / "rabbitmq-server").exists():
            missing(f"there is no {_FOLDER}/rabbitmq-server")
        self._folder = folder
        self._port, self._dist_port = _free_port(), _free_port()
        self._name = f"omni{self._port}@localhost"
        self._environment = {
            "HOME": str(folder),
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            # One scheduler: a node on two busy cores must not starve the workers beside it.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
        }
        self.url = f"amqp://guest:guest@127.0.0.1:{self._port}//"
        self._process = self._start()

    def kill(self) -> None:
        """
        SIGKILL it, as a lost machine would.
        """
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=10)

    def restart(self) -> None:
        """
        Start it again on the same port, with what it had on disk.
        """
        self._process = self._start()

    def control(self, *words: str) -> None:
        """
        Tell it something through rabbitmqctl.
        """
        command = [str(_FOLDER / "rabbitmqctl"), "--node", self._name, *words]
        subprocess.run(command, check=True, timeout=60, capture_output=True, env={**os.environ, **self._environment})

    def stop(self) -> None:
        """
        End it.
        """
        if self._process.poll() is None:
            self.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        (self._folder / "enabled_plugins").write_text("[].\n")
        with (self._folder / "node.log").open("ab") as log:
            process = spawn_tied(
                [str(_FOLDER / "rabbitmq-server")],
                output=log,
                cwd=self._folder,
                env={**os.environ, **self._environment},
            )
        eventually(lambda: _answers(self.url), within=60, what=f"RabbitMQ, see {self._folder}/node.log")
        return process


def _answers(url: str) -> bool:
    try:
        with Connection(url, heartbeat=0, connect_timeout=2) as connection:
            connection.ensure_connection(max_retries=1, timeout=2)
    except Exception:  # noqa: BLE001 - kombu lists its transport's errors only once it is connected
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
