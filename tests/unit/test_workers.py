"""
The application's settings, its folder of articles and its files of prompts.
"""

from __future__ import annotations

import pickle
import resource
import threading
from pathlib import Path
from typing import Any

import pytest

from omni_tasks import ConfigurationError, ResilienceConfiguration
from omni_tasks.gateways import PROVIDERS, health
from omni_tasks.gateways import articles as gateway
from workers import app, prompts
from workers.app import WRITE_ANYWHERE, WRITE_ARTICLE, make_app
from workers.articles import ArticleNotSavedError, SlugError, check_slug, claimed, folder_of, read_record, save_article
from workers.manifest import Manifest, ManifestError
from workers.prompts import BadLine, Prompt, read_prompts
from workers.settings import PROVIDER_NAMES, Settings
from workers.submit import Order

PASSWORD = "canary-4711"  # noqa: S105 - an example


def test_the_defaults() -> None:
    """
    With nothing set the application uses a Redis on this machine and a folder below the current one.
    """
    found = Settings.from_environment({"CELERY_RESULT_BACKEND": "", "ARTICLES_DIR": " "})
    assert found.broker_url == found.result_backend == "redis://127.0.0.1:6379/0"
    assert found.articles_dir == Path.cwd() / "articles"
    assert (found.call_timeout, found.max_retries) == (30.0, 3)


def test_the_limits_leave_room_for_each_other() -> None:
    """
    Every call ends before the task is interrupted, that before it is killed, that before its message is given away.
    """
    found = Settings.from_environment({"DEFAULT_TIMEOUT": "100"})
    assert (
        100.0 * len(PROVIDER_NAMES)
        < found.soft_time_limit
        < found.time_limit
        < 3 * found.time_limit
        < found.visibility_timeout
    )


@pytest.mark.parametrize(
    ("broker", "transport"),
    [
        ("redis://127.0.0.1:1/0", "omni_tasks.integration.fetch:Transport"),
        ("rediss://127.0.0.1:1/0", None),
        ("amqp://127.0.0.1//", None),
    ],
)
def test_workers_on_redis_lose_nothing_that_they_have_fetched(broker: str, transport: str | None) -> None:
    """
    They take and note in one step; other brokers have their own way.
    """
    urls = {"CELERY_BROKER_URL": broker, "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/0"}
    assert make_app(Settings.from_environment(urls)).conf.broker_transport == transport


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CELERY_BROKER_URL", "127.0.0.1:6379"),
        ("CELERY_BROKER_URL", "redis://127.0.0.1:99999/0"),
        ("CELERY_RESULT_BACKEND", "redis"),
        ("ARTICLES_DIR", __file__),
        ("DEFAULT_TIMEOUT", "0"),
        ("DEFAULT_TIMEOUT", "nan"),
        ("DEFAULT_TIMEOUT", "3601"),
        ("DEFAULT_TIMEOUT", "30s"),
        ("DEFAULT_MAX_RETRIES", "-1"),
        ("DEFAULT_MAX_RETRIES", "1.5"),
        ("DEFAULT_MAX_RETRIES", "1001"),
    ],
)
def test_a_wrong_variable_is_named_in_one_line(variable: str, value: str) -> None:
    """
    The refusal names the variable and its value, and fits on one line.
    """
    with pytest.raises(ConfigurationError, match=variable) as caught:
        Settings.from_environment({variable: value})
    assert value in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_nodes_of_a_sentinel() -> None:
    """
    Several addresses, divided by semicolons, are one broker.
    """
    url = "sentinel://127.0.0.1:26379;sentinel://127.0.0.1:26380"
    assert Settings.from_environment({"CELERY_BROKER_URL": url}).broker_url == url


def test_a_broker_that_keeps_no_results_needs_a_backend() -> None:
    """
    With RabbitMQ the place of the results must be said.
    """
    with pytest.raises(ConfigurationError, match="CELERY_RESULT_BACKEND"):
        Settings.from_environment({"CELERY_BROKER_URL": "amqp://127.0.0.1"})


