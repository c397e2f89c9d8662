"""
Circuits per key and fallbacks in real workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.acceptance.conftest import Stage
from tests.support.eventually import eventually

pytestmark = pytest.mark.acceptance


def _results(results: list[Any], timeout: float = 30) -> list[Any]:
    return [result.get(timeout=timeout) for result in results]


def test_one_key_is_held_and_the_others_run(stage: Callable[..., Stage]) -> None:
    """Tasks of a key whose dependency is down wait for it alone; each runs once when it is well again."""
    play = stage(recovery_timeout=1.0, ramp_initial_rate=20.0)
    play.worker()
    play.dependency.set(up=False)
    ill = play.breaker.keyed("ill")
    play.send("keyed", 3, args=["ill"])
    eventually(lambda: ill.state == "open", within=20, what="the key's circuit is open")
    waiting = play.send("keyed", 20, args=["ill"])
    assert _results(play.send("keyed", 5, args=["well"])) == ["well"] * 5
    eventually(lambda: play.lot.counts(["dep:ill"])["dep:ill"] >= 19, within=20, what="held under their key")
    assert play.lot.holding() == ["dep:ill"]
    assert play.breaker.get_metrics().total_requests == 0
    [circuits] = play.app.control.inspect(timeout=5)._request("circuits").values()
    assert circuits["dep:ill"]["held"] >= 19
    play.dependency.set(up=True)
    assert _results(waiting) == ["ill"] * 20
    eventually(lambda: play.lot.holding() == [], within=5, what="nothing is held, and the index says so")
    # A busy process's last success is told a moment later.
    eventually(lambda: ill.get_metrics().outstanding_requests == 0, within=5, what="all have reported")
    assert ill.get_metrics().successful_requests == 20


def test_a_key_function_that_raises_stops_no_worker(stage: Callable[..., Stage]) -> None:
    """Its tasks run under the circuit itself, are held under it, and none is lost."""
    play = stage(recovery_timeout=1.0, ramp_initial_rate=20.0)
    worker = play.worker(concurrency=2)
    results = play.send("badly_keyed", 5)
    assert sorted(_results(results)) == sorted(result.id for result in results)
    play.trip()
    waiting = play.send("badly_keyed", 5)
    eventually(lambda: play.held() >= 4, within=20, what="held under the circuit itself")
    play.dependency.set(up=True)
    assert sorted(_results(waiting)) == sorted(result.id for result in waiting)
    # By the worker's parent: no child asks for the key again.
    assert worker.log.count("circuit_key_unusable") == 1
    assert worker.process.poll() is None


def test_a_key_without_room_is_held_under_its_circuit(stage: Callable[..., Stage]) -> None:
    """Where every key is in use, another one's tasks share the circuit, in every process that has to do with them."""
    play = stage(recovery_timeout=1.0, ramp_initial_rate=20.0, max_keys=1)
    play.breaker.keyed("only").force_open()
    play.worker()
    assert _results(play.send("keyed", 3, args=["well"])) == ["well"] * 3
    eventually(lambda: play.breaker.get_metrics().successful_requests == 3, within=5, what="counted by the circuit")
    play.trip()
    waiting = play.send("keyed", 5, args=["well"])
    eventually(lambda: play.held() >= 4, within=20, what="held under the circuit")
    assert play.lot.holding() == ["dep"]
    play.dependency.set(up=True)
    assert _results(waiting) == ["well"] * 5


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_task_with_a_fallback_is_not_held(stage: Callable[..., Stage], pool: str) -> None:
    """Refused, it answers with its fallback; as a probe that fails, too; with the circuit closed, it runs."""
    play = stage(recovery_timeout=1.0)
    play.worker(pool=pool)
    assert _results(play.send("answering", 1, args=["a"])) == [["a"]]
    play.trip()
    # On a slow machine one of them may be a probe already.
    assert ["a", "CircuitOpenError"] in _results(play.send("answering", 3, args=["a"]))
    eventually(
        lambda: _results(play.send("answering", 1, args=["a"])) == [["a", "DependencyDownError"]],
        within=20,
        what="one of them is the probe, and answers all the same",
    )
    assert play.held() == 0
    play.dependency.set(up=True)
    eventually(
        lambda: _results(play.send("answering", 1, args=["a"])) == [["a"]], within=20, what="it runs when all is well"
    )
