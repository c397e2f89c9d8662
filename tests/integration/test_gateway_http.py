"""
The gateways against a real HTTP server: what each answer becomes, and what a circuit hears of it.
"""

from __future__ import annotations

import gzip
import json
import pickle
import signal
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import pytest
from billiard.exceptions import SoftTimeLimitExceeded

from omni_tasks import CircuitOpenError, CircuitState, get_circuit_breaker_manager
from omni_tasks.gateways import (
    Article,
    GatewayConfig,
    ProviderAuthError,
    ProviderBadResponse,
    ProviderError,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
    generate_article_deepseek,
    generate_article_openai,
)
from tests.support.http_server import HttpServer, Reply, chat_completion
from tests.support.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omni_tasks import CircuitBreaker

KEY = "sk-canary-4711"
PROMPT = "canary-prompt: why the sea is salty"

# Seconds.  How much later than its deadline a call may end on a busy machine.
MARGIN = 0.5


@pytest.fixture
def server() -> Iterator[HttpServer]:
    """
    A provider that does what the test says.
    """
    with HttpServer() as running:
        yield running


@pytest.fixture
def config(server: HttpServer) -> GatewayConfig:
    """
    A configuration for that provider.
    """
    return GatewayConfig(base_url=server.url, api_key=KEY, timeout=5.0, connect_timeout=1.0)


