"""
What holds after any history of calls, reports, words of the operator and steps of the clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from omni_tasks.core.model import Admission, Circuit, CircuitState, Override, Permit
from omni_tasks.core.outcome import IGNORED, SUCCESS
from tests.support.bench import FAILURE, Bench

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN
HOUR_MS = 3_600_000

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
