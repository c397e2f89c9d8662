"""
What a finished call says about the dependency.

The question is always: is this evidence about the *dependency*, or only about
this *request*?  These answer it, the first that knows:

1. the circuit's own ``classify(error, result)``;
2. the exception itself, by an attribute ``circuit_outcome`` (``"success"``, ``"failure"`` or
   ``"ignored"``); with a failure, ``retry_after`` in seconds;
3. the circuit's ``ignored_exceptions``, then its ``counted_exceptions``;
4. the rule: an exception is a failure, a result a success.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omni_tasks.core.policy import CircuitBreakerConfig

__all__ = ["IGNORED", "SUCCESS", "Outcome", "Report", "judge"]


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


def judge(
    config: CircuitBreakerConfig, error: BaseException | None, result: object = None, *, duration: float = 0.0
) -> Report:
    """
    Classify how a call ended.

    Args:
        config: The circuit's rules.

        error: The exception as it was raised, not a pickled copy; ``None`` when the call returned.

        result: What it returned.

        duration: How long it took, in seconds, by its process's own clock.  0 when nobody measured.

    Returns:
        The report to settle the call's permit with.
    """
    outcome = _claim(config.classify(error, result)) if config.classify else None
    if outcome is None:
        outcome = Outcome.SUCCESS if error is None else _outcome_of(config, error)
    asked_ms = _milliseconds(getattr(error, "retry_after", None)) if outcome is Outcome.FAILURE else 0
    return Report(outcome, asked_ms, max(round(duration * 1000), 0))


def _outcome_of(config: CircuitBreakerConfig, error: BaseException) -> Outcome:
    claimed = _claim(getattr(error, "circuit_outcome", None))
    if claimed is not None:
        return claimed
    if isinstance(error, config.ignored_exceptions):
        return Outcome.IGNORED
    if config.counted_exceptions and not isinstance(error, config.counted_exceptions):
        return Outcome.IGNORED
    return Outcome.FAILURE


def _claim(claimed: object) -> Outcome | None:
    # Anything but one of our three words is no claim: a typo must not silence a circuit.
    return Outcome(str(claimed)) if claimed in list(Outcome) else None


def _milliseconds(seconds: object) -> int:
    # The value came from somebody else's server: anything odd means "it said nothing".
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        return 0
    if not math.isfinite(seconds) or seconds <= 0:
        return 0
    return min(round(seconds * 1000), 2**40)
