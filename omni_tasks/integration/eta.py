"""
Waiting in the queue itself: how tasks are held where the broker offers nothing better.

The message goes back to its own queue with an ETA.  A worker that receives it
keeps it, unacknowledged, until then; so the wait is cut into hops that stay
well below the time after which the broker gives the message to somebody else.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from kombu.message import Message

from omni_tasks.integration.held import (
    CIRCUIT_HEADER,
    HELD_SINCE_HEADER,
    HOLDS_HEADER,
    NO_LIMITS,
    TICKET_HEADER,
    HeldTask,
    Limits,
    whole,
)
from omni_tasks.integration.ledger import Ledger, successor_of
from omni_tasks.integration.virtual import VirtualCarrier, queue_of, raw_of

__all__ = ["ETA_HEADER", "EtaQueue"]

#: The ETA the task was sent with, as text; empty for none.
ETA_HEADER = "omni_eta"

#: Shortest wait in seconds: what the gate turns away in a recovery must not come back at once.
_SHORTEST = 1.0

_SPREAD = random.SystemRandom()


class EtaQueue:
    """
    The held tasks of one application in its own queues.  Nobody can count or list them.
    """

    def __init__(self, carrier: VirtualCarrier, ledger: Ledger, *, longest: float) -> None:
        """
        Hold tasks for at most *longest* seconds at a time, > 0.
        """
        self._carrier = carrier
        self._ledger = ledger
        self._longest = longest

    def park(
        self,
        circuit: str,
        message: Message,
        countdown: float,
        *,
        behind: bool = False,  # noqa: ARG002 - whatever it waits for, it waits for a time
        limits: Limits = NO_LIMITS,  # noqa: ARG002 - it ends in its turn
    ) -> int:
        """
        Put the message back with an ETA.  When this returns, the message may be acknowledged.

        Raises:
            ParkingError: It could not be put back; it must stay unacknowledged.
        """
        headers = message.headers
        holds = whole(headers.get(HOLDS_HEADER)) + 1
        since = whole(headers.get(HELD_SINCE_HEADER)) or self._ledger.now_ms()
        # Spread, or all that were refused together would ask together again.
        wait = min(max(countdown, _SHORTEST) * _SPREAD.uniform(1.0, 1.5), self._longest)
        raw = raw_of(
            message,
            {
                CIRCUIT_HEADER: circuit,
                HOLDS_HEADER: holds,
                HELD_SINCE_HEADER: str(since),
                TICKET_HEADER: None,
                ETA_HEADER: headers.get(ETA_HEADER, headers.get("eta") or ""),
                "eta": (datetime.now(UTC) + timedelta(seconds=wait)).isoformat(),
            },
        )
        copy = self._carrier.copy_of(message)
        self._carrier.put(queue_of(message), raw)
        self._ledger.add([successor_of(copy, 0)])
        return holds

    def is_superseded(self, message: Message) -> bool:
        """
        Whether another copy of this very delivery has been put back already.
        """
        return bool(self._ledger.known([self._carrier.copy_of(message)]))

    def unpark(
        self,
        circuit: str,  # noqa: ARG002 - they return by themselves
        count: int,  # noqa: ARG002 - see above
        ticket: str,  # noqa: ARG002 - see above
        *,
        first: bool = False,  # noqa: ARG002 - see above
    ) -> int:
        """
        Nothing is moved: held tasks return when their time has come.
        """
        return 0

    def holding(self) -> list[str]:
        """
        Nothing: see :meth:`counts`.
        """
        return []

    def counts(self, circuits: Iterable[str]) -> dict[str, int]:  # noqa: ARG002 - none of them is known
        """
        Nothing: held tasks cannot be told from others that wait in their queues.

        A circuit that seemed to hold none would drop its ramp.
        """
        return {}

    def oldest(self, circuits: Iterable[str]) -> dict[str, float]:  # noqa: ARG002 - see counts()
        """
        Nothing: see :meth:`counts`.
        """
        return {}

    def list(self, circuit: str, limit: int = 100) -> list[HeldTask]:  # noqa: ARG002 - see counts()
        """
        Nothing: held tasks cannot be told from others that wait in their queues.
        """
        return []
