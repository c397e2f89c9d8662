"""
However an attempt ends, in whatever pool: its permit is settled once, by whoever can, and the pool goes on.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from omni_tasks.core.model import Circuit
from tests.acceptance.conftest import Stage
from tests.support.eventually import eventually
from tests.support.versions import GREENLETS_CAN_BE_TERMINATED

pytestmark = pytest.mark.acceptance

#: How a task ends -> how often the circuit counts it as success, failure, ignored.
EVERYWHERE = {
    "success": (1, 0, 0),
    "exception": (0, 1, 0),
    "retry": (1, 1, 0),
    "ignore": (0, 0, 1),
    "reject": (0, 0, 1),
    "before_start": (0, 0, 1),
    "exit": (0, 1, 0),
}
POOLS = {
    "prefork": {**EVERYWHERE, "lost": (0, 1, 0), "soft": (0, 1, 0), "hard": (0, 1, 0), "terminate": (0, 0, 1)},
    "threads": EVERYWHERE,
    "gevent": {**EVERYWHERE, "hard": (0, 1, 0), **({"terminate": (0, 0, 1)} if GREENLETS_CAN_BE_TERMINATED else {})},
    "solo": EVERYWHERE,
}
LIMITS = {"soft": {"soft_time_limit": 1}, "hard": {"time_limit": 1}}


def _counted(play: Stage) -> tuple[Circuit, int]:
    [reading] = play.breaker._store.read([play.breaker.config])
    return reading.circuit, reading.calls + reading.probes


@pytest.mark.parametrize(
    "pool",
    [
        "prefork",
        pytest.param("threads", marks=pytest.mark.soak),
        pytest.param("gevent", marks=pytest.mark.soak),
        pytest.param("solo", marks=pytest.mark.soak),
    ],
)
def test_every_attempt_is_settled_exactly_once(stage: Callable[..., Stage], pool: str) -> None:
    """Each way to end counts once, nobody reports a permit twice, none stays outstanding."""
    play = stage(failure_threshold=1000)
    worker = play.worker(pool=pool, concurrency=4)
    expected = (0, 0, 0)
    for how, counts in POOLS[pool].items():
        [result] = play.send("ending", args=[how], **LIMITS.get(how, {}))
        if how == "terminate":
            eventually(lambda: _counted(play)[1] == 1, within=20, what="it runs")
            result.revoke(terminate=True, signal="SIGTERM")
        expected = (expected[0] + counts[0], expected[1] + counts[1], expected[2] + counts[2])
        _await(play, how, expected)
    [last] = play.send("ending", args=["success"])
    assert last.get(timeout=20) == "success"
    assert worker.process.poll() is None


def _await(play: Stage, how: str, expected: tuple[int, ...]) -> None:
    try:
        eventually(lambda: _settled(play) == (*expected, 0, 0), within=20)
    except AssertionError:
        # Shows the numbers.
        assert (how, *_settled(play)) == (how, *expected, 0, 0)


def _settled(play: Stage) -> tuple[int, ...]:
    circuit, outstanding = _counted(play)
    return circuit.succeeded, circuit.failed, circuit.ignored, circuit.stale, outstanding
