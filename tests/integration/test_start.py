"""
What a worker refuses to start with: settings under which a refused task would be lost or never counted.
"""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.worker.request import Request

from omni_tasks import CircuitBreakerTask, ConfigurationError, init_app
from omni_tasks.embedded import EmbeddedServer
from omni_tasks.integration.install import integration_of


def _app(url: str, **options: Any) -> Celery:
    app = Celery("start", broker=url, set_as_current=False)
    init_app(app, circuits={"dep": {}})

    @app.task(name="guarded", base=CircuitBreakerTask, shared=False, **options)
    def guarded() -> None:
        """
        Do nothing.
        """

    app.finalize()
    return app


def _refusal(app: Celery) -> str:
    with pytest.raises(ConfigurationError) as caught:
        integration_of(app).check()
    return str(caught.value)


def test_a_good_application_starts(redis_server: EmbeddedServer) -> None:
    """A guarded task under a circuit that exists passes."""
    integration_of(_app(redis_server.url, circuit="dep")).check()


def test_an_unknown_circuit_is_refused(redis_server: EmbeddedServer) -> None:
    """The message names the task, the circuit, and those that exist."""
    message = _refusal(_app(redis_server.url, circuit="nope"))
    assert message.startswith("circuit of task guarded must be one of ai_providers, ")
    assert message.endswith(", got 'nope'")


def test_a_request_class_without_our_gate_is_refused(redis_server: EmbeddedServer) -> None:
    """With Celery's own Request a refused task would be acknowledged and gone."""
    message = _refusal(_app(redis_server.url, circuit="dep", Request=Request))
    assert message.startswith("Request of task guarded must be a subclass of CircuitRequest")


def test_a_circuit_given_by_an_annotation_is_refused(redis_server: EmbeddedServer) -> None:
    """Given after the class was made, it would be refused at the gate and never counted."""
    app = Celery("start", broker=redis_server.url, set_as_current=False)
    app.conf.task_annotations = {"guarded": {"circuit": "dep"}}
    init_app(app, circuits={"dep": {}})

    @app.task(name="guarded", base=CircuitBreakerTask, shared=False)
    def guarded() -> None:
        """
        Do nothing.
        """

    app.finalize()
    assert _refusal(app) == "circuit of task guarded must be given where the task is defined, got 'dep'"


def test_a_broker_that_cannot_hold_tasks_is_refused() -> None:
    """The message names the broker and what would do."""
    app = _app("memory://localhost/", circuit="dep")
    assert "broker_url must be a redis:// or rediss:// URL" in _refusal(app)
