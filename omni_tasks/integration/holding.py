"""
Holding queues: where held tasks wait on RabbitMQ.

A circuit has one, durable and of our own; nobody consumes it.  The mover takes
from it what the circuit lets go and publishes it to the queue it came from.
Between any two steps the message is in one of the two queues: it is published
with the broker's confirmation first and acknowledged where it was then.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import amqp
from kombu.message import Message

from omni_tasks.errors import ParkingError
from omni_tasks.integration.amqp import AmqpCarrier, copy_of, received, with_headers
from omni_tasks.integration.held import (
    CIRCUIT_HEADER,
    DUE,
    HELD_SINCE_HEADER,
    HOLDS_HEADER,
    NO_LIMITS,
    SUCCEEDS_HEADER,
    TICKET_HEADER,
    HeldTask,
    Limits,
    held_task,
    whole,
)
from omni_tasks.integration.ledger import Arrival, Ledger, successor_of

__all__ = ["DEADLINE_HEADER", "PROPERTIES_HEADER", "QUEUE_HEADER", "QUORUM", "HoldingQueues"]

logger = logging.getLogger(__name__)

#: Only while a message is held: the queue it goes back to, its properties that must not act on it here, and when it
#: must leave, in Unix ms.
QUEUE_HEADER = "omni_queue"
PROPERTIES_HEADER = "omni_properties"
DEADLINE_HEADER = "omni_deadline"

#: Where a received message keeps what its successor must carry, in its ``delivery_info``: that is sent nowhere.
_NUMBER = "omni_number"

_GONE = "Holding queue %r is gone, with what it held; the next task that is held makes it anew"

#: AMQP: the broker drops what has outlived its ``expiration``, and forgets at a restart what is not in mode 2.
_ASIDE = ("expiration", "delivery_mode")
_PERSISTENT = 2

#: Longest name of a queue in AMQP, in bytes.
_LONGEST_NAME = 255

#: Most messages moved before they are acknowledged, and in one call: the worker's loop waits meanwhile.
_BATCH, _MOVE_AT_ONCE = 50, 200

#: Seconds between two looks whether another worker has made a holding queue.
_LOOK_AGAIN = 1.0

#: Most circuits that are not listed as holding any that are looked at in one go.
_LOOKS_AT_ONCE = 20

#: Seconds between two looks for tasks that must leave whatever their circuit says.  A look takes messages out.
_LOOK_FOR_UNWANTED = 10.0

#: As kombu numbers priorities.
_CLASSIC: Mapping[str, Any] = MappingProxyType({"x-max-priority": 9})

#: Without a limit a message that was only looked at goes to the end of a quorum queue; and from RabbitMQ 4 on the limit
#: is 20 where none is named, beyond which it is dropped.
QUORUM: Mapping[str, Any] = MappingProxyType({"x-queue-type": "quorum", "x-delivery-limit": 2**31 - 1})


class HoldingQueues:
    """
    The held tasks of one application on RabbitMQ.
    """

    def __init__(self, carrier: AmqpCarrier, ledger: Ledger, *, prefix: str, quorum: bool) -> None:
        """
        Hold tasks in queues whose names begin with *prefix*.

        Args:
            carrier: To the broker.

            ledger: In the shared store.

            prefix: First part of every name.

            quorum: Whether new holding queues are replicated, as the application's own are.
        """
        self._carrier = carrier
        self._ledger = ledger
        self._prefix = prefix
        self._arguments = QUORUM if quorum else _CLASSIC
        self._there: set[str] = set()
        self._looked_monotonic: dict[str, float] = {}
        self._looked_for_unwanted_monotonic: dict[str, float] = {}

    def queue_for(self, circuit: str) -> str:
        """
        The name of a circuit's holding queue.
        """
        name = f"{self._prefix}:held:{circuit}"
        if len(name.encode()) <= _LONGEST_NAME:
            return name
        return f"{self._prefix}:held:{hashlib.sha256(circuit.encode()).hexdigest()}"

    def park(
        self,
        circuit: str,
        message: Message,
        countdown: float,  # noqa: ARG002 - the circuit says when they leave
        *,
        behind: bool = False,  # noqa: ARG002 - a queue's end is behind all that wait
        limits: Limits = NO_LIMITS,
    ) -> int:
        """
        Set a received message aside.  When this returns, the message may be acknowledged.

        Raises:
            ParkingError: It could not be set aside; it must stay unacknowledged.
        """
        queue, content = self._carrier.queue_of(message), self._carrier.content_of(message)
        headers = content.headers or {}
        holds = whole(headers.get(HOLDS_HEADER)) + 1
        since = whole(headers.get(HELD_SINCE_HEADER)) or self._ledger.now_ms()
        copy, number = copy_of(queue, content), message.delivery_info.pop(_NUMBER, 0)
        aside = {name: content.properties[name] for name in _ASIDE if name in content.properties}
        held = with_headers(
            content,
            {
                CIRCUIT_HEADER: circuit,
                HOLDS_HEADER: holds,
                HELD_SINCE_HEADER: str(since),
                TICKET_HEADER: None,
                SUCCEEDS_HEADER: successor_of(copy, number),
                QUEUE_HEADER: queue,
                PROPERTIES_HEADER: aside,
                DEADLINE_HEADER: _deadline(limits, since),
            },
        )
        held.properties.pop("expiration", None)
        held.properties["delivery_mode"] = _PERSISTENT
        # Until it is known that it was held, it is as if somebody else had tried before.
        message.delivery_info["redelivered"] = True
        self._hold(self.queue_for(circuit), held)
        if not self._ledger.add([successor_of(copy, number)], circuit=circuit) and self._take_up(message, copy):
            raise ParkingError("the broker has delivered it to another worker as well")
        return holds

    def is_superseded(self, message: Message) -> bool:
        """
        Whether another copy stands for this one: it has been parked already, or published twice on its way back.
        """
        copy = copy_of(self._carrier.queue_of(message), self._carrier.content_of(message))
        return not self._take_up(message, copy)

    def _take_up(self, message: Message, copy: str) -> bool:
        info = message.delivery_info
        arrival = Arrival(
            succeeds=str(message.headers.get(SUCCEEDS_HEADER, "")),
            copy=copy,
            # Once for each try to hold it: a second look finds no more twins.
            again=bool(info.get("redelivered")) and _NUMBER not in info,
        )
        [number] = self._ledger.arrive([arrival])
        if number is not None:
            info[_NUMBER] = number
        return number is not None

    def unpark(self, circuit: str, count: int, ticket: str, *, first: bool = False) -> int:  # noqa: ARG002 - they queue
        """
        Put the first *count* tasks back: by priority, then in the order they were held.

        Raises:
            ParkingError: The broker did not answer, or a task's own queue is gone; nothing is lost.
        """
        moved, name = 0, self.queue_for(circuit)
        count = min(count, _MOVE_AT_ONCE)
        while moved < count:
            fetched: list[amqp.Message] = []
            with suppress(amqp.NotFound), self._carrier.channel() as channel:
                fetched = _fetch(channel, name, min(count - moved, _BATCH))
                moved += self._return(channel, name, fetched, ticket)
            if not fetched:
                break
        return moved

    def unpark_if(
        self,
        circuit: str,
        wanted: Callable[[Sequence[Mapping[str, Any]]], Sequence[bool]],
        *,
        among: int,
        ticket: str = "",
    ) -> int:
        """
        Of the first *among* tasks, 50 at most, put those back that *wanted* picks by the headers of their messages.

        Without a *ticket* nobody has paid for their starts.

        Returns:
            How many were moved by this call.
        """
        name, moved = self.queue_for(circuit), 0
        with suppress(amqp.NotFound), self._carrier.channel() as channel:
            # Always as many: a quorum queue puts what comes back behind what has come back before.
            fetched = _fetch(channel, name, _BATCH)
            picked = wanted([message.headers or {} for message in fetched[:among]])
            going = [message for message, yes in zip(fetched, picked, strict=False) if yes]
            if going:
                moved = self._return(channel, name, going, ticket)
            gone = {message.delivery_tag for message in going}
            self._put_back(channel, circuit, [message for message in fetched if message.delivery_tag not in gone])
        return moved

    def unpark_unwanted(
        self, circuit: str, revoked: Callable[[Sequence[Mapping[str, Any]]], Sequence[bool]], *, soon: bool
    ) -> int:
        """
        Of the first 50 tasks, put those back that nobody waits for any more, with the ticket ``DUE``.

        Args:
            circuit: Key of the circuit they wait for.

            revoked: Says which tasks have been, by the headers of their messages.

            soon: Look now, also where the last look was a moment ago.

        Returns:
            How many were moved by this call.
        """
        now = time.monotonic()
        if not soon and now < self._looked_for_unwanted_monotonic.get(circuit, 0.0) + _LOOK_FOR_UNWANTED:
            return 0
        now_ms = self._ledger.now_ms()

        def unwanted(tasks: Sequence[Mapping[str, Any]]) -> list[bool]:
            due = [0 < whole(task.get(DEADLINE_HEADER)) <= now_ms for task in tasks]
            return [any(pair) for pair in zip(due, revoked(tasks), strict=True)]

        moved = self.unpark_if(circuit, unwanted, among=_BATCH, ticket=DUE)
        # Where there were some, there may be more behind them.
        self._looked_for_unwanted_monotonic[circuit] = 0.0 if moved else now
        return moved

    def holding(self) -> list[str]:
        """
        The circuits that hold tasks, configured or not.
        """
        return self._ledger.holding()

    def counts(self, circuits: Iterable[str]) -> dict[str, int]:
        """
        How many tasks each circuit holds: a round trip for each that is listed, and for a few that are not.
        """
        listed, found = set(self._ledger.holding()), dict.fromkeys(circuits, 0)
        # Who died before he listed his circuit: found in turns, for each question takes a while.
        others = sorted(found.keys() - listed, key=lambda each: self._looked_monotonic.get(self.queue_for(each), 0.0))
        for circuit in [*(found.keys() & listed), *others[:_LOOKS_AT_ONCE]]:
            found[circuit] = self._depth(self.queue_for(circuit))
        for circuit in {circuit for circuit in found.keys() & listed if not found[circuit]}:
            # Looked at again after: who parks meanwhile has published before he lists his circuit.
            self._ledger.strike(circuit)
            found[circuit] = self._depth(self.queue_for(circuit))
            if found[circuit]:
                self._ledger.keep(circuit)
        return found

    def oldest(self, circuits: Iterable[str]) -> dict[str, float]:  # noqa: ARG002 - none of them is known
        """
        Nothing: to look at a message would be to take it.
        """
        return {}

    def list(self, circuit: str, limit: int = 100) -> list[HeldTask]:
        """
        The first *limit* tasks in the order they will leave.
        """
        name = self.queue_for(circuit)
        fetched: Sequence[amqp.Message] = []
        # Its depth is not asked first: a quorum queue tells that of a moment ago.
        with suppress(amqp.NotFound), self._carrier.channel() as channel:
            # No fewer than unpark_if() takes, for the same reason.
            fetched = _fetch(channel, name, max(limit, _BATCH))
            self._put_back(channel, circuit, fetched)
        return [held_task(circuit, message.headers or {}) for message in fetched[:limit]]

    def _put_back(self, channel: Any, circuit: str, fetched: Sequence[amqp.Message]) -> None:
        # AMQP has no way to look without taking; they go back where they were.
        for message in fetched:
            channel.basic_reject(message.delivery_tag, requeue=True)
        if fetched:
            # Whoever counted meanwhile found none and has struck the circuit out.  When this is answered they are back.
            channel.queue_declare(self.queue_for(circuit), passive=True)
            self._ledger.keep(circuit)

    def _hold(self, name: str, held: amqp.Message) -> None:
        if name not in self._there:
            self._declare(name)
        elif not self._publish(name, held):
            return
        else:
            logger.warning(_GONE, name)
            self._declare(name)
        if self._publish(name, held):
            raise ParkingError(f"holding queue {name!r} was deleted as soon as it was declared")

    def _publish(self, name: str, held: amqp.Message) -> set[str]:
        with self._carrier.channel() as channel:
            return self._carrier.publish(channel, [(name, held)])

    def _declare(self, name: str) -> None:
        # Where the application's kind of queue has changed, the one that is there serves as well.
        with suppress(amqp.PreconditionFailed), self._carrier.channel() as channel:
            channel.queue_declare(name, durable=True, auto_delete=False, arguments=dict(self._arguments))
        self._there.add(name)

    def _return(self, channel: Any, name: str, fetched: Sequence[amqp.Message], ticket: str) -> int:
        going = {(one := _Leaving.of(name, message, ticket)).arrival.copy: one for message in fetched}
        # Published already by a mover that died, or parked twice because RabbitMQ's answer to the first was lost.
        numbers = self._ledger.arrive([one.arrival for one in going.values()])
        fresh = [
            (one, successor_of(copy, number))
            for (copy, one), number in zip(going.items(), numbers, strict=True)
            if number is not None
        ]
        missing = self._carrier.publish(
            channel, [(one.queue, with_headers(one.released, {SUCCEEDS_HEADER: this})) for one, this in fresh]
        )
        stranded = [one for one, _ in fresh if one.queue in missing]
        if stranded:
            # To the end, or they would keep all others waiting.
            self._carrier.publish(channel, [(name, one.held) for one in stranded])
        if not self._ledger.add([this for one, this in fresh if one.queue not in missing]):
            raise ParkingError("another mover has fetched the same tasks: the connection was lost")
        for message in fetched:
            channel.basic_ack(message.delivery_tag)
        if stranded:
            queues = ", ".join(map(repr, sorted(missing)))
            raise ParkingError(f"held tasks cannot return, their queues are gone: {queues}")
        return len(fresh)

    def _depth(self, name: str) -> int:
        now = time.monotonic()
        if name not in self._there and now < self._looked_monotonic.get(name, 0.0) + _LOOK_AGAIN:
            return 0
        self._looked_monotonic[name] = now
        try:
            with self._carrier.channel() as channel:
                depth = int(channel.queue_declare(name, passive=True).message_count)
        except amqp.NotFound:
            if name in self._there:
                logger.warning(_GONE, name)
            self._there.discard(name)
            return 0
        self._there.add(name)
        return depth


def _deadline(limits: Limits, since_ms: int) -> str | None:
    ends = [limits.expires * 1000] if limits.expires else []
    if limits.longest:
        ends.append(since_ms + limits.longest * 1000)
    return f"{min(ends):.0f}" if ends else None


def _fetch(channel: Any, name: str, count: int) -> list[amqp.Message]:
    fetched: list[amqp.Message] = []
    while len(fetched) < count and (message := channel.basic_get(name)) is not None:
        fetched.append(message)
    return fetched


@dataclass(frozen=True, slots=True, eq=False)
class _Leaving:
    """
    A held message on its way out.

    Attributes:
        arrival: Its copy is the same whenever it was parked there.

        held: As it was there.

        queue: Where it goes back to.

        released: As it was received there, but for our own headers.
    """

    arrival: Arrival
    held: amqp.Message
    queue: str
    released: amqp.Message

    @classmethod
    def of(cls, name: str, message: amqp.Message, ticket: str) -> _Leaving:
        """
        Read a message fetched from the holding queue *name*.
        """
        held = received(message)
        headers = held.headers or {}
        queue, aside = str(headers.get(QUEUE_HEADER, "")), headers.get(PROPERTIES_HEADER)
        ours = dict.fromkeys((QUEUE_HEADER, PROPERTIES_HEADER, DEADLINE_HEADER))
        released = with_headers(held, {**ours, TICKET_HEADER: ticket})
        released.properties.pop("delivery_mode", None)
        if isinstance(aside, dict):
            released.properties.update({key: aside[key] for key in _ASIDE if key in aside})
        arrival = Arrival(
            succeeds=str(headers.get(SUCCEEDS_HEADER, "")),
            copy=copy_of(name, with_headers(held, {HELD_SINCE_HEADER: None})),
            again=bool(message.delivery_info["redelivered"]),
        )
        return cls(arrival, held, queue, released)
