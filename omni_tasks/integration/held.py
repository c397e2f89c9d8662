"""
Held tasks, wherever they wait: what a place to wait must do, and how a held message is marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from kombu.message import Message

from omni_tasks.errors import ParkingError

__all__ = [
    "CIRCUIT_HEADER",
    "DUE",
    "HELD_SINCE_HEADER",
    "HOLDS_HEADER",
    "NO_LIMITS",
    "OURS",
    "REPLAYED",
    "SUCCEEDS_HEADER",
    "TICKET_HEADER",
    "HeldTask",
    "Limits",
    "Parking",
    "held_task",
    "setting_aside",
    "whole",
]

#: Our own header keys, and how all of them begin.  Everything else in a message stays as it was.
OURS = "omni_"
CIRCUIT_HEADER = "omni_circuit"
HOLDS_HEADER = "omni_holds"
HELD_SINCE_HEADER = "omni_held_since"
TICKET_HEADER = "omni_ticket"
SUCCEEDS_HEADER = "omni_succeeds"

#: The ticket of a task that left because its time was over, and of one that an operator replays.
DUE, REPLAYED = "due", "replayed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """
    When a task must leave, whatever its circuit says.

    Attributes:
        expires: Unix seconds; 0 for never.

        longest: Seconds it may be held, from the first time on; 0 for ever.
    """

    expires: float = 0.0
    longest: float = 0.0


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldTask:
    """
    One task that waits.

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


class Parking(Protocol):
    """
    A place where held tasks wait.  Which one an application has depends on its broker.
    """

    def park(
        self, circuit: str, message: Message, countdown: float, *, behind: bool = False, limits: Limits = NO_LIMITS
    ) -> int:
        """
        Set a received message aside.  When this returns, the message may be acknowledged.

        Args:
            circuit: Key of the circuit it waits for.

            message: As received, unacknowledged.

            countdown: Seconds the circuit expects to stay open.

            behind: Whether it leaves after all that wait now.  A probe that failed does: a task that
                fails for reasons of its own must not be every probe.

            limits: When it must leave.  A place that has no clock lets it leave in its turn.

        Returns:
            How often the message has been held, this time included.

        Raises:
            ParkingError: It could not be set aside; it must stay unacknowledged.
        """

    def is_superseded(self, message: Message) -> bool:
        """
        Whether another copy stands for this one: it has been parked already, or published twice on its way back.

        Raises:
            ParkingError: Nobody could be asked, and dropping or running the copy would be a guess.
        """

    def unpark(self, circuit: str, count: int, ticket: str, *, first: bool = False) -> int:
        """
        Put up to *count* tasks back into the queues they came from.

        Args:
            circuit: Key of the circuit that lets them go.

            count: As the circuit's store has decided.

            ticket: ``gen:epoch`` that paid for their starts.

            first: Whether they go before what waits there, where the broker has a way; else behind it.

        Returns:
            How many were moved by this call.
        """

    def holding(self) -> list[str]:
        """
        The circuits that hold tasks, configured or not.
        """

    def counts(self, circuits: Iterable[str]) -> dict[str, int]:
        """
        How many tasks each circuit holds; circuits of which that cannot be known are left out.
        """

    def oldest(self, circuits: Iterable[str]) -> dict[str, float]:
        """
        Seconds since each circuit's oldest task was first held; circuits of which that cannot be known are left out.
        """

    def list(self, circuit: str, limit: int = 100) -> list[HeldTask]:
        """
        The first *limit* tasks in the order they will leave.
        """


@contextmanager
def setting_aside() -> Iterator[None]:
    """
    Around the steps that park a message: whatever goes wrong in them, it must stay where it is, or it would be lost.

    Raises:
        ParkingError: Something went wrong.
    """
    try:
        yield
    except ParkingError:
        raise
    except Exception as error:
        raise ParkingError(f"the task could not be set aside: {type(error).__name__}: {error}") from error


def held_task(circuit: str, headers: Mapping[str, Any]) -> HeldTask:
    """
    Read a held message's headers.
    """
    return HeldTask(
        task_id=str(headers.get("id", "")),
        name=str(headers.get("task", "")),
        circuit=circuit,
        held_since=datetime.fromtimestamp(whole(headers.get(HELD_SINCE_HEADER)) / 1000, UTC),
        holds=whole(headers.get(HOLDS_HEADER)),
    )


def whole(value: object) -> int:
    """
    The whole number a header of ours holds, 0 where it holds none: anybody who can write to the broker wrote it.
    """
    text = str(value)
    return int(text) if text.isdecimal() and len(text) <= 13 else 0  # noqa: PLR2004 - digits of Unix ms
