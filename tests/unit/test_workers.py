"""
The application's settings, its folder of articles and its files of prompts.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from omni_tasks import ConfigurationError
from omni_tasks.gateways import articles as gateway
from workers import prompts
from workers.articles import ArticleNotSavedError, SlugError, check_slug, save_article
from workers.prompts import BadLine, Prompt, read_prompts
from workers.settings import Settings

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
    The call ends before the task is interrupted, that before it is killed, that before its message is given away.
    """
    found = Settings.from_environment({"DEFAULT_TIMEOUT": "100"})
    assert 100.0 < found.soft_time_limit < found.time_limit < 3 * found.time_limit < found.visibility_timeout


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
        (b'{"prompt": "' + b"x" * 100_001 + b'"}', "at most 100000"),
    ],
    ids=range(15),
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
