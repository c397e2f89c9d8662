"""
Clients of the store: redis-py's own, with short waits and without retries.
"""

from __future__ import annotations

from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel

from omni_tasks.store.url import parse

__all__ = ["connect", "connect_cluster"]


def connect(url: str, *, timeout: float) -> redis.Redis:
    """
    A client that answers or fails within about *timeout* seconds, once.

    redis-py 8's own defaults retry ten times and block 59 s on a frozen
    server; a retried command may also have been applied twice.

    Args:
        url: Of one server, of the sentinels that know it, or of a cluster; the latter is connected to at once.

        timeout: Seconds to connect, and to wait for one answer.
    """
    place, limits = parse(url), _limits(timeout)
    if place.kind == "cluster":
        # The same commands, on a class of its own.
        return cast("redis.Redis", connect_cluster(url, timeout=timeout))
    if place.kind == "sentinel":
        own = {"username": "sentinel_username", "password": "sentinel_password"}
        options = {name: value for name, value in place.options.items() if name not in own.values()}
        shared = {name: value for name, value in options.items() if name.startswith(("ssl", "socket_"))}
        login = {name: place.options[option] for name, option in own.items() if option in place.options}
        sentinels = Sentinel(place.hosts, sentinel_kwargs={**limits, **shared, **login}, **{**limits, **options})
        primary: redis.Redis = sentinels.master_for(place.service)
        return primary
    options = {name: value for name, value in place.options.items() if name == "ssl_check_hostname"}
    return redis.Redis.from_url(url, **limits, **options)


def connect_cluster(url: str, *, timeout: float) -> RedisCluster:
    """
    A client that knows which node has which slot; connects at once.

    Raises:
        RedisClusterException: No node answered.
    """
    place = parse(url)
    nodes = [ClusterNode(host, port) for host, port in place.hosts]
    options = {name: value for name, value in place.options.items() if name != "db"}
    # A slot without a node is the trouble of that slot's circuits only.
    return RedisCluster(startup_nodes=nodes, require_full_coverage=False, **{**_limits(timeout), **options})


def _limits(timeout: float) -> dict[str, Any]:
    return {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
    }
