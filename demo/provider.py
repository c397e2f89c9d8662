"""
A small OpenAI-compatible provider whose health is switched at run time.

``python -m demo.provider`` prints ``listening on 127.0.0.1:<port>`` and serves until it is
told to end.

====== ======================== =======================================================================
POST   /v1/chat/completions     a chat completion, or the failure of the current mode
POST   /v1/responses            likewise a response; either as an event stream when ``stream`` is asked for
GET    /v1/models               the models, or the failure of the current mode; not in the ledger
POST   /control                 ``{"mode": "error500", "latency": 0.2, "retry_after": 2}``, any subset
GET    /ledger                  every call so far; ``?since=N`` leaves out the first N
GET    /healthz                 the mode, the calls in flight, the numbers of calls and of health checks
====== ======================== =======================================================================

The modes are in :class:`demo.calls.Mode`.  The ledger is the outside view: it counts what reached the
provider, whatever the callers believe.
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
from typing import TYPE_CHECKING, Final

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from demo import faults, replies
from demo.calls import Call, Mode
from demo.replies import Question

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.requests import Request

__all__ = ["Provider", "main"]

# Each entry is about 0.5 kB; the oldest half is dropped beyond this, and the answer says how many.
_LEDGER_LIMIT: Final = 100_000
_LONGEST_SECONDS: Final = 3600.0

# Linger on, for zero seconds: closing then sends RST instead of FIN.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

_HEADER_LENGTH: Final = 200
_UNKNOWN_MODEL: Final = "no-such-model"


@dataclass(slots=True)
class Provider:
    """
    The provider's state, with one method per route.

    Attributes:
        mode: How new calls are answered.

        latency: Seconds that an article, or an answer with another status, takes.  0.0-3600.0.

        retry_after: Seconds announced by a rate limit.  0.0-3600.0, sent rounded up to a whole number.

        retry_after_header:
            Retry-After word for word, sent with every status but 200; ``None``: only rate limits
            send one, made of *retry_after*.

        server: The server that runs it; needed to break connections.
    """

    mode: Mode = Mode.OK
    latency: float = 0.2
    retry_after: float = 2.0
    retry_after_header: str | None = None
    server: uvicorn.Server | None = None
    calls: list[Call] = field(default_factory=list)
    dropped: int = 0
    checks: int = 0

    def application(self) -> Starlette:
        """
        Lay out the routes as an ASGI application.
        """
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.complete, methods=["POST"]),
                Route("/v1/responses", self.respond, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/control", self.control, methods=["POST"]),
                Route("/ledger", self.ledger),
                Route("/healthz", self.healthz),
            ]
        )

    async def complete(self, request: Request) -> Response:
        """
        Answer one chat completion according to the mode on its arrival.
        """
        return await self._serve("chat", request)

    async def respond(self, request: Request) -> Response:
        """
        Answer one call of the responses API according to the mode on its arrival.
        """
        return await self._serve("responses", request)

    async def models(self, request: Request) -> Response:
        """
        Answer a health check according to the mode.
        """
        self.checks += 1
        call = Call(time.monotonic(), time.time(), "", self.mode)
        answer = await self._refuse(call, request)
        return JSONResponse(replies.models()) if answer is None else answer

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
        # Connections that hang are no work in progress.
        running = sum(call.answered is None for call in self.calls)
        calls = self.dropped + len(self.calls)
        return JSONResponse({"mode": self.mode, "running": running, "calls": calls, "checks": self.checks})

    async def _serve(self, api: str, request: Request) -> Response:
        call = self._enter(request)
        try:
            answer = await self._refuse(call, request)
            return await self._write(api, call, request) if answer is None else answer
        finally:
            call.answered = call.answered or "gone"

    def _enter(self, request: Request) -> Call:
        call = Call(time.monotonic(), time.time(), request.headers.get("x-trace-id", ""), self.mode)
        self.calls.append(call)
        if len(self.calls) > _LEDGER_LIMIT:
            excess = _LEDGER_LIMIT // 2
            del self.calls[:excess]
            self.dropped += excess
        return call

    async def _refuse(self, call: Call, request: Request) -> Response | None:
        """
        Answer in a mode that does not look at the question; ``None`` in the others.
        """
        mode = Mode(call.mode)
        match mode:
            case Mode.RESET:
                self._close(request, reset=True)
                call.answered = "reset"
                return Response()
            case Mode.HANG:
                call.answered = "hang"
                await _until_gone(request)
                return Response()
            case _ if mode in faults.STATUS:
                await asyncio.sleep(self.latency)
                answer = faults.refusal(mode, self.retry_after, self.retry_after_header)
                call.answered = answer.status_code
                return answer
        return None

    async def _write(self, api: str, call: Call, request: Request) -> Response:
        try:
            question = Question.read(api, await request.body())
        except ValueError as error:
            call.answered = 400
            return faults.error(400, str(error), "invalid_request_error")
        if question.model == _UNKNOWN_MODEL:
            call.answered = 404
            return faults.refusal(Mode.ERROR404, 0, None)
        number, mode = self.dropped + len(self.calls), Mode(call.mode)
        if mode is not Mode.OK:
            call.answered = str(mode)
            half = mode is Mode.HALF_BODY
            return self._half(question, number, request) if half else faults.broken_answer(mode, question, number)
        await asyncio.sleep(self.latency)
        if await request.is_disconnected():
            return Response()
        call.answered = 200
        if question.stream:
            return StreamingResponse(replies.events(question, number), media_type="text/event-stream")
        return JSONResponse(replies.body(question, number))

    def _half(self, question: Question, number: int, request: Request) -> Response:
        """
        Send half of an answer, then hang up.
        """
        events = "".join(replies.events(question, number)) if question.stream else None
        whole = (events or json.dumps(replies.body(question, number))).encode()

        async def half() -> AsyncIterator[bytes]:
            yield whole[: len(whole) // 2]
            self._close(request, reset=False)

        kind = "text/event-stream" if question.stream else "application/json"
        return StreamingResponse(half(), media_type=kind, headers={"Content-Length": str(len(whole))})

    def _apply(self, wanted: object) -> None:
        allowed = ("mode", "latency", "retry_after", "retry_after_header")
        if not isinstance(wanted, dict) or not wanted.keys() <= set(allowed):
            raise ValueError(f"{wanted!r} must be an object with any of {', '.join(allowed)}")
        try:
            mode = Mode(wanted.get("mode", self.mode))
        except ValueError:
            raise ValueError(f"mode={wanted['mode']!r} must be one of {', '.join(Mode)}") from None
        latency = _seconds("latency", wanted.get("latency", self.latency))
        retry_after = _seconds("retry_after", wanted.get("retry_after", self.retry_after))
        header = wanted.get("retry_after_header", self.retry_after_header)
        if header is not None and not (isinstance(header, str) and header.isascii() and len(header) <= _HEADER_LENGTH):
            raise ValueError(f"retry_after_header={header!r} must be null or ASCII text of up to {_HEADER_LENGTH}")
        # Only now: a refused request changes nothing.
        self.mode, self.latency, self.retry_after, self.retry_after_header = mode, latency, retry_after, header

    def _close(self, request: Request, *, reset: bool) -> None:
        connections = self.server.server_state.connections if self.server else ()
        for connection in connections:
            if isinstance(connection, H11Protocol) and connection.client == request.client:
                if reset:
                    raw = connection.transport.get_extra_info("socket")
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                connection.transport.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Serve on the loopback interface until SIGTERM or SIGINT.

    Args:
        arguments: The command line after the program's name; None for this process's own.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m demo.provider", description="A provider that can fail on demand.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port on that address; 0 lets the kernel choose")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds that an answer takes")
    options = parser.parse_args(arguments)

    provider = Provider(latency=_seconds("--latency", options.latency))
    listener = socket.create_server((options.host, options.port), backlog=512)
    # asyncio does so for sockets of its own making; without, an answer's body waits 40 ms for its head's receipt.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        provider.application(),
        http="h11",
        lifespan="off",
        log_level="info",
        # Callers that hang would otherwise hold up the end of the process.
        timeout_graceful_shutdown=1,
    )
    provider.server = uvicorn.Server(config)
    sys.stdout.write(f"listening on {options.host}:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    provider.server.run(sockets=[listener])
    return 0


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _seconds(option: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LONGEST_SECONDS:
        raise ValueError(f"{option}={value!r} must be a number of seconds from 0 to {_LONGEST_SECONDS:.0f}")
    return float(value)


if __name__ == "__main__":
    sys.exit(main())
