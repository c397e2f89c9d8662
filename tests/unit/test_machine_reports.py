"""
Reports that come late, come twice, or were never asked for change nothing.
"""

from __future__ import annotations

import pytest

from omni_tasks.core.model import Circuit, CircuitState, Permit, Settlement
from omni_tasks.core.outcome import SUCCESS
from tests.support.bench import Bench

CLOSED, HALF_OPEN = CircuitState.CLOSED, CircuitState.HALF_OPEN


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


def test_a_question_asked_again_in_a_later_epoch_is_a_new_one() -> None:
    """
    After the circuit has opened, a lost answer is no way in: the question is refused, and later is a new probe.
    """
    bench = Bench()
    lost = bench.permit(permit_id="again")
    bench.trip()
    assert bench.ask("again").permit is None
    bench.now_ms += 10_000
    again = bench.permit(permit_id="again")
    assert (again.epoch, again.probe) == (lost.epoch + 2, True)
    before = bench.rules
    assert bench.settle(lost, SUCCESS).applied
    assert bench.rules == before
    assert bench.settle(again, SUCCESS).state is CLOSED
