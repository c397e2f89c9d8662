"""
The whole classification table against a provider that fails in each way: both APIs, whole and streamed, both styles.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from omni_tasks import CircuitBreaker, CircuitBreakerConfig, CircuitOpenError, CircuitState, get_circuit_breaker_manager
from omni_tasks.gateways import (
    RETRYABLE_ERRORS,
    Article,
    GatewayConfig,
    ProviderAuthError,
    ProviderError,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
    agenerate_article_openai,
    generate_article_openai,
)
from tests.support.classification import TABLE, Row
from tests.support.eventually import eventually
from tests.support.provider import RunningProvider
from tests.support.stopwatch import Stopwatch

KEY = "sk-canary-4711"
PROMPT = "canary-prompt: why the sea is salty"

#: Seconds for a call that only its deadline ends, how much later than that it may end, and seconds for the others.
TIMEOUT, MARGIN, LONG = 0.5, 0.5, 20.0

#: What brings no answer.
ENDLESS = {"hang", "blank_lines", "sse_comments"}

Generate = Callable[..., Article]


def generate_on_a_loop(*args: Any, **kwargs: Any) -> Article:
    """
    Call the coroutine function as a plain one.
    """
    return asyncio.run(agenerate_article_openai(*args, **kwargs))


STYLES = [pytest.param(generate_article_openai, id="sync"), pytest.param(generate_on_a_loop, id="async")]

#: Both APIs, whole and streamed; the styles share the work, because what they share is all but the waiting.
WAYS = {
    "chat-whole-sync": ("chat", False, generate_article_openai),
    "chat-stream-async": ("chat", True, generate_on_a_loop),
    "responses-whole-async": ("responses", False, generate_on_a_loop),
    "responses-stream-sync": ("responses", True, generate_article_openai),
}

CASES = [
    pytest.param(row, *way, id=f"{row.mode}-{name}")
    for row in TABLE
    for name, way in WAYS.items()
    # An event stream that was not asked for is a bad response.
    if row.mode != "sse_error" or "stream" in name
]


@pytest.fixture(scope="module")
def provider() -> Iterator[RunningProvider]:
    """
    One provider for all of them.
    """
    with RunningProvider() as running:
        yield running


@pytest.fixture
def circuit(monkeypatch: pytest.MonkeyPatch) -> CircuitBreaker:
    """
    OpenAI's circuit in this process's memory, closed.
    """
    for name in ("OPENAI_BASE_URL", "OPENAI_MODEL", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return get_circuit_breaker_manager().get("ai_providers:openai")


def ask(provider: RunningProvider, generate: Generate, **options: Any) -> Article:
    """
    Have an article written by that provider.
    """
    config = GatewayConfig(base_url=provider.url, api_key=KEY, connect_timeout=0.5, **{"timeout": 5.0, **options})
    return generate(config, PROMPT, trace_id="trace-1")


@pytest.mark.parametrize(("row", "api", "stream", "generate"), CASES)
def test_the_table(  # noqa: PLR0913, PLR0917 - the dimensions of the table
    provider: RunningProvider, circuit: CircuitBreaker, row: Row, api: str, stream: Any, generate: Generate
) -> None:
    """
    An answer has one error class, one meaning to the circuit and one retry decision, however it was asked for.
    """
    before = provider.health()["calls"]
    provider.switch(mode=row.mode, retry_after=20)
    timeout = TIMEOUT if row.mode in ENDLESS else LONG
    with Stopwatch() as watch, pytest.raises(ProviderError) as caught:
        ask(provider, generate, api=api, stream=stream, timeout=timeout)
    error = caught.value
    assert type(error) is row.kind
    assert isinstance(error, RETRYABLE_ERRORS) is row.retry
    assert error.trips_circuit is (row.circuit == "trip")
    metrics = circuit.get_metrics()
    assert metrics.failed_requests == (0 if row.circuit == "neutral" else 1)
    assert metrics.total_requests == 1
    assert provider.health()["calls"] == before + 1
    assert watch.seconds <= (TIMEOUT + MARGIN if row.mode in ENDLESS else LONG)
    if row.kind is ProviderRateLimited:
        assert 19 <= (error.retry_after or 0) <= 22
    if row.kind in {ProviderAuthError, ProviderQuotaExhausted}:
        # Until somebody has seen to the account, or a health check has found that somebody did.
        assert error.retry_after == 3600
        assert metrics.retry_after > 3590
    kept = f"{error} {error!r} {vars(error)} {pickle.dumps(error)!r} {error.__context__!r} {error.__cause__!r}"
    assert "canary" not in kept


@pytest.mark.parametrize(("api", "stream", "generate"), WAYS.values(), ids=list(WAYS))
def test_an_article(
    provider: RunningProvider, circuit: CircuitBreaker, api: str, stream: Any, generate: Generate
) -> None:
    """
    Whatever way it is asked for, an article is the same, with its model and its tokens.
    """
    provider.switch(mode="ok")
    article = ask(provider, generate, api=api, stream=stream, model="demo", max_tokens=500, temperature=0.5)
    assert article.text.startswith(f"# {PROMPT}\n")
    assert article.text == ask(provider, generate_article_openai).text
    found = (article.provider, article.model, article.trace_id, article.finish_reason, article.attempts)
    assert found == ("openai", "demo", "trace-1", "stop", 1)
    assert article.prompt_tokens == len(PROMPT.split())
    assert article.completion_tokens == len(article.text.split())
    assert provider.calls()[-2]["trace_id"] == "trace-1"
    assert circuit.get_metrics().successful_requests == 2


@pytest.mark.parametrize("generate", STYLES)
@pytest.mark.parametrize("mode", ["blank_lines", "sse_comments", "hang"])
def test_the_wall_deadline(provider: RunningProvider, circuit: CircuitBreaker, mode: str, generate: Generate) -> None:
    """
    A call that keep-alive bytes would hold for ever ends at its deadline, half a second more at most.
    """
    provider.switch(mode=mode)
    with Stopwatch() as watch, pytest.raises(ProviderUnavailable, match=r"deadline|in time"):
        ask(provider, generate, timeout=1.0, stream=mode == "sse_comments")
    assert watch.wall >= 1.0
    assert watch.seconds <= 1.0 + MARGIN
    assert circuit.get_metrics().failed_requests == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("99999999", 3600.0), ("-5", None), ("soon", None), ("1.5", 1.5), ("Fri, 15 Jan 2010 08:00:00 GMT", None)],
)
def test_an_odd_retry_after(
    provider: RunningProvider, circuit: CircuitBreaker, header: str, seconds: float | None
) -> None:
    """
    A Retry-After that makes no sense is as if it were not there; one of years is an hour.
    """
    provider.switch(mode="rate_limit", retry_after_header=header)
    with pytest.raises(ProviderRateLimited) as caught:
        ask(provider, generate_article_openai)
    provider.switch(mode="ok", retry_after_header=None)
    assert caught.value.retry_after == seconds
    assert caught.value.trips_circuit is (seconds is not None)
    assert circuit.get_metrics().failed_requests == 1


@pytest.mark.parametrize("row", [row for row in TABLE if row.circuit == "trip"], ids=lambda row: row.mode.value)
def test_what_opens_the_circuit_at_once(provider: RunningProvider, circuit: CircuitBreaker, row: Row) -> None:
    """
    After one such answer nobody asks again.
    """
    provider.switch(mode=row.mode, retry_after=20)
    before = provider.health()["calls"]
    with pytest.raises(row.kind):
        ask(provider, generate_article_openai)
    assert circuit.get_metrics().state is CircuitState.OPEN
    with pytest.raises(CircuitOpenError):
        ask(provider, generate_article_openai)
    assert provider.health()["calls"] == before + 1


def test_a_shorter_wait_does_not_shorten(provider: RunningProvider, circuit: CircuitBreaker) -> None:
    """
    After a Retry-After of 300 s one of 10 s, of a call that was under way already, changes nothing.
    """
    provider.switch(mode="rate_limit", latency=2.0, retry_after=300)
    errors: list[ProviderRateLimited] = []

    def call() -> None:
        with pytest.raises(ProviderRateLimited) as caught:
            ask(provider, generate_article_openai, timeout=30.0)
        errors.append(caught.value)

    first, second = threading.Thread(target=call), threading.Thread(target=call)
    first.start()
    eventually(lambda: provider.health()["running"] == 1, within=5)
    provider.switch(latency=4.0)
    second.start()
    eventually(lambda: provider.health()["running"] == 2, within=5)
    first.join()
    provider.switch(retry_after=10)
    second.join()
    provider.switch(latency=0.0)
    assert [error.retry_after for error in errors] == [300, 10]
    assert 290 < circuit.get_metrics().retry_after <= 300


def test_a_bad_request_never_opens_the_circuit(provider: RunningProvider, circuit: CircuitBreaker) -> None:
    """
    However many requests the provider rejects, it is not taken for dead.
    """
    for row in TABLE:
        if row.circuit == "neutral":
            provider.switch(mode=row.mode)
            with pytest.raises(row.kind):
                ask(provider, generate_article_openai)
    assert circuit.get_metrics().state is CircuitState.CLOSED
    assert circuit.get_metrics().failed_requests == 0


def test_a_rejection_in_a_probe_closes_the_circuit(provider: RunningProvider) -> None:
    """
    A provider that rejects a probe's request has answered: it is well, and the circuit closes.
    """
    manager = get_circuit_breaker_manager()
    config = CircuitBreakerConfig(name="ai_providers_cb", failure_threshold=1, recovery_timeout=0.001)
    circuit = manager.register(config, "ai_providers").keyed("openai")
    for mode, kind, state in (
        ("error500", ProviderUnavailable, CircuitState.OPEN),
        ("error404", ProviderRejected, CircuitState.CLOSED),
    ):
        provider.switch(mode=mode)
        eventually(lambda: circuit.get_metrics().retry_after == 0, within=5)
        with pytest.raises(kind):
            ask(provider, generate_article_openai)
        assert circuit.get_metrics().state is state
