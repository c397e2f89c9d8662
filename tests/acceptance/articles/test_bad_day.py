"""
Many articles through a bad day of the preferred provider: dead, then rate-limited, then well again.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.articles import CONCURRENCY, RAMP, THRESHOLD, WORKERS, Articles
from tests.support.eventually import eventually

pytestmark = pytest.mark.acceptance


@dataclass(frozen=True)
class Day:
    """
    How bad it is.  Times in seconds.
    """

    articles: int
    dead: float
    limited: float
    retry_after: float
    recovery: float

    @property
    def most_calls(self) -> int:
        """
        Most calls that may reach a provider that does not deliver.

        Those that open the circuit, those in flight beside them, and the probes: one each time the circuit has been
        open for its time, the last of which may have begun just before the provider was well.
        """
        probes = math.ceil(self.dead / self.recovery) + math.ceil(self.limited / self.retry_after) + 1
        return THRESHOLD + WORKERS * CONCURRENCY + probes


SHORT = Day(articles=80, dead=4.0, limited=2.0, retry_after=2.0, recovery=1.0)
LONG = Day(articles=1000, dead=30.0, limited=10.0, retry_after=5.0, recovery=3.0)


def test_a_bad_day(articles: Articles) -> None:
    """
    Every article is delivered once, the manifest adds up, and the dead provider is left alone; in small.
    """
    live_through(SHORT, articles)


@pytest.mark.soak
def test_a_thousand_articles_on_a_bad_day(tmp_path: Path, key_prefix: str) -> None:
    """
    The same with 1,000 articles and 30 seconds of outage.
    """
    circuit = {"failure_threshold": THRESHOLD, "recovery_timeout": LONG.recovery, "ramp_initial_rate": RAMP}
    with Articles(tmp_path, key_prefix, **circuit) as articles:
        for _ in range(WORKERS):
            articles.worker(concurrency=CONCURRENCY)
        live_through(LONG, articles)


def live_through(day: Day, articles: Articles) -> None:
    """
    Let the day happen without a fallback, then with one.
    """
    for fallback in ((), ("--fallback", "deepseek")):
        articles.begin()
        articles.openai.switch(latency=0.05)
        articles.deepseek.switch(latency=0.05)
        happen(day, articles, fallback)


def happen(day: Day, articles: Articles, fallback: tuple[str, ...]) -> None:
    """
    Send the articles, let the provider fail, and look at everybody's books.
    """
    prompts = articles.prompts([{"prompt": f"Prompt {n}", "slug": f"a-{n}"} for n in range(day.articles)])
    began = time.monotonic()
    submitting = articles.start_submit(prompts, *fallback)
    eventually(lambda: len(articles.written()) >= day.articles // 10, within=60)
    articles.openai.switch(mode="error503")
    time.sleep(day.dead)
    articles.openai.switch(mode="rate_limit", retry_after=day.retry_after)
    time.sleep(day.limited)
    meanwhile = len(articles.written())
    articles.openai.switch(mode="ok")
    assert submitting.wait(300) == 0
    took = time.monotonic() - began
    check_books(articles, day, fallback)
    dead = [call for call in articles.calls("openai") if call["mode"] != "ok"]
    by_provider = dict(Counter(line["provider"] for line in articles.manifest()))
    sys.stderr.write(
        f"\n{day.articles} articles, {' '.join(fallback) or 'no fallback'}: all delivered in {took:.1f} s, "
        f"{meanwhile} of them before the provider was well; {by_provider}; {len(dead)} calls to the dead provider, "
        f"{day.most_calls} allowed\n"
    )
    assert len(dead) <= day.most_calls


def check_books(articles: Articles, day: Day, fallback: tuple[str, ...]) -> None:
    """
    The folder, the manifest and the providers' own books say the same.
    """
    manifest = articles.manifest()
    slugs = {f"a-{n}" for n in range(day.articles)}
    assert set(articles.written()) == slugs
    assert Counter(line["slug"] for line in manifest) == dict.fromkeys(slugs, 1)
    assert {line["state"] for line in manifest} == {"written"}
    assert articles.delivered() == {line["trace_id"]: 1 for line in manifest}
    for provider in ("openai", "deepseek"):
        served = [call for call in articles.calls(provider) if call["answered"] == 200]
        mine = [line for line in manifest if line["provider"] == provider]
        assert {call["trace_id"] for call in served} == {line["trace_id"] for line in mine}
    if fallback:
        assert max(line["holds"] for line in manifest) == 0, "nobody waits while somebody can write"
    else:
        assert any(line["holds"] and line["held_seconds"] >= day.recovery for line in manifest)
    written = articles.written()
    assert all(line["completion_tokens"] == len(written[line["slug"]].split()) for line in manifest)
