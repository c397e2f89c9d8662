"""
The application of workers/ as its user meets it: submit, resume, fail, fall back.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support.articles import KEY, Articles
from tests.support.eventually import eventually
from tests.support.worker import ROOT

pytestmark = pytest.mark.acceptance


def lines(count: int) -> list[dict[str, object]]:
    """
    Ask for *count* articles.
    """
    return [{"prompt": f"Prompt number {number}", "slug": f"a-{number}"} for number in range(count)]


def test_articles_with_their_manifest(articles: Articles) -> None:
    """
    Each prompt gives its article, the manifest says by whom and for what, and the trace id runs through it all.
    """
    same = {"prompt": "One prompt"}
    prompts = articles.prompts(
        [
            {**same, "slug": "plain"},
            {**same, "slug": "varied", "variation": 7},
            {**same, "slug": "elsewhere", "provider": "deepseek"},
            {**same, "slug": "streamed", "config": {"stream": True, "api": "responses"}},
        ]
    )
    done = articles.submit(prompts, "--provider", "openai")
    assert done.returncode == 0, done.stderr
    written = articles.written()
    assert set(written) == {"plain", "varied", "elsewhere", "streamed"}
    assert written["plain"] == written["streamed"] != written["varied"]
    manifest = {line["slug"]: line for line in articles.manifest()}
    assert {line["state"] for line in manifest.values()} == {"written"}
    assert [manifest[slug]["provider"] for slug in ("plain", "elsewhere")] == ["openai", "deepseek"]
    plain = manifest["plain"]
    assert (plain["attempts"], plain["holds"], plain["held_seconds"], plain["passed_over"]) == (1, 0, 0.0, [])
    assert plain["completion_tokens"] == len(written["plain"].split())
    documented = re.findall(r"^\| `([a-z_]+)` \|", (ROOT / "docs" / "workers.md").read_text(), re.MULTILINE)
    assert set(plain) <= set(documented)
    sent = dict(line.split("\t") for line in done.stdout.splitlines())
    assert {line["trace_id"] for line in manifest.values()} == set(sent)
    assert articles.delivered() == dict.fromkeys(sent, 1)
    log = "".join(worker.log for worker in articles.workers)
    assert all(f'"trace_id": "{task_id}"' in log for task_id in sent)


def test_what_is_there_is_not_asked_for_again(articles: Articles) -> None:
    """
    A second run asks for nothing; where a file is gone, for that one only.
    """
    prompts = articles.prompts(lines(5))
    assert articles.submit(prompts).returncode == 0
    again = articles.submit(prompts)
    assert (again.returncode, again.stdout) == (0, "")
    assert "5 were there" in again.stderr
    (articles.out / "a-3.md").unlink()
    once_more = articles.submit(prompts)
    assert once_more.stdout.split("\t")[1:] == ["a-3\n"]
    assert sum(articles.delivered().values()) == 6
    assert [line["slug"] for line in articles.manifest()].count("a-3") == 2


def test_bad_input_is_that_articles_own_trouble(articles: Articles) -> None:
    """
    An empty, a huge and a binary prompt, a wrong option, an unknown model, a disk that does not take it: an error each.

    The others are written, and nothing is half-written.
    """
    (articles.out / ".unwritable.part").mkdir(parents=True)
    prompts = articles.prompts(
        [
            {"prompt": "good one", "slug": "good-1"},
            {"prompt": " ", "slug": "empty"},
            {"prompt": "x" * 100_001, "slug": "huge"},
            {"prompt": "a\0b", "slug": "binary"},
            {"prompt": "p", "slug": "wrong-key", "config": {"api_key": "k"}},
            {"prompt": "p", "slug": "wrong-option", "config": {"temperature": 99}},
            {"prompt": "p", "slug": "unknown-model", "config": {"model": "no-such-model"}},
            {"prompt": "p", "slug": "unwritable"},
            {"prompt": "good two", "slug": "good-2"},
        ]
    )
    done = articles.submit(prompts)
    assert done.returncode == 1
    for number, reason in ((2, "not empty"), (3, "100000"), (4, "control"), (5, "config must be")):
        assert any(f":{number}: " in line and reason in line for line in done.stderr.splitlines())
    manifest = {line["slug"]: line for line in articles.manifest()}
    assert {slug: line.get("error") for slug, line in manifest.items()} == {
        "good-1": None,
        "good-2": None,
        "wrong-option": "GatewayConfigError",
        "unknown-model": "ProviderRejected",
        "unwritable": "ArticleNotSavedError",
    }
    assert "temperature" in manifest["wrong-option"]["reason"]
    assert "Is a directory" in manifest["unwritable"]["reason"]
    assert set(articles.written()) == {"good-1", "good-2"}
    assert articles.breaker("openai").get_metrics().failed_requests == 0


def test_submit_killed_half_way(articles: Articles) -> None:
    """
    Killed while sending and while waiting, and started again: each article once, none missing, none counted twice.
    """
    articles.openai.switch(latency=0.1)
    prompts = articles.prompts(lines(60))
    journal = articles.out / ".sent.jsonl"
    first = articles.start_submit(prompts)
    deadline = time.monotonic() + 30
    # Without a pause: sixty messages are sent in a moment.
    while not journal.exists() or len(journal.read_bytes().splitlines()) < 10:
        assert time.monotonic() < deadline
    first.send_signal(signal.SIGKILL)
    first.wait(10)
    assert len(journal.read_bytes().splitlines()) < 120, "killed too late to show anything"
    second = articles.start_submit(prompts)
    eventually(lambda: 5 < len(articles.written()) < 60, within=30)
    second.send_signal(signal.SIGKILL)
    second.wait(10)
    last = articles.submit(prompts)
    assert last.returncode == 0, last.stderr
    assert len(articles.written()) == 60
    assert Counter(line["slug"] for line in articles.manifest()) == dict.fromkeys(articles.written(), 1)
    assert {line["provider"] for line in articles.manifest()} == {"openai"}
    delivered = articles.delivered()
    assert (len(delivered), set(delivered.values())) == (60, {1})


def test_the_folder_must_be_the_workers_own(articles: Articles, tmp_path: Path) -> None:
    """
    Where articles go is the workers' business: a folder that is not below theirs is refused in one line.
    """
    wrong = articles.submit(articles.prompts(lines(1)), "--out", str(tmp_path / "elsewhere"))
    assert wrong.returncode == 2
    assert "ARTICLES_DIR" in wrong.stderr
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["../elsewhere", "My Articles", ".hidden"])
def test_a_folder_that_no_message_can_name(articles: Articles, name: str) -> None:
    """
    A folder that the workers would refuse for each article is refused before anything is sent.
    """
    folder = articles.root / name
    wrong = articles.submit(articles.prompts(lines(1)), "--out", str(folder))
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "--out" in wrong.stderr
    assert not folder.exists()


def test_results_elsewhere_than_in_a_redis(articles: Articles, tmp_path: Path) -> None:
    """
    Where the result backend is nothing that a broker can be, submit waits for it as for any other.
    """
    done = tmp_path / "results"
    done.mkdir()
    environment = {"CELERY_RESULT_BACKEND": f"file://{done}", "ARTICLES_DIR": str(tmp_path / "articles")}
    prompts = articles.prompts(lines(1))
    command = [sys.executable, "-m", "workers", "submit", str(prompts), "--out", str(tmp_path / "articles")]
    waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**articles.environment, **environment})
    try:
        journal = tmp_path / "articles" / ".sent.jsonl"
        eventually(lambda: journal.exists() and '"sent"' in journal.read_text(), within=20)
        assert waiting.poll() is None
        # It would meet the next test's provider, and open that one's circuit.
        eventually(lambda: sum(articles.delivered().values()) == 1, within=20, what="its article is delivered")
    finally:
        waiting.kill()
        waiting.communicate()


def test_failover_in_a_worker(articles: Articles) -> None:
    """
    While one provider is down the other writes; while both are, the tasks are held, and none fails for it.
    """
    articles.openai.switch(mode="error503")
    done = articles.submit(articles.prompts(lines(10)), "--fallback", "deepseek")
    assert done.returncode == 0, done.stderr
    assert {line["provider"] for line in articles.manifest()} == {"deepseek"}
    assert {tuple(line["passed_over"]) for line in articles.manifest()} == {("openai",)}

    articles.deepseek.switch(mode="error503")
    more = [{**line, "slug": f"b-{line['slug']}"} for line in lines(10)]
    waiting = articles.start_submit(articles.prompts(more), "--fallback", "deepseek")
    eventually(lambda: articles.breaker("deepseek").state == "open", within=20)
    articles.deepseek.switch(mode="ok")
    assert waiting.wait(60) == 0
    second = [line for line in articles.manifest() if line["slug"].startswith("b-")]
    assert [line["state"] for line in second] == ["written"] * 10
    assert max(line["holds"] for line in second) >= 1
    assert max(line["held_seconds"] for line in second) > 0


def test_a_fallback_that_is_well_serves_all_that_wait(articles: Articles) -> None:
    """
    Tasks held while both were down do not wait for the dead one: when the other is well it writes them all.
    """
    for provider in (articles.openai, articles.deepseek):
        provider.switch(mode="error503")
    submitting = articles.start_submit(articles.prompts(lines(40)), "--fallback", "deepseek")
    both = [articles.breaker(name) for name in ("openai", "deepseek")]
    eventually(lambda: {breaker.state for breaker in both} == {"open"}, within=20)
    before = len(articles.calls("openai"))
    articles.deepseek.switch(mode="ok")
    assert submitting.wait(120) == 0
    assert {line["provider"] for line in articles.manifest()} == {"deepseek"}
    assert len(articles.calls("openai")) - before < 20, "not one probe of the dead one for each article"


def test_one_providers_outage_leaves_the_other_alone(articles: Articles) -> None:
    """
    Without failover the dead provider's tasks are held at the gate, the other's are written meanwhile.
    """
    articles.openai.switch(mode="error500")
    waiting = articles.start_submit(
        articles.prompts([{**line, "provider": ("openai", "deepseek")[n % 2]} for n, line in enumerate(lines(12))])
    )
    eventually(lambda: len(articles.written()) == 6, within=30)
    assert {call["mode"] for call in articles.calls("openai")} == {"error500"}
    eventually(lambda: articles.breaker("openai").state == "open", within=20)
    articles.openai.switch(mode="ok")
    assert waiting.wait(60) == 0
    assert {line["provider"] for line in articles.manifest()} == {"openai", "deepseek"}
    assert len(articles.written()) == 12


@pytest.mark.soak
def test_workers_killed_half_way(tmp_path: Path, key_prefix: str) -> None:
    """
    What a killed worker had under way is written by the next one; nothing is half-written, nothing is missing.
    """
    with Articles(tmp_path, key_prefix, latency=0.1) as articles:
        articles.worker()
        prompts = articles.prompts(lines(40))
        submitting = articles.start_submit(prompts)
        eventually(lambda: len(articles.written()) > 10, within=30)
        articles.workers[0].kill()
        submitting.send_signal(signal.SIGKILL)
        submitting.wait(10)
        assert all(text.endswith("\n") and text.startswith("# Prompt") for text in articles.written().values())
        articles.worker()
        # The broker gives the dead worker's messages back at the end of its visibility timeout; nobody needs to wait.
        again = articles.submit(prompts, "--resend")
        assert again.returncode == 0, again.stderr
        assert len(articles.written()) == 40
        assert sum(articles.delivered().values()) <= 40 + 4, "four were under way"
        assert [path.name for path in articles.out.iterdir() if path.suffix in {".part", ".lock"}] == []


def test_a_start_without_a_key(lasting: Articles) -> None:
    """
    A worker that could only fail does not start; one line names what to set.
    """
    ended = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "workers", "worker", "--pool", "solo"],
        env={**lasting.environment, "OPENAI_API_KEY": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("workers: OPENAI_API_KEY must be set")
    assert "Traceback" not in ended.stderr


def test_neither_key_nor_prompt_is_shown(articles: Articles) -> None:
    """
    When a key is refused, neither it nor the prompt is in what submit prints, the manifest or the worker's log.
    """
    articles.openai.switch(mode="error401")
    done = articles.submit(articles.prompts([{"prompt": "canary-prompt", "slug": "a"}]))
    assert done.returncode == 1
    assert articles.manifest()[0]["error"] == "ProviderAuthError"
    logs = [worker.log for worker in articles.workers]
    for text in (done.stdout, done.stderr, str(articles.manifest()), *logs):
        assert KEY not in text
        assert "canary-prompt" not in text
