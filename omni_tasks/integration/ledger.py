"""
The ledger: which deliveries have a durable successor, and which circuits hold those.

A worker may die after it has written a message somewhere else and before it has
acknowledged it where it came from.  The broker then delivers it again; a copy
that stands in the ledger is dropped.  It may also die before it could enter the
copy here: then its successor says which copy it succeeds, and whichever of the
two is taken up first voids the other.  Without the store's answer no copy is
dropped: a task that runs twice is better than one that does not run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import cast
from urllib.parse import quote, unquote

import redis
from redis.commands.core import Script

__all__ = ["Arrival", "Ledger", "successor_of"]

logger = logging.getLogger(__name__)

#: How long a copy keeps its number, in ms: a void successor may wait that long for its turn.
_VOID_MS = 86_400_000

#: Above every number: what carries it is never void.
_UNKNOWN = 2**53 - 1


def successor_of(copy: str, number: int) -> str:
    """
    What a message carries that succeeds *copy*, made when the copy had that number.
    """
    return f"{copy}.{number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """
    A message that was received.

    Attributes:
        copy: Identifies it; empty for one that was only just published.

        succeeds: What :func:`successor_of` has made for it; empty for a message that nobody has moved.

        again: Whether it was delivered before, and may have a successor that is in no ledger.
    """

    succeeds: str
    copy: str = ""
    again: bool = False


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

    def add(self, successors: Sequence[str], *, circuit: str = "") -> bool:
        """
        Note that copies have durable successors, which *circuit* holds.

        Args:
            successors: Of :func:`successor_of`.

            circuit: Empty where no holding queue has them.

        Returns:
            ``False`` where one of them is void: its copy was delivered again meanwhile, and taken up.
        """
        try:
            return None not in self._arrive([Arrival(succeeds=each) for each in successors], circuit)
        except (redis.RedisError, OSError) as error:
            logger.warning("A held task may run twice if this worker dies now: the store did not answer: %s", error)
            return True

    def arrive(self, arrivals: Sequence[Arrival]) -> list[int | None]:
        """
        Take messages up.

        Returns:
            For each the number that its successor must carry, ``None`` where another copy stands for it.  Where
            the store does not answer, all stand, and so will their successors.
        """
        try:
            return self._arrive(arrivals, "")
        except (redis.RedisError, OSError) as error:
            logger.warning("A task may run twice: the store did not answer whether it is held already: %s", error)
            return [_UNKNOWN] * len(arrivals)

    def _arrive(self, arrivals: Sequence[Arrival], circuit: str) -> list[int | None]:
        if not arrivals:
            return []
        triples = [part for each in arrivals for part in (each.succeeds, each.copy, int(each.again))]
        keys, args = [self.key, self.index], [self.remember_ms, _VOID_MS, quote(circuit, safe=""), *triples]
        numbers = cast("list[int]", self._supersede(keys=keys, args=args))
        return [number if number >= 0 else None for number in numbers]

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
