"""
How an exception is read as evidence about the dependency.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from omni_tasks.core.outcome import Outcome, Report, judge
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.errors import CircuitOpenError

CONFIG = CircuitBreakerConfig(name="outcome")


def _error(**attributes: Any) -> Exception:
    error = ValueError("something")
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def test_any_exception_is_a_failure() -> None:
    """
    An exception that says nothing about itself counts against the dependency.
    """
    assert judge(CONFIG, _error()) == Report(Outcome.FAILURE)


@pytest.mark.parametrize("claimed", list(Outcome))
def test_an_exception_may_answer_for_itself(claimed: Outcome) -> None:
    """
    ``circuit_outcome`` is taken as it is, as a plain string too.
    """
    assert judge(CONFIG, _error(circuit_outcome=claimed.value)).outcome is claimed


@pytest.mark.parametrize("claimed", ["fine", "", None, 1, [], "FAILURE"])
def test_an_unknown_claim_is_a_failure(claimed: object) -> None:
    """
    What is none of the three outcomes does not talk the circuit out of a failure.
    """
    assert judge(CONFIG, _error(circuit_outcome=claimed)).outcome is Outcome.FAILURE


@pytest.mark.parametrize(
    ("seconds", "milliseconds"),
    [
        (30, 30_000),
        (0.0015, 2),
        (1e30, 2**40),
        (1e308, 2**40),
        (10**400, 2**40),
        (None, 0),
        (0, 0),
        (-5, 0),
        (True, 0),
        ("30", 0),
    ],
)
def test_retry_after_is_read_from_a_failure(seconds: object, milliseconds: int) -> None:
    """
    Seconds become milliseconds; anything but a positive number means that nothing was said.
    """
    assert judge(CONFIG, _error(retry_after=seconds)).retry_after_ms == milliseconds


@pytest.mark.parametrize("seconds", [math.inf, -math.inf, math.nan])
def test_an_endless_retry_after_says_nothing(seconds: float) -> None:
    """
    Infinity and NaN do not hold a circuit open.
    """
    assert judge(CONFIG, _error(retry_after=seconds)).retry_after_ms == 0


def test_only_a_failure_carries_a_wait() -> None:
    """
    The ``retry_after`` of an ignored exception is not the dependency's.
    """
    assert judge(CONFIG, _error(circuit_outcome="ignored", retry_after=30)) == Report(Outcome.IGNORED)


def test_a_refusal_by_another_circuit_is_neutral() -> None:
    """
    A call that was refused elsewhere never reached its dependency.
    """
    assert judge(CONFIG, CircuitOpenError("other", "open", 30.0)) == Report(Outcome.IGNORED)


def test_a_result_is_a_success_unless_the_circuit_says_otherwise() -> None:
    """
    ``classify`` is asked first, about results and exceptions alike, and may leave it to the other rules.
    """

    def classify(error: BaseException | None, result: object) -> str | None:
        if isinstance(error, KeyError):
            return "success"
        return "failure" if error is None and result is None else None

    config = CircuitBreakerConfig(name="outcome", classify=classify)
    assert judge(config, None, "text").outcome is Outcome.SUCCESS
    assert judge(config, None, None).outcome is Outcome.FAILURE
    assert judge(config, KeyError()).outcome is Outcome.SUCCESS
    assert judge(config, _error(circuit_outcome="ignored")).outcome is Outcome.IGNORED


def test_exceptions_are_included_and_excluded_by_class() -> None:
    """
    Ignored classes win over counted ones; with counted ones, everything else is ignored.
    """
    config = CircuitBreakerConfig(
        name="outcome", ignored_exceptions=(ConnectionResetError,), counted_exceptions=(OSError,)
    )
    assert judge(config, TimeoutError()).outcome is Outcome.FAILURE
    assert judge(config, ConnectionResetError()).outcome is Outcome.IGNORED
    assert judge(config, ValueError()).outcome is Outcome.IGNORED
    assert judge(config, _error(circuit_outcome="failure")).outcome is Outcome.FAILURE


def test_the_duration_is_reported_in_milliseconds() -> None:
    """
    A call's own duration goes with its report; one that was measured took 1 ms at least, for 0 says that none was.
    """
    assert judge(CONFIG, None, duration=0.25).duration_ms == 250
    assert judge(CONFIG, None, duration=0.0001).duration_ms == 1
    assert judge(CONFIG, None).duration_ms == judge(CONFIG, None, duration=-1.0).duration_ms == 0


def test_a_failure_may_be_enough_alone() -> None:
    """
    ``trips_circuit`` opens the circuit at once, and only ``True`` does; ``circuit_reason`` says why.
    """
    report = judge(CONFIG, _error(trips_circuit=True, circuit_reason="billing", retry_after=30))
    assert report == Report(Outcome.FAILURE, 30_000, trip=True, reason="billing")
    for claimed in (False, None, "yes", 1):
        assert not judge(CONFIG, _error(trips_circuit=claimed)).trip
    assert judge(CONFIG, _error(circuit_outcome="ignored", trips_circuit=True)) == Report(Outcome.IGNORED)


@pytest.mark.parametrize(
    ("said", "kept"),
    [("auth", "auth"), ("two\nlines", "twolines"), ("r" * 65, "r" * 64), (None, ""), (7, ""), (b"raw", "")],
)
def test_a_reason_is_short_and_printable(said: object, kept: str) -> None:
    """
    A reason is stored and shown: no line breaks, no more than 64 characters, nothing but text.
    """
    assert judge(CONFIG, _error(circuit_reason=said)).reason == kept


def test_classify_may_trip() -> None:
    """
    ``classify`` answers "trip" for a failure that is enough alone, also where the call returned.
    """
    config = CircuitBreakerConfig(name="outcome", classify=lambda _error, _result: "trip")
    assert judge(config, None, {"error": "quota"}) == Report(Outcome.FAILURE, trip=True)
    assert judge(config, _error(circuit_reason="quota")) == Report(Outcome.FAILURE, trip=True, reason="quota")


def test_an_answer_is_what_a_probe_looks_for() -> None:
    """
    A neutral error that ``proves_alive`` is a success where it is a probe's; nothing else changes by it.
    """
    refused = judge(CONFIG, _error(circuit_outcome="ignored", proves_alive=True))
    assert (refused.outcome, refused.of_probe().outcome) == (Outcome.IGNORED, Outcome.SUCCESS)
    for error in (_error(circuit_outcome="ignored"), _error(proves_alive=True), _error(proves_alive="yes"), None):
        report = judge(CONFIG, error)
        assert report.of_probe() == report
