"""
A worker that fetches from Redis in our way holds and returns as any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import redis

from tests.acceptance.conftest import OUR_FETCH, Stage
from tests.support.eventually import eventually

pytestmark = pytest.mark.acceptance


@pytest.mark.parametrize(
    "pool", ["prefork", *(pytest.param(pool, marks=pytest.mark.soak) for pool in ("threads", "gevent", "solo"))]
)
def test_every_pool_fetches(stage: Callable[..., Stage], pool: str) -> None:
    """
    Tasks of several priorities, held and not, are noted as they are taken, and run once each; nobody is left with one.

    The worker is one by default: it has consumed without acknowledgements for a moment, to meet the others.
    """
    play = stage()
    play.worker(pool=pool, environment=OUR_FETCH, mingles=True)
    play.trip()
    held = [result for priority in (0, 5, 9) for result in play.send("late", 5, priority=priority)]
    eventually(lambda: play.held() == 15, within=20, what="all held")
    [other] = play.send("unguarded")
    assert other.get(timeout=10) == other.id
    play.dependency.set(up=True)
    outcomes = [result.get(timeout=30) for result in held]
    assert {(outcome["retries"], outcome["holds"] >= 1) for outcome in outcomes} == {(0, True)}
    runs = Counter(call.task_id for call in play.dependency.calls(phase="end"))
    assert [runs[result.id] for result in held] == [1] * 15
    server = redis.Redis.from_url(play.server.url)
    eventually(lambda: server.exists("unacked", "unacked_index") == 0, within=10, what="nothing is in hand")
    # Our script pops with this command.  kombu's own way to fetch has no use for it.
    assert server.info("commandstats")["cmdstat_rpop"]["calls"] >= 16
