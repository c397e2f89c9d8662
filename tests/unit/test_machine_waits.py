"""
How long a circuit stays open: back-off, chance, failures that are enough alone, health checks.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from omni_tasks.core.model import Circuit, CircuitState, Override, Transition
from omni_tasks.core.outcome import SUCCESS, Outcome, Report
from omni_tasks.core.waits import chance
from tests.support.bench import Bench

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


@pytest.mark.parametrize(
    ("closed_ms", "stable_s", "waits_s"),
    [(0, 60, [10, 20, 40]), (59_999, 60, [10, 20, 40]), (60_000, 60, [10, 10, 10]), (0, 0, [10, 10, 10])],
)
def test_the_back_off_is_forgotten_when_the_circuit_is_stable(
    closed_ms: int, stable_s: float, waits_s: list[float]
) -> None:
    """
    A circuit that trips again before it has stayed closed for long enough goes on backing off; then it begins anew.
    """
    bench = Bench(backoff_factor=2.0, stable_seconds=stable_s)
    seen = []
    for _ in waits_s:
        seen.append(bench.trip().retry_after_ms / 1000)
        bench.now_ms = bench.circuit.open_until_ms
        assert bench.run(SUCCESS).state is CLOSED
        bench.now_ms += closed_ms
    assert seen == waits_s


@pytest.mark.parametrize("stable_s", [0.0, 60.0])
def test_a_clock_that_steps_back_leaves_the_back_off_as_it_is_configured(stable_s: float) -> None:
    """
    A closing that seems to be in the future is one of just now.
    """
    bench = Bench(backoff_factor=2.0, stable_seconds=stable_s, failure_threshold=1)
    bench.settle(bench.probe(), SUCCESS)
    call = bench.permit()
    bench.now_ms -= 3_600_000
    assert bench.settle(call).retry_after_ms == (20_000 if stable_s else 10_000)


def test_jitter_lengthens_and_never_shortens() -> None:
    """
    With jitter 0.5 open times of 10 s lie between 10 s and 15 s, spread over them, and never above the cap.
    """
    waits = []
    for number in range(200):
        bench = Bench(jitter=0.5, max_recovery_timeout=14.0)
        bench.ask(f"name{number}")
        waits.append(bench.trip().retry_after_ms)
    assert min(waits) >= 10_000
    assert max(waits) == 14_000
    counts = [sum(low <= wait < low + 1_000 for wait in waits) for low in range(10_000, 14_000, 1_000)]
    assert min(counts) > 20


def test_jitter_differs_from_epoch_to_epoch() -> None:
    """
    One circuit's open times differ too; the same epoch asked twice gives the same.
    """
    chances = [chance(Circuit(gen="gen", epoch=epoch)) for epoch in range(1_000)]
    assert chances == [chance(Circuit(gen="gen", epoch=epoch)) for epoch in range(1_000)]
    assert 0 <= min(chances) < 50
    assert 950 < max(chances) <= 1_000
    assert all(abs(after - before) > 5 for before, after in pairwise(chances[:10]))


def test_a_failure_that_is_enough_alone_trips() -> None:
    """
    One failure opens the circuit for its own Retry-After, and the circuit keeps its reason until it is closed.
    """
    bench = Bench(failure_threshold=None, failure_rate_threshold=0.5)
    assert bench.run(Report(Outcome.SUCCESS, trip=True)).state is CLOSED
    settled = bench.run(Report(Outcome.FAILURE, 30_000, trip=True, reason="billing"))
    assert (settled.state, settled.retry_after_ms) == (OPEN, 30_000)
    assert settled.transition is not None
    assert settled.transition.reason == bench.circuit.reason == "billing"
    bench.now_ms += 30_000
    assert bench.run(Report(Outcome.FAILURE, trip=True, reason="auth")).transition == Transition(
        previous=HALF_OPEN, current=OPEN, epoch=3, failures=2, reason="auth"
    )
    bench.now_ms = bench.circuit.open_until_ms
    closed = bench.run(SUCCESS)
    assert closed.transition is not None
    assert closed.transition.reason == bench.circuit.reason == ""


def test_of_a_burst_the_first_failure_that_is_enough_decides() -> None:
    """
    Failures that are enough alone, all in flight: the first opens the circuit once, for its own Retry-After.
    """
    bench = Bench()
    calls = [bench.permit() for _ in range(3)]
    waits = [
        bench.settle(call, Report(Outcome.FAILURE, ms, trip=True)) for call, ms in zip(calls, (20, 90, 10), strict=True)
    ]
    assert [settled.retry_after_ms for settled in waits] == [10_000, 10_000, 10_000]
    assert bench.circuit.opened == 1


# Health checks


def test_a_health_check_that_succeeds_ends_the_wait() -> None:
    """
    It may run while the circuit waits; its success lets the next call probe, and closes nothing by itself.
    """
    bench = Bench()
    bench.trip()
    bench.now_ms += 1_000
    assert bench.ask().permit is None
    check = bench.ask(health=True)
    assert (check.state, check.transition, bench.circuit.state) == (OPEN, None, OPEN)
    assert check.permit is not None
    assert check.permit.probe
    settled = bench.settle(check.permit, SUCCESS)
    assert (settled.state, settled.retry_after_ms, settled.transition) == (OPEN, 0, None)
    assert bench.settle(bench.permit(), SUCCESS).state is CLOSED


def test_a_health_check_that_fails_does_not_prolong_the_wait() -> None:
    """
    Checks may fail as often as they like: no reopening, no back-off; only a Retry-After moves the end, forward.
    """
    bench = Bench(backoff_factor=2.0, max_recovery_timeout=40.0)
    bench.trip()
    end_ms, opened = bench.circuit.open_until_ms, bench.circuit.opened
    for asked_ms, expected_ms in ((0, 10_000), (5_000, 10_000), (30_000, 30_000), (10_000, 30_000), (10**9, 40_000)):
        bench.settle(bench.permit(health=True), Report(Outcome.FAILURE, asked_ms))
        assert bench.circuit.open_until_ms - end_ms + 10_000 == expected_ms
    assert (bench.circuit.opened, bench.circuit.reopens) == (opened, 0)


def test_health_checks_are_as_few_as_probes() -> None:
    """
    No more checks run at once than probes may; the operator's "open" holds for them too.
    """
    bench = Bench(half_open_max_calls=2)
    bench.trip()
    assert [bench.ask(health=True).permit is not None for _ in range(3)] == [True, True, False]
    bench.force(Override.FORCED_OPEN)
    assert bench.ask(health=True).permit is None


def test_a_slow_health_check_proves_nothing() -> None:
    """
    Where slow calls trip, a slow check does not end the wait.
    """
    bench = Bench(slow_call_duration=0.1, slow_call_rate_threshold=0.5)
    bench.trip()
    assert bench.settle(bench.permit(health=True), Report(Outcome.SUCCESS, duration_ms=100)).retry_after_ms == 10_000


def test_a_health_check_is_an_ordinary_call_of_a_closed_circuit() -> None:
    """
    While closed it counts as any call does.
    """
    bench = Bench(failure_threshold=1)
    assert bench.settle(bench.permit(health=True)).state is OPEN
