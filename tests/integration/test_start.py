"""
What a worker refuses to start with: settings under which a refused task would be lost or never counted.
"""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from celery.worker.request import Request
from kombu.transport import TRANSPORT_ALIASES

from omni_tasks import CircuitBreakerTask, ConfigurationError, init_app
from omni_tasks.embedded import EmbeddedServer
from omni_tasks.integration.checks import check, warnings
from omni_tasks.integration.install import integration_of
from omni_tasks.integration.lot import Lot


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
        check(integration_of(app))
    return str(caught.value)


def test_a_good_application_starts(redis_server: EmbeddedServer) -> None:
    """A guarded task under a circuit that exists passes."""
    check(integration_of(_app(redis_server.url, circuit="dep")))


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


@pytest.mark.parametrize("broker", ["memory://", "amqp://guest@127.0.0.1:1//"])
def test_another_broker_needs_a_store(broker: str, redis_server: EmbeddedServer) -> None:
    """Where the broker is not Redis the circuits need a server of their own; with one the application starts."""
    app = _app(broker, circuit="dep")
    assert (
        _refusal(app) == "omni_redis_url must be set where the broker is not Redis: circuits are shared there, got None"
    )
    init_app(app, redis_url=redis_server.url)
    check(integration_of(app))


def test_a_lot_beside_the_lot_is_refused(redis_server: EmbeddedServer) -> None:
    """On Redis the lot is in the broker already; a second one would only be less safe."""
    app = _app(redis_server.url, circuit="dep")
    init_app(app, parking="store")
    message = "omni_parking must be \"broker\" where the broker is Redis: the lot is there, got 'store'"
    assert _refusal(app) == message


