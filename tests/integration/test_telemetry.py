"""
What OpenTelemetry's spans are told, with the SDK's own exporter.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, signals
from celery.contrib.testing.worker import start_worker
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from omni_tasks import CircuitBreakerTask, CircuitOpenError, init_app
from omni_tasks.embedded import EmbeddedServer
from omni_tasks.events import span_event
from tests.support.eventually import eventually
from tests.support.observed import DEP, make_manager, open_circuit
from tests.support.worker import ROOT

#: Global, because OpenTelemetry lets a process have one.
_SPANS = InMemorySpanExporter()


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """
    What has been recorded.
    """
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(_SPANS))
        trace.set_tracer_provider(provider)
    _SPANS.clear()
    yield _SPANS
    _SPANS.clear()


def _told(span: ReadableSpan) -> list[tuple[str, dict[str, Any]]]:
    return [(event.name, dict(event.attributes or {})) for event in span.events]


def test_a_call_tells_its_own_span(spans: InMemorySpanExporter, redis_server: EmbeddedServer, key_prefix: str) -> None:
    """Admission, refusal and report are events of the caller's span, with attributes; there is no span of ours."""
    manager = make_manager(redis_server.url, key_prefix)
    with trace.get_tracer("test").start_as_current_span("request"):
        manager.call("dep", int)
        open_circuit(manager)
        with pytest.raises(CircuitOpenError):
            manager.call("dep", int)
    [span] = spans.get_finished_spans()
    told = _told(span)
    assert [name for name, _ in told] == [
        "circuit.admitted", "circuit.settled",
        "circuit.admitted", "circuit.settled",
        "circuit.admitted", "circuit.settled",
        "circuit.refused",
    ]  # fmt: skip
    assert told[1][1] == {"omni.circuit": "dep", "omni.outcome": "success", "omni.state": "closed"}
    assert told[5][1]["omni.state"] == "open"
    assert 890 < told[6][1]["omni.retry_after"] <= 900
    assert (span.attributes or {})["omni.circuit"] == "dep"


def test_without_a_span_nothing_is_told(spans: InMemorySpanExporter, key_prefix: str) -> None:
    """Outside any span a call costs nothing more."""
    make_manager(None, key_prefix).call("dep", int)
    assert spans.get_finished_spans() == ()


@pytest.mark.usefixtures("untouched_logging")
def test_a_task_tells_its_own_span(spans: InMemorySpanExporter, redis_server: EmbeddedServer, key_prefix: str) -> None:
    """In a worker the task's span says that it was let through, whether as a probe, and how it was counted."""
    app = Celery("traced", broker=redis_server.url, backend=redis_server.url, set_as_current=False)
    app.conf.task_default_queue = key_prefix
    init_app(app, key_prefix=key_prefix, circuits={"dep": DEP})

    @app.task(base=CircuitBreakerTask, circuit="dep", name="traced.plain")
    def plain() -> int:
        return 3

    tokens: dict[str, Any] = {}

    def begin(task_id: str, **_kwargs: Any) -> None:
        tokens[task_id] = trace.get_tracer("test").start_as_current_span("run/traced.plain")
        tokens[task_id].__enter__()

    def end(task_id: str, **_kwargs: Any) -> None:
        tokens.pop(task_id).__exit__(None, None, None)

    signals.task_prerun.connect(begin)
    signals.task_postrun.connect(end)
    try:
        with start_worker(app, pool="solo", perform_ping_check=False, loglevel="ERROR"):
            plain.delay()
            eventually(spans.get_finished_spans, within=20, what="the task's span")
    finally:
        signals.task_prerun.disconnect(begin)
        signals.task_postrun.disconnect(end)
        app.close()
    [span] = spans.get_finished_spans()
    assert _told(span) == [
        ("circuit.admitted", {"omni.circuit": "dep", "omni.probe": False, "omni.holds": 0}),
        ("circuit.settled", {"omni.circuit": "dep", "omni.outcome": "success", "omni.state": "closed"}),
    ]


def test_it_works_without_opentelemetry() -> None:
    """Where the package is not installed, nothing asks for it."""
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import omni_tasks, omni_tasks.events as events\n"
        "assert events._TRACED is False\n"
        "events.span_event('circuit.admitted', circuit='dep')\n"
        "assert 'opentelemetry.trace' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)


def test_attributes_are_named_ours(spans: InMemorySpanExporter) -> None:
    """Attributes stand under omni, apart from everybody else's."""
    with trace.get_tracer("test").start_as_current_span("request"):
        span_event("circuit.held", circuit="dep")
    [span] = spans.get_finished_spans()
    assert dict(span.attributes or {}) == {"omni.circuit": "dep"}
