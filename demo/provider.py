"""
A small OpenAI-compatible provider whose health is switched at run time.

``python -m demo.provider --port 0`` prints ``listening on 127.0.0.1:<port>`` and serves until it is
told to end.

====== ======================== =======================================================================
POST   /v1/chat/completions     a chat completion, or the failure of the current mode
POST   /control                 ``{"mode": "error500", "latency": 0.2, "retry_after": 2}``, any subset
GET    /ledger                  every call so far; ``?since=N`` leaves out the first N
GET    /healthz                 the mode, the calls in flight, the number of calls
====== ======================== =======================================================================

The ledger is the outside view: it counts what reached the provider, whatever the callers believe.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from demo import article
from demo.calls import Call, Mode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request

__all__ = ["Provider", "main"]

# Each entry is about 0.5 kB; the oldest half is dropped beyond this, and the answer says how many.
_LEDGER_LIMIT: Final = 100_000
_LONGEST_SECONDS: Final = 3600.0

# Linger on, for zero seconds: closing then sends RST instead of FIN.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Provider:
    """
    The provider's state, with one method per route.

    Attributes:
        mode: How new calls are answered.

        latency: Seconds that an article, a 500 or a 429 takes.  0.0-3600.0.

        retry_after: Seconds announced by a 429.  0.0-3600.0, sent rounded up to a whole number.

        server: The server that runs it; needed to break connections.
    """

    mode: Mode = Mode.OK
    latency: float = 0.2
    retry_after: float = 2.0
    server: uvicorn.Server | None = None
    calls: list[Call] = field(default_factory=list)
    dropped: int = 0

    def application(self) -> Starlette:
        """
        Lay out the routes as an ASGI application.
        """
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.complete, methods=["POST"]),
                Route("/control", self.control, methods=["POST"]),
                Route("/ledger", self.ledger),
                Route("/healthz", self.healthz),
            ]
        )

    async def complete(self, request: Request) -> Response:
        """
        Answer one call according to the mode on its arrival.
        """
        call = self._enter(request)
        try:
            return await self._answer(call, request)
        finally:
            call.answered = call.answered or "gone"

    async def control(self, request: Request) -> Response:
        """
        Switch the mode, the latency or the announced wait; answers with what holds now.
        """
        try:
            wanted = json.loads(await request.body())
            self._apply(wanted)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        return JSONResponse({"mode": self.mode, "latency": self.latency, "retry_after": self.retry_after})

    async def ledger(self, request: Request) -> Response:
        """
        Tell every call, oldest first.
        """
        since = request.query_params.get("since", "0")
        if not since.isdecimal():
            return JSONResponse({"error": f"since={since!r} must be a whole number >= 0"}, status_code=400)
        start = max(0, int(since) - self.dropped)
        return JSONResponse({"dropped": self.dropped, "calls": [asdict(call) for call in self.calls[start:]]})

    async def healthz(self, request: Request) -> Response:  # noqa: ARG002 - a route takes one
        """
        Say that the process is alive, which it also is when its mode is not ``ok``.
        """
        # Connections that hang are not work in progress.
        running = sum(call.answered is None for call in self.calls)
        return JSONResponse({"mode": self.mode, "running": running, "calls": self.dropped + len(self.calls)})

    def _enter(self, request: Request) -> Call:
        call = Call(time.monotonic(), time.time(), request.headers.get("x-trace-id", ""), self.mode)
        self.calls.append(call)
        if len(self.calls) > _LEDGER_LIMIT:
            excess = _LEDGER_LIMIT // 2
            del self.calls[:excess]
            self.dropped += excess
        return call

    async def _answer(self, call: Call, request: Request) -> Response:
        match Mode(call.mode):
            case Mode.RESET:
                self._break_connection(request)
                call.answered = "reset"
                return Response()
            case Mode.HANG:
                call.answered = "hang"
                await _until_gone(request)
                return Response()
            case Mode.RATE_LIMIT:
                await asyncio.sleep(self.latency)
                call.answered = 429
                headers = {"Retry-After": str(-int(-self.retry_after // 1))}
                return _error(429, "Rate limit reached, please slow down.", "rate_limit_exceeded", headers)
            case Mode.ERROR500:
                await asyncio.sleep(self.latency)
                call.answered = 500
                return _error(500, "The server had an error while processing your request.", "server_error")
            case Mode.OK:
                return await self._write_article(call, request)

    async def _write_article(self, call: Call, request: Request) -> Response:
        try:
            wanted = json.loads(await request.body())
            prompt = next(str(m["content"]) for m in reversed(wanted["messages"]) if m["role"] == "user")
            model = str(wanted["model"])
        except (ValueError, TypeError, KeyError, StopIteration):
            call.answered = 400
            return _error(400, "The body needs a model and messages with one from the user.", "invalid_request_error")
        await asyncio.sleep(self.latency)
        if await request.is_disconnected():
            return Response()
        call.answered = 200
        return JSONResponse(_completion(prompt, model, number=self.dropped + len(self.calls)))

    def _apply(self, wanted: object) -> None:
        allowed = ("mode", "latency", "retry_after")
        if not isinstance(wanted, dict) or not wanted.keys() <= set(allowed):
            raise ValueError(f"{wanted!r} must be an object with any of {', '.join(allowed)}")
        try:
            mode = Mode(wanted.get("mode", self.mode))
        except ValueError:
            raise ValueError(f"mode={wanted['mode']!r} must be one of {', '.join(Mode)}") from None
        latency = _seconds("latency", wanted.get("latency", self.latency))
        retry_after = _seconds("retry_after", wanted.get("retry_after", self.retry_after))
        # Only now: a refused request changes nothing.
        self.mode, self.latency, self.retry_after = mode, latency, retry_after

    def _break_connection(self, request: Request) -> None:
        connections = self.server.server_state.connections if self.server else ()
        for connection in connections:
            if isinstance(connection, H11Protocol) and connection.client == request.client:
                raw = connection.transport.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                connection.transport.abort()


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Serve on the loopback interface until SIGTERM or SIGINT.

    Args:
        arguments: The command line after the program's name; None for this process's own.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m demo.provider", description="A provider that can fail on demand.")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 lets the kernel choose")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds that an answer takes")
    options = parser.parse_args(arguments)

    provider = Provider(latency=_seconds("--latency", options.latency))
    listener = socket.create_server(("127.0.0.1", options.port), backlog=512)
    config = uvicorn.Config(
        provider.application(),
        http="h11",
        lifespan="off",
        log_level="info",
        # Callers that hang would otherwise hold up the end of the process.
        timeout_graceful_shutdown=1,
    )
    provider.server = uvicorn.Server(config)
    sys.stdout.write(f"listening on 127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    provider.server.run(sockets=[listener])
    return 0


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _completion(prompt: str, model: str, *, number: int) -> dict[str, Any]:
    text = article.write(prompt)
    words_in, words_out = len(prompt.split()), len(text.split())
    return {
        "id": f"chatcmpl-demo-{number}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": words_in,
            "completion_tokens": words_out,
            "total_tokens": words_in + words_out,
        },
    }


def _error(status: int, message: str, kind: str, headers: Mapping[str, str] | None = None) -> Response:
    body = {"error": {"message": message, "type": kind, "param": None, "code": kind}}
    return JSONResponse(body, status_code=status, headers=headers)


def _seconds(option: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LONGEST_SECONDS:
        raise ValueError(f"{option}={value!r} must be a number of seconds from 0 to {_LONGEST_SECONDS:.0f}")
    return float(value)


if __name__ == "__main__":
    sys.exit(main())
