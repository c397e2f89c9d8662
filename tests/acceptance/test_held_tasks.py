"""
Tasks wait while their dependency is down, and run when it is well: real prefork workers, a real server.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.acceptance.conftest import Stage
from tests.support.eventually import eventually

pytestmark = pytest.mark.acceptance


def test_autoretry_without_a_budget_is_held_through_two_windows(stage: Callable[..., Stage]) -> None:
    """A task with max_retries=0 and autoretry_for=(Exception,) is held through two recovery windows, not failed."""
    play = stage(recovery_timeout=1.0)
    play.worker()
    play.trip()
    [result] = play.send("autoretry")
    eventually(lambda: play.breaker.get_metrics().circuit_open_count >= 3, within=20, what="two windows passed")
    assert result.state == "RETRY"
    play.dependency.set(up=True)
    outcome = result.get(timeout=20)
    assert outcome["retries"] == 0
    assert outcome["holds"] >= 2


def test_a_probe_that_finds_the_dependency_down_is_held_again(stage: Callable[..., Stage]) -> None:
    """A probe with max_retries=0 that fails goes back to the lot, spends no retry, and succeeds later."""
    play = stage(recovery_timeout=1.0)
    play.worker()
    play.trip()
    [result] = play.send("plain")
    eventually(
        lambda: result.id in [call.task_id for call in play.dependency.calls()],
        within=20,
        what="the task has been the probe and has failed",
    )
    eventually(lambda: play.held() == 1, within=5, what="held again")
    assert result.state == "RETRY"
    play.dependency.set(up=True)
    assert result.get(timeout=20)["retries"] == 0
    assert Counter(call.ok for call in play.dependency.calls() if call.task_id == result.id)[True] == 1


def test_a_probe_that_retries_by_hand_spends_no_retry(stage: Callable[..., Stage]) -> None:
    """A probe whose body calls self.retry() on the failure is held instead: its retries stay untouched."""
    play = stage()
    play.worker()
    play.trip()
    [result] = play.send("manual_retry")
    eventually(lambda: play.breaker.get_metrics().circuit_open_count >= 3, within=20, what="probed twice in vain")
    play.dependency.set(up=True)
    assert result.get(timeout=20)["retries"] == 0


def test_a_probe_that_hangs_into_its_hard_limit_is_held_again(stage: Callable[..., Stage]) -> None:
    """A hard time limit in a probe counts one failure, and the task is held, not failed."""
    play = stage()
    play.worker()
    play.trip()
    failed_before = play.breaker.get_metrics().failed_requests
    play.dependency.set(up=True, delay=30)
    [result] = play.send("limited")
    eventually(lambda: play.breaker.get_metrics().circuit_open_count == 2, within=20, what="reopened by the limit")
    assert play.breaker.get_metrics().failed_requests == failed_before + 1
    play.dependency.set(up=True)
    result.get(timeout=20)
    assert play.breaker.state == "closed"


@pytest.mark.parametrize(
    "pool",
    [
        "prefork",
        pytest.param("solo", marks=pytest.mark.soak),
        pytest.param("threads", marks=pytest.mark.soak),
        pytest.param("gevent", marks=pytest.mark.soak),
    ],
)
def test_refusals_leak_no_slot(stage: Callable[..., Stage], pool: str) -> None:
    """A hundred held tasks leave both slots of a small worker free for a task of no circuit."""
    play = stage(recovery_timeout=60.0)
    play.worker(pool=pool, concurrency=2)
    play.trip()
    play.send("plain", 100)
    eventually(lambda: play.held() == 100, within=20, what="all held")
    results = play.send("unguarded", 4, kwargs={"seconds": 0.1})
    assert [result.get(timeout=10) for result in results] == [result.id for result in results]
    assert len(play.dependency.calls()) == 3


def test_a_recovery_runs_every_held_task_once_without_a_second_trip(stage: Callable[..., Stage]) -> None:
    """A hundred held tasks return along the ramp, by age, each exactly once."""
    play = stage(recovery_timeout=1.0, ramp_initial_rate=5.0)
    play.worker()
    play.trip()
    results = play.send("plain", 100)
    eventually(lambda: play.held() >= 99, within=20, what="all held")
    play.dependency.set(up=True)
    assert all(result.get(timeout=40)["holds"] >= 1 for result in results)
    runs = Counter(call.task_id for call in play.dependency.calls(phase="end"))
    assert [runs[result.id] for result in results] == [1] * 100
    metrics = play.breaker.get_metrics()
    assert metrics.state == "closed"
    outages = metrics.circuit_half_open_count
    assert metrics.circuit_open_count == outages


def test_a_held_task_is_visible(stage: Callable[..., Stage]) -> None:
    """A held task is in state RETRY with a reason that names the circuit, and in the list of held tasks."""
    play = stage(recovery_timeout=30.0)
    play.worker()
    play.trip()
    [result] = play.send("plain")
    eventually(lambda: result.state == "RETRY", within=10, what="RETRY")
    assert result.result.circuit == "dep"
    assert 0 < result.result.retry_after <= 30.0
    # It is told before it is parked, or another worker might run it first.
    eventually(lambda: play.lot.list("dep") != [], within=10, what="it to be parked")
    [held] = play.lot.list("dep")
    assert (held.task_id, held.name, held.holds) == (result.id, "tests.support.app.plain", 1)
    [circuits] = play.app.control.inspect(timeout=5)._request("circuits").values()
    assert (circuits["dep"]["state"], circuits["dep"]["held"]) == ("open", 1)


@pytest.mark.parametrize("pool", ["solo", "threads", "gevent"])
def test_every_pool_holds_and_returns(stage: Callable[..., Stage], pool: str) -> None:
    """The gate, the recording and the mover work the same outside prefork: exact counts, nothing failed."""
    play = stage(recovery_timeout=1.0, ramp_initial_rate=10.0)
    play.worker(pool=pool)
    play.trip()
    results = play.send("plain", 20)
    eventually(lambda: play.breaker.get_metrics().circuit_open_count >= 2, within=20, what="probed in vain")
    play.dependency.set(up=True)
    assert [result.get(timeout=30)["retries"] for result in results] == [0] * 20
    # A busy process's last success is told a moment later.
    eventually(lambda: play.breaker.get_metrics().outstanding_requests == 0, within=5, what="all have reported")
    metrics = play.breaker.get_metrics()
    # Three that tripped it, a failed probe per further opening, twenty that ran.
    assert len(play.dependency.calls()) == 3 + (metrics.circuit_open_count - 1) + 20
    assert (metrics.successful_requests, metrics.outstanding_requests) == (20, 0)
