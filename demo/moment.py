"""
What is seen of the system at one moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from demo.timeline import Second

__all__ = ["Chapter", "Moment"]


class Chapter(Enum):
    """
    Where the story is.
    """

    WELL = auto()
    OUTAGE = auto()
    RECOVERY = auto()
    END = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """
    One look at everything.

    Attributes:
        chapter: Where the story is.

        elapsed: Seconds since the articles were asked for.  >= 0.0.

        circuit: ``"closed"``, ``"open"``, ``"half_open"``; None while it is not known.

        degraded: Whether the shared store is away.

        failures: Failures in a row, as the circuit counts them.  >= 0.

        failure_threshold: Failures in a row that open it.  >= 1.

        retry_after: Seconds until the next probe may start.  >= 0.0; 0.0 unless the circuit is open.

        total: Articles asked for.  >= 1.

        done: Articles written.  >= 0.

        failed: Articles given up.  >= 0.

        running: Calls that the provider is working on.  >= 0.

        held: Articles set aside by the circuit now.  >= 0.

        dead_calls: Calls so far that reached the provider while it was down.  >= 0.

        seconds: The past, second by second.
    """

    chapter: Chapter
    elapsed: float
    circuit: str | None
    degraded: bool
    failures: int
    failure_threshold: int
    retry_after: float
    total: int
    done: int
    failed: int
    running: int
    held: int
    dead_calls: int
    seconds: tuple[Second, ...]

    @property
    def queued(self) -> int:
        """
        Articles whose turn has not come.  >= 0; the numbers are read one after the other and may disagree a little.
        """
        return max(0, self.total - self.done - self.failed - self.running - self.held)

    @property
    def provider_down(self) -> bool:
        """
        Whether the provider is dead now.
        """
        return self.chapter is Chapter.OUTAGE
