"""
What a circuit must not be misled by: poison, inheritance, an operator's hand, a slow backend.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.acceptance.conftest import Stage
from tests.support.eventually import eventually

pytestmark = pytest.mark.acceptance


def test_a_task_that_always_fails_is_not_every_probe(stage: Callable[..., Stage]) -> None:
    """The oldest held task fails for reasons of its own; the next probe is another, and the circuit closes."""
    play = stage(recovery_timeout=1.0)
    play.worker()
    play.trip()
    [poison] = play.send("poison")
    eventually(lambda: play.held() == 1, within=10, what="the poison is held first")
    good = play.send("plain", 5)
    eventually(lambda: play.held() == 6, within=10, what="all held")
    play.dependency.set(up=True)
    assert [result.get(timeout=20)["retries"] for result in good] == [0] * 5
    eventually(lambda: poison.state == "FAILURE", within=20, what="outside a probe, its failure is its own")


def test_a_body_that_calls_its_parents_body_is_one_attempt(stage: Callable[..., Stage]) -> None:
    """run() calling super().run() takes one permit, so as a probe it does not refuse itself."""
    play = stage(recovery_timeout=1.0)
    play.worker()
    [first] = play.send("child")
    assert first.get(timeout=10) == first.id
    assert play.breaker.get_metrics().total_requests == 1
    play.trip()
    [probe] = play.send("child")
    eventually(lambda: play.held() == 1, within=10, what="held")
    play.dependency.set(up=True)
    assert probe.get(timeout=20) == probe.id
    assert play.breaker.state == "closed"


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGKILL"])
def test_a_terminated_task_says_nothing_about_its_dependency(stage: Callable[..., Stage], signal_name: str) -> None:
    """Revoking running tasks with terminate frees their permits and trips nothing."""
    play = stage(failure_threshold=2)
    play.worker()
    play.dependency.set(up=True, delay=60)
    running = play.send("plain", 4)
    eventually(lambda: len(play.dependency.calls()) == 4, within=10, what="four run")
    for result in running:
        result.revoke(terminate=True, signal=signal_name)
    eventually(lambda: play.breaker.get_metrics().outstanding_requests == 0, within=10, what="permits are back")
    metrics = play.breaker.get_metrics()
    assert (metrics.state, metrics.failed_requests) == ("closed", 0)


def test_the_outcome_of_a_returned_task_stands(stage: Callable[..., Stage]) -> None:
    """However slowly RETRY is written, a task that another worker has run meanwhile does not end as RETRY."""
    play = stage(failure_threshold=100)
    play.dependency.set(up=False)
    play.breaker.force_open()
    slow = play.worker(environment={"TEST_SLOW_RETRY": "5"}, concurrency=1)
    [result] = play.send("plain")
    eventually(lambda: f"{result.id}] received" in slow.log, within=10, what="the slow worker has it")
    play.breaker.release_force()
    play.worker(concurrency=1)
    eventually(lambda: f"{result.id}] held" in slow.log, within=10, what="the slow worker is done with it")
    eventually(lambda: len(play.dependency.calls()) == 1, within=10, what="it ran")
    # Celery itself protects only SUCCESS from being overwritten.
    eventually(lambda: play.app.AsyncResult(result.id).state == "FAILURE", within=10, what="its own failure")


def test_a_probe_slower_than_its_lease_closes_the_circuit(stage: Callable[..., Stage]) -> None:
    """A dependency whose every answer takes longer than the lease is found well all the same."""
    play = stage(recovery_timeout=1.0, probe_lease=0.3)
    play.worker()
    play.trip()
    play.dependency.set(up=True, delay=1.5)
    results = play.send("plain", 3)
    assert [result.get(timeout=30)["retries"] for result in results] == [0] * 3
    assert play.breaker.state == "closed"


def test_headers_of_ours_that_a_producer_made_up_lose_nothing(stage: Callable[..., Stage]) -> None:
    """Whatever a message claims about holds, tickets and permits, it is held and runs once."""
    play = stage()
    play.breaker.force_open()
    play.worker()
    forged: list[dict[str, object]] = [
        {"omni_ticket": 'a"b\0'},
        {"omni_holds": "x", "omni_held_since": 10**30},
        {"omni_held_since": -1, "omni_ticket": None},
    ]
    results = [play.send("plain", headers=headers)[0] for headers in forged]
    eventually(lambda: play.held() == 3, within=10, what="all held")
    play.breaker.release_force()
    assert [result.get(timeout=20)["holds"] for result in results] == [1] * 3
    assert len(play.dependency.calls()) == 3


def test_without_resilience_the_held_tasks_leave(stage: Callable[..., Stage]) -> None:
    """A worker with ENABLE_RESILIENCE=false strands nothing: what an earlier one held runs."""
    play = stage()
    play.breaker.force_open()
    play.worker()
    results = play.send("plain", 5)
    eventually(lambda: play.held() == 5, within=10, what="all held")
    play.workers[0].stop()
    play.worker(environment={"ENABLE_RESILIENCE": "false"})
    assert [result.get(timeout=20)["holds"] for result in results] == [1] * 5


def test_forced_closed_is_not_throttled(stage: Callable[..., Stage]) -> None:
    """Under force_close fresh tasks start at once, and the held ones leave ever faster."""
    play = stage(recovery_timeout=60.0)
    play.worker()
    play.trip()
    held = play.send("plain", 40)
    eventually(lambda: play.held() == 40, within=10, what="all held")
    play.dependency.set(up=True)
    play.breaker.force_close()
    fresh = play.send("plain", 20)
    assert {result.get(timeout=10)["holds"] for result in fresh} == {0}
    assert [result.get(timeout=20)["holds"] for result in held] == [1] * 40
