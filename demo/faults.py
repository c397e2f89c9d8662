"""
What an ill provider answers, byte for byte.
"""

from __future__ import annotations

import functools
import itertools
import json
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from email.utils import formatdate
from typing import TYPE_CHECKING, Final

import anyio
from starlette.responses import JSONResponse, Response, StreamingResponse

from demo import replies
from demo.calls import Mode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from demo.replies import Question

__all__ = ["STATUS", "broken_answer", "error", "refusal"]

_EVENT_STREAM: Final = "text/event-stream"

# Seconds between two signs of life that bring the caller no further.
_DRIP_S: Final = 0.1

# Bytes after decompression; about 260 kB before it.
_BOMB: Final = 256 * 1024 * 1024

# Status, words and code of each mode that is a plain refusal.
STATUS: Final[Mapping[Mode, tuple[int, str, str]]] = {
    Mode.ERROR400: (400, "Your request is malformed.", "invalid_request_error"),
    Mode.ERROR401: (401, "Incorrect API key provided.", "invalid_api_key"),
    Mode.ERROR402: (402, "Insufficient balance.", "insufficient_balance"),
    Mode.ERROR403: (403, "Your country is not supported.", "unsupported_country"),
    Mode.ERROR404: (404, "The model does not exist.", "model_not_found"),
    Mode.ERROR408: (408, "The request took too long.", "request_timeout"),
    Mode.ERROR409: (409, "The request conflicts with another one.", "conflict"),
    Mode.ERROR413: (413, "The request is too large.", "request_too_large"),
    Mode.ERROR422: (422, "The request cannot be processed.", "unprocessable_entity"),
    Mode.ERROR500: (500, "The server had an error while processing your request.", "server_error"),
    Mode.ERROR502: (502, "Bad gateway.", "bad_gateway"),
    Mode.ERROR503: (503, "The engine is currently overloaded.", "server_overloaded"),
    Mode.ERROR504: (504, "Gateway time-out.", "gateway_timeout"),
    Mode.ERROR529: (529, "Overloaded.", "overloaded_error"),
    Mode.RATE_LIMIT: (429, "Rate limit reached, please slow down.", "rate_limit_exceeded"),
    Mode.RATE_LIMIT_DATED: (429, "Rate limit reached, please slow down.", "rate_limit_exceeded"),
    Mode.INSUFFICIENT_QUOTA: (429, "You exceeded your current quota.", "insufficient_quota"),
}


def refusal(mode: Mode, retry_after: float, header: str | None) -> Response:
    """
    Answer with the status of *mode*.

    Args:
        mode: One of :data:`STATUS`.

        retry_after: Seconds that a rate limit announces, rounded up to whole ones.

        header: Retry-After as it is to be sent, with any status; ``None``: rate limits send *retry_after*.
    """
    status, message, code = STATUS[mode]
    if header is None and mode is Mode.RATE_LIMIT:
        header = str(-int(-retry_after // 1))
    if header is None and mode is Mode.RATE_LIMIT_DATED:
        header = formatdate(-int(-(time.time() + retry_after) // 1), usegmt=True)
    return error(status, message, code, {} if header is None else {"Retry-After": header})


def error(status: int, message: str, kind: str, headers: Mapping[str, str] | None = None) -> Response:
    """
    Answer as OpenAI and its like do when they do not deliver.
    """
    body = {"error": {"message": message, "type": kind, "param": None, "code": kind}}
    return JSONResponse(body, status_code=status, headers=headers)


def broken_answer(mode: Mode, question: Question, number: int) -> Response:
    """
    Answer 200 with something else than an article.
    """
    if mode in {Mode.GZIP_BOMB, Mode.FLOOD, Mode.BLANK_LINES, Mode.SSE_COMMENTS}:
        return _too_much(mode, streamed=question.stream)
    answer = Response("<html><body>It works!</body></html>", media_type="text/html")
    match mode:
        case Mode.CONTENT_FILTER if question.stream:
            answer = _stream(list(replies.events(question, number, finish="content_filter")))
        case Mode.CONTENT_FILTER:
            answer = JSONResponse(replies.body(question, number, finish="content_filter"))
        case Mode.WRONG_JSON:
            wrong = {"choices": None} if question.api == "chat" else {"object": "response", "output": None}
            event = wrong if question.api == "chat" else {"type": "response.completed", "response": wrong}
            answer = _stream([f"data: {json.dumps(event)}\n\n"]) if question.stream else JSONResponse(wrong)
        case Mode.SSE_CUT:
            events = list(replies.events(question, number))
            answer = _stream(events[: len(events) // 2])
        case Mode.SSE_ERROR:
            answer = _stream([*itertools.islice(replies.events(question, number), 2), _error_event(question)])
    return answer


def _too_much(mode: Mode, *, streamed: bool) -> Response:
    """
    Answer with more than anybody should read, or with signs of life only.
    """
    kind = _EVENT_STREAM if streamed else "application/json"
    match mode:
        case Mode.GZIP_BOMB:
            return Response(_bomb(), media_type=kind, headers={"Content-Encoding": "gzip"})
        case Mode.FLOOD:
            piece = b": %b\n\n" % (b"." * 65532) if streamed else b" " * 65536
            return StreamingResponse(_endless(piece), media_type=kind)
        case Mode.BLANK_LINES:
            return StreamingResponse(_endless(b"\n", _DRIP_S), media_type=kind)
        case _:
            return StreamingResponse(_endless(b": keep-alive\n\n", _DRIP_S), media_type=_EVENT_STREAM)


def _stream(events: list[str]) -> Response:
    return Response("".join(events), media_type=_EVENT_STREAM)


def _error_event(question: Question) -> str:
    message, code = "The server had an error while processing your request.", "server_error"
    if question.api == "chat":
        return f"data: {json.dumps({'error': {'message': message, 'type': code, 'code': code}})}\n\n"
    event = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": 2}
    return f"event: error\ndata: {json.dumps(event)}\n\n"


async def _endless(piece: bytes, pause: float = 0.0) -> AsyncIterator[bytes]:
    # Ends with the caller: its leaving cancels the response.
    while True:
        yield piece
        await anyio.sleep(pause)


@functools.cache
def _bomb() -> bytes:
    return b"".join(_compressed())


def _compressed() -> Iterator[bytes]:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = b" " * (1024 * 1024)
    for _ in range(_BOMB // len(block)):
        yield packer.compress(block)
    yield packer.flush()
