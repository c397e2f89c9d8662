"""
A Redis store whose scripts say something else, and what no reading shows of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import redis

from omni_tasks.store.redis import RedisStore
from omni_tasks.store.schema import STANDALONE, VERBS, part_text, script_parts

__all__ = ["AmbiguousTextError", "patched_store", "stored_permits"]


class AmbiguousTextError(ValueError):
    """
    The text to replace is not there exactly once: the scripts have changed under the patch.
    """


def patched_store(
    client: redis.Redis,
    *,
    prefix: str,
    patches: Iterable[tuple[str, str, str]],
    now_ms: Callable[[], int] | None = None,
) -> RedisStore:
    """
    Make a store with some text of its scripts replaced.

    Args:
        client: As for the store.

        prefix: As for the store.

        patches: ``(file, original, replacement)``; the file is a verb's name, or ``_prelude`` for what all verbs share.

        now_ms: As for the store.

    Raises:
        AmbiguousTextError: The original is not in its file exactly once.
    """
    store = RedisStore(client, prefix=prefix, now_ms=now_ms)
    verbs = (*VERBS, *STANDALONE)
    bodies = {part: part_text(part) for verb in verbs for part in script_parts(verb)}
    for file, original, replacement in patches:
        if (found := bodies[file].count(original)) != 1:
            raise AmbiguousTextError(f"{file}.lua: {original!r} is there {found} times, wanted: once")
        bodies[file] = bodies[file].replace(original, replacement)
    for verb in verbs:
        store._scripts.put(verb, "".join(bodies[part] for part in script_parts(verb)))
    return store


def stored_permits(client: redis.Redis, key: str) -> dict[str, int]:
    """
    The permits under *key*, with their deadlines in Unix ms.
    """
    pairs: Any = client.zrange(key, 0, -1, withscores=True)
    return {permit.decode(): int(deadline) for permit, deadline in pairs}
