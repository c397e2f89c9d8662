"""
The structured log: one line an event, in either format, without secrets.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from omni_tasks import events
from omni_tasks.events import log, redact, use_format
from omni_tasks.observe.logs import Formatter

SECRET = "s3cr3t-canary"  # noqa: S105 - what must not be found


@pytest.fixture(autouse=True)
def _format() -> Iterator[None]:
    yield
    use_format("json")


@pytest.mark.parametrize(
    "text",
    [
        f"redis://user:{SECRET}@host:6379/0",
        f"cannot connect to rediss://:{SECRET}@host, giving up",
        f"amqp://u:p@{SECRET}@host//vhost",
        f"https://example.org/hook?api_key={SECRET}&x=1",
        f"https://hooks.slack.com/services/T0/B0/{SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"Basic {SECRET}==",
        f"sk-{SECRET}",
        f"whsec_{SECRET}",
        f'{{"api_key": "{SECRET}"}}',
        f"OPENAI_API_KEY={SECRET}",
        f"password: {SECRET}",
    ],
)
def test_secrets_within_a_text(text: str) -> None:
    """What gives access is not written, wherever in a text it stands."""
    assert SECRET not in redact(text)


def test_secrets_by_name_and_depth() -> None:
    """A value whose name says that it is secret is not written, in mappings and lists too, nor in what is deeper."""

    class Odd:
        def __str__(self) -> str:
            return f"redis://:{SECRET}@host"

    value = {
        "openai_api_key": SECRET,
        "nested": [{"Authorization": SECRET}, (f"redis://:{SECRET}@h",), Odd()],
        "deep": [[[[[[f"https://u:{SECRET}@h"]]]]]],
        "tokens": None,
    }
    assert SECRET not in str(redact(value))
    assert redact({"total_tokens": 33, "count": 3, "rate": 0.5, "ok": True, "none": None}) == {
        "total_tokens": 33, "count": 3, "rate": 0.5, "ok": True, "none": None,
    }  # fmt: skip


def test_plain_words_stay() -> None:
    """What is no secret is written as it is."""
    for text in ("circuit dep is open", "https://example.org/a/b?x=1", "mail to ops@example.org", "ticket g:1"):
        assert redact(text) == text


def _line(caplog: pytest.LogCaptureFixture) -> str:
    [record] = [record for record in caplog.records if record.name == "omni_tasks"]
    return record.getMessage()


def _go_wrong() -> None:
    raise OSError(f"redis://:{SECRET}@host\nis away")


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_event_is_one_line(form: str, caplog: pytest.LogCaptureFixture) -> None:
    """Also with a traceback and with line breaks in its values; and no secret is in it."""
    use_format(form)
    try:
        _go_wrong()
    except OSError:
        log.exception("circuit_test", component="dep", note="a\nb", api_key=SECRET)
    line = _line(caplog)
    assert "\n" not in line
    assert SECRET not in line
    assert "_go_wrong" in line
    assert "circuit_test" in line


def test_json_is_json(caplog: pytest.LogCaptureFixture) -> None:
    """With level and an ISO-8601 timestamp in UTC."""
    log.warning("circuit_test", component="dep", failure_count=3)
    line = json.loads(_line(caplog))
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "circuit_test", "level": "warning", "component": "dep", "failure_count": 3}


def test_console_is_for_people(caplog: pytest.LogCaptureFixture) -> None:
    """Time, level, event, then name=value."""
    use_format("console")
    log.warning("circuit_test", component="dep")
    line = _line(caplog)
    assert "circuit_test" in line
    assert "component=dep" in line


def test_the_task_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """What is bound to the context is in every line."""
    with structlog.contextvars.bound_contextvars(task_id="42"):
        log.warning("circuit_test", component="dep")
    assert json.loads(_line(caplog))["task_id"] == "42"


def test_other_libraries_lines() -> None:
    """A line of Celery's becomes an event of the same form; ours are not wrapped twice."""
    record = logging.LogRecord("celery.worker", logging.ERROR, "x.py", 1, "lost %s", (f"redis://:{SECRET}@h",), None)
    line = json.loads(Formatter().format(record))
    assert (line["event"], line["level"], line["logger"]) == ("lost redis://***@h", "error", "celery.worker")
    ours = logging.LogRecord(events.LOGGER, logging.ERROR, "x.py", 1, '{"event": "circuit_test"}', (), None)
    assert Formatter().format(ours) == '{"event": "circuit_test"}'


def test_a_traceback_of_another_library_is_one_line() -> None:
    """Celery's tracebacks too."""
    try:
        _go_wrong()
    except OSError as error:
        raised: Any = (type(error), error, error.__traceback__)
    else:
        raised = None
    line = Formatter().format(logging.LogRecord("celery", logging.ERROR, "x.py", 1, "failed", (), raised))
    assert "\n" not in line
    assert SECRET not in line
    assert "_go_wrong" in json.loads(line)["exception"]


def test_every_event_is_in_the_table() -> None:
    """The events that the package's code names are those of the module's table."""
    told = set(re.findall(r"^``(\w+)``", str(events.__doc__), re.MULTILINE))
    source = "\n".join(path.read_text() for path in Path(events.__file__).parent.rglob("*.py"))
    # These are passed on by name.
    states = {f"circuit_breaker_{word}" for word in ("open", "half_open", "closed", "alert", "recovered")}
    passed_on = states | {"provider_refused"}
    assert set(re.findall(r"log\.\w+\(\s*[\"'](\w+)[\"']", source)) | passed_on == told
