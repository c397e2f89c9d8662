"""
The Redis of a run: a throw-away one, or the one that ``OMNI_REDIS_URL`` names.
"""

from __future__ import annotations

import logging
import os
import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from omni_tasks.embedded import start_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["Server", "UnreachableError", "named_server", "open_server"]

_TIMEOUT_S: Final = 2.0

log = logging.getLogger(__name__)


class UnreachableError(RuntimeError):
    """
    The named server does not answer; the message is one line, without its password.
    """


@dataclass(frozen=True, slots=True)
class Server:
    """
    A server to run on.

    Attributes:
        url: Its address.

        label: What to call it on the screen; never shows a password.

        space: Name of the queue, the keys of this run alone; None on a server that is this run's alone.
    """

    url: str
    label: str
    space: str | None = None


def named_server(environ: Mapping[str, str] = os.environ) -> Server | None:
    """
    Look for the server that ``OMNI_REDIS_URL`` names.

    Returns:
        That server, which answers now; None when none is named.

    Raises:
        UnreachableError: It does not answer, or the variable holds something else.
    """
    url = environ.get("OMNI_REDIS_URL", "").strip()
    if not url:
        return None
    try:
        parts = urlsplit(url)
        label = f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}{parts.path}"
    except ValueError:
        label = ""
    if not label.startswith(("redis://", "rediss://")):
        # It may hold a password, in a place where nobody could find it, so it is not shown.
        raise UnreachableError("OMNI_REDIS_URL must be a URL like redis://127.0.0.1:6379/0")
    try:
        with _client(url) as client:
            client.ping()
    except redis.RedisError as error:
        raise UnreachableError(f"OMNI_REDIS_URL: {label} does not answer: {error}") from None
    return Server(url, label, f"omni-demo-{secrets.token_hex(4)}")


@contextmanager
def open_server(named: Server | None, logs: Path) -> Iterator[Server]:
    """
    Get a server for as long as the context lasts: *named*, or a throw-away one.

    Args:
        named: Somebody's server; it is left as it was found.

        logs: Folder for the log of a throw-away one.

    Raises:
        EmbeddedServerError: No throw-away server can be started.
    """
    if named is None:
        with start_server(logs) as server:
            yield Server(server.url, f"a throw-away server on port {server.port}")
        return
    try:
        yield named
    finally:
        _tidy(named)


def _tidy(named: Server) -> None:
    try:
        with _client(named.url) as client:
            # The name that only this run has: its queue, its circuits, its lot.
            for key in client.scan_iter(match=f"*{named.space}*", count=1000):
                client.delete(key)
    except redis.RedisError:
        log.warning("could not tidy up %s", named.label, exc_info=True)


def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(
        url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, retry=Retry(NoBackoff(), 0)
    )
