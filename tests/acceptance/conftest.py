"""
A worker, a dependency, a circuit with short times.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from omni_tasks import CircuitBreaker, CircuitBreakerConfig, get_lot, init_app
from omni_tasks.breaker import open_store
from omni_tasks.embedded import EmbeddedServer, start_server
from omni_tasks.integration.held import Parking
from tests.support.dependency import Dependency
from tests.support.eventually import eventually
from tests.support.rabbitmq import AMQP_URL, channel_to, quorum_options, require_rabbitmq
from tests.support.worker import Worker

#: The environment of a worker that fetches from Redis in our way.
OUR_FETCH = {"TEST_BROKER_TRANSPORT": "omni_tasks.integration.fetch:Transport"}


@dataclass
class Stage:
    """
    Everything one acceptance test plays with.
    """

    server: EmbeddedServer
    prefix: str
    folder: Path
    dependency: Dependency
    circuit: dict[str, Any]
    broker_url: str = ""
    parking: str = "broker"
    queue: str = "celery"
    quorum: bool = False
    transport: dict[str, Any] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """
        What a worker of this stage is started with.
        """
        return {
            "TEST_BROKER_URL": self.broker_url or self.server.url,
            "TEST_RESULT_BACKEND": self.server.url,
            "TEST_QUEUE": self.queue,
            "TEST_TRANSPORT_OPTIONS": json.dumps(self.transport),
            "OMNI_PARKING": self.parking,
            **({"TEST_QUORUM": "1"} if self.quorum else {}),
            "OMNI_REDIS_URL": self.server.url,
            "TEST_FOLDER": str(self.folder),
            "OMNI_KEY_PREFIX": self.prefix,
            "OMNI_CIRCUITS": json.dumps({"dep": self.circuit, "outer": {"failure_threshold": 1000}}),
        }

    def worker(self, **options: Any) -> Worker:
        """
        Start a worker.
        """
        extra = options.pop("environment", {})
        worker = Worker({**self.environment(), **extra}, self.folder, **options)
        self.workers.append(worker)
        return worker

    @cached_property
    def breaker(self) -> CircuitBreaker:
        """
        The circuit, asked from outside the workers.
        """
        config = CircuitBreakerConfig(name="dep", **self.circuit)
        return CircuitBreaker(config, store=open_store(self.server.url, prefix=self.prefix))

    @property
    def lot(self) -> Parking:
        """
        The held tasks.
        """
        return get_lot(self.app)

    @cached_property
    def app(self) -> Celery:
        """
        A client's application.
        """
        broker = self.broker_url or self.server.url
        app = Celery("client", broker=broker, backend=self.server.url, set_as_current=False)
        app.conf.update(task_default_queue=self.queue, broker_transport_options=self.transport)
        if self.quorum:
            app.conf.update(quorum_options(self.queue))
        options = {"redis_url": self.server.url, "parking": self.parking}
        init_app(app, key_prefix=self.prefix, circuits={"dep": self.circuit}, **options)
        return app

    def trip(self) -> None:
        """
        Open the circuit the way it opens in life: by tasks that fail.
        """
        self.dependency.set(up=False)
        self.send("plain", self.circuit["failure_threshold"])
        eventually(lambda: self.breaker.state == "open", within=20, what="circuit open")

    def told(self) -> str:
        """
        Which error a ``link_error`` was told of; empty while none was.
        """
        note = self.folder / "told"
        return note.read_text() if note.exists() else ""

    def held(self) -> int:
        """
        How many tasks wait now.
        """
        return self.lot.counts(["dep"])["dep"]

    def park_by_hand(self, count: int) -> None:
        """
        Hold the first tasks of the queue, without a worker.
        """
        with self.app.connection_for_write() as connection:
            channel = connection.channel()
            for _ in range(count):
                message = channel.message_to_python(channel.basic_get(self.queue))
                self.lot.park("dep", message, 1.0)
                message.ack()

    def left(self) -> int:
        """
        How many messages are in the broker's queues; on Redis also those that some worker has not acknowledged.
        """
        if self.broker_url:
            with channel_to(self.broker_url) as channel:
                return int(channel.queue_declare(self.queue, passive=True).message_count)
        client = redis.Redis.from_url(self.server.url)
        # kombu has a list for each priority.
        return sum(client.llen(key) for key in client.scan_iter(f"{self.queue}*", _type="list")) + client.hlen(
            "unacked"
        )

    def send(self, name: str, count: int = 1, **options: Any) -> list[Any]:
        """
        Send tasks of :mod:`tests.support.app`.
        """
        sent = [self.app.send_task(f"tests.support.app.{name}", **options) for _ in range(count)]
        self.results += sent
        return sent


@pytest.fixture
def stage(tmp_path: Path, key_prefix: str) -> Iterator[Callable[..., Stage]]:
    """
    Make a stage: its own server, a dependency that is up, a circuit with the options given.
    """
    stages: list[Stage] = []

    def make(broker_url: str = "", parking: str = "broker", **circuit: Any) -> Stage:
        server = start_server(data_dir=tmp_path)
        dependency = Dependency(tmp_path)
        dependency.set(up=True)
        options = {"failure_threshold": 3, "recovery_timeout": 1.0, "probe_lease": 5.0, **circuit}
        # Only the server of a stage is its own: on a broker that others use, so must the queue's name be.
        queue = f"{key_prefix}-celery" if broker_url else "celery"
        made = Stage(server, key_prefix, tmp_path, dependency, options, broker_url, parking, queue)
        if broker_url == "filesystem://":
            (tmp_path / "queues").mkdir()
            folders = ("data_folder_in", "data_folder_out", "control_folder")
            made.transport = dict.fromkeys(folders, str(tmp_path / "queues"))
        stages.append(made)
        return made

    yield make
    for made in stages:
        # A result unsubscribes when it is collected, with many retries where its server is gone.
        for result in made.results:
            made.app.backend.remove_pending_result(result)
        # Nor may one unsubscribe when it is collected: Celery before 5.6 tries for minutes where its server is gone.
        made.app.backend.result_consumer._pubsub = None
        made.app.close()
        for worker in made.workers:
            worker.stop()
        made.server.stop()
        if made.broker_url == AMQP_URL:
            with channel_to(AMQP_URL) as channel:
                for name in (made.queue, f"{made.queue}-none", f"{key_prefix}:held:dep", f"{key_prefix}:dead:held:dep"):
                    channel.queue_delete(name)


@pytest.fixture
def stage_on(stage: Callable[..., Stage]) -> Callable[..., Stage]:
    """
    Make a stage on the broker of that name: ``redis``, ``rabbitmq``, or ``quorum`` for RabbitMQ's replicated queues.
    """

    def make(broker: str, **circuit: Any) -> Stage:
        if broker == "redis":
            return stage(**circuit)
        require_rabbitmq()
        play = stage(AMQP_URL, **circuit)
        play.quorum = broker == "quorum"
        return play

    return make
