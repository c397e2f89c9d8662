"""
A server in front of a server, that breaks what it passes on.
"""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

__all__ = ["Proxy"]


class Proxy:
    """
    Passes bytes on, until told to cut.

    Attributes:
        cut_after: Bytes of answers passed on from now on before the connection is closed; ``None`` to go on.

        connections: Connections made so far.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        """
        Stand in front of the server on *port* of this machine, speaking TLS to clients if *tls* is given.
        """
        self.cut_after: int | None = None
        self.connections = 0
        self._port, self._tls = port, tls
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.port: int = self._listening.getsockname()[1]

    def __enter__(self) -> Self:
        """
        Begin to listen.
        """
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """
        Close everything.
        """
        for ours in (self._listening, *self._open):
            _close(ours)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._port))
        self._open += [client, server]
        try:
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
                self._open.append(client)
            threading.Thread(target=_pump, args=(client, server), daemon=True).start()
            while answer := server.recv(65536):
                if self.cut_after is None:
                    client.sendall(answer)
                    continue
                client.sendall(answer[: self.cut_after])
                break
        except OSError:
            # A client that does not trust us, or one that has gone.
            pass
        finally:
            _close(client)
            _close(server)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while read := source.recv(65536):
            target.sendall(read)
    _close(target)


def _close(ours: socket.socket) -> None:
    with suppress(OSError):
        ours.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        ours.close()
