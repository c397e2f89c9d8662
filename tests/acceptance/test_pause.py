"""
A queue that is dedicated to one circuit is left alone while that circuit is open.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from tests.acceptance.conftest import Stage
from tests.support.eventually import eventually

pytestmark = pytest.mark.acceptance


def test_a_queue_that_was_paused_is_still_consumed_after_a_lost_connection(stage: Callable[..., Stage]) -> None:
    """Taken up again, a queue is one of the worker's queues as before."""
    play = stage()
    worker = play.worker(
        pool="threads", environment={"TEST_DEDICATED": "1", "OMNI_PAUSE_QUEUES": '{"dedicated": "dep"}'}
    )
    play.breaker.force_open()
    eventually(lambda: "Queue dedicated paused" in worker.log, within=10, what="paused")
    play.breaker.release_force()
    eventually(lambda: "Queue dedicated is consumed again" in worker.log, within=10, what="taken up again")
    with redis.Redis.from_url(play.server.url) as client:
        client.client_kill_filter(_type="normal", skipme=True)
    eventually(lambda: worker.log.count("Connected to redis") >= 2, within=30, what="connected again")
    [result] = play.send("plain", queue="dedicated")
    assert result.get(timeout=20)["retries"] == 0


@pytest.mark.parametrize("pool", ["prefork", pytest.param("gevent", marks=pytest.mark.soak)])
def test_a_dedicated_queue_waits_in_the_broker(stage: Callable[..., Stage], pool: str) -> None:
    """Its messages stay where they are, a probe gets through, and it goes on when the pausing worker has gone."""
    play = stage(recovery_timeout=3.0, ramp_initial_rate=50.0)
    paused = {"TEST_DEDICATED": "1", "OMNI_PAUSE_QUEUES": '{"dedicated": "dep"}'}
    first = play.worker(pool=pool, environment=paused)
    play.breaker.force_open()
    eventually(lambda: "Queue dedicated paused" in first.log, within=10, what="paused")
    results = play.send("plain", 40, queue="dedicated")
    [other] = play.send("unguarded")
    other.get(timeout=10)
    with redis.Redis.from_url(play.server.url) as client:
        # A message that was on its way when the queue was paused comes to the gate.
        eventually(lambda: client.llen("dedicated") + play.held() == 40, within=10, what="nothing is lost")
        assert client.llen("dedicated") >= 39
    first.kill()
    play.dependency.set(up=False)
    play.breaker.release_force()
    second = play.worker(pool=pool, environment=paused)
    eventually(lambda: "Queue dedicated paused" in second.log, within=20, what="it has tripped by itself, and pauses")
    play.dependency.set(up=True)
    eventually(lambda: play.breaker.state == "closed", within=20, what="a probe got through")
    tripped_it = 3 + 4
    done = [result for result in results if result.get(timeout=30, propagate=False) and result.state == "SUCCESS"]
    assert len(done) >= 40 - tripped_it
