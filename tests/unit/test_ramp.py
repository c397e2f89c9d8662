"""
The paced return: how fast tasks start after a recovery, and how held tasks are drawn.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from omni_tasks.core.model import Circuit, CircuitState, Draw, Override
from omni_tasks.core.outcome import SUCCESS
from omni_tasks.core.ramp import (
    CALL,
    FASTEST_MPS,
    bound_ramp,
    cut_ramp,
    fill_ramp,
    grow_ramp,
    start_ramp,
    stop_ramp,
    take,
)
from tests.support.bench import FAILURE, Bench
from tests.support.clock import START_MS


def _ramp(rate_mps: int, tokens: int = 0, **fields: Any) -> Circuit:
    return Circuit(gen="g", ramp_rate_mps=rate_mps, ramp_tokens=tokens, ramp_filled_ms=START_MS, **fields)


# The bucket


def test_it_starts_with_one_call_in_hand() -> None:
    """
    A ramp begins at the given rate with one start, and keeps the ceiling that an earlier one has found.
    """
    circuit = start_ramp(Circuit(gen="g", ramp_ceiling_mps=9_000, ramp_cut_ms=5), rate_mps=2_000, now_ms=START_MS)
    assert circuit == _ramp(2_000, CALL, ramp_ceiling_mps=9_000)


def test_a_millisecond_earns_its_share_exactly() -> None:
    """
    At 2 calls a second a start is earned in 500 ms, whether it is looked at once or every millisecond.
    """
    patient = fill_ramp(_ramp(2_000), START_MS + 500)
    eager = _ramp(2_000)
    for elapsed_ms in range(1, 501):
        eager = fill_ramp(eager, START_MS + elapsed_ms)
    assert patient == eager
    assert patient.ramp_tokens == CALL


@pytest.mark.parametrize(("rate_mps", "most"), [(2_000, 1), (5_000, 1), (50_000, 10)])
def test_the_bucket_holds_a_fifth_of_a_second(rate_mps: int, most: int) -> None:
    """
    However long nothing starts, at most 200 ms worth of starts are saved up, and always one.
    """
    assert fill_ramp(_ramp(rate_mps), START_MS + 10**9).ramp_tokens == most * CALL


def test_a_clock_that_steps_back_earns_nothing_and_costs_nothing() -> None:
    """
    After a step back the bucket fills on from the new time.
    """
    circuit = fill_ramp(_ramp(2_000, 5), START_MS - 3_600_000)
    assert circuit.ramp_tokens == 5
    assert fill_ramp(circuit, START_MS - 3_600_000 + 500).ramp_tokens == CALL


def test_a_debt_is_bounded() -> None:
    """
    Calls that may not be refused go into debt for one start at most.
    """
    assert take(_ramp(2_000, CALL), 1).ramp_tokens == 0
    assert take(_ramp(2_000), 50).ramp_tokens == -CALL


def test_without_a_ramp_nothing_is_kept() -> None:
    """
    A circuit that is not ramping neither earns, nor spends, nor grows, nor steps back.
    """
    idle = Circuit()
    assert fill_ramp(idle, START_MS) == take(idle, 3) == grow_ramp(idle) == idle
    assert cut_ramp(idle, least_mps=1_000, now_ms=START_MS) == bound_ramp(idle, least_mps=1_000) == idle


@pytest.mark.parametrize(
    ("stored_mps", "used_mps"), [(1, 2_000), (2_000, 2_000), (9_999, 9_999), (10**12, FASTEST_MPS)]
)
def test_a_stored_rate_is_kept_within_its_bounds(stored_mps: int, used_mps: int) -> None:
    """
    A rate below the configured first one, or beyond the fastest, is brought back; so is a debt.
    """
    circuit = bound_ramp(_ramp(stored_mps, -9 * CALL), least_mps=2_000)
    assert (circuit.ramp_rate_mps, circuit.ramp_tokens) == (used_mps, -CALL)


# The rate


def test_the_rate_doubles_every_second() -> None:
    """
    Each success adds one call per second, so as many successes as the rate in a second double it.
    """
    circuit = _ramp(8_000)
    for _ in range(8):
        circuit = grow_ramp(circuit)
    assert circuit.ramp_rate_mps == 16_000


def test_past_the_ceiling_the_rate_creeps() -> None:
    """
    From just below the rate that failed, a second of successes adds two percent of it.
    """
    circuit = _ramp(100_000, ramp_ceiling_mps=100_000)
    for _ in range(100):
        circuit = grow_ramp(circuit)
    assert 101_900 <= circuit.ramp_rate_mps <= 102_000


def test_the_ramp_ends_where_it_limits_nothing() -> None:
    """
    At ten thousand calls a second, also where no held task is there whose mover would end it.
    """
    assert grow_ramp(_ramp(FASTEST_MPS - 1001)).ramp_rate_mps == FASTEST_MPS - 1
    ended = grow_ramp(_ramp(FASTEST_MPS - 1000))
    assert (ended.ramp_rate_mps, ended.ramp_tokens, ended.ramp_ceiling_mps) == (0, 0, 0)


def test_a_failure_steps_back() -> None:
    """
    A failure takes 30 % off the rate, remembers 85 % of it as the ceiling and empties the bucket.
    """
    circuit = cut_ramp(_ramp(10_000, CALL), least_mps=2_000, now_ms=START_MS)
    assert (circuit.ramp_rate_mps, circuit.ramp_ceiling_mps, circuit.ramp_tokens) == (7_000, 8_500, 0)


def test_a_burst_of_failures_steps_back_once() -> None:
    """
    Within half a second of a step back further failures are the same news; a clock that stepped back hides none.
    """
    circuit = cut_ramp(_ramp(10_000), least_mps=2_000, now_ms=START_MS)
    assert cut_ramp(circuit, least_mps=2_000, now_ms=START_MS + 499) == circuit
    assert cut_ramp(circuit, least_mps=2_000, now_ms=START_MS + 500).ramp_rate_mps == 4_900
    assert cut_ramp(circuit, least_mps=2_000, now_ms=START_MS - 1).ramp_rate_mps == 4_900


def test_it_never_steps_below_the_first_rate() -> None:
    """
    The configured first rate is the slowest.
    """
    circuit = cut_ramp(_ramp(2_100), least_mps=2_000, now_ms=START_MS)
    assert (circuit.ramp_rate_mps, circuit.ramp_ceiling_mps) == (2_000, 2_000)


def test_stopping_forgets() -> None:
    """
    A ramp that is over leaves no rate, no tokens and no ceiling.
    """
    stopped = stop_ramp(_ramp(9_000, CALL, ramp_ceiling_mps=8_000))
    assert (stopped.ramp_rate_mps, stopped.ramp_tokens, stopped.ramp_ceiling_mps) == (0, 0, 0)


# Held tasks


def _bench(**options: Any) -> Bench:
    """
    A circuit that trips at the first failure, is open for 10 s and takes two probes.
    """
    return Bench(**{"failure_threshold": 1, "half_open_max_calls": 2, "probe_lease": 30.0, **options})


def _recovered(**options: Any) -> Bench:
    """
    The same, closed again by a probe.
    """
    bench = _bench(**options)
    bench.settle(bench.probe(), SUCCESS)
    assert bench.circuit.state is CircuitState.CLOSED
    return bench


def test_nothing_is_drawn_while_open() -> None:
    """
    While the circuit is open no held task leaves.
    """
    bench = _bench()
    bench.run(FAILURE)
    bench.now_ms += 9_999
    assert bench.draw(50) == Draw(count=0, ticket="p1:1", state=CircuitState.OPEN, ramping=False)


def test_probes_are_drawn_when_the_wait_is_over() -> None:
    """
    As many held tasks leave as may probe; those on their way are not replaced for a second.
    """
    bench = _bench()
    bench.run(FAILURE)
    bench.now_ms += 10_000
    assert [bench.draw(50).count, bench.draw(50).count] == [2, 0]
    bench.now_ms += 999
    assert bench.draw(50).count == 0
    bench.now_ms += 1
    assert bench.draw(1).count == 1
    assert bench.draw(50).count == 1


def test_probes_that_run_are_not_drawn_again() -> None:
    """
    A drawn task that has its permit counts as a probe, no longer as one on its way.
    """
    bench = _bench()
    bench.run(FAILURE)
    bench.now_ms += 10_000
    bench.draw(50)
    assert bench.ask(paced=True).permit is not None
    assert bench.circuit.drawn == 1
    assert bench.draw(50).count == 0
    bench.now_ms += 1_000
    assert bench.draw(50).count == 1


def test_forced_open_draws_nothing() -> None:
    """
    The operator's word keeps held tasks where they are, also after the recovery timeout.
    """
    bench = _bench()
    bench.run(FAILURE)
    bench.force(Override.FORCED_OPEN, 60_000)
    bench.now_ms += 30_000
    assert bench.draw(50).count == 0


def test_a_draw_notices_the_end_of_an_override() -> None:
    """
    The first draw after the operator's word has ended announces the change, and lets tasks go.
    """
    bench = _bench()
    bench.force(Override.FORCED_OPEN, 60_000)
    bench.now_ms += 60_000
    answer = bench.draw(50)
    assert answer.transition is not None
    assert (answer.count, answer.state) == (1, CircuitState.CLOSED)


def test_after_closing_starts_follow_the_ramp() -> None:
    """
    Two calls a second: one at once, one each 500 ms; a draw and a fresh task share them.
    """
    bench = _recovered()
    assert [bench.draw(50).count, bench.draw(50).count] == [1, 0]
    refused = bench.ask(paced=True)
    assert (refused.permit, refused.retry_after_ms) == (None, 500)
    bench.now_ms += 500
    assert bench.ask(paced=True).permit is not None
    assert bench.draw(50).count == 0


def _failing(bench: Bench, *, after_ms: int) -> list[str]:
    """
    Fail while held tasks return, so long after the first failure; the states after each failure.
    """
    running = [bench.permit() for _ in range(6)]
    states = list[str]()
    for number, permit in enumerate(running):
        bench.now_ms += after_ms if number == 1 else 0
        bench.settle(permit)
        states.append(bench.circuit.state.value)
    return states


def test_what_started_before_a_step_back_does_not_trip() -> None:
    """
    While held tasks return, failures in the half second after a step back are its own doing; later ones are not.
    """
    for after_ms, states in ((499, ["closed"] * 6), (500, ["closed"] * 2 + ["open"] * 4)):
        bench = _recovered(failure_threshold=3)
        bench.draw(50)
        assert _failing(bench, after_ms=after_ms) == states


def test_without_held_tasks_a_ramp_excuses_nothing() -> None:
    """
    Where no held task has left lately, the threshold opens the circuit at once, whatever the ramp.
    """
    assert _failing(_recovered(failure_threshold=3), after_ms=0) == ["closed"] * 2 + ["open"] * 4


def test_a_second_outage_trips_when_the_step_back_has_had_its_time() -> None:
    """
    Nothing succeeds for half a second after the step back: the next failure opens the circuit.
    """
    bench = _recovered(failure_threshold=3)
    bench.draw(50)
    running = [bench.permit() for _ in range(5)]
    for permit in running[:4]:
        bench.settle(permit)
    assert bench.circuit.state.value == "closed"
    bench.now_ms += 500
    bench.settle(running[4])
    assert bench.circuit.state.value == "open"


def test_what_is_not_started_is_not_added_to() -> None:
    """
    At 50 a second ten drawn tasks may be on their way; the next leave when those ask, or count as lost after 1 s.
    """
    bench = _recovered(ramp_initial_rate=50.0)
    ticket = bench.draw(50).ticket
    bench.now_ms += 200
    assert bench.draw(50).count == 9
    bench.now_ms += 200
    assert bench.draw(50).count == 0
    assert bench.ask(paced=True, ticket=ticket).permit is not None
    assert bench.draw(50).count == 1
    bench.now_ms += 1_000
    assert bench.draw(50).count == 10


def test_the_ramp_grows_no_faster_than_tasks_start() -> None:
    """
    While as many drawn tasks are on their way as may be, a success says nothing about a higher rate.
    """
    full = _ramp(50_000, drawn=10)
    assert grow_ramp(full) == full
    assert grow_ramp(replace(full, drawn=9)).ramp_rate_mps == 51_000


def test_a_body_that_calls_its_circuit_itself_has_arrived() -> None:
    """
    A task held for a circuit that its body calls has no ticket there; a task that asks without one was not drawn.
    """
    bench = _recovered()
    bench.draw(50)
    bench.now_ms += 500
    assert bench.ask(paced=True).permit is not None
    assert bench.circuit.drawn == 1
    assert bench.ask().permit is not None
    assert bench.circuit.drawn == 0


def test_a_ticket_is_paid_already() -> None:
    """
    A drawn task starts on the draw's account, in the epoch of the draw only.
    """
    bench = _recovered()
    ticket = bench.draw(50).ticket
    assert bench.ask(paced=True, ticket=ticket).permit is not None
    assert bench.ask(paced=True, ticket="p1:1").permit is None


def test_plain_calls_are_not_refused_by_the_ramp() -> None:
    """
    A call that cannot wait runs at once, and the tasks behind it pay for it.
    """
    bench = _recovered()
    assert all(bench.ask().permit for _ in range(20))
    assert bench.ask(paced=True).retry_after_ms == 1_000


def test_a_circuit_closed_by_force_still_ramps() -> None:
    """
    Held tasks of a circuit that an operator closed do not return as one wave.
    """
    bench = _bench()
    bench.run(FAILURE)
    bench.force(Override.FORCED_CLOSED)
    assert bench.draw(50) == Draw(count=1, ticket="p1:2", state=CircuitState.CLOSED, ramping=True)


def test_the_ramp_ends_when_nothing_is_held() -> None:
    """
    With no held task and no failure since closing, calls start freely again; after a failure the ramp stays.
    """
    bench = _recovered(failure_threshold=2)
    bench.run(FAILURE)
    assert bench.draw(0).ramping
    bench.run(SUCCESS)
    assert not bench.draw(0).ramping
    assert bench.ask(paced=True).permit is not None


def test_a_failure_on_the_ramp_slows_it() -> None:
    """
    A counted failure short of the threshold steps the rate back.
    """
    bench = _bench(failure_threshold=5)
    bench.circuit = _ramp(10_000, CALL)
    bench.run(FAILURE)
    assert bench.circuit.ramp_rate_mps == 7_000
