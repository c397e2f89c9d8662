"""
The HTTP under a call: trusted certificates read once, and no more bytes than an article can have.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx2
import openai

if TYPE_CHECKING:
    import ssl

    from omni_tasks.gateways.config import GatewayConfig
    from omni_tasks.gateways.deadline import Deadline

__all__ = ["LARGEST_ANSWER", "OversizedAnswerError", "async_http_client", "http_client", "timeouts"]

# Bytes on the wire.  Far above any article, an event stream's frames included; far below what hurts a worker.
LARGEST_ANSWER = 32 * 1024 * 1024


class OversizedAnswerError(Exception):
    """
    An answer is larger than any article, or packed, so that nobody knows how large it is.
    """


def timeouts(config: GatewayConfig) -> openai.Timeout:
    """
    Say how long connecting, and any one read or write, may take.  The whole has a deadline of its own.
    """
    return openai.Timeout(config.timeout, connect=config.connect_timeout)


def http_client(config: GatewayConfig, deadline: Deadline) -> httpx2.Client:
    """
    Make the client of one call.

    A client per call: nothing is shared by threads or inherited over a fork,
    and beside an article a new connection costs nothing.
    """
    hooks: dict[str, list[Callable[..., Any]]] = {"request": [deadline.watch], "response": [_bound]}
    return openai.DefaultHttpxClient(**_options(config), event_hooks=hooks)


def async_http_client(config: GatewayConfig) -> httpx2.AsyncClient:
    """
    Make the client of one call on an event loop.
    """
    return openai.DefaultAsyncHttpxClient(**_options(config), event_hooks={"response": [_bound_async]})


def _options(config: GatewayConfig) -> dict[str, Any]:
    return {
        "timeout": timeouts(config),
        "verify": _tls(),
        # A redirect would carry the prompt to an address nobody configured.
        "follow_redirects": False,
        # An unpacked answer has the size it has; a packed one of a megabyte may be a gigabyte.
        "headers": {"Accept-Encoding": "identity"},
    }


@functools.lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """
    Read the trusted certificates once per process; it takes longer than all the rest of a client.
    """
    return httpx2.create_ssl_context()


def _bound(response: httpx2.Response) -> None:
    _refuse_packed(response)
    response.stream = _Bounded(response.stream)


async def _bound_async(response: httpx2.Response) -> None:
    _refuse_packed(response)
    response.stream = _AsyncBounded(response.stream)


def _refuse_packed(response: httpx2.Response) -> None:
    if response.is_error:
        # Its status says enough; what is packed in its body stays packed.
        response.headers.pop("content-encoding", None)
    elif response.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise OversizedAnswerError("it is packed, although it was asked for unpacked")


class _Count:
    def __init__(self) -> None:
        self._seen = 0

    def add(self, piece: bytes) -> bytes:
        self._seen += len(piece)
        if self._seen > LARGEST_ANSWER:
            raise OversizedAnswerError(f"it is larger than {LARGEST_ANSWER} bytes")
        return piece


class _Bounded(httpx2.SyncByteStream):
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[bytes]:
        count = _Count()
        for piece in self._inner:
            yield count.add(piece)

    def close(self) -> None:
        self._inner.close()


class _AsyncBounded(httpx2.AsyncByteStream):
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        count = _Count()
        async for piece in self._inner:
            yield count.add(piece)

    async def aclose(self) -> None:
        await self._inner.aclose()