def test_a_broker_that_cannot_hold_tasks_is_refused(
    redis_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the broker and what would do."""
    monkeypatch.setitem(TRANSPORT_ALIASES, "elsewhere", "kombu.transport.base:Transport")
    app = _app("elsewhere://localhost/", circuit="dep")
    init_app(app, redis_url=redis_server.url)
    assert "broker_url must be amqp:// or one of kombu's virtual transports" in _refusal(app)


def test_a_wrong_sink_is_refused(redis_server: EmbeddedServer) -> None:
    """Alerts that could go nowhere are noticed at the start, and no secret is in the message."""
    app = _app(redis_server.url, circuit="dep")
    init_app(app, alert_sinks=["https://hooks.example.org/secret-path"])
    message = _refusal(app)
    assert message == "omni_webhook_secret must be set, because omni_alert_sinks has a webhook, got None"


def test_the_monitor_rests_where_resilience_is_off(redis_server: EmbeddedServer, key_prefix: str) -> None:
    """With ENABLE_RESILIENCE=false a tick looks at nothing and tells nothing."""
    app = _app(redis_server.url, circuit="dep")
    init_app(app, key_prefix=key_prefix, enable_resilience=False)
    assert app.tasks["omni_tasks.monitor"].apply().get() == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_hold": -1}, "max_hold of task guarded must be seconds, at least 0, or None, got -1"),
        ({"on_hold_expired": "drop"}, "on_hold_expired of task guarded must be one of fail, dead_letter, got 'drop'"),
    ],
    ids=["max_hold", "on_hold_expired"],
)
def test_a_wrong_end_of_holding_is_refused(redis_server: EmbeddedServer, options: dict[str, Any], words: str) -> None:
    """How long a task may be held, and what becomes of it then, is looked at before the start."""
    assert _refusal(_app(redis_server.url, circuit="dep", **options)) == words


def test_a_queue_cannot_be_paused_for_an_unknown_circuit(redis_server: EmbeddedServer) -> None:
    """The message names the setting."""
    app = _app(redis_server.url, circuit="dep")
    init_app(app, pause_queues={"articles": "nope"})
    assert _refusal(app).startswith("omni_pause_queues must be one of ai_providers, ")


def test_settings_count_as_they_are_when_the_worker_starts(redis_server: EmbeddedServer) -> None:
    """What was configured after the application was finalized, and used, is not ignored."""
    app = _app(redis_server.url, circuit="dep")
    integration = integration_of(app)
    assert integration.settings.max_hold == 604_800.0
    manager = integration.manager
    integration.read_settings_again()
    assert integration.manager is manager
    app.conf.omni_max_hold = 60
    integration.read_settings_again()
    assert integration.settings.max_hold == 60.0


def test_another_key_prefix_is_another_lot(redis_server: EmbeddedServer, key_prefix: str) -> None:
    """init_app() called again with another key_prefix moves the circuits and the held tasks, not only one of them."""
    app = _app(redis_server.url, circuit="dep")
    integration = integration_of(app)
    before = integration.lot, integration.dead_letters, integration.revoked
    init_app(app, key_prefix=key_prefix)
    assert isinstance(integration.lot, Lot)
    assert integration.lot._prefix == key_prefix
    assert not {id(part) for part in before} & {
        id(integration.lot),
        id(integration.dead_letters),
        id(integration.revoked),
    }


@pytest.mark.parametrize(
    ("task", "conf", "words"),
    [
        ({}, {}, "task guarded has no time_limit"),
        ({"time_limit": 7200, "acks_late": True}, {}, "task guarded may run for 7200 s, but the broker"),
        ({"time_limit": 5}, {"result_expires": 30}, "circuit dep stays open for 60 s, but results are forgotten"),
    ],
    ids=["no time limit", "visibility timeout", "result_expires"],
)
def test_what_breaks_a_promise_is_warned_of(
    redis_server: EmbeddedServer, task: dict[str, Any], conf: dict[str, Any], words: str
) -> None:
    """The worker starts, and says in one line which promise does not hold, and why."""
    app = _app(redis_server.url, circuit="dep", **task)
    app.conf.update(conf)
    assert [line for line in warnings(integration_of(app)) if line.startswith(words)]


def test_a_good_application_is_warned_of_nothing(redis_server: EmbeddedServer) -> None:
    """With a time limit, Celery's own defaults, and our way to fetch from Redis there is nothing to say."""
    app = _app(redis_server.url, circuit="dep", time_limit=60, acks_late=True)
    [line] = warnings(integration_of(app))
    assert line.startswith("broker_transport is kombu's")
    app.conf.broker_transport = "omni_tasks.integration.fetch:Transport"
    assert app.conf.broker_transport in line
    assert warnings(integration_of(app)) == []


def test_our_fetch_is_said_to_end_at_the_second_broker(redis_server: EmbeddedServer) -> None:
    """Kombu takes the transport of the next broker from its URL."""
    app = _app(redis_server.url, circuit="dep", time_limit=60)
    app.conf.broker_url = [redis_server.url, redis_server.url]
    app.conf.broker_transport = "omni_tasks.integration.fetch:Transport"
    check(integration_of(app))
    [line] = warnings(integration_of(app))
    assert line.startswith("broker_url names several brokers")


@pytest.mark.parametrize("url", ["amqp://guest@127.0.0.1/", "sentinel://127.0.0.1:26379"])
def test_our_fetch_is_for_redis_only(redis_server: EmbeddedServer, url: str) -> None:
    """On any other broker the start is refused, in one line."""
    app = _app(url, circuit="dep")
    # Another way to say the same.
    app.conf.broker_transport = "omni_tasks.integration.fetch.Transport"
    init_app(app, redis_url=redis_server.url)
    assert _refusal(app).startswith("broker_transport must be left out with a ")


def test_publishing_without_confirmation_is_warned_of() -> None:
    """On RabbitMQ."""
    app = _app("amqp://guest@127.0.0.1/", circuit="dep", time_limit=60)
    init_app(app, redis_url="redis://127.0.0.1:1/0")
    [line] = warnings(integration_of(app))
    assert line.startswith("broker_transport_options has no confirm_publish")
    app.conf.broker_transport_options = {"confirm_publish": True}
    assert warnings(integration_of(app)) == []
