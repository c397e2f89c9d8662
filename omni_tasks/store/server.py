"""
Which connections lead to a circuit: those to one server, or to the node of a cluster that has its slot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import redis
from redis.cluster import RedisCluster
from redis.connection import ConnectionInterface, ConnectionPool
from redis.exceptions import MovedError

from omni_tasks.store.line import Lines

__all__ = ["Cluster", "Server", "Where"]


class Where(Protocol):
    """
    A way from a key to the connections that lead to it.
    """

    def lines(self, key: str) -> Lines:
        """
        The connections to the server that has *key*.
        """

    def failed(self) -> None:
        """
        Hear that a question was not answered.
        """

    def moved(self, refusal: Exception, arguments: Sequence[Any]) -> Any:
        """
        Ask again where the key is now, when *refusal* says that it has moved; else return the refusal.
        """


def _maker(pool: ConnectionPool) -> Callable[[], ConnectionInterface]:
    # Not pool.make_connection(): the pool counts what it has ever made, and refuses after a hundred.
    return lambda: pool.connection_class(**pool.connection_kwargs)


class Server:
    """
    One server, or the primary that sentinels name.
    """

    def __init__(self, client: redis.Redis, scripts: Callable[[], Sequence[bytes]]) -> None:
        """
        Take connections that *client* would make; *scripts* as for :class:`Lines`.
        """
        self._lines = Lines(_maker(client.connection_pool), scripts)

    def lines(self, key: str) -> Lines:  # noqa: ARG002 - one server has every key
        """
        The connections to the server.
        """
        return self._lines

    def failed(self) -> None:
        """
        Nothing: sentinels are asked by each new connection.
        """

    def moved(self, refusal: Exception, arguments: Sequence[Any]) -> Any:  # noqa: ARG002 - nothing moves here
        """
        Return the refusal.
        """
        return refusal


class Cluster:
    """
    A cluster; redis-py's client knows its slots.
    """

    def __init__(self, make: Callable[[], RedisCluster], scripts: Callable[[], Sequence[bytes]]) -> None:
        """
        Use the client from *make*, which connects; *scripts* as for :class:`Lines`.
        """
        self._make = make
        self._scripts = scripts
        self._client: RedisCluster | None = None
        self._stale = False
        self._nodes: dict[str, Lines] = {}

    def lines(self, key: str) -> Lines:
        """
        The connections to the node that has *key*.

        Raises:
            RedisClusterException: No node answered, or none has the key's slot.
        """
        client = self._asked()
        node = client.get_node_from_key(key)
        if node.name not in self._nodes:
            pool = client.get_redis_connection(node).connection_pool
            self._nodes = {**self._nodes, node.name: Lines(_maker(pool), self._scripts)}
        return self._nodes[node.name]

    def failed(self) -> None:
        """
        Ask for the slots anew before the next question: another node may have them now.
        """
        self._stale = True

    def moved(self, refusal: Exception, arguments: Sequence[Any]) -> Any:
        """
        Ask again through redis-py, which follows the key and remembers.
        """
        # While a slot is on its way from one node to another, neither takes a script that names a key not made yet;
        # redis-py would wait for that.
        if not isinstance(refusal, MovedError):
            return refusal
        return self._asked().execute_command(*arguments)

    def _asked(self) -> RedisCluster:
        if self._client is None:
            self._client = self._make()
        elif self._stale:
            self._client.nodes_manager.initialize()
        self._stale = False
        return self._client
