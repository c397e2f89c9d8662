"""
What waits for each circuit, wherever held tasks wait.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Backlog", "Waiting", "read_backlogs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """
    What waits for one circuit.

    Attributes:
        count: Tasks, >= 0.

        oldest_age: Seconds since the oldest of them was first held; 0.0 without one, ``None`` where nobody can tell.
    """

    count: int
    oldest_age: float | None


class Waiting(Protocol):
    """
    A place where held tasks wait, as far as it is looked at from outside.
    """

    def counts(self, circuits: Iterable[str]) -> dict[str, int]:
        """
        How many tasks each circuit holds; circuits of which that cannot be known are left out.
        """

    def oldest(self, circuits: Iterable[str]) -> dict[str, float]:
        """
        Seconds since each circuit's oldest task was first held; circuits of which that cannot be known are left out.
        """


def read_backlogs(place: Waiting, circuits: Collection[str]) -> Mapping[str, Backlog]:
    """
    What waits for each of *circuits*, as far as the place can tell.
    """
    counts = place.counts(circuits)
    ages = place.oldest([circuit for circuit, count in counts.items() if count])
    return {
        circuit: Backlog(count=count, oldest_age=ages.get(circuit) if count else 0.0)
        for circuit, count in counts.items()
    }
