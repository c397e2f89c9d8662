"""
What a worker's provider says, and where it goes: errors whole, waits kept, secrets nowhere.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import httpx2
import pytest
import redis
from celery import Celery
from celery.result import AsyncResult
from prometheus_client import CollectorRegistry, generate_latest

from omni_tasks import CircuitBreakerManager, ResilienceConfiguration
from omni_tasks.gateways import (
    ProviderAuthError,
    ProviderBadResponse,
    ProviderError,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
)
from omni_tasks.observe.metrics import CircuitCollector
from tests.support.articles import CONCURRENCY, KEY, WORKERS, Articles
from tests.support.canary import Listener, dump
from tests.support.eventually import eventually
from tests.support.worker import ROOT

pytestmark = pytest.mark.acceptance

PROMPT = "canary-prompt of a user"

Send = Callable[..., AsyncResult]

#: Attempts that a message says are behind it: as many as there may be, so that the next failure is the last.
SPENT = 3


@pytest.fixture
def client(lasting: Articles) -> Iterator[Celery]:
    """
    An application that sends and asks, and knows nothing else of the workers'.
    """
    with Celery("client", broker=lasting.server.url, backend=lasting.server.url, set_as_current=False) as app:
        yield app


@pytest.fixture
def send(articles: Articles, client: Celery) -> Iterator[Send]:
    """
    Ask for one article.
    """
    results: list[AsyncResult] = []

    def ask(slug: str, *, retries: int = 0) -> AsyncResult:
        kwargs = {"prompt": PROMPT, "slug": slug, "folder": articles.out.name}
        hidden = {"argsrepr": "()", "kwargsrepr": repr({**kwargs, "prompt": "..."})}
        name, queue = "workers.write_article", "articles.openai"
        results.append(client.send_task(name, kwargs=kwargs, queue=queue, retries=retries, priority=3, **hidden))
        return results[-1]

    yield ask
    for result in results:
        # A result unsubscribes when it is collected, with many retries where its server is gone.
        client.backend.remove_pending_result(result)


@pytest.mark.parametrize(
    ("mode", "kind", "status", "wait"),
    [
        ("error401", ProviderAuthError, 401, 3600.0),
        ("insufficient_quota", ProviderQuotaExhausted, 429, 3600.0),
        ("rate_limit", ProviderRateLimited, 429, 2.0),
        ("error400", ProviderRejected, 400, None),
        ("error503", ProviderUnavailable, 503, None),
        ("reset", ProviderUnavailable, None, None),
        ("html", ProviderBadResponse, 200, None),
    ],
)
def test_the_result_backend_returns_errors_whole(  # noqa: PLR0913, PLR0917 - a row of a table
    articles: Articles, send: Send, mode: str, kind: type[ProviderError], status: int | None, wait: float | None
) -> None:
    """
    What a task failed with in a worker comes out of the result backend with its class and every field.
    """
    articles.openai.switch(mode=mode, retry_after=2)
    result = send("a", retries=SPENT)
    with pytest.raises(kind) as caught:
        result.get(timeout=20)
    error = caught.value
    assert (error.provider, error.status, error.retry_after) == ("openai", status, wait)
    assert error.message == str(error)
    assert error.message.startswith("openai: ")
    assert error.circuit_reason == kind.circuit_reason
    assert len(articles.calls("openai")) == 1


def test_a_retry_after_holds_the_whole_fleet(articles: Articles) -> None:
    """
    One 429 on one worker stops the calls of all workers for as long as it asks for, and not a second longer.
    """
    assert_fleet_waits(articles, seconds=6)


@pytest.mark.soak
def test_a_retry_after_of_a_minute(articles: Articles) -> None:
    """
    The same for 60 seconds: nobody calls before, somebody within 61.
    """
    assert_fleet_waits(articles, seconds=60)


def assert_fleet_waits(articles: Articles, *, seconds: float) -> None:
    """
    Send more than the workers can start at once, and look when the provider was called.
    """
    articles.openai.switch(mode="rate_limit", retry_after=seconds)
    prompts = articles.prompts([{"prompt": f"p {n}", "slug": f"a-{n}"} for n in range(20)])
    starved = sum(worker.starved() for worker in articles.workers)
    submitting = articles.start_submit(prompts)
    eventually(lambda: articles.breaker("openai").state == "open", within=20)
    metrics = articles.breaker("openai").get_metrics
    eventually(lambda: metrics().outstanding_requests == 0, within=5, what="what was let through before has arrived")
    articles.openai.switch(mode="ok")
    assert submitting.wait(seconds + 90) == 0
    starved = sum(worker.starved() for worker in articles.workers) - starved
    calls = articles.calls("openai")
    limited = [call["at_monotonic"] for call in calls if call["answered"] == 429]
    served = [call["at_monotonic"] for call in calls if call["answered"] == 200]
    assert 1 <= len(limited) <= WORKERS * CONCURRENCY, "the first, and those in flight beside it"
    assert len(served) == 20
    waited = min(served) - limited[0]
    sys.stderr.write(f"Retry-After {seconds:g} s: the next call after {waited:.2f} s; {len(limited)} were limited\n")
    assert seconds <= waited <= seconds + 1.0 + starved


def test_no_canary_anywhere(articles: Articles, client: Celery, send: Send) -> None:
    """
    The key is in no log, event, result, store entry or metric; the prompt only in messages, never in a key's name.
    """
    with closing(redis.Redis.from_url(articles.server.url)) as store, Listener(client) as listener:
        seen: list[tuple[str, str]] = []
        results = []
        for number, mode in enumerate(["ok", "error401", "html", "reset", "error500", "error500", "error500"]):
            articles.openai.switch(mode=mode)
            results.append(send(f"a-{number}", retries=SPENT))
            # Before the provider's mode is another one.
            eventually(results[-1].ready, within=20)
            if mode == "error401":
                seen += dump(store)
                articles.breaker("openai").reset()
        results += [send(f"b-{number}", retries=SPENT) for number in range(10)]
        eventually(lambda: any(":lot:" in name for name, _ in dump(store)), within=20, what="some tasks are held")
        seen += dump(store)
        articles.openai.switch(mode="ok")
        for result in results:
            eventually(result.ready, within=40)
        seen += dump(store)
        kept = [repr(result.result) + repr(getattr(result.result, "args", "")) for result in results]
        kept += [str(result.traceback) for result in results]
        kept += [exported(articles)]
        kept += [worker.log for worker in articles.workers]
        kept += listener.events
        assert len(listener.events) > 20
    for text in kept:
        assert KEY not in text
        assert "canary-prompt" not in text
    for name, value in seen:
        assert KEY not in name + value
        assert "canary-prompt" not in name
        # Messages, waiting or held or under way: they must have it.
        if not re.search(r":lot:|^articles|^unacked", name):
            assert "canary-prompt" not in value, name
    assert any("canary-prompt" in value for _, value in seen), "the search finds what there is"


def exported(articles: Articles) -> str:
    """
    Scrape the metrics of that stage.
    """
    conf = {"omni_redis_url": articles.server.url, "omni_key_prefix": articles.prefix}
    registry = CollectorRegistry()
    registry.register(CircuitCollector(CircuitBreakerManager(ResilienceConfiguration.load(conf, environ={}))))
    text = generate_latest(registry).decode()
    assert 'component="ai_providers:openai"' in text
    return text


def test_a_retry_does_not_show_the_prompt(articles: Articles, client: Celery, send: Send) -> None:
    """
    A message that is sent again after a failure shows no more of its arguments than the first one.
    """
    with Listener(client) as listener:
        articles.openai.switch(mode="error500")
        result = send("a")
        eventually(lambda: any("task-retried" in event for event in listener.events), within=20)
        articles.openai.switch(mode="ok")
        eventually(result.ready, within=40)
        eventually(lambda: any("task-succeeded" in event for event in listener.events), within=10)
    assert sum("'type': 'task-received'" in event for event in listener.events) >= 2
    assert not [event for event in listener.events if "canary-prompt" in event]


@pytest.mark.soak
def test_flower_shows_neither(articles: Articles, send: Send, tmp_path: Path) -> None:
    """
    Flower's pages have the tasks and their failures, and neither key nor prompt.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "celery", "-A", "workers", "flower", f"--port={port}", "--address=127.0.0.1"]
    with (
        (tmp_path / "flower.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=articles.environment) as flower,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as pages,
    ):
        eventually(lambda: _answers(pages), within=30, what=f"Flower, see {tmp_path}")
        results = []
        for number, mode in enumerate(["ok", "error401"]):
            articles.openai.switch(mode=mode)
            results.append(send(f"a-{number}", retries=SPENT))
        for result in results:
            eventually(result.ready, within=20)
            page = eventually(partial(_page, pages, f"/task/{result.id}"), within=20)
            assert "workers.write_article" in page
            assert KEY not in page
            assert "canary-prompt" not in page
        for path in ("/workers", "/tasks", "/metrics"):
            assert not {KEY, "canary-prompt"} & set(re.split(r"[^\w-]", _page(pages, path)))
        flower.terminate()


def _answers(pages: httpx2.Client) -> bool:
    with suppress(httpx2.TransportError):
        return pages.get("/workers").status_code == 200
    return False


def _page(pages: httpx2.Client, path: str) -> str:
    answer = pages.get(path)
    return answer.text if answer.status_code == 200 else ""
