"""
What a circuit keeps besides its state: whose configuration decides, and what is counted.
"""

from __future__ import annotations

import pytest

from omni_tasks.core import durations
from omni_tasks.core.model import CircuitState
from omni_tasks.core.outcome import SUCCESS, Outcome, Report
from tests.support.bench import Bench

CLOSED, OPEN = CircuitState.CLOSED, CircuitState.OPEN

# Versions of the configuration


def test_an_older_configuration_changes_nothing() -> None:
    """
    Once a newer version has used the circuit, a process with an older one decides by the newer.
    """
    older, newer = Bench(version=1, failure_threshold=1), Bench(version=2, failure_threshold=3, recovery_timeout=20.0)
    newer.run(SUCCESS)
    older.circuit = newer.circuit
    assert [older.run().state for _ in range(3)] == [CLOSED, CLOSED, OPEN]
    assert older.ask().retry_after_ms == 20_000
    assert older.circuit.policy == newer.config.policy.text


def test_a_newer_configuration_takes_over() -> None:
    """
    The first question of a newer version makes it the circuit's; without a version each process decides by its own.
    """
    plain, newer = Bench(failure_threshold=1), Bench(version=3, failure_threshold=2)
    plain.run(SUCCESS)
    assert plain.circuit.policy == ""
    newer.circuit = plain.circuit
    newer.draw(0)
    assert newer.circuit.policy == newer.config.policy.text
    plain.circuit = newer.circuit
    assert [plain.run().state for _ in range(2)] == [CLOSED, OPEN]


def test_a_reset_forgets_the_version() -> None:
    """
    After a roll-back the operator's reset lets an older configuration decide again.
    """
    bench = Bench(version=2)
    bench.run(SUCCESS)
    bench.reset()
    assert bench.circuit.policy == ""


# What is counted


def test_durations_of_successes_and_failures_are_counted() -> None:
    """
    Measured calls are summed and counted by range; ignored ones and those nobody measured are not.
    """
    bench = Bench(failure_threshold=9)
    for outcome, ms in ((Outcome.SUCCESS, 5), (Outcome.FAILURE, 6), (Outcome.SUCCESS, 60_001), (Outcome.IGNORED, 7)):
        bench.run(Report(outcome, duration_ms=ms))
    bench.run(SUCCESS)
    assert bench.circuit.took_ms == 60_012
    assert bench.circuit.durations == "1,1" + ",0" * 11 + ",1"


@pytest.mark.parametrize("text", ["", "garbage", "1", "1,2" + ",0" * 11, "1" + ",0" * 14, "1" + ",x" * 13])
def test_durations_that_cannot_be_read_are_zeros(text: str) -> None:
    """
    What was not written by us counts for nothing, and the next call begins anew.
    """
    assert durations.counts(text) == (0,) * 14
    assert durations.record(text, 11) == "0,0,1" + ",0" * 11


def test_refusals_of_tasks_are_counted_apart() -> None:
    """
    ``rejected`` counts every refusal, ``held`` those of paced calls.
    """
    bench = Bench()
    bench.trip()
    for paced in (True, False, True):
        bench.ask(paced=paced)
    assert (bench.circuit.rejected, bench.circuit.held) == (3, 2)
