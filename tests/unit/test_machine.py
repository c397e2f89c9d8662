"""
The circuit's rules, case by case; time is what the test says it is.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from omni_tasks.core.model import Admission, CircuitState, Settlement, Transition
from omni_tasks.core.outcome import IGNORED, SUCCESS, Outcome, Report
from tests.support.bench import FAILURE, Bench

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN

# Closed, counting failures


@pytest.mark.parametrize("threshold", [1, 2, 5])
def test_trips_exactly_at_the_threshold(threshold: int) -> None:
    """
    The failure that reaches the threshold opens the circuit; the one before it does not.
    """
    bench = Bench(failure_threshold=threshold)
    for _ in range(threshold - 1):
        assert bench.run().transition is None
    assert bench.circuit.state is CLOSED
    last = bench.run()
    assert last.transition == Transition(previous=CLOSED, current=OPEN, epoch=1, failures=threshold)
    assert last.retry_after_ms == 10_000
    assert bench.circuit.opened == 1


def test_a_success_starts_the_count_again() -> None:
    """
    Failures must follow each other: a success between them sets the count to zero.
    """
    bench = Bench()
    for report in (FAILURE, FAILURE, SUCCESS, FAILURE, FAILURE):
        bench.run(report)
    assert bench.circuit.state is CLOSED
    assert bench.run().transition is not None


def test_a_neutral_outcome_counts_neither_way() -> None:
    """
    An ignored call between failures neither adds to their count nor starts it again.
    """
    bench = Bench()
    for report in (FAILURE, FAILURE, IGNORED, IGNORED):
        bench.run(report)
    assert (bench.circuit.state, bench.circuit.failures, bench.circuit.ignored) == (CLOSED, 2, 2)
    assert bench.run().transition is not None


def test_a_closed_circuit_limits_nothing() -> None:
    """
    While closed any number of calls is out at once.
    """
    bench = Bench()
    assert [bench.permit().probe for _ in range(50)] == [False] * 50


def test_calls_that_overlap_trip_once() -> None:
    """
    Forty calls that were let through and all fail open the circuit once; thirty-five come too late.
    """
    bench = Bench(failure_threshold=5)
    settlements = [bench.settle(permit) for permit in [bench.permit() for _ in range(40)]]
    assert [s.transition is not None for s in settlements] == [False] * 4 + [True] + [False] * 35
    assert (bench.circuit.opened, bench.circuit.failed, bench.circuit.failures) == (1, 40, 5)


# Open, waiting


def test_an_open_circuit_refuses_until_the_recovery_timeout() -> None:
    """
    Up to the last millisecond of the wait every call is refused and told what is left; then one is a probe.
    """
    bench = Bench()
    bench.trip()
    assert bench.ask() == Admission(permit=None, state=OPEN, retry_after_ms=10_000)
    bench.now_ms += 9_999
    assert bench.ask() == Admission(permit=None, state=OPEN, retry_after_ms=1)
    bench.now_ms += 1
    admission = bench.ask()
    assert admission.permit is not None
    assert admission.permit.probe
    assert admission.transition == Transition(previous=OPEN, current=HALF_OPEN, epoch=2, failures=3)
    assert (bench.circuit.rejected, bench.circuit.half_opened) == (2, 1)


@pytest.mark.parametrize(("asked_ms", "open_ms"), [(0, 10_000), (4_000, 10_000), (300_000, 300_000), (2**40, 600_000)])
def test_a_retry_after_only_lengthens(asked_ms: int, open_ms: int) -> None:
    """
    The dependency's Retry-After lengthens the wait up to the cap and never shortens it.
    """
    bench = Bench(max_recovery_timeout=600.0)
    assert bench.trip(Report(Outcome.FAILURE, asked_ms)).retry_after_ms == open_ms


def test_a_late_shorter_retry_after_changes_nothing() -> None:
    """
    Retry-After 300 s, then a straggler with 10 s: the circuit stays open for 300 s.
    """
    bench = Bench()
    straggler = bench.permit()
    bench.trip(Report(Outcome.FAILURE, 300_000))
    assert bench.settle(straggler, Report(Outcome.FAILURE, 10_000)).retry_after_ms == 300_000


# Half open, probing


@pytest.mark.parametrize("limit", [1, 3])
def test_probes_are_limited(limit: int) -> None:
    """
    Half open lets as many calls through at once as are configured, and a reported probe makes room.
    """
    bench = Bench(half_open_max_calls=limit, success_threshold=9)
    probes = [bench.probe(), *(bench.permit() for _ in range(limit - 1))]
    refused = bench.ask()
    assert (refused.permit, refused.state, refused.retry_after_ms) == (None, HALF_OPEN, 2_000)
    bench.settle(probes[0], SUCCESS)
    assert bench.permit().probe
    assert bench.ask().permit is None


def test_a_lapsed_lease_frees_the_slot_and_proves_nothing() -> None:
    """
    A probe that stays silent for its lease gives way to another: no success, no failure, still half open.
    """
    bench = Bench()
    dead = bench.probe()
    bench.now_ms += 1_999
    assert bench.ask().retry_after_ms == 1
    bench.now_ms += 1
    assert bench.permit().probe
    circuit = bench.circuit
    assert (circuit.state, circuit.probe_successes, circuit.reopens) == (HALF_OPEN, 0, 0)
    # It is still outstanding, for as long as an ordinary call would be.
    assert (f"{dead.epoch}:{dead.id}" in circuit.calls, circuit.expired) == (True, 0)


def test_a_slow_probe_still_reports_in_its_epoch() -> None:
    """
    A probe that outlived its lease closes the circuit it was let through by; in a later epoch it changes nothing.
    """
    bench = Bench()
    slow = bench.probe()
    bench.now_ms += 2_000
    assert bench.settle(slow, SUCCESS).state is CLOSED
    slow = bench.probe()
    bench.now_ms += 2_000
    bench.settle(bench.permit())
    assert bench.settle(slow, SUCCESS) == Settlement(applied=True, state=OPEN, retry_after_ms=10_000)


@pytest.mark.parametrize(("asked_ms", "lease_ms"), [(0, 2_000), (500, 500), (5_000, 5_000), (90_000, 60_000)])
def test_a_call_may_bring_its_own_lease(asked_ms: int, lease_ms: int) -> None:
    """
    A task's hard time limit replaces the probe's lease, up to the longest one.
    """
    bench = Bench(call_lease=60.0)
    bench.trip()
    bench.now_ms += 10_000
    probe = bench.permit(lease_ms=asked_ms)
    assert bench.circuit.probes[f"{probe.epoch}:{probe.id}"] - bench.now_ms == lease_ms


def test_a_call_lease_takes_back_what_nobody_reports() -> None:
    """
    A lost call of a closed circuit leaves the account when its lease ends, and counts as nothing.
    """
    bench = Bench(call_lease=60.0)
    bench.permit()
    bench.now_ms += 60_000
    bench.permit()
    assert (len(bench.circuit.calls), bench.circuit.expired, bench.circuit.failures) == (1, 1, 0)


def test_closes_after_the_configured_successes() -> None:
    """
    Half open closes with the last of the successes it needs, and forgets failures and back-off.
    """
    bench = Bench(success_threshold=2)
    assert bench.settle(bench.probe(), SUCCESS).transition is None
    closing = bench.run(SUCCESS)
    assert closing.transition == Transition(previous=HALF_OPEN, current=CLOSED, epoch=3, failures=0)
    assert (bench.circuit.failures, bench.circuit.reopens) == (0, 0)


def test_one_failed_probe_reopens() -> None:
    """
    Successes so far do not outweigh a failed probe: the whole wait starts again.
    """
    bench = Bench(half_open_max_calls=3, success_threshold=3)
    first, second = bench.probe(), bench.permit()
    bench.settle(first, SUCCESS)
    reopening = bench.settle(second)
    assert reopening.transition == Transition(previous=HALF_OPEN, current=OPEN, epoch=3, failures=4)
    assert reopening.retry_after_ms == 10_000
    assert bench.circuit.probe_successes == 0


def test_an_outage_lasts_from_its_trip_to_its_close() -> None:
    """
    Reopenings do not move the moment of the trip; closing clears it.
    """
    bench = Bench()
    probe, tripped_at_ms = bench.probe(), bench.now_ms - 10_000
    assert bench.circuit.tripped_at_ms == tripped_at_ms
    bench.settle(probe)
    assert bench.circuit.tripped_at_ms == tripped_at_ms
    bench.now_ms = bench.circuit.open_until_ms
    bench.run(SUCCESS)
    assert bench.circuit.tripped_at_ms == 0


def test_a_neutral_probe_gives_its_permit_back() -> None:
    """
    An ignored probe frees its slot and leaves the circuit half open.
    """
    bench = Bench()
    probe = bench.probe()
    before = bench.rules
    assert bench.settle(probe, IGNORED) == Settlement(applied=True, state=HALF_OPEN)
    assert bench.rules == before
    assert bench.permit().probe


@pytest.mark.parametrize(
    ("factor", "waits_s"),
    [(1.0, [10, 10, 10, 10]), (2.0, [10, 20, 40, 50]), (1.5, [10, 15, 22.5, 33.75]), (10.0, [10, 50, 50, 50])],
)
def test_reopening_backs_off_up_to_the_cap(factor: float, waits_s: list[float]) -> None:
    """
    Each reopening multiplies the wait by the back-off factor, up to the longest recovery timeout.
    """
    bench = Bench(backoff_factor=factor, max_recovery_timeout=50.0)
    seen = [bench.trip().retry_after_ms / 1000]
    while len(seen) < len(waits_s):
        bench.now_ms = bench.circuit.open_until_ms
        seen.append(bench.run().retry_after_ms / 1000)
    assert seen == waits_s


def test_a_back_off_too_small_to_see_costs_no_time() -> None:
    """
    Where a step adds less than a millisecond, any number of reopenings is worked out as fast as one.
    """
    bench = Bench(recovery_timeout=0.5, backoff_factor=1.001)
    probe = bench.probe()
    bench.circuit = replace(bench.circuit, reopens=10**12)
    assert bench.settle(probe).retry_after_ms == 500
