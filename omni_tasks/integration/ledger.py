"""
The ledger: which deliveries have a durable successor, and which circuits hold those.

A worker may die after it has written a message somewhere else and before it has
acknowledged it where it came from.  The broker then delivers it again; a copy
that stands in the ledger is dropped.  Without the store's answer no copy is
dropped: a task that runs twice is better than one that does not run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from importlib import resources
from typing import cast
from urllib.parse import quote, unquote

import redis
from redis.commands.core import Script

__all__ = ["Ledger"]

logger = logging.getLogger(__name__)


class Ledger:
    """
    The superseded copies of one application, in the shared store.
    """

    def __init__(self, client: redis.Redis, *, prefix: str, remember: float) -> None:
        """
        Keep the ledger under *prefix*.

        Args:
            client: Of the shared store.

            prefix: First part of its key.

            remember: Seconds during which a superseded copy may still turn up, > 0.
        """
        self.key = f"{prefix}:superseded"
        self.index = f"{prefix}:lots"
        self.remember_ms = round(remember * 1000)
        self._client = client
        script = resources.files("omni_tasks.integration") / "lua" / "supersede.lua"
        self._supersede = Script(client, script.read_text(encoding="utf-8"))

    def add(self, copies: Sequence[str], *, circuit: str = "") -> None:
        """
        Note that these copies have durable successors, which *circuit* holds.
        """
        if not copies:
            return
        try:
            self._supersede(keys=[self.key, self.index], args=[self.remember_ms, quote(circuit, safe=""), *copies])
        except (redis.RedisError, OSError) as error:
            logger.warning("A held task may run twice if this worker dies now: the store did not answer: %s", error)

    def known(self, copies: Sequence[str]) -> set[str]:
        """
        Those of *copies* that have a durable successor; none where the store does not answer.
        """
        if not copies:
            return set()
        try:
            found = self._client.zmscore(self.key, list(copies))
        except (redis.RedisError, OSError) as error:
            logger.warning("A task may run twice: the store did not answer whether it is held already: %s", error)
            return set()
        return {copy for copy, score in zip(copies, found, strict=True) if score is not None}

    def holding(self) -> list[str]:
        """
        The circuits that hold tasks, as far as the store knows.

        Raises:
            redis.RedisError: It did not answer.
        """
        members = cast("set[bytes]", self._client.smembers(self.index))
        return sorted(unquote(member.decode("utf-8", "replace")) for member in members)

    def strike(self, circuit: str) -> None:
        """
        Note that *circuit* holds nothing any more.
        """
        self._client.srem(self.index, quote(circuit, safe=""))

    def keep(self, circuit: str) -> None:
        """
        Note that *circuit* holds tasks.
        """
        self._client.sadd(self.index, quote(circuit, safe=""))

    def now_ms(self) -> int:
        """
        Unix time of the store in ms; this machine's own where the store does not answer.
        """
        try:
            seconds, micros = self._client.time()
        except (redis.RedisError, OSError):
            return time.time_ns() // 1_000_000
        return seconds * 1000 + micros // 1000
