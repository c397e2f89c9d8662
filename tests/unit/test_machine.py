"""
The circuit's rules, case by case; time is what the test says it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_tasks.core.model import Admission, Circuit, CircuitState, Override, Permit, Settlement, Transition
from omni_tasks.core.outcome import IGNORED, SUCCESS, Outcome, Report
from tests.support.bench import FAILURE, Bench

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN
HOUR_MS = 3_600_000


# Closed: counting failures


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


# Open: waiting


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


# Half open: probing


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
    assert (circuit.state, circuit.probe_successes, circuit.reopens, circuit.expired) == (HALF_OPEN, 0, 0, 1)
    assert bench.settle(dead, SUCCESS) == Settlement(applied=False, state=HALF_OPEN)
    assert bench.circuit.stale == 1


@pytest.mark.parametrize(("asked_ms", "lease_ms"), [(0, 2_000), (500, 500), (5_000, 5_000), (90_000, 60_000)])
def test_a_call_may_bring_its_own_lease(asked_ms: int, lease_ms: int) -> None:
    """
    A task's hard time limit replaces the probe's lease, up to the longest one.
    """
    bench = Bench(call_lease=60.0)
    bench.trip()
    bench.now_ms += 10_000
    probe = bench.permit(lease_ms=asked_ms)
    assert bench.circuit.probes[probe.id] - bench.now_ms == lease_ms


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
    bench.now_ms = bench.circuit.open_until_ms
    bench.run(SUCCESS)
    assert bench.trip().retry_after_ms == 10_000


def test_a_back_off_too_small_to_see_costs_no_time() -> None:
    """
    Where a step adds less than a millisecond, a million reopenings are worked out as fast as one.
    """
    bench = Bench(recovery_timeout=0.5, backoff_factor=1.001)
    probe = bench.probe()
    bench.circuit = replace(bench.circuit, reopens=10**12)
    assert bench.settle(probe).retry_after_ms == 500


# Reports that come late, twice, or never asked for


def test_a_late_success_never_closes() -> None:
    """
    A call from before the trip that succeeds now changes no rule, whether the circuit is open or half open.
    """
    bench = Bench()
    early, later = bench.permit(), bench.permit()
    bench.trip()
    before = bench.rules
    assert bench.settle(early, SUCCESS).transition is None
    assert bench.rules == before
    bench.now_ms += 10_000
    bench.permit()
    before = bench.rules
    assert bench.settle(later, SUCCESS).state is HALF_OPEN
    assert bench.rules == before
    assert bench.circuit.succeeded == 2


def test_a_late_failure_never_extends() -> None:
    """
    A call from before the trip that fails now neither lengthens the wait, nor reopens, nor counts when closed again.
    """
    bench = Bench()
    stragglers = [bench.permit() for _ in range(3)]
    bench.trip()
    bench.now_ms += 5_000
    before = bench.rules
    assert bench.settle(stragglers[0]).retry_after_ms == 5_000
    assert bench.rules == before
    bench.now_ms += 5_000
    probe = bench.permit()
    before = bench.rules
    bench.settle(stragglers[1])
    assert bench.rules == before
    bench.settle(probe, SUCCESS)
    before = bench.rules
    bench.settle(stragglers[2])
    assert bench.rules == before


def test_a_probe_of_an_earlier_half_open_changes_nothing() -> None:
    """
    Of two probes one reopens the circuit; the other's success, an epoch later, does not close it.
    """
    bench = Bench(half_open_max_calls=2, probe_lease=60.0)
    first, second = bench.probe(), bench.permit()
    bench.settle(first)
    bench.now_ms = bench.circuit.open_until_ms
    bench.permit()
    before = bench.rules
    assert bench.settle(second, SUCCESS).applied
    assert bench.rules == before


def test_settling_twice_counts_once() -> None:
    """
    The second report of one permit is dropped, whatever it says.
    """
    bench = Bench()
    permit = bench.permit()
    assert bench.settle(permit).applied
    assert not bench.settle(permit).applied
    assert not bench.settle(permit, SUCCESS).applied
    assert (bench.circuit.failed, bench.circuit.succeeded, bench.circuit.failures, bench.circuit.stale) == (1, 0, 1, 2)


def test_a_report_to_an_unknown_circuit_creates_nothing() -> None:
    """
    A permit that outlived its circuit's state is dropped and leaves no trace.
    """
    bench = Bench()
    settlement = bench.settle(Permit("p", "lost", 7, probe=True), SUCCESS)
    assert settlement == Settlement(applied=False, state=CLOSED)
    assert bench.circuit == Circuit()


def test_permits_of_a_lost_state_do_not_match_the_new_one() -> None:
    """
    After the state was lost the circuit is a new incarnation, which no old permit can trip or close.
    """
    bench = Bench(failure_threshold=1)
    old = bench.permit()
    bench.circuit = Circuit(calls=bench.circuit.calls)
    new = bench.permit()
    assert new.gen != old.gen
    assert bench.settle(old).transition is None
    assert bench.settle(new).transition is not None


@pytest.mark.parametrize("half_open", [False, True])
def test_asking_again_gives_the_same_permit(half_open: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """
    A question asked again, because its answer got lost, gets the same permit and is counted once.
    """
    bench = Bench()
    if half_open:
        bench.trip()
        bench.now_ms += 10_000
    first = bench.ask("again")
    before = bench.circuit
    second = bench.ask("again")
    assert second.permit == first.permit
    assert second.transition is None
    assert bench.circuit == before


# The operator's word


def test_forced_open_refuses_until_it_is_lifted() -> None:
    """
    Without a time to live the operator's "open" holds until the next word, and is announced both ways.
    """
    bench = Bench()
    forced = bench.force(Override.FORCED_OPEN)
    assert forced == Transition(previous=CLOSED, current=OPEN, epoch=1, failures=0)
    bench.now_ms += 1000 * HOUR_MS
    assert bench.ask() == Admission(permit=None, state=OPEN, retry_after_ms=10_000)
    lifted = bench.force(Override.AUTO)
    assert lifted == Transition(previous=OPEN, current=CLOSED, epoch=2, failures=0)
    assert bench.ask().permit is not None


def test_forced_open_ends_with_its_time_to_live() -> None:
    """
    The first question after the time to live finds the circuit deciding for itself, and says so once.
    """
    bench = Bench()
    bench.force(Override.FORCED_OPEN, ttl_ms=5_000)
    bench.now_ms += 4_999
    assert bench.ask().retry_after_ms == 1
    bench.now_ms += 1
    first, second = bench.ask(), bench.ask()
    assert first.transition == Transition(previous=OPEN, current=CLOSED, epoch=2, failures=0)
    assert second.transition is None


def test_forced_closed_lets_calls_through_and_only_counts_them() -> None:
    """
    Calls let through an open circuit by the operator's word neither close nor reopen it.
    """
    bench = Bench()
    bench.trip()
    assert bench.force(Override.FORCED_CLOSED, ttl_ms=5_000) is not None
    before = bench.rules
    bench.run(SUCCESS)
    bench.run()
    assert bench.rules == before
    bench.now_ms += 5_000
    after = bench.ask()
    assert (after.permit, after.state, after.retry_after_ms) == (None, OPEN, 5_000)
    assert after.transition is not None


def test_forced_closed_hides_a_trip_until_it_is_lifted() -> None:
    """
    A circuit that trips under "closed" goes on letting calls through, and is open when the word is lifted.
    """
    bench = Bench()
    bench.force(Override.FORCED_CLOSED)
    assert bench.trip().transition is None
    assert bench.ask().permit is not None
    lifted = bench.force(Override.AUTO)
    assert lifted is not None
    assert (lifted.previous, lifted.current) == (CLOSED, OPEN)


def test_an_override_fences_earlier_permits() -> None:
    """
    Permits from before the operator's word cannot change the state after it.
    """
    bench = Bench(failure_threshold=1)
    permit = bench.permit()
    bench.force(Override.FORCED_CLOSED)
    bench.settle(permit)
    assert bench.circuit.state is CLOSED


def test_reset_clears_everything_but_the_identity() -> None:
    """
    A reset closes, lifts the operator's word and zeroes every count; permits from before it are void.
    """
    bench = Bench()
    probe = bench.probe()
    bench.force(Override.FORCED_OPEN)
    gen, epoch = bench.circuit.gen, bench.circuit.epoch
    assert bench.reset() == Transition(previous=OPEN, current=CLOSED, epoch=epoch + 1, failures=0)
    assert bench.circuit == Circuit(gen=gen, epoch=epoch + 1, changed_at_ms=bench.now_ms)
    assert not bench.settle(probe).applied
    assert bench.ask().permit is not None


def test_reset_of_a_closed_circuit_is_no_transition() -> None:
    """
    Only a change of state is announced.
    """
    bench = Bench()
    assert bench.reset() is None
    assert bench.circuit.gen == "operator"


# The server's clock steps


@pytest.mark.parametrize("step_ms", [-1, -9_000, -HOUR_MS])
def test_a_clock_that_steps_back_never_lengthens_the_wait(step_ms: int) -> None:
    """
    However far the clock steps back, an open circuit takes a probe within one wait of the step.
    """
    bench = Bench(recovery_timeout=10.0)
    bench.trip()
    bench.now_ms += step_ms
    left_ms = bench.ask().retry_after_ms
    assert 0 < left_ms <= 10_000
    bench.now_ms += left_ms
    assert bench.permit().probe


def test_a_clock_that_steps_back_keeps_probes_bounded() -> None:
    """
    A silent probe is given up within the longest lease of the step.
    """
    bench = Bench(call_lease=60.0)
    bench.probe()
    bench.now_ms -= HOUR_MS
    assert bench.ask().permit is None
    bench.now_ms += 60_000
    assert bench.permit().probe


@pytest.mark.parametrize("override", [Override.FORCED_OPEN, Override.FORCED_CLOSED])
def test_a_clock_that_steps_back_never_lengthens_an_override(override: Override) -> None:
    """
    However far the clock steps back, the operator's word ends within its time to live of the step.
    """
    bench = Bench()
    bench.force(override, ttl_ms=5_000)
    bench.now_ms += 1_000 - HOUR_MS
    bench.ask()
    bench.now_ms += 5_000
    bench.ask()
    assert bench.circuit.override is Override.AUTO


def test_a_clock_that_steps_forward_only_shortens_the_wait() -> None:
    """
    After a step forward the circuit probes early; it does not get lost.
    """
    bench = Bench()
    bench.trip()
    bench.now_ms += HOUR_MS
    assert bench.permit().probe


# What holds for any history

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.booleans(), st.sampled_from([0, 700])),
        st.tuples(st.just("settle"), st.integers(0, 30), st.sampled_from([FAILURE, FAILURE, SUCCESS, IGNORED])),
        st.tuples(st.just("clock"), st.sampled_from([1, 400, 2_000, 10_000, 90_000, -1, -3_000, -HOUR_MS])),
        st.tuples(st.just("draw"), st.sampled_from([0, 1, 50])),
        st.tuples(st.just("force"), st.sampled_from(Override), st.sampled_from([0, 3_000])),
    ),
    max_size=80,
)

ARROWS = {(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, CLOSED), (HALF_OPEN, OPEN)}


def _walk(bench: Bench, steps: list[tuple[Any, ...]]) -> Iterator[tuple[Circuit, Circuit, Admission | None]]:
    """
    Take the steps; give the circuit before and after each, and the answer where there was one.
    """
    permits: list[Permit] = []
    for step in steps:
        before, admission = bench.circuit, None
        match step:
            case "ask", paced, lease_ms:
                admission = bench.ask(paced=paced, lease_ms=lease_ms)
                permits += [admission.permit] if admission.permit else []
            case "settle", index, report if permits:
                bench.settle(permits[index % len(permits)], report)
            case "clock", milliseconds:
                bench.now_ms += milliseconds
            case "draw", wanted:
                bench.draw(wanted)
            case "force", override, ttl_ms:
                bench.force(override, ttl_ms)
        yield before, bench.circuit, admission


@settings(derandomize=True, deadline=None, max_examples=150)
@given(steps=STEPS, limit=st.integers(1, 3), threshold=st.integers(1, 3))
def test_every_history_keeps_the_rules(steps: list[tuple[Any, ...]], limit: int, threshold: int) -> None:
    """
    Any history: permits add up, probes stay within the limit, only legal arrows, epochs grow, refusals name a wait.
    """
    bench = Bench(half_open_max_calls=limit, success_threshold=2, failure_threshold=threshold, call_lease=60.0)
    for before, circuit, admission in _walk(bench, steps):
        accounted = circuit.succeeded + circuit.failed + circuit.ignored + circuit.expired
        assert circuit.admitted == accounted + len(circuit.calls) + len(circuit.probes)
        assert len(circuit.probes) <= limit
        assert circuit.state is before.state or (before.state, circuit.state) in ARROWS
        changes = (circuit.state is not before.state) + (circuit.override is not before.override)
        assert circuit.epoch - before.epoch >= changes
        if admission and admission.permit is None:
            assert 0 < admission.retry_after_ms <= bench.config.longest_open_ms


@settings(derandomize=True, deadline=None, max_examples=150)
@given(steps=STEPS)
def test_no_history_wedges(steps: list[tuple[Any, ...]]) -> None:
    """
    Whatever has happened, a call runs again within the longest wait and lease, unless the operator forbids it.
    """
    bench = Bench(call_lease=60.0, max_recovery_timeout=30.0)
    for _ in _walk(bench, steps):
        pass
    if bench.circuit.override is Override.FORCED_OPEN:
        bench.force(Override.AUTO)
    deadline_ms = bench.now_ms + bench.config.longest_open_ms + bench.config.longest_lease_ms
    admission = bench.ask(paced=True)
    while admission.permit is None:
        bench.now_ms += admission.retry_after_ms
        assert bench.now_ms <= deadline_ms
        admission = bench.ask(paced=True)
