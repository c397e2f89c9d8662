"""
The sliding window and the rules that read it.
"""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_tasks.core import machine, window
from omni_tasks.core.model import Circuit, CircuitState, Request
from omni_tasks.core.outcome import Outcome, Report
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.errors import ConfigurationError

CALLS = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60)


def _config(**options: Any) -> CircuitBreakerConfig:
    return CircuitBreakerConfig(
        **{"name": "w", "failure_threshold": None, "failure_rate_threshold": 0.5, "minimum_calls": 1, **options}
    )


@given(calls=CALLS, size=st.integers(1, 20))
def test_a_window_over_calls_holds_the_last_ones(calls: list[tuple[bool, bool]], size: int) -> None:
    """However many calls there were, the window counts the last *window_calls* of them."""
    config, text = _config(window_calls=size), ""
    for failed, slow in calls:
        text = window.record(text, config.policy, failed=failed, slow=slow, now_ms=0)
    last = calls[-size:]
    expected = window.Counts(len(last), sum(failed for failed, _ in last), sum(slow for _, slow in last))
    assert window.count(text, config.policy, now_ms=0) == expected


@given(steps=st.lists(st.tuples(st.integers(0, 400), st.booleans(), st.booleans()), max_size=60))
def test_a_window_over_time_forgets_by_tenths(steps: list[tuple[int, bool, bool]]) -> None:
    """A call is counted for at least nine tenths of the window and never longer than the whole of it."""
    config, text, now_ms = _config(window_seconds=1.0), "", 1_700_000_000_000
    seen: deque[tuple[int, bool, bool]] = deque()
    for step_ms, failed, slow in steps:
        now_ms += step_ms
        text = window.record(text, config.policy, failed=failed, slow=slow, now_ms=now_ms)
        seen.append((now_ms, failed, slow))
        counted = window.count(text, config.policy, now_ms=now_ms)
        surely = [call for call in seen if now_ms - call[0] <= 900]
        perhaps = [call for call in seen if now_ms - call[0] < 1000]
        assert len(surely) <= counted.calls <= len(perhaps)
        assert sum(call[1] for call in surely) <= counted.failed <= sum(call[1] for call in perhaps)
        assert sum(call[2] for call in surely) <= counted.slow <= sum(call[2] for call in perhaps)
        assert len(text) < 400


def test_a_window_of_another_kind_reads_as_empty() -> None:
    """After the configuration changed from calls to time, the old window counts for nothing."""
    assert window.count("0101", _config(window_seconds=1.0).policy, now_ms=0) == window.Counts(0, 0, 0)


class Walk:
    """
    A circuit that is called once a millisecond.
    """

    def __init__(self, config: CircuitBreakerConfig) -> None:
        self.circuit, self.config, self.now_ms = Circuit(), config, 1_700_000_000_000

    def run(self, *, failed: bool = False, duration_ms: int = 0) -> CircuitState:
        """
        Make one call.
        """
        self.now_ms += 1
        asked = Request(permit_id=str(self.now_ms))
        self.circuit, admission = machine.acquire(self.circuit, self.config, asked, now_ms=self.now_ms)
        assert admission.permit is not None
        report = Report(Outcome.FAILURE if failed else Outcome.SUCCESS, duration_ms=duration_ms)
        self.circuit, settlement = machine.settle(
            self.circuit, self.config, admission.permit, report, now_ms=self.now_ms
        )
        return settlement.state


@given(outcomes=st.lists(st.booleans(), min_size=1, max_size=40), rate=st.fractions(Fraction(1, 100), 1))
def test_a_rate_trips_exactly_when_fractions_say_so(outcomes: list[bool], rate: Fraction) -> None:
    """The circuit opens with the first report that brings the window to the rate, and with no other."""
    ppm = round(rate * 1_000_000)
    walk = Walk(_config(failure_rate_threshold=ppm / 1_000_000, minimum_calls=5, window_calls=10))
    recent: deque[bool] = deque(maxlen=10)
    for failed in outcomes:
        recent.append(failed)
        wanted = len(recent) >= 5 and Fraction(sum(recent), len(recent)) >= Fraction(ppm, 1_000_000)
        assert (walk.run(failed=failed) is CircuitState.OPEN) == wanted
        if wanted:
            break


def test_slow_calls_trip_by_their_own_rate() -> None:
    """Calls that succeed too slowly open the circuit; a call of exactly the duration is slow."""
    walk = Walk(
        _config(failure_rate_threshold=None, slow_call_duration=0.1, slow_call_rate_threshold=0.5, minimum_calls=4)
    )
    assert [walk.run(duration_ms=ms) for ms in (99, 100, 0)] == [CircuitState.CLOSED] * 3
    assert walk.run(duration_ms=500) is CircuitState.OPEN
    assert walk.circuit.slow == 2


def test_a_slow_probe_is_no_proof_of_health() -> None:
    """Where slow calls trip, a slow probe reopens; where they do not, it closes."""
    for rate, state in ((0.5, CircuitState.OPEN), (None, CircuitState.CLOSED)):
        walk = Walk(_config(slow_call_duration=0.1, slow_call_rate_threshold=rate))
        assert walk.run(failed=True) is CircuitState.OPEN
        walk.now_ms = walk.circuit.open_until_ms
        assert walk.run(duration_ms=200) is state


def test_rules_compose() -> None:
    """Consecutive failures trip although the rate is far away, and the window starts anew with each closing."""
    walk = Walk(_config(failure_threshold=2, failure_rate_threshold=0.9, minimum_calls=10))
    for _ in range(9):
        walk.run()
    assert walk.run(failed=True) is CircuitState.CLOSED
    assert walk.run(failed=True) is CircuitState.OPEN
    assert walk.circuit.window == ""


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"failure_rate_threshold": 0.0}, "failure_rate_threshold"),
        ({"failure_rate_threshold": 1.1}, "failure_rate_threshold"),
        ({"slow_call_rate_threshold": 0.5}, "slow_call_duration"),
        ({"window_calls": 10, "minimum_calls": 11}, "minimum_calls"),
        ({"window_calls": 1001}, "window_calls"),
        ({"window_seconds": 0}, "window_seconds"),
        ({"failure_rate_threshold": None}, "failure_threshold"),
    ],
)
def test_a_window_that_cannot_work_is_refused(options: dict[str, Any], named: str) -> None:
    """Rates out of range, a minimum above the window and a circuit that nothing can trip are refused by name."""
    with pytest.raises(ConfigurationError, match=f"^{named} must be "):
        _config(**options)
