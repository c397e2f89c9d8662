"""
A call as the provider's own book has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Call", "Mode"]


class Mode(StrEnum):
    """
    How the provider answers.
    """

    OK = "ok"
    ERROR500 = "error500"
    RATE_LIMIT = "rate_limit"
    HANG = "hang"
    RESET = "reset"


@dataclass(slots=True)
class Call:
    """
    One call as the provider saw it.

    Attributes:
        at_monotonic: Arrival on the monotonic clock, which all processes of one machine share, in seconds.

        at_unix: Arrival on the wall clock, in seconds since 1970.

        trace_id: The header ``X-Trace-Id``; empty when the caller sent none.

        mode: The mode on arrival, which decides the answer.

        answered:
            HTTP status, or ``"reset"``, or ``"hang"``; None while the answer is still being prepared.
            A caller that left before its answer has ``"gone"``.
    """

    at_monotonic: float
    at_unix: float
    trace_id: str
    mode: str
    answered: int | str | None = None

    @property
    def dead(self) -> bool:
        """
        Whether it reached a provider that was down.
        """
        return self.mode != Mode.OK

    @property
    def completed(self) -> bool:
        """
        Whether the provider did the work.
        """
        return self.answered == 200  # noqa: PLR2004 - HTTP's own word for it
