"""
The monitor's Lua scripts, and the client they run on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, TypeAlias

import redis
from redis.commands.core import Script

from omni_tasks.store.redis import connect

#: KEYS and ARGV of one call.
Call: TypeAlias = tuple[Sequence[str], Sequence[str | bytes | int]]

__all__ = ["Call", "Scripts", "open_client"]

#: Least time in seconds that the monitor gives the store for an answer: it asks for much at once, and no call waits.
_PATIENCE = 1.0


def open_client(url: str, *, timeout: float) -> redis.Redis:
    """
    A client for the monitor; *timeout* is ``omni_store_timeout``, in seconds.
    """
    return connect(url, timeout=max(timeout, _PATIENCE))


class Scripts:
    """
    Runs the scripts of ``observe/lua`` by name.
    """

    def __init__(self, client: redis.Redis) -> None:
        """
        Run them on *client*, whose replies must not be decoded.
        """
        self._client = client
        self._scripts: dict[str, Script] = {}

    def one(self, name: str, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> list[Any]:
        """
        Run a script once.
        """
        reply: list[Any] = self.many(name, [(keys, arguments)])[0]
        return reply

    def many(self, name: str, calls: Sequence[Call]) -> list[Any]:
        """
        Run a script many times, in one round trip.
        """
        if not calls:
            return []
        script = self._scripts.setdefault(name, Script(self._client, _text(name)))
        try:
            return self._pipeline(script.sha, calls)
        except redis.exceptions.NoScriptError:
            self._client.script_load(script.script)
            # Every script may run twice: what it has done already it does not do again.
            return self._pipeline(script.sha, calls)

    def _pipeline(self, sha: str, calls: Sequence[Call]) -> list[Any]:
        # By its SHA: redis-py's own Script asks first whether the server knows it, one round trip more each time.
        with self._client.pipeline(transaction=False) as pipe:
            for keys, arguments in calls:
                pipe.evalsha(sha, len(keys), *keys, *arguments)
            return pipe.execute()


@cache
def _text(name: str) -> str:
    folder = resources.files("omni_tasks.observe") / "lua"
    return "".join((folder / f"{file}.lua").read_text(encoding="utf-8") for file in ("_prelude", name))
