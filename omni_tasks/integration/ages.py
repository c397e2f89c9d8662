"""
How long held tasks have waited, where they wait in the order of a sorted set.
"""

from __future__ import annotations

from collections.abc import Mapping

import redis

__all__ = ["oldest_in_order"]

#: kombu's priorities, and how far apart they are in the order's scores; ``park.lua`` has the same.
_PRIORITIES, _STEP = 10, 10**13


def oldest_in_order(client: redis.Redis, orders: Mapping[str, str]) -> dict[str, float]:
    """
    Seconds since each circuit's oldest task was first held, by the server's clock; one round trip.

    Args:
        client: Of the server that has the orders.

        orders: Circuit -> the key of its order.
    """
    with client.pipeline(transaction=False) as pipe:
        pipe.time()
        for order in orders.values():
            for priority in range(_PRIORITIES):
                # The order is by priority first: each has an oldest of its own.  A score of 0 names no moment.
                low, high = max(priority * _STEP, 1), (priority + 1) * _STEP - 1
                pipe.zrange(order, low, high, byscore=True, offset=0, num=1, withscores=True)
        (seconds, micros), *firsts = pipe.execute()
    now_ms, ages = seconds * 1000 + micros // 1000, {}
    for index, circuit in enumerate(orders):
        mine = firsts[index * _PRIORITIES : (index + 1) * _PRIORITIES]
        since = [int(score) % _STEP for first in mine for _, score in first]
        ages[circuit] = max(now_ms - min(since, default=now_ms), 0) / 1000
    return ages
