"""
The monitor's tick and the exported metrics, on a real server.
"""

from __future__ import annotations

import json
import logging

import pytest
import redis
from celery import Celery
from prometheus_client import CollectorRegistry

from omni_tasks import CircuitBreakerManager, CircuitOpenError, ResilienceConfiguration, init_app
from omni_tasks.embedded import EmbeddedServer, start_server
from omni_tasks.observe import monitor
from omni_tasks.observe.metrics import CircuitCollector
from omni_tasks.store.schema import circuit_keys

CONF = {"omni_circuits": {"dep": {"failure_threshold": 2, "recovery_timeout": 900.0}}}


def _manager(url: str, prefix: str) -> CircuitBreakerManager:
    conf = {**CONF, "omni_redis_url": url, "omni_key_prefix": prefix}
    return CircuitBreakerManager(ResilienceConfiguration.load(conf, environ={}))


def _fail() -> None:
    raise OSError("down")


def _open(manager: CircuitBreakerManager) -> None:
    for _ in range(2):
        with pytest.raises(OSError, match="down"):
            manager.call("dep", _fail)


def _events(caplog: pytest.LogCaptureFixture, name: str) -> list[dict[str, object]]:
    found = [json.loads(record.message) for record in caplog.records if record.name == "omni_tasks"]
    return [event for event in found if event["event"] == name]


def test_an_outage_of_over_five_minutes_is_told_once_and_resolved_once(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However many monitors tick, an episode is one alert and one recovery."""
    caplog.set_level(logging.INFO, "omni_tasks")
    managers = [_manager(redis_server.url, key_prefix) for _ in range(2)]
    _open(managers[0])
    assert monitor.tick(managers[0])["dep"] == "open"
    assert _events(caplog, "circuit_breaker_alert") == []

    # Six minutes ago, as the server's clock would have it; the probes since then have failed.
    circuit = circuit_keys(key_prefix, "dep")[0]
    redis_client.hincrby(circuit, "tripped_at_ms", -360_000)
    for manager in managers * 2:
        monitor.tick(manager)
    [alert] = _events(caplog, "circuit_breaker_alert")
    assert (alert["component"], alert["alert"], alert["failure_count"]) == ("dep", "open_too_long", 2)

    managers[0].get("dep").reset()
    for manager in managers * 2:
        monitor.tick(manager)
    assert len(_events(caplog, "circuit_breaker_recovered")) == 1


def test_metrics_are_the_clusters(redis_server: EmbeddedServer, key_prefix: str) -> None:
    """What one process did is exported by another, under the promised names."""
    worker, exporter = _manager(redis_server.url, key_prefix), _manager(redis_server.url, key_prefix)
    worker.call("dep", lambda: None)
    _open(worker)
    with pytest.raises(CircuitOpenError):
        worker.call("dep", lambda: None)
    registry = CollectorRegistry()
    registry.register(CircuitCollector(exporter))
    label = {"component": "dep"}
    assert registry.get_sample_value("circuit_breaker_requests_total", label) == 3
    assert registry.get_sample_value("circuit_breaker_failures_total", label) == 2
    assert registry.get_sample_value("circuit_breaker_failure_rate", label) == pytest.approx(2 / 3)
    assert registry.get_sample_value("circuit_breaker_state", label) == 1
    assert registry.get_sample_value("circuit_breaker_rejected_total", label) == 1
    assert registry.get_sample_value("circuit_breaker_store_up") == 1


def test_a_silent_store_exports_no_state(key_prefix: str) -> None:
    """While the store is away its series are gone: nothing reads as closed."""
    with start_server() as server:
        registry = CollectorRegistry()
        registry.register(CircuitCollector(_manager(server.url, key_prefix)))
        server.kill()
        assert registry.get_sample_value("circuit_breaker_store_up") == 0
        assert registry.get_sample_value("circuit_breaker_state", {"component": "dep"}) is None


def test_the_tick_is_on_beats_schedule(redis_server: EmbeddedServer, key_prefix: str) -> None:
    """init_app puts the monitor on the schedule, every RESILIENCE_MONITORING_INTERVAL, once."""
    app = Celery("scheduled", broker=redis_server.url, set_as_current=False)
    init_app(app, key_prefix=key_prefix, resilience_monitoring_interval=7.0)
    init_app(app)
    app.finalize()
    entries = [entry for entry in app.conf.beat_schedule.values() if entry["task"] == "omni_tasks.monitor"]
    assert [entry["schedule"] for entry in entries] == [7.0]
    assert app.tasks["omni_tasks.monitor"].apply().get()["ai_providers"] == "closed"
