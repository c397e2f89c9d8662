"""
What must be known of kombu's virtual transports: filesystem, SQLAlchemy, SQS, memory, Redis and the like.

They have no exchanges of their own.  kombu keeps the bindings and puts a
message into each queue they lead to, so a message that was received no longer
says which queue it was in; a worker's transport does, when it hands it over.

Source:
    ``kombu.transport.virtual`` (5.7): ``Transport._deliver``, ``Channel._put``,
    ``Message._raw``.
"""

from __future__ import annotations

import functools
import hashlib
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery import Celery, bootsteps
from kombu.message import Message
from kombu.transport import virtual
from kombu.utils.json import dumps, loads

from omni_tasks.errors import ParkingError
from omni_tasks.integration.carrier import Parcel

__all__ = ["StampStep", "VirtualCarrier", "queue_of", "raw_of"]

#: Where the queue stands in a message's delivery information, while a worker has it.
_STAMP = "omni_queue"

#: What a delivery changes.  Carried on, it would say of the new message what happened to the old.
_OF_DELIVERY = frozenset({_STAMP, "redelivered"})


class StampStep(bootsteps.StartStopStep):
    """
    Makes each message that the worker receives say which queue it was in.
    """

    requires = ("celery.worker.consumer.connection:Connection",)

    def start(self, consumer: Any) -> None:
        """
        Stamp what this connection delivers.
        """
        transport = consumer.connection.transport
        if isinstance(transport, virtual.Transport):
            # kombu has no hook here.
            deliver = functools.partial(_deliver_stamped, transport._deliver)  # noqa: SLF001
            vars(transport)["_deliver"] = deliver


def _deliver_stamped(deliver: Callable[[Any, Any], None], message: Any, queue: Any) -> None:
    properties = message.get("properties") if isinstance(message, dict) else None
    if isinstance(properties, dict) and isinstance(properties.get("delivery_info"), dict):
        properties["delivery_info"][_STAMP] = str(queue)
    deliver(message, queue)


def queue_of(message: Message) -> str:
    """
    The queue that *message* was received from.

    Raises:
        ParkingError: That cannot be told; putting it back by its exchange could multiply or lose it.
    """
    info: Mapping[str, Any] = message.delivery_info or {}
    if info.get(_STAMP):
        return str(info[_STAMP])
    exchange, routing_key = info.get("exchange") or "", info.get("routing_key") or ""
    if exchange:
        # Only where the transport does not deliver by kombu's own way, as SQS's asynchronous one.
        queues = sorted(message.channel._lookup(exchange, routing_key))  # noqa: SLF001 - kombu offers no public look-up
        if len(queues) != 1:
            raise ParkingError(
                f"cannot tell which queue the message came from: exchange {exchange!r} with routing key "
                f"{routing_key!r} leads to {queues or 'no queue'}; bind exactly one queue to it"
            )
        return str(queues[0])
    if not routing_key:
        raise ParkingError("cannot tell which queue the message came from: it names no exchange and no routing key")
    return str(routing_key)


def raw_of(message: Message, headers: Mapping[str, Any]) -> dict[str, Any]:
    """
    The message as it was in its queue, with our own *headers* put last and a delivery tag of its own.

    Body, headers and properties stay as they were received.  The tag is new,
    because kombu keeps unacknowledged messages by tag; a header whose value is
    ``None`` is taken out.
    """
    raw = message._raw  # type: ignore[attr-defined] # noqa: SLF001 - a virtual transport's message: what was in the queue; the public fields are decoded copies
    kept = {name: value for name, value in raw["headers"].items() if name not in {*headers, "redelivered"}}
    added = {name: value for name, value in headers.items() if value is not None}
    properties = {**raw["properties"], "delivery_tag": str(uuid.uuid4())}
    if isinstance(properties.get("delivery_info"), dict):
        properties["delivery_info"] = {k: v for k, v in properties["delivery_info"].items() if k not in _OF_DELIVERY}
    return {**raw, "headers": {**kept, **added}, "properties": properties}


class VirtualCarrier:
    """
    Reads and publishes raw messages on a virtual transport.  Thread-safe.
    """

    def __init__(self, app: Celery) -> None:
        """
        Speak to the broker of *app*; no connection is made before the first use.
        """
        self._app = app
        self._lock = threading.RLock()
        self._channel: Any = None

    def copy_of(self, message: Message) -> str:
        """
        What identifies this copy: all that it carries but what a delivery changes, and its queue.
        """
        raw = raw_of(message, {})
        properties = {k: v for k, v in raw["properties"].items() if k not in {"delivery_tag", "delivery_info"}}
        carried = dumps([queue_of(message), raw.get("body"), raw["headers"], properties], sort_keys=True)
        return hashlib.sha256(carried.encode()).hexdigest()

    def pack(self, message: Message, headers: Mapping[str, Any]) -> Parcel:
        """
        Take a received message apart, with our own *headers* added.

        Raises:
            ParkingError: It cannot be told which queue it came from.
        """
        # What a priority means differs from transport to transport, and most ignore it.
        return Parcel(queue_of(message), self.copy_of(message), 0, dumps(raw_of(message, headers)).encode())

    def headers_of(self, content: bytes) -> dict[str, Any]:
        """
        The headers of a packed message.
        """
        return dict(loads(content)["headers"])

    def send(self, parcels: Sequence[tuple[str, bytes]], headers: Mapping[str, Any]) -> set[str]:
        """
        Put packed messages into queues; the transport answers when it has them.

        Returns:
            The empty set: where a queue is missing these transports make it.

        Raises:
            ParkingError: The broker did not take them all; some may have arrived.
        """
        for queue, content in parcels:
            raw = loads(content)
            self.put(queue, {**raw, "headers": {**raw["headers"], **headers}})
        return set()

    def put(self, queue: str, raw: Mapping[str, Any]) -> None:
        """
        Put one message into *queue*.

        Raises:
            ParkingError: The broker did not take it.
        """
        with self._lock:
            try:
                if self._channel is None:
                    self._channel = self._app.connection_for_write().channel()
                self._channel._put(queue, dict(raw))  # noqa: SLF001 - the public way goes through an exchange
            except Exception as error:
                # Whatever it is, the message must stay where it is: anything else would lose it.
                self._channel = None
                raise ParkingError(f"the broker did not take the task: {type(error).__name__}: {error}") from error
