"""
The lot: where held tasks wait.

It lives in the broker's own Redis, so that a held message is exactly as durable
as a queued one and its return is one atomic move.  A message is named by the
delivery tag of the copy that was parked and the list it came from: kombu keeps
the tag when it redelivers, so a copy whose twin is already parked (the worker
died before its acknowledgement) is recognised and dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from itertools import groupby
from typing import Any, cast
from urllib.parse import quote, unquote

import redis
from kombu.message import Message
from redis.commands.core import Script

from omni_tasks.errors import ParkingError
from omni_tasks.integration.ages import oldest_in_order
from omni_tasks.integration.broker import Destination, destination_of, envelope_of
from omni_tasks.integration.held import (
    CIRCUIT_HEADER,
    DUE,
    HELD_SINCE_HEADER,
    HOLDS_HEADER,
    NO_LIMITS,
    TICKET_HEADER,
    HeldTask,
    Limits,
    held_task,
    setting_aside,
    whole,
)

__all__ = ["Lot"]

_TICKET = re.compile(r"[0-9A-Za-z:_-]*")

#: Most messages moved by one script call; keeps the server's other clients waiting a few ms at most.
_MOVE_AT_ONCE = 200


class Lot:
    """
    The held tasks of one application.
    """

    def __init__(self, client: redis.Redis, *, prefix: str, remember: float) -> None:
        """
        Keep held tasks under *prefix*.

        Args:
            client: Of the broker's server; replies must not be decoded.

            prefix: First part of every key.

            remember: Seconds during which a redelivered copy of a parked message may turn up, > 0.
        """
        self._prefix = prefix
        self._client = client
        self._remember_ms = round(remember * 1000)
        folder = resources.files("omni_tasks.integration") / "lua"
        self._park = Script(client, (folder / "park.lua").read_text(encoding="utf-8"))
        self._due = Script(client, (folder / "due.lua").read_text(encoding="utf-8"))
        self._unpark = Script(client, (folder / "unpark.lua").read_text(encoding="utf-8"))

    def park(
        self,
        circuit: str,
        message: Message,
        countdown: float,  # noqa: ARG002 - the circuit says when it leaves
        *,
        behind: bool = False,
        limits: Limits = NO_LIMITS,
    ) -> int:
        """
        Set a received message aside.  When this returns, the message may be acknowledged.

        Args:
            circuit: Key of the circuit it waits for.

            message: As received, unacknowledged.

            countdown: Seconds the circuit expects to stay open.

            behind: Whether it leaves after all that wait now instead of by its age.  A probe that
                failed does: a task that fails for reasons of its own must not be every probe.

            limits: When it must leave, by this server's clock.

        Returns:
            How often the message has been held, this time included.

        Raises:
            ParkingError: It could not be set aside; it must stay unacknowledged.
        """
        with setting_aside():
            headers = message.headers
            holds = whole(headers.get(HOLDS_HEADER)) + 1
            since_ms = whole(headers.get(HELD_SINCE_HEADER))
            destination = destination_of(message)
            pieces = envelope_of(
                message, {CIRCUIT_HEADER: circuit, HOLDS_HEADER: holds}, (HELD_SINCE_HEADER, TICKET_HEADER)
            )
            self._park(
                keys=[*self._keys(circuit), self._superseded, self._index, self._deadlines(circuit)],
                args=[
                    _entry(message, destination), destination.priority, since_ms, *pieces,
                    self._remember_ms, int(behind), round(limits.expires * 1000), round(limits.longest * 1000),
                ],
            )  # fmt: skip
        return holds

    def is_superseded(self, message: Message) -> bool:
        """
        Whether another copy of this very delivery has been parked already.

        Raises:
            ParkingError: The broker's Redis did not answer, or the message's queue cannot be told.
        """
        entry = _entry(message, destination_of(message))
        try:
            return self._client.zscore(self._superseded, entry) is not None
        except (redis.RedisError, OSError) as error:
            raise ParkingError(f"the broker's Redis did not answer: {type(error).__name__}: {error}") from error

    def unpark(self, circuit: str, count: int, ticket: str, *, first: bool = False) -> int:
        """
        Move the first *count* tasks back to their queues: by priority, then age.

        Returns:
            How many were moved by this call.  Movers may race: each task is moved once.
        """
        order = self._keys(circuit)[0]
        moved = 0
        for start in range(0, count, _MOVE_AT_ONCE):
            entries = cast("list[bytes]", self._client.zrange(order, 0, min(count - start, _MOVE_AT_ONCE) - 1))
            if not entries:
                break
            moved += self._move(circuit, entries, ticket, first=first)
        return moved

    def unpark_due(self, circuit: str, *, may: Callable[[], bool]) -> int:
        """
        Move the tasks back whose deadline has passed, with the ticket ``DUE``: nobody has paid for their starts.

        Args:
            circuit: Key of the circuit they wait for.

            may: Asked where there are any, whether they may leave.

        Returns:
            How many were moved by this call.
        """
        entries = cast("list[bytes]", self._due(keys=[self._deadlines(circuit)], args=[_MOVE_AT_ONCE]))
        return self._move(circuit, entries, DUE, first=True) if entries and may() else 0

    def unpark_if(
        self,
        circuit: str,
        wanted: Callable[[Sequence[Mapping[str, Any]]], Sequence[bool]],
        *,
        among: int,
        ticket: str = "",
    ) -> int:
        """
        Of the first *among* tasks, move those back that *wanted* picks by the headers of their messages.

        Without a *ticket* nobody has paid for their starts.

        Returns:
            How many were moved by this call.
        """
        order, envelopes = self._keys(circuit)
        entries = cast("list[bytes]", self._client.zrange(order, 0, among - 1))
        texts = cast("list[bytes | None]", self._client.hmget(envelopes, entries)) if entries else []
        found = [(entry, _headers(text)) for entry, text in zip(entries, texts, strict=True) if text]
        picked = wanted([headers for _, headers in found])
        going = [entry for (entry, _), yes in zip(found, picked, strict=True) if yes]
        return self._move(circuit, going, ticket, first=True)

    def _move(self, circuit: str, entries: Sequence[bytes], ticket: str, *, first: bool) -> int:
        # It goes into the messages as it is, and comes from a field that anybody may have damaged.
        ticket = ticket if _TICKET.fullmatch(ticket) else ""
        moved = 0
        for home, group in groupby(sorted(entries, key=_home), key=_home):
            order, envelopes = self._keys(circuit)
            moved += self._unpark(
                keys=[order, envelopes, home, self._index, self._deadlines(circuit)], args=[ticket, int(first), *group]
            )
        return moved

    def holding(self) -> list[str]:
        """
        The circuits that hold tasks, configured or not, in one round trip.
        """
        members = cast("set[bytes]", self._client.smembers(self._index))
        return sorted(unquote(member.decode("utf-8", "replace")) for member in members)

    def counts(self, circuits: Iterable[str]) -> dict[str, int]:
        """
        How many tasks each circuit holds, in one round trip.
        """
        keys = list(circuits)
        with self._client.pipeline(transaction=False) as pipe:
            for circuit in keys:
                pipe.zcard(self._keys(circuit)[0])
            return dict(zip(keys, cast("Sequence[int]", pipe.execute()), strict=True))

    def oldest(self, circuits: Iterable[str]) -> dict[str, float]:
        """
        Seconds since each circuit's oldest task was first held, in one round trip.
        """
        return oldest_in_order(self._client, {circuit: self._keys(circuit)[0] for circuit in circuits})

    def list(self, circuit: str, limit: int = 100) -> list[HeldTask]:
        """
        The first *limit* tasks in the order they will leave.
        """
        order, envelopes = self._keys(circuit)
        entries = cast("list[bytes]", self._client.zrange(order, 0, max(limit, 1) - 1))
        texts = cast("list[bytes | None]", self._client.hmget(envelopes, entries)) if entries else []
        return [held_task(circuit, _headers(text)) for text in texts if text]

    def _keys(self, circuit: str) -> tuple[str, str]:
        # No hash tag: the lists of the broker, which the tasks go back to, have none either.
        lot = f"{self._prefix}:lot:{quote(circuit, safe='')}"
        return f"{lot}:order", f"{lot}:envelopes"

    def _deadlines(self, circuit: str) -> str:
        return f"{self._prefix}:lot:{quote(circuit, safe='')}:deadlines"

    @property
    def _index(self) -> str:
        return f"{self._prefix}:lots"

    @property
    def _superseded(self) -> str:
        # One for all circuits: a task may be parked under another circuit than its gate's.
        return f"{self._prefix}:superseded"


def _headers(envelope: bytes) -> dict[str, Any]:
    headers: dict[str, Any] = json.loads(envelope.replace(b"\0", b""))["headers"]
    return headers


def _entry(message: Message, destination: Destination) -> str:
    # The tag alone would not do: where an exchange has put one message into several queues, all have it.
    return f"{message.delivery_tag}\0{destination.key}"


def _home(entry: bytes) -> bytes:
    # Part of the entry's name, so that no lost field can strand it.
    return entry.rpartition(b"\0")[2]
