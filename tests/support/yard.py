"""
One queue and the place its tasks wait in, without a worker: messages are received and put back by hand.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from celery import Celery
from kombu.entity import Queue
from kombu.message import Message
from kombu.messaging import Consumer
from kombu.utils.encoding import str_to_bytes

from omni_tasks import init_app
from omni_tasks.integration.held import Parking
from omni_tasks.integration.install import integration_of

__all__ = ["Received", "Yard"]


class Received(Message):
    """
    A message, and how it was in its queue.

    Attributes:
        raw: Body, headers and properties, before kombu unpacked anything.
    """

    raw: dict[str, Any]


class Yard:
    """
    An application on some broker, and one connection that receives.
    """

    def __init__(self, broker_url: str, store_url: str, *, prefix: str, **options: Any) -> None:
        """
        Make the queue; *options* are Celery's and, with ``omni_``, ours.
        """
        self.name = f"{prefix}-work"
        self.app = Celery(prefix, broker=broker_url, backend=store_url, set_as_current=False)
        self.app.conf.update({"accept_content": ["json", "pickle"], "task_create_missing_queues": True, **options})
        self.app.conf.task_default_queue = self.name
        init_app(self.app, redis_url=store_url, key_prefix=prefix, circuits={"dep": {}})
        self.connection = self.app.connection_for_write()
        self.channel = self.connection.channel()
        kind = options.get("task_default_queue_type", "classic")
        arguments = {"x-queue-type": kind} if kind != "classic" else None
        Queue(self.name, durable=True, queue_arguments=arguments)(self.channel).declare()

    @property
    def place(self) -> Parking:
        """
        Where its tasks wait.
        """
        return integration_of(self.app).lot

    @property
    def on_amqp(self) -> bool:
        """
        Whether the broker is RabbitMQ.
        """
        return bool(self.connection.transport.driver_type == "amqp")

    def consume(self, *queues: Queue, expect: int, then: Callable[[Message], None]) -> int:
        """
        Receive *expect* messages from *queues* as a worker does, and more, where more come in a moment.

        Args:
            queues: Of any names.

            expect: How many are there.

            then: Done with each while the queues are still consumed.

        Returns:
            How many there were.
        """
        found: list[Message] = []
        consumer = Consumer(self.channel, queues, on_message=found.append)
        integration_of(self.app).consumer = SimpleNamespace(task_consumer=consumer)
        with consumer:
            with suppress(TimeoutError):
                while True:
                    self.connection.drain_events(timeout=0.3 if len(found) >= expect else 10)
            for message in found:
                then(message)
        return len(found)

    def receive(self, expect: int) -> list[Received]:
        """
        Fetch *expect* messages from the yard's queue; more, where there are more.
        """
        found: list[Received] = []
        deadline = time.monotonic() + 10
        while True:
            message = self.channel.basic_get(self.name)
            if message is not None:
                found.append(self._seen(message))
            elif len(found) >= expect:
                return found
            else:
                assert time.monotonic() < deadline, f"{len(found)} of {expect} messages in {self.name}"

    def _seen(self, message: Any) -> Received:
        body, properties = message.body, copy.deepcopy(message.properties)
        received: Received = self.channel.message_to_python(message)
        if self.on_amqp:
            headers = properties.pop("application_headers")
            received.raw = {"body": str_to_bytes(body), "headers": headers, "properties": properties}
        else:
            received.raw = copy.deepcopy(vars(received)["_raw"])
            del received.raw["properties"]["delivery_tag"]
        return received

    def close(self) -> None:
        """
        Delete what was made.
        """
        if self.on_amqp:
            for name in (self.name, f"{self.app.main}:held:dep"):
                self.channel.queue_delete(name)
            self.channel.exchange_delete(self.name)
        self.connection.release()
        self.app.close()
