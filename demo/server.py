"""
The Redis of a run: a throw-away one, or the one that ``OMNI_REDIS_URL`` names.
"""

from __future__ import annotations

import secrets
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from omni_tasks.embedded import start_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Server", "UnreachableError", "open_server"]

_TIMEOUT_S: Final = 2.0


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


def open_server(url: str | None, logs: Path) -> AbstractContextManager[Server]:
    """
    Get a server, for as long as the context lasts.

    Args:
        url: The value of ``OMNI_REDIS_URL``; None or empty starts a throw-away server.

        logs: Folder for the log of a throw-away one.

    Raises:
        UnreachableError: The server that *url* names does not answer.

        EmbeddedServerError: No throw-away server can be started.
    """
    return _shared(url) if url else _embedded(logs)


@contextmanager
def _embedded(logs: Path) -> Iterator[Server]:
    with start_server(logs) as server:
        yield Server(server.url, f"a throw-away server on port {server.port}")


@contextmanager
def _shared(url: str) -> Iterator[Server]:
    parts = urlsplit(url)
    label = f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}{parts.path}"
    space = f"omni-demo-{secrets.token_hex(4)}"
    try:
        client = redis.Redis.from_url(
            url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )
        with client:
            client.ping()
            try:
                yield Server(url, label, space)
            finally:
                _tidy(client, space)
    except (redis.RedisError, ValueError) as error:
        raise UnreachableError(f"OMNI_REDIS_URL: {label} does not answer: {error}") from None


def _tidy(client: redis.Redis, space: str) -> None:
    """
    Remove what the run has left on somebody's server, by the name that only this run has.
    """
    for key in client.scan_iter(match=f"*{space}*", count=1000):
        client.delete(key)