@pytest.mark.parametrize("url", [f"redis://:{PASSWORD}@host:99999/0", f"user:{PASSWORD}@host"])
def test_a_wrong_url_does_not_show_its_password(url: str) -> None:
    """
    Neither a refusal nor the settings' own text holds a URL's password.
    """
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_environment({"CELERY_BROKER_URL": url})
    assert PASSWORD not in str(caught.value)
    assert PASSWORD not in repr(Settings.from_environment({"CELERY_BROKER_URL": f"redis://:{PASSWORD}@host/0"}))


@pytest.mark.parametrize("slug", ["a", "a-b-9", "-", "z" * 80])
def test_a_good_slug(slug: str) -> None:
    """
    Lower-case letters, digits and dashes name an article.
    """
    assert check_slug(slug) == slug


@pytest.mark.parametrize(
    "slug", ["", "z" * 81, "../a", "a/b", "a.b", "A", "a b", "a\n", "\u00e9", "a\0", None, 5, ["a"]]
)
def test_a_slug_that_could_leave_the_folder(slug: Any) -> None:
    """
    Anything else is refused, and no circuit counts it.
    """
    with pytest.raises(SlugError) as caught:
        check_slug(slug)
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert (copy.circuit_outcome, str(copy)) == ("ignored", str(caught.value))


def test_an_article_is_written_whole(tmp_path: Path) -> None:
    """
    The folder is made when it is missing, an older article is replaced, and nothing else is left behind.
    """
    folder = tmp_path / "new" / "articles"
    save_article(folder, "a", "old")
    assert save_article(folder, "a", "new \u00e9\n\n").read_text(encoding="utf-8") == "new \u00e9\n"
    assert [each.name for each in folder.iterdir()] == ["a.md"]


def test_a_disk_that_does_not_take_the_article(tmp_path: Path) -> None:
    """
    The error names the file and the reason, and no circuit counts it.
    """
    (tmp_path / "file").write_text("")
    with pytest.raises(ArticleNotSavedError, match=r"a\.md: Not a directory") as caught:
        save_article(tmp_path / "file" / "below", "a", "text")
    assert caught.value.circuit_outcome == "ignored"


