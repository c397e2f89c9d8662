"""
Tasks wait and return on RabbitMQ: a real server, real prefork workers.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable

import pytest

from tests.acceptance.conftest import Stage
from tests.support.eventually import eventually
from tests.support.rabbitmq import AMQP_URL, channel_to, require_rabbitmq

pytestmark = pytest.mark.acceptance


@pytest.fixture
def rabbit_stage(stage: Callable[..., Stage]) -> Callable[..., Stage]:
    """
    A stage on RabbitMQ; its first argument says where its held tasks wait.
    """
    require_rabbitmq()
    return functools.partial(stage, AMQP_URL)


either_place = pytest.mark.parametrize("parking", ["broker", pytest.param("store", marks=pytest.mark.soak)])


@either_place
def test_a_recovery_runs_every_held_task_once(rabbit_stage: Callable[..., Stage], parking: str) -> None:
    """Forty held tasks return along the ramp, each exactly once, with their retries untouched."""
    play = rabbit_stage(parking, recovery_timeout=1.0, ramp_initial_rate=10.0)
    play.worker()
    play.trip()
    results = play.send("plain", 40)
    eventually(lambda: play.held() >= 39, within=20, what="all held")
    play.dependency.set(up=True)
    outcomes = [result.get(timeout=30) for result in results]
    assert {(outcome["retries"], outcome["holds"] >= 1) for outcome in outcomes} == {(0, True)}
    runs = Counter(call.task_id for call in play.dependency.calls(phase="end"))
    assert [runs[result.id] for result in results] == [1] * 40
    assert play.breaker.state == "closed"
    assert play.held() == 0


@either_place
def test_a_killed_worker_loses_nothing(rabbit_stage: Callable[..., Stage], parking: str) -> None:
    """Kill -9 of the process group while tasks are held: all run, once."""
    play = rabbit_stage(parking, ramp_initial_rate=20.0)
    play.breaker.force_open()
    worker = play.worker()
    results = play.send("late", 100)
    eventually(lambda: play.held() >= 30, within=20, what="some are held")
    worker.kill()
    play.breaker.release_force()
    play.worker()
    for result in results:
        result.get(timeout=40)
    runs = Counter(call.task_id for call in play.dependency.calls(phase="end"))
    assert runs == {result.id: 1 for result in results}


def test_a_holding_queue_that_is_deleted_is_noticed(rabbit_stage: Callable[..., Stage]) -> None:
    """What it held is gone, and the worker says so; what is refused from then on is held, and runs."""
    play = rabbit_stage("broker", ramp_initial_rate=50.0)
    play.breaker.force_open()
    worker = play.worker()
    play.send("late", 3)
    eventually(lambda: play.held() == 3, within=40, what="three held")
    with channel_to(AMQP_URL) as channel:
        channel.queue_delete(f"{play.prefix}:held:dep")
    eventually(lambda: "is gone, with what it held" in worker.log, within=40, what="it is said")
    results = play.send("late", 3)
    eventually(lambda: play.held() == 3, within=40, what="three more held")
    play.breaker.release_force()
    assert [result.get(timeout=40)["holds"] for result in results] == [1] * 3
    assert {call.task_id for call in play.dependency.calls()} == {result.id for result in results}


@pytest.mark.soak
@pytest.mark.parametrize("pool", ["solo", "threads", "gevent"])
def test_every_pool_holds_and_returns(rabbit_stage: Callable[..., Stage], pool: str) -> None:
    """Outside prefork the same connection parks and brings back: exact counts, nothing failed."""
    play = rabbit_stage("broker", recovery_timeout=1.0, ramp_initial_rate=10.0)
    play.worker(pool=pool)
    play.trip()
    results = play.send("plain", 20)
    eventually(lambda: play.breaker.get_metrics().circuit_open_count >= 2, within=20, what="probed in vain")
    play.dependency.set(up=True)
    assert [result.get(timeout=30)["retries"] for result in results] == [0] * 20
    runs = Counter(call.task_id for call in play.dependency.calls(phase="end"))
    assert [runs[result.id] for result in results] == [1] * 20
