"""
The metrics over HTTP: ``GET /metrics``, and ``GET /-/healthy`` for whoever looks after the process.

The server is the standard library's: one page for one reader needs no more.
"""

from __future__ import annotations

import os
import socketserver
import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from omni_tasks.observe.metrics import CircuitCollector

__all__ = ["Exporter"]

#: Requests answered at once; more are turned away.
_MOST_AT_ONCE = 16

#: Seconds a client may take to say what it wants.
_PATIENCE = 5.0

_TEXT = [("Content-Type", "text/plain; charset=utf-8")]


class Exporter:
    """
    Serves what a collector finds.
    """

    def __init__(self, collector: CircuitCollector, *, host: str, port: int) -> None:
        """
        Listen at once; :meth:`serve` or :meth:`start` answers.

        Args:
            collector: What it exports.

            host: Name or address to listen on.

            port: 0 for one that the kernel chooses.

        Raises:
            OSError: The address cannot be listened on.
        """
        registry = CollectorRegistry()
        registry.register(collector)
        self._server = _Server((host, port), _Handler)
        self._server.set_app(_application(registry))

    @property
    def port(self) -> int:
        """
        Where it listens.
        """
        return int(self._server.server_port)

    def serve(self) -> None:
        """
        Answer until :meth:`close` is called by another thread.
        """
        self._server.serve_forever(poll_interval=0.1)

    def start(self) -> None:
        """
        Answer in a thread of its own.
        """
        threading.Thread(target=self.serve, name="omni-exporter", daemon=True).start()
        # A pool's child that is forked later must not keep the port when this process is gone.
        os.register_at_fork(after_in_child=self._server.socket.close)

    def close(self) -> None:
        """
        Stop to answer, and to listen.
        """
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self._places = threading.BoundedSemaphore(_MOST_AT_ONCE)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # http.server looks up the address's full name here, which may take long and is not used.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment] # typed as bytes too
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """
        Say nothing: a client that goes away in the middle is no error of ours.
        """


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """
        Leave the log to what matters.
        """


def _application(registry: CollectorRegistry) -> Callable[[Any, Any], Iterable[bytes]]:
    metrics = make_wsgi_app(registry)

    def application(environ: Any, start_response: Any) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path == "/metrics" and method in {"GET", "HEAD"}:
            body: Iterable[bytes] = metrics(environ, start_response)
            return body
        if path == "/-/healthy":
            start_response("200 OK", _TEXT)
            return [b"ok\n"]
        start_response("404 Not Found", _TEXT)
        return [b"GET /metrics\n"]

    return application
