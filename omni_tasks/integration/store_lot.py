"""
A lot beside the circuits: where held tasks wait in the shared store, whatever the broker.

A held task is as durable here as that Redis is.  Its return takes three steps:
claimed in the store, published to its queue, deleted from the store.  Whoever
dies between two of them leaves a claim that ends by itself; the task is then
published again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from importlib import resources
from typing import cast
from urllib.parse import quote

import redis
from kombu.message import Message
from redis.commands.core import Script

from omni_tasks.errors import ParkingError
from omni_tasks.integration.ages import oldest_in_order
from omni_tasks.integration.carrier import Carrier, Parcel
from omni_tasks.integration.held import (
    CIRCUIT_HEADER,
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
from omni_tasks.integration.ledger import Ledger

__all__ = ["StoreLot"]

logger = logging.getLogger(__name__)

#: How long a mover may take for one batch before its claim ends, in ms.
_CLAIM_MS = 30_000

#: Most messages claimed at once, and moved in one call: the worker's loop waits meanwhile.
_BATCH, _MOVE_AT_ONCE = 50, 200


class StoreLot:
    """
    The held tasks of one application in the shared store.
    """

    def __init__(self, client: redis.Redis, carrier: Carrier, ledger: Ledger, *, prefix: str) -> None:
        """
        Keep held tasks under *prefix*.

        Args:
            client: Of the shared store; replies must not be decoded.

            carrier: To the broker.

            ledger: In the same store.

            prefix: First part of every key.
        """
        self._client = client
        self._carrier = carrier
        self._ledger = ledger
        self._prefix = prefix
        folder = resources.files("omni_tasks.integration") / "lua"
        self._park = Script(client, (folder / "park.lua").read_text(encoding="utf-8"))
        self._claim = Script(client, (folder / "claim.lua").read_text(encoding="utf-8"))
        self._done = Script(client, (folder / "done.lua").read_text(encoding="utf-8"))

    def park(
        self,
        circuit: str,
        message: Message,
        countdown: float,  # noqa: ARG002 - the circuit says when it leaves
        *,
        behind: bool = False,
        limits: Limits = NO_LIMITS,  # noqa: ARG002 - it ends in its turn
    ) -> int:
        """
        Set a received message aside.  When this returns, the message may be acknowledged.

        Raises:
            ParkingError: It could not be set aside; it must stay unacknowledged.
        """
        with setting_aside():
            holds = whole(message.headers.get(HOLDS_HEADER)) + 1
            since = whole(message.headers.get(HELD_SINCE_HEADER)) or self._ledger.now_ms()
            ours = {CIRCUIT_HEADER: circuit, HOLDS_HEADER: holds, HELD_SINCE_HEADER: str(since), TICKET_HEADER: None}
            parcel = self._carrier.pack(message, ours)
            order, envelopes, _ = self._keys(circuit)
            self._park(
                keys=[order, envelopes, self._ledger.key, self._ledger.index, f"{order}:deadlines"],
                # The moment and the ticket stand in the message's headers, so the seams are at its front.
                args=[
                    _entry(parcel), parcel.priority, since, "", "", parcel.content,
                    self._ledger.remember_ms, int(behind), 0, 0,
                ],
            )  # fmt: skip
        return holds

    def is_superseded(self, message: Message) -> bool:
        """
        Whether another copy of this very delivery has been parked already.
        """
        return bool(self._ledger.known([_entry(self._carrier.pack(message, {}))]))

    def unpark(self, circuit: str, count: int, ticket: str, *, first: bool = False) -> int:  # noqa: ARG002 - they queue
        """
        Publish the first *count* tasks to their queues: by priority, then age.

        Raises:
            ParkingError: The broker did not answer, or a task's own queue is gone; nothing is lost.
        """
        moved, count = 0, min(count, _MOVE_AT_ONCE)
        order, envelopes, claims = self._keys(circuit)
        while moved < count:
            claimed = cast(
                "list[bytes]",
                self._claim(keys=[order, envelopes, claims], args=[min(count - moved, _BATCH), _CLAIM_MS]),
            )
            if not claimed:
                break
            entries, texts = claimed[::2], claimed[1::2]
            parcels = [(_queue(entry), _content(text)) for entry, text in zip(entries, texts, strict=True)]
            missing = self._carrier.send(parcels, {TICKET_HEADER: ticket})
            gone = [entry for entry, (queue, _) in zip(entries, parcels, strict=True) if queue not in missing]
            if gone:
                self._done(keys=[order, envelopes, claims, self._ledger.index], args=gone)
            moved += len(gone)
            if missing:
                names = ", ".join(map(repr, sorted(missing)))
                raise ParkingError(f"held tasks cannot return, their queues are gone: {names}")
        return moved

    def holding(self) -> list[str]:
        """
        The circuits that hold tasks, configured or not, in one round trip.
        """
        return self._ledger.holding()

    def counts(self, circuits: Iterable[str]) -> dict[str, int]:
        """
        How many tasks each circuit holds, those on their way included, in one round trip.
        """
        keys = list(circuits)
        with self._client.pipeline(transaction=False) as pipe:
            for circuit in keys:
                order, _, claims = self._keys(circuit)
                pipe.zcard(order)
                pipe.zcard(claims)
            found = cast("list[int]", pipe.execute())
        return {circuit: found[2 * i] + found[2 * i + 1] for i, circuit in enumerate(keys)}

    def oldest(self, circuits: Iterable[str]) -> dict[str, float]:
        """
        Seconds since each circuit's oldest task was first held, in one round trip.
        """
        return oldest_in_order(self._client, {circuit: self._keys(circuit)[0] for circuit in circuits})

    def list(self, circuit: str, limit: int = 100) -> list[HeldTask]:
        """
        The first *limit* tasks in the order they will leave.
        """
        order, envelopes, _ = self._keys(circuit)
        entries = cast("list[bytes]", self._client.zrange(order, 0, max(limit, 1) - 1))
        texts = cast("list[bytes | None]", self._client.hmget(envelopes, entries)) if entries else []
        return [held_task(circuit, self._carrier.headers_of(_content(text))) for text in texts if text]

    def _keys(self, circuit: str) -> tuple[str, str, str]:
        lot = f"{self._prefix}:lot:{quote(circuit, safe='')}"
        return f"{lot}:order", f"{lot}:envelopes", f"{lot}:claims"


def _entry(parcel: Parcel) -> str:
    return f"{parcel.copy}\0{parcel.queue}"


def _queue(entry: bytes) -> str:
    return entry.rpartition(b"\0")[2].decode()


def _content(text: bytes) -> bytes:
    # Behind the moment and the seam that park.lua has put in front.
    return text.partition(b"\0")[2]
