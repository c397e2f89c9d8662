"""
The operator's word, and a server's clock that steps.
"""

from __future__ import annotations

import pytest

from omni_tasks.core import operate
from omni_tasks.core.model import Admission, Circuit, CircuitState, Override, Transition, Word
from omni_tasks.core.outcome import SUCCESS
from tests.support.bench import Bench
from tests.support.clock import START_MS

CLOSED, OPEN = CircuitState.CLOSED, CircuitState.OPEN
HOUR_MS = 3_600_000


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


def test_a_refusal_names_no_longer_wait_than_a_circuit_has() -> None:
    """
    Under a word of ten hours a caller is told to ask again within the longest recovery timeout.
    """
    bench = Bench(max_recovery_timeout=600.0)
    bench.force(Override.FORCED_OPEN, ttl_ms=10 * HOUR_MS)
    assert bench.ask().retry_after_ms == 600_000


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
    last = f"open closed {epoch + 1} 0 word2"
    assert bench.circuit == Circuit(gen=gen, epoch=epoch + 1, changed_at_ms=bench.now_ms, last_op=last)
    assert not bench.settle(probe).applied
    assert bench.ask().permit is not None


def test_reset_of_a_closed_circuit_is_no_transition() -> None:
    """
    Only a change of state is announced.
    """
    bench = Bench()
    assert bench.reset() is None
    assert bench.circuit.gen == "word1"


@pytest.mark.parametrize("override", [*Override, None])
def test_a_word_said_again_is_followed_once(override: Override | None) -> None:
    """
    The same word by its id, because its answer got lost: the same answer, and nothing happens a second time.
    """
    bench = Bench()
    bench.trip()
    bench.force(Override.FORCED_CLOSED)

    def say(op_id: str) -> Transition | None:
        word = Word(op_id=op_id, reason="why")
        if override is None:
            bench.circuit, answer = operate.reset(bench.circuit, word, now_ms=bench.now_ms)
        else:
            bench.circuit, answer = operate.force(bench.circuit, override, word, ttl_ms=5_000, now_ms=bench.now_ms)
        return answer

    first, after = say("once"), bench.circuit
    bench.now_ms += 1_000
    assert (say("once"), bench.circuit) == (first, after)
    say("another")
    assert bench.circuit.epoch == after.epoch + 1
    say("once")
    assert bench.circuit.epoch == after.epoch + 2


@pytest.mark.parametrize("last", ["garbage", "gone open 1 0 again", "open open x 0 again", "open open 1 0 other"])
def test_a_last_word_that_cannot_be_read_is_no_word(last: str) -> None:
    """
    Where the memory of the last word is damaged, a word is followed.
    """
    circuit, _ = operate.force(Circuit(last_op=last), Override.AUTO, Word(op_id="again"), ttl_ms=0, now_ms=START_MS)
    assert circuit.epoch == 1


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
    bench.now_ms += left_ms - 1
    assert bench.ask().retry_after_ms == 1
    bench.now_ms += 1
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
    bench.now_ms += 4_999
    bench.ask()
    assert bench.circuit.override is override
    bench.now_ms += 1
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
