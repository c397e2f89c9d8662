"""
What a finished call says about the dependency.

The question is always: is this evidence about the *dependency*, or only about
this *request*?  An exception may answer for itself by carrying an attribute
``circuit_outcome`` (``"success"``, ``"failure"`` or ``"ignored"``) and, with a
failure, ``retry_after`` in seconds; any other exception is a failure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["IGNORED", "SUCCESS", "Outcome", "Report", "report_of"]


class Outcome(StrEnum):
    """
    How a call ended, as the circuit counts it.  The values are on the wire.
    """

    SUCCESS = "success"
    FAILURE = "failure"
    #: Neutral: frees the permit and counts neither way.
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class Report:
    """
    What a caller tells the circuit about a finished call.

    Attributes:
        outcome: How the circuit should count it.

        retry_after_ms: The dependency's own word on when to come back, >= 0.  0 when it said nothing.

        duration_ms: How long the call took by its process's own clock, >= 0.  0 when nobody measured.
    """

    outcome: Outcome
    retry_after_ms: int = 0
    duration_ms: int = 0


SUCCESS = Report(Outcome.SUCCESS)
IGNORED = Report(Outcome.IGNORED)


def report_of(error: BaseException) -> Report:
    """
    Classify the exception that ended a call.

    Args:
        error: The exception as it was raised, not a pickled copy.

    Returns:
        A failure, unless the exception says otherwise.
    """
    claimed = getattr(error, "circuit_outcome", Outcome.FAILURE)
    outcome = Outcome(claimed) if claimed in list(Outcome) else Outcome.FAILURE
    if outcome is not Outcome.FAILURE:
        return Report(outcome)
    return Report(outcome, _milliseconds(getattr(error, "retry_after", None)))


def _milliseconds(seconds: object) -> int:
    # The value came from somebody else's server: anything odd means "it said nothing".
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        return 0
    if not math.isfinite(seconds) or seconds <= 0:
        return 0
    return min(round(seconds * 1000), 2**40)
