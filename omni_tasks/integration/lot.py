"""
The lot: where held tasks wait.

It lives in the broker's own Redis, so that a held message is exactly as durable
as a queued one and its return is one atomic move.  A message is named by the
delivery tag of the copy that was parked: kombu keeps the tag when it redelivers,
so a copy whose twin is already parked (the worker died before its
acknowledgement) is recognised and dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from itertools import groupby
from typing import Any, cast
from urllib.parse import quote

import redis
from kombu.transport.virtual import Message
from redis.commands.core import Script

from omni_tasks.errors import ParkingError
from omni_tasks.integration.broker import destination_of, envelope_of

__all__ = ["HELD_SINCE_HEADER", "HOLDS_HEADER", "TICKET_HEADER", "HeldTask", "Lot"]

#: Our own header keys.  Everything else in a message stays as it was.
HOLDS_HEADER = "omni_holds"
HELD_SINCE_HEADER = "omni_held_since"
TICKET_HEADER = "omni_ticket"

_TICKET = re.compile(r"[0-9A-Za-z:_-]*")

#: Most messages moved by one script call; keeps the server's other clients waiting a few ms at most.
_MOVE_AT_ONCE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldTask:
    """
    One task in the lot.

    Attributes:
        circuit: Key of the circuit it waits for.

        held_since: When it was first held, UTC.

        holds: How often it has been held, >= 1.
    """

    task_id: str
    name: str
    circuit: str
    held_since: datetime
    holds: int


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
        self._unpark = Script(client, (folder / "unpark.lua").read_text(encoding="utf-8"))

    def park(self, circuit: str, message: Message, *, behind: bool = False) -> int:
        """
        Set a received message aside.  When this returns, the message may be acknowledged.

        Args:
            circuit: Key of the circuit it waits for.

            message: As received, unacknowledged.

            behind: Whether it leaves after all that wait now instead of by its age.  A probe that
                failed does: a task that fails for reasons of its own must not be every probe.

        Returns:
            How often the message has been held, this time included.

        Raises:
            ParkingError: It could not be set aside; it must stay unacknowledged.
        """
        try:
            headers = message.headers
            holds = _count(headers.get(HOLDS_HEADER)) + 1
            since_ms = _count(headers.get(HELD_SINCE_HEADER))
            destination = destination_of(message)
            pieces = envelope_of(message, {HOLDS_HEADER: holds}, (HELD_SINCE_HEADER, TICKET_HEADER))
            tag = str(message.delivery_tag)
            self._park(
                keys=[*self._keys(circuit), self._superseded],
                args=[tag, destination.priority, since_ms, *pieces, destination.key, self._remember_ms, int(behind)],
            )
        except ParkingError:
            raise
        except Exception as error:
            # Whatever it is, the message must stay where it is: anything else would lose it.
            raise ParkingError(f"the task could not be set aside: {type(error).__name__}: {error}") from error
        return holds

    def is_superseded(self, message: Message) -> bool:
        """
        Whether another copy of this very delivery has been parked already.

        Raises:
            ParkingError: The broker's Redis did not answer.
        """
        try:
            return self._client.zscore(self._superseded, str(message.delivery_tag)) is not None
        except (redis.RedisError, OSError) as error:
            raise ParkingError(f"the broker's Redis did not answer: {type(error).__name__}: {error}") from error

    def unpark(self, circuit: str, count: int, ticket: str) -> int:
        """
        Move the first *count* tasks back to their queues: by priority, then age.

        Returns:
            How many were moved by this call.  Movers may race: each task is moved once.
        """
        order, envelopes, lists = self._keys(circuit)
        # It goes into the messages as it is, and comes from a field that anybody may have damaged.
        ticket = ticket if _TICKET.fullmatch(ticket) else ""
        moved = 0
        for start in range(0, count, _MOVE_AT_ONCE):
            entries = cast("list[bytes]", self._client.zrange(order, 0, min(count - start, _MOVE_AT_ONCE) - 1))
            if not entries:
                break
            targets = cast("list[bytes | None]", self._client.hmget(lists, entries))
            pairs = [(target, entry) for target, entry in zip(targets, entries, strict=True) if target]
            for target, group in groupby(sorted(pairs, key=lambda pair: pair[0]), key=lambda pair: pair[0]):
                moved += self._unpark(
                    keys=[order, envelopes, lists, target], args=[ticket, *(entry for _, entry in group)]
                )
        return moved

    def counts(self, circuits: Iterable[str]) -> dict[str, int]:
        """
        How many tasks each circuit holds, in one round trip.
        """
        keys = list(circuits)
        with self._client.pipeline(transaction=False) as pipe:
            for circuit in keys:
                pipe.zcard(self._keys(circuit)[0])
            return dict(zip(keys, cast("Sequence[int]", pipe.execute()), strict=True))

    def list(self, circuit: str, limit: int = 100) -> list[HeldTask]:
        """
        The first *limit* tasks in the order they will leave.
        """
        order, envelopes, _ = self._keys(circuit)
        entries = cast("list[bytes]", self._client.zrange(order, 0, max(limit, 1) - 1))
        texts = cast("list[bytes | None]", self._client.hmget(envelopes, entries)) if entries else []
        return [_held_task(circuit, json.loads(text.replace(b"\0", b""))) for text in texts if text]

    def _keys(self, circuit: str) -> tuple[str, str, str]:
        # No hash tag: the lists of the broker, which the tasks go back to, have none either.
        lot = f"{self._prefix}:lot:{quote(circuit, safe='')}"
        return f"{lot}:order", f"{lot}:envelopes", f"{lot}:lists"

    @property
    def _superseded(self) -> str:
        # One for all circuits: a task may be parked under another circuit than its gate's.
        return f"{self._prefix}:superseded"


def _held_task(circuit: str, payload: dict[str, Any]) -> HeldTask:
    headers = payload["headers"]
    return HeldTask(
        task_id=headers.get("id", ""),
        name=headers.get("task", ""),
        circuit=circuit,
        held_since=datetime.fromtimestamp(_count(headers.get(HELD_SINCE_HEADER)) / 1000, UTC),
        holds=_count(headers.get(HOLDS_HEADER)),
    )


def _count(value: object) -> int:
    # Headers come from whoever can write to the broker.
    text = str(value)
    return int(text) if text.isdecimal() and len(text) <= 13 else 0  # noqa: PLR2004 - digits of Unix ms
