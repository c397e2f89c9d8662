"""
A wall deadline over one HTTP call.

An HTTP library's read timeout counts from the last byte, so a provider that
sends a blank line now and then keeps a call alive for ever.  Here a timer ends
the call, by shutting its socket down.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    import httpx2

__all__ = ["Deadline"]


class Deadline:
    """
    Ends one HTTP call after a time, however alive its connection looks.

    The call then fails as if the other side had hung up; :attr:`expired` tells
    the two apart.  Name look-up and the connection itself are not cut short:
    for them there is the connect timeout.

    Source: the ``trace`` request extension of httpcore2 2.x names every new
    network stream; a proxy and TLS each give another one.
    """

    def __init__(self, seconds: float) -> None:
        """
        Allow the call *seconds*, > 0, from ``__enter__`` on.
        """
        self.expired = False
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        """
        Start the clock.
        """
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """
        Stop the clock.
        """
        self._timer.cancel()

    def watch(self, request: httpx2.Request) -> None:
        """
        Follow *request*'s connection; made to be a ``request`` event hook.
        """
        request.extensions["trace"] = self._trace

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        """
        Remember the newest socket of the call.
        """
        if not event.endswith(("connect_tcp.complete", "start_tls.complete")):
            return
        self._socket = info["return_value"].get_extra_info("socket")
        # The timer may have fired while there was no socket to shut down yet.
        if self.expired:
            self._shut_down()

    def _expire(self) -> None:
        """
        End the call; runs in the timer's thread.
        """
        self.expired = True
        self._shut_down()

    def _shut_down(self) -> None:
        """
        Wake the reader with an end of file.
        """
        if self._socket is not None:
            # Gone already: then there is nobody to wake.  The base class's method,
            # because SSLSocket's own takes the TLS state away under the reader.
            with suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
