"""
Equal held tasks: where one waits already, the next of the same ``hold_key`` is dropped.

For periodic tasks, of which an hour's outage would otherwise pile up a hundred
that all do the same.  The older one stays, in its place; a newer one ends as
REVOKED.  The older one's claim ends when it leaves the gate, to run or to end.
"""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING

import redis

from omni_tasks.integration.install import integration_of
from omni_tasks.integration.returning import longest_hold
from omni_tasks.store.schema import hold_key

if TYPE_CHECKING:
    from omni_tasks.integration.ending import EndingRequest

__all__ = ["drop_if_equal_waits", "stop_waiting"]

logger = logging.getLogger(__name__)

#: How long a claim lasts where tasks may be held for ever, in seconds.
_LONGEST = 30 * 86_400.0


def drop_if_equal_waits(request: EndingRequest) -> bool:
    """
    End a refused task where another of its ``hold_key`` waits already; else claim the key for it.

    Returns:
        Whether it was ended, and acknowledged.
    """
    key, client = _key_of(request), integration_of(request.app).store_client
    if key is None or client is None:
        return False
    keep_ms = round((longest_hold(request) or _LONGEST) * 1000)
    try:
        if client.set(key, request.id, nx=True, px=keep_ms) or client.get(key) == request.id.encode():
            return False
    except (redis.RedisError, OSError) as error:
        # Holding one too many is the smaller evil.
        logger.warning("Whether another %s is held cannot be told: %s", request.name, error)
        return False
    logger.info("Task %s[%s] dropped: another of its hold_key is held", request.name, request.id)
    request._announce_revoked("another of its hold_key is held", False, None, False)  # noqa: FBT003, SLF001 - as Celery calls it
    return True


def stop_waiting(request: EndingRequest) -> None:
    """
    Let the next of its ``hold_key`` be held, now that this one has left the gate.
    """
    try:
        key = _key_of(request)
        client = integration_of(request.app).store_client if key else None
        if key and client is not None and client.get(key) == request.id.encode():
            client.delete(key)
    except Exception as error:  # noqa: BLE001 - whatever the application's own key function raises, the task goes its way
        logger.warning("The hold_key of %s[%s] stays claimed: %r", request.name, request.id, error)


def _key_of(request: EndingRequest) -> str | None:
    own = inspect.getattr_static(request.task, "hold_key", None)
    # A function given to the decorator has become an attribute of the class, but is no method.
    own = own.__func__ if isinstance(own, staticmethod) else own
    if own is None:
        return None
    value = own(*request.args, **request.kwargs) if callable(own) else own
    return hold_key(integration_of(request.app).settings.key_prefix, f"{request.task.name} {value}")
