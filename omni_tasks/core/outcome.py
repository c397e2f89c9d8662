"""
What a finished call says about the dependency.

The question is always: is this evidence about the *dependency*, or only about
this *request*?  These answer it, the first that knows:

1. the circuit's own ``classify(error, result)``; it may also answer ``"trip"``, a failure that is enough alone;
2. the exception itself, by an attribute ``circuit_outcome`` (``"success"``, ``"failure"`` or
   ``"ignored"``);
3. the circuit's ``ignored_exceptions``, then its ``counted_exceptions``;
4. the rule: an exception is a failure, a result a success.

A neutral exception with ``proves_alive = True`` is the dependency's own answer, as a refused request is: it
counts as a probe's success.  A failure's exception may say ``retry_after`` in seconds, ``trips_circuit`` (``True``
where one such failure is enough, as with a rejected key or an empty account) and ``circuit_reason``, a word for
people.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omni_tasks.core.policy import CircuitBreakerConfig

__all__ = ["IGNORED", "SUCCESS", "Outcome", "Report", "judge"]

#: What ``classify`` answers for a failure that opens the circuit at once.
TRIP = "trip"

#: Longest reason that is kept, in characters.
LONGEST_REASON = 64


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

        trip: Whether this failure alone opens the circuit.

        reason: Why, in a word; at most 64 printable characters.

        alive: Whether the dependency answered, neutral as its answer is: what a probe is there to find out.

        trouble: What the circuit's own classify raised; the other rules have decided in its place.
    """

    outcome: Outcome
    retry_after_ms: int = 0
    duration_ms: int = 0
    trip: bool = False
    reason: str = ""
    alive: bool = False
    trouble: str = ""

    def of_probe(self) -> Report:
        """
        Give the report as a probe's: an answer proves that the dependency is well, whatever it says.
        """
        return replace(self, outcome=Outcome.SUCCESS) if self.alive else self


_OUTCOMES = {outcome.value: outcome for outcome in Outcome}

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
    claimed, trouble = _classify(config, error, result)
    outcome = Outcome.FAILURE if claimed == TRIP else _claim(claimed)
    if outcome is None:
        outcome = Outcome.SUCCESS if error is None else _outcome_of(config, error)
    # A call that was measured took at least a millisecond: 0 says that nobody has looked.
    took_ms = max(round(duration * 1000), 1) if duration > 0 else 0
    if outcome is not Outcome.FAILURE:
        alive = outcome is Outcome.IGNORED and getattr(error, "proves_alive", None) is True
        return Report(outcome, duration_ms=took_ms, alive=alive, trouble=trouble)
    return Report(
        outcome,
        _milliseconds(getattr(error, "retry_after", None)),
        took_ms,
        trip=claimed == TRIP or getattr(error, "trips_circuit", None) is True,
        reason=_reason(getattr(error, "circuit_reason", None)),
        trouble=trouble,
    )


def _classify(config: CircuitBreakerConfig, error: BaseException | None, result: object) -> tuple[str | None, str]:
    if config.classify is None:
        return None, ""
    try:
        claimed = config.classify(error, result)
    except Exception as wrong:  # noqa: BLE001 - the user's own code; told, and the call's own end stands
        return None, f"{type(wrong).__name__}: {wrong}"
    return claimed if isinstance(claimed, str) else None, ""


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
    return _OUTCOMES.get(claimed) if isinstance(claimed, str) else None


def _reason(text: object) -> str:
    # It is stored and shown: no line breaks, no end without.
    return "".join(filter(str.isprintable, text))[:LONGEST_REASON] if isinstance(text, str) else ""


def _milliseconds(seconds: object) -> int:
    # The value came from somebody else's server: anything odd means "it said nothing".
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        return 0
    if not 0 < seconds < math.inf:
        return 0
    # Bounded first: a number too large for a float, or whose thousandfold is, must not raise.
    return min(round(min(seconds, 2**40) * 1000), 2**40)