def test_a_folder_that_no_longer_lets_a_claim_go(tmp_path: Path) -> None:
    """
    What goes wrong at the end of a claim is no trouble of the article's, and leaves no file open.
    """
    before = len(list(Path("/proc/self/fd").iterdir()))
    with claimed(tmp_path, "a"):
        (tmp_path / ".a.lock").unlink()
        # Stands for a disk that has become read-only: root may do anything else.
        (tmp_path / ".a.lock").mkdir()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_full_disk(tmp_path: Path) -> None:
    """
    Where the file cannot grow, as on a full disk, the article that was there stays and no part is left.
    """
    save_article(tmp_path, "a", "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ArticleNotSavedError, match=r"a\.md: File too large"):
            save_article(tmp_path, "a", "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"a.md": "old\n"}


def test_what_a_killed_writer_left_is_overwritten(tmp_path: Path) -> None:
    """
    Half an article under the name it has while it is written is in nobody's way.
    """
    (tmp_path / ".a.part").write_text("half" * 1000)
    assert save_article(tmp_path, "a", "new").read_text() == "new\n"
    assert [each.name for each in tmp_path.iterdir()] == ["a.md"]


def test_what_is_known_of_an_article(tmp_path: Path) -> None:
    """
    The record is there when the article is, and goes with its latest text; an article without one has nothing known.
    """
    save_article(tmp_path, "a", "text", {"provider": "openai"})
    assert read_record(tmp_path, "a") == {"provider": "openai"}
    assert sorted(each.name for each in tmp_path.rglob("*")) == [".records", "a.json", "a.md"]
    (tmp_path / ".records" / "a.json").write_text("[")
    assert read_record(tmp_path, "a") == read_record(tmp_path, "b") == {}


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    """
    Of many that claim one article, each has it alone, and no claim is left behind.
    """
    inside: list[int] = []
    most: list[int] = []

    def write() -> None:
        for _ in range(5):
            with claimed(tmp_path, "a"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (len(most), max(most)) == (20, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "a", "a/b-2", "run_1.old"])
def test_a_folder_below(tmp_path: Path, below: str) -> None:
    """
    Names divided by slashes lead below the folder of articles.
    """
    assert folder_of(tmp_path, below) == tmp_path / below


@pytest.mark.parametrize("below", ["/etc", "..", "a/../..", "a//b", "a/", ".hidden", "a\n", 5, None])
def test_a_folder_elsewhere(tmp_path: Path, below: Any) -> None:
    """
    Anything that could lead elsewhere is refused.
    """
    with pytest.raises(SlugError):
        folder_of(tmp_path, below)


def test_a_book_of_what_was_sent(tmp_path: Path) -> None:
    """
    Who opens the book again finds what was sent, what was about to be, and what became of it.
    """
    with Manifest(tmp_path) as book:
        book.send("a", "id-a")
        book.has_sent("a", "id-a")
        book.record("a", "failed", {"trace_id": "id-a"})
        book.send("b", "id-b")
    with Manifest(tmp_path) as book:
        assert (book.sent, book.sending) == ({"a": "id-a"}, {"a": "id-a", "b": "id-b"})
        assert book.has_failed("a")
        book.send("a", "id-2")
    with Manifest(tmp_path) as book:
        assert (book.sent, book.sending["a"]) == ({}, "id-2")
        assert not book.has_failed("a")


def test_a_line_that_was_cut(tmp_path: Path) -> None:
    """
    Half a last line, which a killed process leaves, costs that line and no other.
    """
    (tmp_path / "manifest.jsonl").write_text('{"slug": "a", "state": "written"}\n{"slug": "b", "sta')
    with Manifest(tmp_path) as book:
        assert list(book.records) == ["a"]
        book.record("c", "written", {})
    with Manifest(tmp_path) as book:
        assert list(book.records) == ["a", "c"]


def test_one_submit_at_a_time(tmp_path: Path) -> None:
    """
    A second one that would send everything again is told that there is another.
    """
    with Manifest(tmp_path), pytest.raises(ManifestError, match="in use by another submit"):
        Manifest(tmp_path)
    with Manifest(tmp_path):
        pass


def test_a_book_that_cannot_be_kept(tmp_path: Path) -> None:
    """
    A disk that is full, or a folder that is none, is told in one line.
    """
    (tmp_path / "file").write_text("")
    with pytest.raises(ManifestError, match="cannot write"):
        Manifest(tmp_path / "file")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Manifest(tmp_path) as book:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            with pytest.raises(ManifestError, match="cannot write"):
                book.record("a", "written", {"path": "x" * 200})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_articles_own_provider_and_options(tmp_path: Path) -> None:
    """
    A line may say who writes it and how; what it says of addresses and keys is refused.
    """
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "p", "provider": "deepseek", "config": {"model": "m"}}\n')
    (prompt,) = read_prompts(file).prompts
    assert (prompt.provider, prompt.config) == ("deepseek", {"model": "m"})


def test_who_is_asked_for_an_article() -> None:
    """
    A prompt's own provider comes first; an article that only one may write goes to that one's queue.
    """
    alone, both = Order(("openai",)), Order(("openai", "deepseek"), folder="sub")
    name, kwargs = alone.message(Prompt("p", "s", 3))
    assert (name, kwargs) == (WRITE_ARTICLE, {"prompt": "p", "slug": "s", "variation": 3, "provider": "openai"})
    assert app.amqp.router.route({}, name, (), kwargs)["queue"].name == "articles.openai"
    name, kwargs = both.message(Prompt("p", "s", provider="deepseek"))
    assert (name, kwargs["providers"], kwargs["folder"]) == (WRITE_ANYWHERE, ["deepseek", "openai"], "sub")
    assert app.amqp.router.route({}, name, (), kwargs)["queue"].name == "articles"
    assert app.amqp.router.route({}, "omni_tasks.monitor")["queue"].name == "celery"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ARTICLES_PROVIDER", "nobody"), ("ARTICLES_FALLBACKS", "nobody"), ("ARTICLES_FALLBACKS", "deepseek,openai")],
)
def test_a_provider_nobody_knows(variable: str, value: str) -> None:
    """
    A name that is none, or the preferred provider as its own fallback, is refused at the start.
    """
    with pytest.raises(ConfigurationError, match=variable):
        Settings.from_environment({variable: value})


def test_who_is_asked_by_default() -> None:
    """
    The preferred provider, then the fallbacks in their order, each once.
    """
    found = Settings.from_environment({"ARTICLES_PROVIDER": "deepseek", "ARTICLES_FALLBACKS": "openai, openai"})
    assert found.providers == ("deepseek", "openai")