@pytest.fixture(autouse=True)
def circuit(monkeypatch: pytest.MonkeyPatch) -> Iterator[CircuitBreaker]:
    """
    The circuit in this process's memory, closed, whatever the test before did to it.
    """
    for name in ("OPENAI_BASE_URL", "OPENAI_MODEL", "DEEPSEEK_MODEL", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    manager = get_circuit_breaker_manager()
    manager.reset_all()
    yield manager.get("ai_providers:openai")
    manager.reset_all()


def refusal(code: str = "some_code", kind: str = "some_type") -> bytes:
    """
    Build an error body that quotes what it was sent, as providers do.
    """
    return json.dumps({"error": {"message": f"{KEY} {PROMPT}", "type": kind, "code": code}}).encode()


GOOD = chat_completion()
HTML = "text/html; charset=utf-8"
WAIT = {"Retry-After": "20", "x-request-id": "req_1"}
PACKED, PACKING = gzip.compress(b"{}"), {"Content-Encoding": "gzip"}


class Case(NamedTuple):
    """
    An answer, the error class it becomes and the wait in seconds it asks for.
    """

    name: str
    reply: Reply
    kind: type[ProviderError]
    wait: float | None


TABLE = [
    Case("200 html", Reply(200, b"<html>hello</html>", content_type=HTML), ProviderBadResponse, None),
    Case("200 null", Reply(200, b"null"), ProviderBadResponse, None),
    Case("200 list", Reply(200, b"[]"), ProviderBadResponse, None),
    Case("200 text", Reply(200, b'"hello"'), ProviderBadResponse, None),
    Case("200 broken", Reply(200, GOOD[:40]), ProviderBadResponse, None),
    Case("200 deep", Reply(200, b"[" * 200_000), ProviderBadResponse, None),
    Case("200 binary", Reply(200, b"\xff\xfe\x00"), ProviderBadResponse, None),
    Case("200 no gzip", Reply(200, GOOD, {"Content-Encoding": "gzip"}), ProviderBadResponse, None),
    Case("200 error", Reply(200, refusal()), ProviderBadResponse, None),
    Case("200 choices null", Reply(200, b'{"choices": null}'), ProviderBadResponse, None),
    Case("200 choices empty", Reply(200, b'{"choices": []}'), ProviderBadResponse, None),
    Case("200 choice null", Reply(200, b'{"choices": [null]}'), ProviderBadResponse, None),
    Case("200 message null", Reply(200, b'{"choices": [{"message": null}]}'), ProviderBadResponse, None),
    Case("200 number", Reply(200, b'{"choices": [{"message": {"content": 5}}]}'), ProviderBadResponse, None),
    Case("200 blank", Reply(200, chat_completion(" \n")), ProviderBadResponse, None),
    Case("200 filtered", Reply(200, chat_completion("x", finish_reason="content_filter")), ProviderRejected, None),
    Case("200 declined", Reply(200, chat_completion(None, refusal="no")), ProviderRejected, None),
    Case("200 no room", Reply(200, chat_completion("", finish_reason="length")), ProviderRejected, None),
    Case("301", Reply(301, b"", {"Location": "http://127.0.0.1:1/"}), ProviderBadResponse, None),
    Case("400", Reply(400, refusal()), ProviderRejected, None),
    Case("401", Reply(401, refusal("invalid_api_key")), ProviderAuthError, 3600.0),
    Case("402", Reply(402, refusal()), ProviderQuotaExhausted, 3600.0),
    Case("403", Reply(403, refusal()), ProviderRejected, None),
    Case("404", Reply(404, refusal("model_not_found")), ProviderRejected, None),
    Case("408", Reply(408, refusal()), ProviderUnavailable, None),
    Case("409", Reply(409, refusal()), ProviderRejected, None),
    Case("413", Reply(413, b"<html>", content_type=HTML), ProviderRejected, None),
    Case("422", Reply(422, refusal()), ProviderRejected, None),
    Case("429 rate", Reply(429, refusal("rate_limit_exceeded"), WAIT), ProviderRateLimited, 20.0),
    Case("429 quota", Reply(429, refusal("insufficient_quota")), ProviderQuotaExhausted, 3600.0),
    Case("429 quota type", Reply(429, refusal("x", "insufficient_quota")), ProviderQuotaExhausted, 3600.0),
    Case("429 odd code", Reply(429, b'{"error": {"code": ["x"], "type": {"a": 1}}}', WAIT), ProviderRateLimited, 20.0),
    Case("429 packed", Reply(429, PACKED, {**PACKING, "Retry-After": "20"}), ProviderRateLimited, 20.0),
    Case("400 packed", Reply(400, PACKED, PACKING), ProviderRejected, None),
    Case("429 bare", Reply(429, b""), ProviderRateLimited, None),
    Case("500", Reply(500, refusal()), ProviderUnavailable, None),
    Case("502 html", Reply(502, b"<html>", content_type=HTML), ProviderUnavailable, None),
    Case("503 wait", Reply(503, refusal(), WAIT), ProviderUnavailable, 20.0),
    Case("503 year", Reply(503, refusal(), {"Retry-After": "31536000"}), ProviderUnavailable, 3600.0),
    Case("503 negative", Reply(503, refusal(), {"Retry-After": "-5"}), ProviderUnavailable, None),
    Case("529", Reply(529, refusal()), ProviderUnavailable, None),
    Case("code is key", Reply(500, refusal(KEY, KEY), {"x-request-id": KEY}), ProviderUnavailable, None),
    Case("reset", Reply(fault="reset"), ProviderUnavailable, None),
    Case("half", Reply(200, GOOD, fault="half"), ProviderUnavailable, None),
]


@pytest.mark.parametrize("case", TABLE, ids=[case.name for case in TABLE])
def test_what_an_answer_becomes(server: HttpServer, config: GatewayConfig, circuit: CircuitBreaker, case: Case) -> None:
    """
    Each answer has one error class and one meaning to the circuit, is asked for once, and gives no secret away.
    """
    reply = server.reply = case.reply
    with pytest.raises(ProviderError) as caught:
        generate_article_openai(config, PROMPT)
    error = caught.value
    assert type(error) is case.kind
    assert error.provider == "openai"
    unread = reply.fault or (reply.status == 200 and "Content-Encoding" in reply.headers)
    assert error.status == (None if unread else reply.status)
    assert error.retry_after == case.wait
    assert error.request_id == ("req_1" if reply.headers is WAIT else None)
    assert len(server.requests) == 1
    metrics = circuit.get_metrics()
    assert metrics.failed_requests == (0 if case.kind is ProviderRejected else 1)
    assert_no_secret(error)


ODD_EVENTS = [
    pytest.param("chat", b'data: {"error": {"code": ["x"], "type": {"a": 1}}}\n\n', id="chat"),
    pytest.param("responses", b'event: error\ndata: {"type": "error", "code": ["x"]}\n\n', id="responses"),
]


@pytest.mark.parametrize(("api", "event"), ODD_EVENTS)
def test_an_error_event_with_an_odd_code(
    server: HttpServer, config: GatewayConfig, api: Literal["chat", "responses"], event: bytes
) -> None:
    """
    A code that is no text is no code: the provider has failed, and the request does not come along as the cause.
    """
    server.reply = Reply(200, event, content_type="text/event-stream")
    with pytest.raises(ProviderUnavailable) as caught:
        generate_article_openai(replace(config, api=api, stream=True), PROMPT)
    assert_no_secret(caught.value)


def test_half_a_character(server: HttpServer, config: GatewayConfig) -> None:
    """
    An article can be written to a file: two halves of a character make one, half of one becomes a question mark.
    """
    server.reply = Reply(200, chat_completion("a \ud83d\ude00 b \ud83d"))
    assert generate_article_openai(config, PROMPT).text == "a \U0001f600 b \ufffd"


def assert_no_secret(error: ProviderError) -> None:
    """
    Neither key nor prompt is in anything that a log or a result backend would keep of *error*.
    """
    assert error.__cause__ is None
    assert error.__context__ is None
    kept = f"{error} {error!r} {vars(error)} {pickle.dumps(error)!r}"
    assert KEY not in kept
    assert "canary" not in kept


def test_a_refused_connection() -> None:
    """
    Nobody listens: the provider is unavailable.
    """
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        nobody = GatewayConfig(base_url=f"http://127.0.0.1:{bound.getsockname()[1]}", api_key=KEY)
        with pytest.raises(ProviderUnavailable, match="ConnectError") as caught:
            generate_article_openai(nobody, PROMPT)
    assert caught.value.status is None
    assert_no_secret(caught.value)


@pytest.mark.parametrize("reply", [Reply(fault="hang"), Reply(fault="drip", drip=0.05), Reply(fault="drip", drip=5.0)])
def test_the_wall_deadline(server: HttpServer, reply: Reply) -> None:
    """
    A provider that is silent, or keeps the connection alive without an answer, is left at the deadline.
    """
    server.reply = reply
    config = GatewayConfig(base_url=server.url, api_key=KEY, timeout=0.6, connect_timeout=0.5)
    with Stopwatch() as watch, pytest.raises(ProviderUnavailable) as caught:
        generate_article_openai(config, PROMPT)
    assert watch.wall >= 0.6
    assert watch.seconds <= 0.6 + MARGIN
    assert_no_secret(caught.value)


def test_a_soft_time_limit_is_not_the_connections_fault(server: HttpServer, config: GatewayConfig) -> None:
    """
    Celery's soft time limit leaves the call as itself, not as a broken connection, and brings no request along.
    """
    server.reply = Reply(fault="hang")

    def strike(_number: int, _frame: object) -> None:
        raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(SoftTimeLimitExceeded) as caught:
            generate_article_openai(config, PROMPT)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_an_article(server: HttpServer, config: GatewayConfig) -> None:
    """
    The article comes with its provider, model, tokens and the trace id that the request carried.
    """
    article = generate_article_openai(config, PROMPT, trace_id="trace-1")
    assert article == Article("An article.", "openai", "served-model", "trace-1", 11, 22, "stop")
    assert json.loads(json.dumps(article.as_dict()))["completion_tokens"] == 22
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["x-trace-id"] == "trace-1"
    assert {"temperature", "max_completion_tokens"}.isdisjoint(request.json())


def test_keep_alive_lines_before_the_answer(server: HttpServer, config: GatewayConfig) -> None:
    """
    Blank lines in front of an answer, as an overloaded provider sends them, are not in its way.
    """
    server.reply = Reply(body=b"\n\n\n" + chat_completion(usage=False))
    article = generate_article_openai(config, PROMPT)
    assert (article.text, article.prompt_tokens, article.completion_tokens) == ("An article.", None, None)


def test_a_cut_article_says_so(server: HttpServer, config: GatewayConfig) -> None:
    """
    A text that was cut at the token limit is delivered, with the reason.
    """
    server.reply = Reply(body=chat_completion("Half an", finish_reason="length"))
    assert generate_article_openai(config, PROMPT).finish_reason == "length"


def test_a_mapping_is_a_configuration(server: HttpServer) -> None:
    """
    A plain dictionary does, and its options reach the provider.
    """
    given = {"base_url": server.url, "api_key": KEY, "model": "m", "temperature": 0.5, "max_tokens": 9}
    generate_article_openai(given, PROMPT)
    sent = server.requests[0].json()
    assert (sent["model"], sent["temperature"], sent["max_completion_tokens"]) == ("m", 0.5, 9)


def test_each_variation_asks_differently(server: HttpServer, config: GatewayConfig) -> None:
    """
    The prompt stays, the question around it changes with the variation, and only with it.
    """
    for variation in (0, 1, 2, 2):
        generate_article_openai(config, PROMPT, variation=variation)
    asked = [json.dumps(request.json(), sort_keys=True) for request in server.requests]
    assert len(set(asked)) == 3
    assert asked[2] == asked[3]


@pytest.mark.parametrize("trace_id", ["line\r\nInjected: yes", "\u00e9\u4e2d", "x" * 5000])
def test_a_trace_id_that_no_header_can_carry(server: HttpServer, config: GatewayConfig, trace_id: str) -> None:
    """
    It is sent in a form that can be, and kept as it was in the result.
    """
    assert generate_article_openai(config, PROMPT, trace_id=trace_id).trace_id == trace_id
    assert "injected" not in server.requests[0].headers
    assert len(server.requests[0].headers["x-trace-id"]) <= 200


def test_deepseek(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    DeepSeek is the same call with its own variables, model and option names.
    """
    monkeypatch.setenv("DEEPSEEK_API_KEY", KEY)
    monkeypatch.setenv("DEEPSEEK_BASE_URL", server.url)
    article = generate_article_deepseek({"max_tokens": 9}, PROMPT)
    sent = server.requests[0].json()
    assert (article.provider, sent["model"], sent["max_tokens"]) == ("deepseek", "deepseek-chat", 9)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_a_dead_provider_is_left_alone(server: HttpServer, config: GatewayConfig, circuit: CircuitBreaker) -> None:
    """
    After the threshold the circuit refuses, and nothing more is sent.
    """
    server.reply = Reply(500)
    for _ in range(5):
        with pytest.raises(ProviderUnavailable):
            generate_article_openai(config, PROMPT)
    with pytest.raises(CircuitOpenError):
        generate_article_openai(config, PROMPT)
    assert len(server.requests) == 5
    assert circuit.get_metrics().state is CircuitState.OPEN


def test_bad_requests_leave_the_circuit_closed(
    server: HttpServer, config: GatewayConfig, circuit: CircuitBreaker
) -> None:
    """
    However many requests the provider rejects, it is not taken for dead.
    """
    server.reply = Reply(400, refusal())
    for _ in range(7):
        with pytest.raises(ProviderRejected):
            generate_article_openai(config, PROMPT)
    assert len(server.requests) == 7
    assert circuit.get_metrics().state is CircuitState.CLOSED
