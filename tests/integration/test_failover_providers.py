"""
Failover from one provider to the next: when it happens, when it does not, and what is told of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from omni_tasks import CircuitOpenError, CircuitState, circuit_breaker, get_circuit_breaker_manager
from omni_tasks.gateways import (
    Article,
    GatewayConfig,
    GatewayConfigError,
    GatewayInputError,
    ProviderRejected,
    ProviderUnavailable,
    agenerate_article_openai,
    generate_article_deepseek,
    generate_article_openai,
)
from tests.support.http_server import HttpServer, Reply, chat_completion

KEY = "sk-canary-4711"
DOWN, GOOD = Reply(503), Reply(body=chat_completion())
CONFIG = GatewayConfig(timeout=5.0, connect_timeout=1.0, model="one-model", temperature=0.5)

Generate = Callable[..., Article]


def on_a_loop(*args: Any, **kwargs: Any) -> Article:
    """
    Call the coroutine function as a plain one.
    """
    return asyncio.run(agenerate_article_openai(*args, **kwargs))


STYLES = pytest.mark.parametrize("generate", [generate_article_openai, on_a_loop], ids=["sync", "async"])


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[HttpServer, HttpServer]]:
    """
    OpenAI and DeepSeek, both well.
    """
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "OPENAI_MODEL", "DEEPSEEK_MODEL"):
        monkeypatch.delenv(name, raising=False)
    with HttpServer() as openai, HttpServer() as deepseek:
        for name, server in (("OPENAI", openai), ("DEEPSEEK", deepseek)):
            monkeypatch.setenv(f"{name}_BASE_URL", server.url)
            monkeypatch.setenv(f"{name}_API_KEY", KEY)
        yield openai, deepseek


def state(provider: str) -> CircuitState:
    """
    The state of a provider's circuit.
    """
    return get_circuit_breaker_manager().get(f"ai_providers:{provider}").state


def failures(provider: str) -> int:
    """
    How many failures a provider's circuit has counted.
    """
    return get_circuit_breaker_manager().get(f"ai_providers:{provider}").get_metrics().failed_requests


@STYLES
def test_the_first_provider_that_delivers_serves(
    servers: tuple[HttpServer, HttpServer], caplog: pytest.LogCaptureFixture, generate: Generate
) -> None:
    """
    Who served, who was passed over and how often anybody was asked is in the result and in the log.
    """
    caplog.set_level(logging.INFO, "omni_tasks")
    openai, deepseek = servers
    openai.reply = DOWN
    article = generate(CONFIG, "prompt", trace_id="trace-1", fallbacks=["deepseek"])
    assert (article.provider, article.attempts, article.passed_over) == ("deepseek", 2, ("openai",))
    assert json.loads(json.dumps(article.as_dict()))["passed_over"] == ["openai"]
    assert (len(openai.requests), len(deepseek.requests)) == (1, 1)
    events = [json.loads(record.message) for record in caplog.records if record.name == "omni_tasks"]
    failed, served = [event for event in events if event["event"].startswith("provider_")]
    assert (failed["event"], failed["provider"], failed["error"], failed["status"]) == (
        "provider_failed",
        "openai",
        "ProviderUnavailable",
        503,
    )
    assert (served["event"], served["component"], served["passed_over"]) == (
        "provider_served",
        "ai_providers:deepseek",
        ["openai"],
    )
    assert failed["trace_id"] == served["trace_id"] == "trace-1"
    assert (failures("openai"), failures("deepseek")) == (1, 0)


def test_a_fallback_is_asked_in_its_own_words(servers: tuple[HttpServer, HttpServer]) -> None:
    """
    Model, address and key are the fallback's own; what both understand is taken over, and may be given apart.
    """
    openai, deepseek = servers
    openai.reply = DOWN
    generate_article_openai(CONFIG, "prompt", fallbacks=["deepseek"])
    generate_article_openai(CONFIG, "prompt", fallbacks={"deepseek": {"model": "other", "timeout": 5}})
    named, given = (request.json() for request in deepseek.requests)
    assert (named["model"], named["temperature"]) == ("deepseek-chat", 0.5)
    assert given["model"] == "other"
    assert "temperature" not in given
    assert openai.requests[0].json()["model"] == "one-model"


def test_a_fallback_without_the_responses_api_is_asked_for_a_completion(
    servers: tuple[HttpServer, HttpServer],
) -> None:
    """
    DeepSeek has chat completions only.
    """
    servers[0].reply = DOWN
    generate_article_openai({"api": "responses"}, "prompt", fallbacks=["deepseek"])
    assert [server.requests[0].path for server in servers] == ["/v1/responses", "/v1/chat/completions"]


@STYLES
def test_a_bad_request_is_nobody_elses_business(servers: tuple[HttpServer, HttpServer], generate: Generate) -> None:
    """
    What one provider rejects is not sent to the next.
    """
    openai, deepseek = servers
    openai.reply = Reply(400)
    with pytest.raises(ProviderRejected):
        generate(CONFIG, "prompt", fallbacks=["deepseek"])
    assert deepseek.requests == []


@STYLES
def test_an_open_circuit_is_passed_over_unasked(servers: tuple[HttpServer, HttpServer], generate: Generate) -> None:
    """
    One provider's outage is its own: the other serves, and the dead one is asked no more than the threshold.
    """
    openai, deepseek = servers
    openai.reply = DOWN
    articles = [generate(CONFIG, "prompt", fallbacks=["deepseek"]) for _ in range(8)]
    assert [article.attempts for article in articles] == [2] * 5 + [1] * 3
    assert {article.provider for article in articles} == {"deepseek"}
    assert (len(openai.requests), len(deepseek.requests)) == (5, 8)
    assert (state("openai"), state("deepseek")) == (CircuitState.OPEN, CircuitState.CLOSED)
    assert generate_article_deepseek(CONFIG, "prompt").attempts == 1


@STYLES
def test_when_all_refuse_the_shortest_wait_counts(servers: tuple[HttpServer, HttpServer], generate: Generate) -> None:
    """
    The refusal is that of the circuit that can be tried first, whichever provider is preferred.
    """
    for name, ttl in (("openai", 90), ("deepseek", 30)):
        get_circuit_breaker_manager().get(f"ai_providers:{name}").force_open(ttl=ttl)
    with pytest.raises(CircuitOpenError) as caught:
        generate(CONFIG, "prompt", fallbacks=["deepseek"])
    assert caught.value.circuit.endswith(":deepseek")
    assert 29 < caught.value.retry_after <= 30
    assert [server.requests for server in servers] == [[], []]


@STYLES
def test_the_failure_that_closes_the_last_way_is_a_refusal(
    servers: tuple[HttpServer, HttpServer], generate: Generate
) -> None:
    """
    When one provider refuses and the other's last failure opens its circuit, the task is to wait, not to fail.
    """
    servers[0].reply = servers[1].reply = DOWN
    for _ in range(4):
        with pytest.raises(ProviderUnavailable, match="openai"):
            generate(CONFIG, "prompt", fallbacks=["deepseek"])
    with pytest.raises(CircuitOpenError):
        generate(CONFIG, "prompt", fallbacks=["deepseek"])
    assert (state("openai"), state("deepseek")) == (CircuitState.OPEN, CircuitState.OPEN)


@STYLES
def test_the_error_is_of_whom_a_retry_may_ask(servers: tuple[HttpServer, HttpServer], generate: Generate) -> None:
    """
    A key that is refused, and has opened its circuit, does not keep a task from trying the other provider again.
    """
    servers[0].reply, servers[1].reply = Reply(401), DOWN
    with pytest.raises(ProviderUnavailable, match="deepseek"):
        generate(CONFIG, "prompt", fallbacks=["deepseek"])
    assert (state("openai"), state("deepseek")) == (CircuitState.OPEN, CircuitState.CLOSED)


@STYLES
def test_one_failure_counts_once(servers: tuple[HttpServer, HttpServer], generate: Generate) -> None:
    """
    What the provider's own circuit has counted is neutral to a circuit further out.
    """
    servers[0].reply = DOWN

    @circuit_breaker("ai_providers")
    def around() -> Article:
        return generate(CONFIG, "prompt")

    with pytest.raises(ProviderUnavailable) as caught:
        around()
    assert caught.value.__context__ is None
    assert failures("openai") == 1
    assert get_circuit_breaker_manager().get("ai_providers").get_metrics().failed_requests == 0


@STYLES
def test_who_holds_the_permit_counts(servers: tuple[HttpServer, HttpServer], generate: Generate) -> None:
    """
    Inside a call of the provider's own circuit it is that call that counts, once.
    """
    servers[0].reply = DOWN

    @circuit_breaker("ai_providers:openai")
    def around() -> Article:
        return generate(CONFIG, "prompt")

    with pytest.raises(ProviderUnavailable):
        around()
    assert failures("openai") == 1


def test_a_model_may_have_a_circuit_of_its_own(servers: tuple[HttpServer, HttpServer]) -> None:
    """
    Where asked, one model's outage leaves the provider's other models alone.
    """
    servers[0].reply = DOWN
    for _ in range(5):
        with pytest.raises(ProviderUnavailable):
            generate_article_openai({"model": "m-1", "circuit_per_model": True}, "prompt")
    assert state("openai:m-1") is CircuitState.OPEN
    assert state("openai") is CircuitState.CLOSED
    servers[0].reply = GOOD
    assert generate_article_openai({"model": "m-2", "circuit_per_model": True}, "prompt").attempts == 1


@pytest.mark.parametrize("fallbacks", ["deepseek", ["openai"], ["nobody"], ["deepseek", "deepseek"], 5, [None]])
def test_wrong_fallbacks(servers: tuple[HttpServer, HttpServer], fallbacks: Any) -> None:
    """
    Whoever cannot be a fallback is refused before anything is sent.
    """
    with pytest.raises(GatewayInputError, match="fallbacks"):
        generate_article_openai(CONFIG, "prompt", fallbacks=fallbacks)
    assert servers[0].requests == []


def test_a_fallback_without_a_key(servers: tuple[HttpServer, HttpServer], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A fallback that could never be asked is told at once, not when it is needed.
    """
    monkeypatch.delenv("DEEPSEEK_API_KEY")
    with pytest.raises(GatewayConfigError, match="DEEPSEEK_API_KEY"):
        generate_article_openai(CONFIG, "prompt", fallbacks=["deepseek"])
    assert servers[0].requests == []
