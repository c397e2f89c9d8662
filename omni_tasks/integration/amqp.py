"""
What must be known of AMQP to set a message aside, and nothing else.

Messages are published on a connection of their own, so that nothing that goes
wrong here closes the channel the worker consumes on.  A publish counts when the
broker has confirmed it and has not returned it: without the confirmation a
broker that dies loses it, and a message to a queue that is not there is
confirmed too.

Source:
    py-amqp 5.4: ``amqp.Channel.basic_publish``, ``_on_basic_return``,
    ``amqp.basic_message.Message``; kombu 5.7: ``kombu.transport.pyamqp``,
    ``kombu.Consumer._active_tags``.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import amqp
from celery import Celery
from kombu.compression import compress
from kombu.message import Message

from omni_tasks.errors import ParkingError
from omni_tasks.integration.carrier import Parcel

__all__ = ["AmqpCarrier"]

#: Seconds the broker has for one answer, a confirmation included.  The worker's own loop waits meanwhile.
_TIMEOUT = 2.0

#: Seconds a broker that did not answer is left alone.
_PAUSE = 5.0

#: Headers that RabbitMQ itself writes.  Carried on, they would say of the new message what happened to the old.
_BROKERS_OWN = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")

_BASIC_CLASS = 60
_LENGTH = struct.Struct(">I")


class AmqpCarrier:
    """
    Reads and publishes raw messages on RabbitMQ.  Thread-safe; no connection is made before the first use.
    """

    def __init__(self, app: Celery, consumer: Callable[[], Any]) -> None:
        """
        Speak to the broker of *app*; *consumer* returns the worker's consumer, or ``None``.
        """
        self._app = app
        self._consumer = consumer
        self._lock = threading.RLock()
        self._queues: dict[str, str] = {}
        self._connection: Any = None
        self._channel: Any = None
        self._away_until_monotonic = 0.0
        self._published = 0
        self._unconfirmed: set[int] = set()
        self._unroutable: set[str] = set()
        self._refused = False

    # Reading.

    def queue_of(self, message: Message) -> str:
        """
        The queue that *message* was received from.

        Raises:
            ParkingError: That cannot be told; putting it back by its exchange could multiply or lose it.
        """
        info: Mapping[str, Any] = message.delivery_info or {}
        tag = info.get("consumer_tag")
        active = getattr(getattr(self._consumer(), "task_consumer", None), "_active_tags", {})
        # Kept: a message may still wait here when its queue is no longer consumed.
        self._queues.update({active_tag: str(queue) for queue, active_tag in list(active.items())})
        if tag in self._queues:
            return self._queues[tag]
        if not info.get("exchange") and info.get("routing_key"):
            return str(info["routing_key"])
        raise ParkingError(
            f"cannot tell which queue the message came from: this worker no longer consumes with the tag it "
            f"was received by, {tag!r}"
        )

    def content_of(self, message: Message) -> amqp.Message:
        """
        The message as it was sent: body and properties as received, without what the broker has added.
        """
        properties = dict(message.properties)
        headers = properties.pop("application_headers", None) or {}
        body = message.body
        if "compression" in headers and not message.errors:
            # kombu has unpacked it, and left no copy.
            body, _ = compress(body, headers["compression"])
        return _content(body, headers, properties)

    def pack(self, message: Message, headers: Mapping[str, Any]) -> Parcel:
        """
        Take a received message apart, with our own *headers* added.

        Raises:
            ParkingError: It cannot be told which queue it came from.
        """
        queue, content = self.queue_of(message), self.content_of(message)
        copy = copy_of(queue, content)
        priority = content.properties.get("priority") or 0
        return Parcel(queue, copy, 9 - min(priority, 9), _packed(with_headers(content, headers)))

    def headers_of(self, content: bytes) -> dict[str, Any]:
        """
        The headers of a packed message.
        """
        return dict(_unpacked(content).headers or {})

    # Publishing.

    def send(self, parcels: Sequence[tuple[str, bytes]], headers: Mapping[str, Any]) -> set[str]:
        """
        Put packed messages into queues, confirmed, with *headers* added.

        Returns:
            Queues that are not there: what was meant for them was sent nowhere.

        Raises:
            ParkingError: The broker did not answer for all of them; any of them may have arrived.
        """
        with self.channel() as channel:
            return self.publish(
                channel, [(queue, with_headers(_unpacked(content), headers)) for queue, content in parcels]
            )

    def publish(self, channel: Any, messages: Sequence[tuple[str, amqp.Message]]) -> set[str]:
        """
        Put messages into queues and wait until the broker has confirmed them all.

        Args:
            channel: From :meth:`channel`.

            messages: Pairs of queue and message.

        Returns:
            Queues that are not there: what was meant for them was sent nowhere.
        """
        self._unroutable, self._refused = set(), False
        for queue, message in messages:
            self._published += 1
            self._unconfirmed.add(self._published)
            channel.basic_publish(message, exchange="", routing_key=queue, mandatory=True)
        deadline = time.monotonic() + _TIMEOUT
        while self._unconfirmed:
            channel.connection.drain_events(timeout=max(deadline - time.monotonic(), 0.001))
        if self._refused:
            raise ParkingError("RabbitMQ refused a message (basic.nack): its queue is full or has no leader")
        return self._unroutable

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """
        The channel, for one caller at a time.

        Raises:
            amqp.NotFound, amqp.PreconditionFailed: The queue asked for is not there, or is of another kind.

            ParkingError: Whatever else went wrong with the broker meanwhile.
        """
        with self._lock:
            wait = self._away_until_monotonic - time.monotonic()
            if wait > 0:
                raise ParkingError(f"RabbitMQ did not answer; it is asked again in {wait:.1f} s")
            try:
                yield self._open()
            except ParkingError:
                # What was fetched and not acknowledged goes back with the connection.
                self.close()
                raise
            except (amqp.NotFound, amqp.PreconditionFailed):
                # py-amqp has opened the channel anew already, but without confirmations.
                self._channel.close()
                self._channel = None
                raise
            except Exception as error:
                self.close()
                if isinstance(error, TimeoutError | ConnectionRefusedError):
                    # Each further try would keep the worker's loop waiting as long again.
                    self._away_until_monotonic = time.monotonic() + _PAUSE
                raise ParkingError(f"RabbitMQ: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """
        Give the connection back; the next use makes a new one.
        """
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with suppress(Exception):
                # Without a word of good-bye: it may be this that the broker does not answer.
                connection.collect()

    def _open(self) -> Any:
        if self._connection is None:
            # No heartbeat: nobody would send it.  The time-outs find a peer that has gone.
            self._connection = self._app.connection_for_write(
                heartbeat=0,
                connect_timeout=_TIMEOUT,
                transport_options={"confirm_publish": False, "read_timeout": _TIMEOUT, "write_timeout": _TIMEOUT},
            )
            self._connection.connect()
        if self._channel is None:
            self._channel = self._connection.channel()
            self._channel.confirm_select()
            self._channel.events["basic_ack"].add(self._on_confirmed)
            self._channel.events["basic_nack"].add(self._on_refused)
            self._channel.events["basic_return"].add(self._on_returned)
            self._published = 0
            self._unconfirmed = set()
        return self._channel

    def _on_confirmed(self, tag: int, multiple: bool) -> None:  # noqa: FBT001 - py-amqp's callback
        self._unconfirmed = {other for other in self._unconfirmed if (other > tag if multiple else other != tag)}

    def _on_refused(self, tag: int, multiple: bool) -> None:  # noqa: FBT001 - py-amqp's callback
        self._refused = True
        self._on_confirmed(tag, multiple)

    def _on_returned(self, _error: Exception, _exchange: str, routing_key: str, _message: amqp.Message) -> None:
        self._unroutable.add(routing_key)


def copy_of(queue: str, content: amqp.Message) -> str:
    """
    What identifies this copy of a message: all that it carries, and the queue it is in.

    A task's id does not: an exchange puts equal messages into several queues, a
    retry has the id of the run before.  Each parking changes the copy, because
    it counts the holds in a header.
    """
    return hashlib.sha256(queue.encode() + b"\0" + _packed(content)).hexdigest()


def with_headers(content: amqp.Message, headers: Mapping[str, Any]) -> amqp.Message:
    """
    The same message with *headers* put last; one whose value is ``None`` is taken out.
    """
    kept = {name: value for name, value in (content.headers or {}).items() if name not in headers}
    properties = {name: value for name, value in content.properties.items() if name != "application_headers"}
    added = {name: value for name, value in headers.items() if value is not None}
    return amqp.Message(content.body, application_headers={**kept, **added}, **properties)


def received(message: amqp.Message) -> amqp.Message:
    """
    A message that was fetched, without what the broker has added.
    """
    properties = dict(message.properties)
    return _content(message.body, properties.pop("application_headers", None) or {}, properties)


def _content(body: Any, headers: Mapping[str, Any], properties: Mapping[str, Any]) -> amqp.Message:
    theirs = {name: value for name, value in headers.items() if not name.startswith(_BROKERS_OWN)}
    return amqp.Message(body, application_headers=theirs, **properties)


def _packed(content: amqp.Message) -> bytes:
    properties: bytes = content._serialize_properties()  # noqa: SLF001 - AMQP's own encoding of every property
    body = content.body
    if isinstance(body, str):
        # As py-amqp writes it to the socket.
        body = body.encode(content.properties.get("content_encoding") or "utf-8")
    return _LENGTH.pack(len(properties)) + properties + bytes(body)


def _unpacked(packed: bytes) -> amqp.Message:
    (length,) = _LENGTH.unpack_from(packed)
    content = amqp.Message(packed[_LENGTH.size + length :])
    content._load_properties(_BASIC_CLASS, packed[_LENGTH.size : _LENGTH.size + length], 0)  # noqa: SLF001 - see above
    return content
