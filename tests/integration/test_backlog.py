"""
How long tasks have waited, read off the lot.
"""

from __future__ import annotations

import pytest
import redis

from omni_tasks.integration.lot import Lot
from omni_tasks.observe.backlog import Backlog, read_backlogs


@pytest.fixture
def lot(redis_client: redis.Redis, key_prefix: str) -> Lot:
    """
    A lot without tasks.
    """
    return Lot(redis_client, prefix=key_prefix, remember=60.0)


def _hold(client: redis.Redis, lot: Lot, circuit: str, priority: int, age: float) -> None:
    now_ms = int(client.time()[0]) * 1000
    client.zadd(lot._keys(circuit)[0], {f"{priority}-{age}": priority * 10**13 + now_ms - round(age * 1000)})


def test_the_oldest_is_found_in_any_priority(lot: Lot, redis_client: redis.Redis) -> None:
    """The order of leaving is by priority first; the age is that of the oldest, wherever it stands."""
    for priority, age in ((0, 10.0), (3, 500.0), (9, 100.0)):
        _hold(redis_client, lot, "dep", priority, age)
    _hold(redis_client, lot, "other", 0, 20.0)
    found = read_backlogs(lot, ["dep", "other", "empty"])
    assert {circuit: backlog.count for circuit, backlog in found.items()} == {"dep": 3, "other": 1, "empty": 0}
    assert found["dep"].oldest_age == pytest.approx(500, abs=2)
    assert found["other"].oldest_age == pytest.approx(20, abs=2)
    assert found["empty"] == Backlog(count=0, oldest_age=0.0)


def test_a_clock_that_stepped_back_makes_no_negative_age(lot: Lot, redis_client: redis.Redis) -> None:
    """What was held in the future has just been held."""
    _hold(redis_client, lot, "dep", 0, -1000.0)
    assert read_backlogs(lot, ["dep"])["dep"].oldest_age == 0
