"""
One guarded HTTP request: to an address that was looked at, without redirects, bounded in time and size.

Written on httpcore, the engine under httpx: its network back-end is where an
address can be looked at and then be the one that is connected to, and where
every single read can be held to one deadline for the whole exchange.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from typing import Any

import httpcore2 as httpcore

__all__ = ["DeliveryError", "is_public", "post"]

#: Most bytes of an answer that are read.
_LONGEST_ANSWER = 65_536

_OK = range(200, 300)

#: All that IPv6 has for everybody; what else is not "private" by name, such as fec0::/10, is not public either.
_GLOBAL = ipaddress.IPv6Network("2000::/3")

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class DeliveryError(OSError):
    """
    A notification was not taken.  The message names no secret.
    """


def post(  # noqa: PLR0913 - what is asked for, by name
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    within: float,
    private: bool,
    method: str = "POST",
) -> None:
    """
    Send *body* and wait for a status of 200-299.

    Args:
        url: http or https; a redirect from it is not followed.

        body: What is sent.

        headers: Beside Host and Content-Length.

        within: Seconds for all of it, from looking up the name to the end of the answer.

        private: Whether addresses that are not public (loopback, private, link-local ...) may be connected to.

        method: ``"POST"`` or ``"PUT"``.

    Raises:
        DeliveryError: It was not taken, or not in time.
    """
    backend = _GuardedBackend(time.monotonic() + within, private=private)
    # Loading the authorities takes a while: only where they are needed.
    context = ssl.create_default_context() if url.startswith("https:") else None
    try:
        with (
            httpcore.ConnectionPool(ssl_context=context, network_backend=backend, http2=False) as pool,
            pool.stream(method, url, headers=list(headers.items()), content=body) as answer,
        ):
            _read(answer)
            status = answer.status
    except DeliveryError:
        raise
    except (httpcore.TimeoutException, TimeoutError):
        raise DeliveryError(f"no answer within {within:g} s") from None
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol, OSError) as error:
        # Its text may hold the address, never the path or the query of the URL.
        raise DeliveryError(f"{type(error).__name__}: {error}") from None
    if status not in _OK:
        raise DeliveryError(f"the answer was {status}")


def _read(answer: httpcore.Response) -> None:
    # To the end, for the connection is closed properly only then; nothing in it is used.
    read = 0
    for piece in answer.iter_stream():
        read += len(piece)
        if read > _LONGEST_ANSWER:
            raise DeliveryError(f"the answer is longer than {_LONGEST_ANSWER} bytes")


class _GuardedBackend(httpcore.NetworkBackend):
    """
    Connects to public addresses only, and lets nothing take longer than the deadline.
    """

    def __init__(self, deadline: float, *, private: bool) -> None:
        """
        Work until *deadline*, by ``time.monotonic()``.
        """
        self._deadline = deadline
        self._private = private
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """
        Look the name up once, and connect to what was found: a second look might find another address.
        """
        del timeout
        *others, last = self._resolve(host, port)
        for address in others:
            try:
                return self._connect(address, port, local_address, socket_options)
            except httpcore.ConnectError:
                # A name with several addresses: the next one may answer.
                continue
        return self._connect(last, port, local_address, socket_options)

    def _connect(
        self, address: str, port: int, local_address: str | None, socket_options: Iterable[Any] | None
    ) -> httpcore.NetworkStream:
        stream = self._sockets.connect_tcp(address, port, _left(self._deadline), local_address, socket_options)
        return _GuardedStream(stream, self._deadline)

    def _resolve(self, host: str, port: int) -> list[str]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(info[4][0]) for info in found]
        if not self._private and not all(map(is_public, addresses)):
            # One name with a public and a private address is a trap too.
            raise httpcore.ConnectError("the address is not public; allow it with omni_alert_private_addresses")
        return addresses


class _GuardedStream(httpcore.NetworkStream):
    """
    A connection that ends at the deadline, however steadily a byte comes now and then.
    """

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        """
        Guard *stream* until *deadline*, by ``time.monotonic()``.
        """
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """
        Read what is there.
        """
        del timeout
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """
        Write all of *buffer*.
        """
        del timeout
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        """
        Close it.
        """
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """
        Go on encrypted; the certificate must be for the URL's name, not for the address.
        """
        del timeout
        secure = self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline))
        return _GuardedStream(secure, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """
        What the connection itself knows.
        """
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout
    return left


def is_public(address: str) -> bool:
    """
    Whether an IP address is anybody's: not loopback, private, link-local, reserved or multicast.

    An IPv4 address inside an IPv6 one is judged as what it leads to.
    """
    # Without the zone of a link-local one.
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if parsed in _NAT64:
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is None and parsed not in _GLOBAL:
            return False
        parsed = inner or parsed
    return parsed.is_global and not parsed.is_multicast
