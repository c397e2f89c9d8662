"""
A real HTTP server on 127.0.0.1 that answers exactly what a test tells it to.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

__all__ = ["HttpServer", "Reply", "Request", "chat_completion"]


@dataclass(frozen=True)
class Reply:
    """
    What the server does with the next requests.

    Attributes:
        status: HTTP status.

        body: Sent as it is.

        headers: Beside Content-Type and Content-Length.

        content_type: Of the body.

        fault:
            ``"hang"``: no byte until the server stops.  ``"reset"``: a TCP reset after
            the request.  ``"half"``: half the body, then the end.  ``"drip"``: the
            headers, then a blank line every *drip* seconds until the server stops.

        drip: Seconds between two blank lines.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    fault: str = ""
    drip: float = 0.1


@dataclass(frozen=True)
class Request:
    """
    One request as it came in; header names in lower case.
    """

    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, object]:
        """
        Read the body.
        """
        read: dict[str, object] = json.loads(self.body)
        return read


def chat_completion(
    text: str | None = "An article.", *, finish_reason: str = "stop", refusal: str | None = None, usage: bool = True
) -> bytes:
    """
    Build the body of a chat completion.
    """
    message = {"role": "assistant", "content": text, "refusal": refusal}
    reply: dict[str, object] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "served-model",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
    }
    if usage:
        reply["usage"] = {"prompt_tokens": 11, "completion_tokens": 22, "total_tokens": 33}
    return json.dumps(reply).encode()


class HttpServer:
    """
    Serves ``reply`` to every POST and PUT and keeps what it was asked in ``requests``.
    """

    def __init__(self) -> None:
        """
        Bind a port that the kernel chooses.
        """
        self.reply = Reply(body=chat_completion())
        self.requests: list[Request] = []
        self.stopping = threading.Event()
        outer = self

        class Handler(_Handler):
            server_of = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """
        Give the base URL, as in ``http://127.0.0.1:PORT/v1``.
        """
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        """
        Start to serve.
        """
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """
        Stop, and let go of requests that hang.
        """
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    """
    Plays the current :class:`Reply`.
    """

    protocol_version = "HTTP/1.1"
    server_of: HttpServer

    def do_POST(self) -> None:
        """
        Record the request, then do as told.
        """
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server_of.requests.append(Request(self.path, headers, body))
        reply = self.server_of.reply
        if reply.fault == "hang":
            self.server_of.stopping.wait()
            self.close_connection = True
        elif reply.fault == "reset":
            self._reset()
        elif reply.fault == "drip":
            self._drip(reply)
        else:
            self._answer(reply)

    do_PUT = do_POST  # noqa: N815 - the base class's name

    def _answer(self, reply: Reply) -> None:
        """
        Send the reply, or with the fault ``half`` a part of it.
        """
        self._head(reply, {"Content-Length": str(len(reply.body))})
        half = reply.fault == "half"
        self.wfile.write(reply.body[: len(reply.body) // 2] if half else reply.body)
        self.close_connection = self.close_connection or half

    def _head(self, reply: Reply, extra: Mapping[str, str]) -> None:
        """
        Send status and headers; a header of the reply's own replaces the server's.
        """
        self.send_response_only(reply.status)
        for name, value in {"Content-Type": reply.content_type, **extra, **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _reset(self) -> None:
        """
        Close with a TCP reset instead of an end of file.
        """
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Past the streams that share the descriptor and would keep it open.
        os.close(self.connection.detach())
        self.close_connection = True

    def _drip(self, reply: Reply) -> None:
        """
        Keep the connection alive without ever answering.
        """
        self._head(reply, {"Transfer-Encoding": "chunked"})
        self.close_connection = True
        try:
            while not self.server_of.stopping.wait(reply.drip):
                self.wfile.write(b"1\r\n\n\r\n")
        except OSError:
            # The client has had enough, which is what the test is about.
            return

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """
        Keep the test's output quiet.
        """
