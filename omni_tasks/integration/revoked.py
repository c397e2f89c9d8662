"""
Which held tasks have been revoked, remembered beyond the workers that heard of it.

Celery keeps revoked ids in each worker's memory, and a held task may well wait
longer than any worker lives.  So whoever hears of a revoke also writes it down
in the shared store, and a task that has been held is looked up there before it
may run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import redis

from omni_tasks.errors import ParkingError
from omni_tasks.store.schema import revoked_key

__all__ = ["Revoked"]

logger = logging.getLogger(__name__)

#: As many as Celery itself remembers (``celery.worker.state.REVOKES_MAX``); the oldest are forgotten first.
_MOST = 50_000


class Revoked:
    """
    The revoked ids and stamps of one application.
    """

    def __init__(self, client: redis.Redis | None, *, prefix: str, keep: float) -> None:
        """
        Remember revokes in the store; without one nothing is remembered here, and Celery's own memory is all.

        Args:
            client: Of the shared store.

            prefix: First part of the key.

            keep: Seconds to remember each, > 0.
        """
        self._client = client
        self._key = revoked_key(prefix)
        self._keep_ms = round(keep * 1000)

    def remember(self, ids: Iterable[str] = (), stamps: Mapping[str, Iterable[Any]] | None = None) -> None:
        """
        Write down what an operator has revoked.
        """
        members = [_of_id(task_id) for task_id in ids]
        members += [_of_stamp(name, value) for name, values in (stamps or {}).items() for value in values]
        if self._client is None or not members:
            return
        try:
            now_ms = self._now_ms(self._client)
            with self._client.pipeline(transaction=False) as pipe:
                pipe.zadd(self._key, dict.fromkeys(members, now_ms + self._keep_ms))
                pipe.zremrangebyscore(self._key, "-inf", now_ms)
                pipe.zremrangebyrank(self._key, 0, -_MOST - 1)
                pipe.execute()
        except (redis.RedisError, OSError):
            logger.exception("A revoke could not be written down; a held task may miss it: %s", members[:10])

    def among(self, tasks: Sequence[Mapping[str, Any]]) -> list[bool]:
        """
        Whether each of the tasks, given by the headers of its message, was revoked.

        Raises:
            ParkingError: The store did not answer, so none of them may run.
        """
        members = [_members(headers) for headers in tasks]
        flat = [member for found in members for member in found]
        if self._client is None or not flat:
            return [False] * len(tasks)
        try:
            scores = dict(zip(flat, self._client.zmscore(self._key, flat), strict=True))
        except (redis.RedisError, OSError) as error:
            raise ParkingError(f"whether it was revoked cannot be told: {type(error).__name__}: {error}") from error
        return [any(scores[member] is not None for member in found) for found in members]

    def any(self) -> bool:
        """
        Whether anything at all is remembered.
        """
        return self._client is not None and bool(self._client.exists(self._key))

    @staticmethod
    def _now_ms(client: redis.Redis) -> int:
        seconds, micros = client.time()
        return seconds * 1000 + micros // 1000


def _members(headers: Mapping[str, Any]) -> list[str]:
    stamps = headers.get("stamps") or {}
    found = [_of_id(str(headers.get("id", "")))]
    for name in headers.get("stamped_headers") or []:
        value = stamps.get(name)
        values = value if isinstance(value, (list, tuple, set)) else [value]
        found += [_of_stamp(name, one) for one in values if one is not None]
    return found


def _of_id(task_id: str) -> str:
    return f"id:{task_id}"


def _of_stamp(name: str, value: object) -> str:
    return f"stamp:{name}={value}"