def test_who_is_asked_whether_he_is_well() -> None:
    """
    Each provider that may be asked for articles has a health check, and no other: it may have no key.
    """
    made = make_app(Settings.from_environment({"ARTICLES_FALLBACKS": "deepseek"}))
    circuits = ResilienceConfiguration.load(made.conf, environ={}).circuits
    checks = {key: config.health_check for key, config in circuits.items() if config.health_check}
    assert checks == {"ai_providers:openai": health.openai, "ai_providers:deepseek": health.deepseek}
    alone = make_app(Settings.from_environment({}))
    assert ResilienceConfiguration.load(alone.conf, environ={}).circuits["ai_providers:openai"].health_check
    assert "ai_providers:deepseek" not in ResilienceConfiguration.load(alone.conf, environ={}).circuits


def test_both_know_the_same_providers() -> None:
    """
    Who can be asked for is who the gateways know.
    """
    assert tuple(PROVIDERS) == PROVIDER_NAMES


def test_half_an_article_is_taken_away(tmp_path: Path) -> None:
    """
    When the last step fails, the part that was written is removed.
    """
    (tmp_path / "a.md").mkdir()
    with pytest.raises(ArticleNotSavedError):
        save_article(tmp_path, "a", "text")
    assert [each.name for each in tmp_path.iterdir()] == ["a.md"]


def test_one_prompt_a_line(tmp_path: Path) -> None:
    """
    Blank lines are skipped; the same file gives the same slugs, in which no word of a prompt is.
    """
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffOne s\u00e9cret\r\n\r\n  two  \n".encode())
    read = read_prompts(file)
    assert [each.text for each in read.prompts] == ["One s\u00e9cret", "two"]
    assert read == read_prompts(file)
    assert all(check_slug(each.slug) and "cret" not in each.slug for each in read.prompts)


def test_json_lines(tmp_path: Path) -> None:
    """
    Slug and variation may be given.
    """
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "one", "slug": "s", "variation": 2}\n\n{"prompt": "two"}\n')
    first, second = read_prompts(file).prompts
    assert first == Prompt("one", "s", 2)
    assert (second.text, second.variation) == ("two", 0)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"nope", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'"text"', "must be an object"),
        (b"\xff\xfe", "not UTF-8"),
        (b"{}", "prompt must be text"),
        (b'{"prompt": " "}', "prompt must be text"),
        (b'{"prompt": "a\\u0000b"}', "control characters"),
        (b'{"prompt": "\\ud800"}', "control characters"),
        (b'{"prompt": "x", "slug": "../x"}', "slug must be"),
        (b'{"prompt": "x", "slug": null}', "slug must be"),
        (b'{"prompt": "x", "slug": "first"}', "taken by a line above"),
        (b'{"prompt": "x", "variation": -1}', "variation must be"),
        (b'{"prompt": "x", "variation": true}', "variation must be"),
        (b'{"prompt": "x", "slag": "y"}', "key 'slag'"),
        (b'{"prompt": "x", "provider": "nobody"}', "provider must be"),
        (b'{"prompt": "x", "config": {"api_key": "k"}}', "config must be"),
        (b'{"prompt": "x", "config": 5}', "config must be"),
        (b'{"prompt": "' + b"x" * 100_001 + b'"}', "at most 100000"),
    ],
    ids=range(18),
)
def test_a_bad_line_is_told_and_the_others_go_on(tmp_path: Path, line: bytes, reason: str) -> None:
    """
    A bad line is given with its number and its reason; the lines around it are read.
    """
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"prompt": "one", "slug": "first"}\n' + line + b'\n{"prompt": "three"}\n')
    read = read_prompts(file)
    assert [each.text for each in read.prompts] == ["one", "three"]
    (bad,) = read.bad
    assert isinstance(bad, BadLine)
    assert bad.line == 2
    assert reason in bad.reason


def test_both_know_the_same_limits() -> None:
    """
    What the prompt file lets through, the gateway takes.
    """
    assert prompts.MOST_VARIATIONS == gateway.MOST_VARIATIONS
    assert prompts.LONGEST_PROMPT <= gateway.LONGEST_PROMPT
