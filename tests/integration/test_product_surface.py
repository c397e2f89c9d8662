"""
Everything the product promises by name, used as a script would use it: in memory and on a real server.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

import omni_tasks
from omni_tasks import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerManager,
    CircuitBreakerMetrics,
    CircuitBreakerTask,
    CircuitOpenError,
    CircuitState,
    ConfigurationError,
    ResilienceConfiguration,
    circuit_breaker,
    circuit_breaker_context,
    get_circuit_breaker_manager,
    init_app,
    signals,
)
from omni_tasks.embedded import EmbeddedServer
from omni_tasks.manager import use_manager
from tests.support.eventually import eventually
from tests.support.log import events

#: Variable -> default, another value, and one that is refused.
VARIABLES: dict[str, tuple[Any, str, Any, str]] = {
    "ENABLE_RESILIENCE": (True, "false", False, "maybe"),
    "DEFAULT_FAILURE_THRESHOLD": (5, "7", 7, "0"),
    "DEFAULT_RECOVERY_TIMEOUT": (60.0, "7.5", 7.5, "-1"),
    "DEFAULT_MAX_RETRIES": (3, "0", 0, "-1"),
    "DEFAULT_TIMEOUT": (30.0, "7.5", 7.5, "soon"),
    "ENABLE_RESILIENCE_METRICS": (True, "no", False, "maybe"),
    "ENABLE_RESILIENCE_LOGGING": (True, "0", False, ""),
    "RESILIENCE_MONITORING_INTERVAL": (10.0, "1", 1.0, "0"),
    "RESILIENCE_ALERT_THRESHOLD": (0.8, "0.5", 0.5, "1.1"),
}

#: Key -> name, failure_threshold, recovery_timeout s, monitor_interval s.
READY = {
    "ai_providers": ("ai_providers_cb", 5, 180, 20),
    "external_api": ("external_api_cb", 3, 120, 15),
    "database": ("database_cb", 3, 60, 10),
    "cache": ("cache_cb", 2, 30, 5),
}

METRICS = {
    "name",
    "state",
    "total_requests",
    "successful_requests",
    "failed_requests",
    "failure_rate",
    "consecutive_failures",
    "consecutive_successes",
    "circuit_open_count",
    "circuit_half_open_count",
    "last_failure_time",
    "last_success_time",
    "last_state_change",
    "time_in_current_state",
}


class DownError(Exception):
    """
    The provider is down.
    """


@pytest.fixture(params=["memory", "redis"])
def environment(request: pytest.FixtureRequest, key_prefix: str, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """
    A clean environment; with the URL of a server, or without one.
    """
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("OMNI_CIRCUITS", raising=False)
    monkeypatch.setenv("OMNI_KEY_PREFIX", key_prefix)
    if request.param == "memory":
        monkeypatch.delenv("OMNI_REDIS_URL", raising=False)
        return None
    server: EmbeddedServer = request.getfixturevalue("redis_server")
    monkeypatch.setenv("OMNI_REDIS_URL", server.url)
    return server.url


def _raise(error: BaseException) -> None:
    raise error


def _fail(breaker: CircuitBreaker, times: int) -> None:
    for _ in range(times):
        with pytest.raises(DownError):
            breaker.call(_raise, DownError())


# One breaker


CONFIG = CircuitBreakerConfig(
    name="provider",
    failure_threshold=3,
    recovery_timeout=0.2,
    monitor_interval=10.0,
    half_open_max_calls=1,
    success_threshold=1,
    probe_lease=30.0,
)


@pytest.fixture
def breaker(environment: str | None, caplog: pytest.LogCaptureFixture) -> CircuitBreaker:
    """
    A breaker of its own, made as the environment says; everything it logs is kept.
    """
    caplog.set_level(logging.DEBUG, "omni_tasks")
    return CircuitBreaker(CONFIG, redis_url=environment)


def _recover(breaker: CircuitBreaker) -> None:
    def runs() -> bool:
        try:
            return breaker.call(int, "7") == 7
        except CircuitOpenError:
            return False

    eventually(runs, within=10, what="the circuit lets a probe through")


def test_a_breakers_life(breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture) -> None:
    """
    A breaker trips, refuses, probes and closes; callbacks and log tell of it.
    """
    CircuitBreaker(CONFIG)
    assert events(caplog, "circuit_breaker_init")[0]["component"] == "provider"
    told: list[tuple[str, str]] = []
    breaker.add_on_open_callback(lambda cb: told.append(("open", cb.config.name)))
    breaker.add_on_open_callback(lambda _: _raise(ValueError("a callback that raises changes nothing")))
    breaker.add_on_half_open_callback(lambda cb: told.append(("half_open", cb.config.name)))
    breaker.add_on_close_callback(lambda cb: told.append(("closed", cb.config.name)))
    _fail(breaker, 3)
    with pytest.raises(CircuitOpenError) as refused:
        breaker.call(int, "7")
    copy = pickle.loads(pickle.dumps(refused.value))  # noqa: S301 - pickled on the line itself
    assert (copy.circuit, copy.state) == ("provider", "open")
    assert 0 < copy.retry_after <= 0.2
    _recover(breaker)
    assert told == [("open", "provider"), ("half_open", "provider"), ("closed", "provider")]
    for event, state in (("open", "closed"), ("half_open", "open"), ("closed", "half_open")):
        [said] = events(caplog, f"circuit_breaker_{event}")
        assert (said["component"], said["previous_state"], said["failure_threshold"]) == ("provider", state, 3)
        assert said["failure_count"] in {0, 3}
        assert said["timestamp"].endswith(("Z", "+00:00"))


def test_a_breakers_metrics(breaker: CircuitBreaker) -> None:
    """
    All the numbers that are promised, after a life of it.
    """
    assert breaker.call(int, "7") == 7
    _fail(breaker, 3)
    _recover(breaker)
    metrics = breaker.get_metrics()
    assert {field.name for field in dataclasses.fields(CircuitBreakerMetrics)} >= METRICS
    assert (metrics.name, metrics.state) == ("provider", CircuitState.CLOSED)
    assert (metrics.total_requests, metrics.successful_requests, metrics.failed_requests) == (5, 2, 3)
    assert metrics.failure_rate == pytest.approx(0.6)
    assert (metrics.consecutive_failures, metrics.consecutive_successes) == (0, 1)
    assert (metrics.circuit_open_count, metrics.circuit_half_open_count) == (1, 1)
    assert metrics.last_failure_time is not None
    assert metrics.last_success_time is not None
    assert metrics.last_failure_time < metrics.last_success_time
    assert metrics.last_state_change is not None
    assert metrics.time_in_current_state >= 0


def test_the_operators_words(breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture) -> None:
    """
    Forced open, forced closed, reset: signed, explained, for a while.
    """
    breaker.force_open(ttl=60, actor="ops", reason="maintenance")
    assert breaker.get_metrics().state is CircuitState.OPEN
    breaker.force_close(ttl=60, actor="ops", reason="over")
    assert breaker.call(int, "7") == 7
    breaker.reset(actor="ops", reason="anew")
    assert breaker.get_metrics().total_requests == 0
    [said] = events(caplog, "circuit_breaker_reset")
    assert (said["component"], said["actor"], said["reason"]) == ("provider", "ops", "anew")


def test_the_log_is_documented() -> None:
    """
    The seven events have their rows; the last two are the monitor's, shown in ``tests/integration/test_monitor.py``.
    """
    documented = str(omni_tasks.events.__doc__)
    for name in ("init", "open", "half_open", "closed", "reset", "alert", "recovered"):
        assert f"``circuit_breaker_{name}``" in documented


# The manager, the decorator, the context manager


def test_names_to_breakers(environment: str | None) -> None:
    """
    A manager finds, registers, calls, reads and resets; the process's own is made from the environment.
    """
    manager = CircuitBreakerManager(settings=None, redis_url=environment)
    config = CircuitBreakerConfig(name="supplier", failure_threshold=2)
    assert manager.register(config) is manager.get("supplier")
    assert manager.register(config, key="other") is manager.get("other")
    assert manager.call("supplier", max, 1, 2) == 2
    _fail(manager.get("supplier"), 2)
    assert manager.get_all_metrics()["supplier"].state is CircuitState.OPEN
    manager.reset_all()
    assert manager.get_all_metrics()["supplier"].total_requests == 0
    use_manager(None)
    assert get_circuit_breaker_manager() is get_circuit_breaker_manager()


@pytest.mark.usefixtures("environment")
def test_around_plain_code() -> None:
    """
    The decorator and the context manager, for functions and coroutines, for circuits and their keys.
    """
    breaker = get_circuit_breaker_manager().get("ai_providers")

    @circuit_breaker("ai_providers")
    def ask(prompt: str) -> str:
        return prompt

    @circuit_breaker("ai_providers", key=lambda model, **_: model, fallback=lambda _, reason: type(reason))
    async def ask_later(model: str) -> Any:
        await asyncio.sleep(0)
        return model

    async def block() -> None:
        async with circuit_breaker_context("ai_providers", key="openai") as inside, breaker:
            assert inside is breaker.keyed("openai")

    assert (ask("hello"), asyncio.run(ask_later("openai"))) == ("hello", "openai")
    asyncio.run(block())
    with circuit_breaker_context("ai_providers") as inside:
        assert inside is breaker
    with circuit_breaker_context("nobody") as inside:
        assert inside is None
    breaker.force_open()
    breaker.keyed("openai").force_open()
    with pytest.raises(CircuitOpenError):
        ask("hello")
    assert asyncio.run(ask_later("openai")) is CircuitOpenError


# Celery


def test_an_application(environment: str | None, key_prefix: str) -> None:
    """
    ``init_app`` twice, a task base class by option and by name, and signals to connect to.
    """
    app = Celery("surface", broker=environment or "memory://", set_as_current=False)
    init_app(app, key_prefix=key_prefix, circuits={"ai_providers": {"failure_threshold": 1}})
    init_app(app)
    sent: list[tuple[str, str]] = []

    def receive(sender: str, breaker: CircuitBreaker, **_: Any) -> None:
        sent.append((sender, breaker.config.name))

    @app.task(base=CircuitBreakerTask, circuit="ai_providers", shared=False)
    def write() -> None:
        raise DownError

    signals.circuit_opened.connect(receive)
    try:
        with pytest.raises(DownError):
            write()
        with pytest.raises(CircuitOpenError):
            write.apply(throw=True)
    finally:
        signals.circuit_opened.disconnect(receive)
    assert sent == [("ai_providers", "ai_providers_cb")]
    for name in ("circuit_half_opened", "circuit_closed", "task_held", "task_released"):
        assert callable(getattr(signals, name).connect)

    everything = Celery("all", broker="memory://", set_as_current=False, task_cls="omni_tasks:CircuitBreakerTask")

    @everything.task(shared=False)
    def plain() -> int:
        return 7

    assert (plain(), plain.circuit, plain.max_retries) == (7, None, 3)


# Settings


def test_the_variables() -> None:
    """
    Each has its default, is read, and refuses in one line what it cannot be.
    """
    unset = ResilienceConfiguration.load({}, {})
    for variable, (default, given, read, _) in VARIABLES.items():
        assert getattr(unset, variable.lower()) == default
        assert getattr(ResilienceConfiguration.load({}, {variable: given}), variable.lower()) == read


@pytest.mark.parametrize(("variable", "wrong"), [(name, row[3]) for name, row in VARIABLES.items() if row[3]])
def test_the_variables_refusals(variable: str, wrong: str) -> None:
    """
    The line names the variable, the value and what is allowed.
    """
    with pytest.raises(ConfigurationError) as refused:
        ResilienceConfiguration.load({}, {variable: wrong})
    message = str(refused.value)
    assert message.startswith(f"{variable} must be ")
    assert message.endswith(f", got {wrong!r}")
    assert "\n" not in message


def test_what_comes_first() -> None:
    """
    A circuit's entry before the environment, the environment before Celery's configuration, that before the default.
    """
    conf = {"omni_default_failure_threshold": 2, "omni_default_recovery_timeout": 20, "omni_key_prefix": "conf"}
    environ = {
        "DEFAULT_FAILURE_THRESHOLD": "3",
        "OMNI_KEY_PREFIX": "environ",
        "OMNI_CIRCUITS": json.dumps({"mine": {"recovery_timeout": 40}, "other": {}}),
    }
    settings = ResilienceConfiguration.load(conf, environ)
    mine, other = settings.circuits["mine"], settings.circuits["other"]
    assert (mine.failure_threshold, mine.recovery_timeout) == (3, 40)
    assert (other.failure_threshold, other.recovery_timeout) == (3, 20)
    assert settings.key_prefix == "environ"


def test_the_ready_circuits() -> None:
    """
    Four circuits are there without any configuration.
    """
    circuits = CircuitBreakerManager(ResilienceConfiguration.load({}, {})).settings.circuits
    options: Callable[[CircuitBreakerConfig], tuple[Any, ...]] = lambda c: (  # noqa: E731 - one row of the table
        c.name,
        c.failure_threshold,
        c.recovery_timeout,
        c.monitor_interval,
    )
    assert {key: options(config) for key, config in circuits.items()} == READY
