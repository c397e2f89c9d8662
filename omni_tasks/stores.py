"""
Opening the store that settings name.
"""

from __future__ import annotations

from functools import partial

from omni_tasks.events import log
from omni_tasks.settings import ResilienceConfiguration
from omni_tasks.store.base import Store
from omni_tasks.store.failover import FailoverStore, StorePolicy
from omni_tasks.store.memory import MemoryStore
from omni_tasks.store.redis import RedisStore

__all__ = ["configured_store", "open_store"]

_EFFECTS: dict[StorePolicy, str] = {
    "admit": "this process lets every call run until the store answers",
    "refuse": "this process refuses every call until the store answers",
    "local": "this process decides alone until the store answers",
}


def configured_store(settings: ResilienceConfiguration, redis_url: str | None = None) -> Store:
    """
    The store of *settings*; *redis_url* comes before theirs.
    """
    return open_store(
        redis_url or settings.redis_url,
        prefix=settings.key_prefix,
        timeout=settings.store_timeout,
        pause=settings.store_retry_interval,
        policy=settings.store_policy,
    )


def open_store(
    redis_url: str | None,
    *,
    prefix: str = "omni",
    timeout: float = 0.2,
    pause: float = 1.0,
    policy: StorePolicy = "local",
) -> Store:
    """
    The store for *redis_url*, with the process's own memory behind it; memory alone without a URL.

    No connection is made before the first question.
    """
    if redis_url is None:
        return MemoryStore()
    shared = RedisStore.at(redis_url, timeout=timeout, prefix=prefix)
    return FailoverStore(shared, pause=pause, policy=policy, on_change=partial(_say_degraded, policy))


def _say_degraded(policy: StorePolicy, degraded: bool, why: str) -> None:  # noqa: FBT001 - the store's callback
    if degraded:
        log.error("circuit_store_degraded", reason=why, effect=_EFFECTS[policy])
    else:
        log.warning("circuit_store_recovered")
