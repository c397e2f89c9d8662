"""
The monitor's tick, on a real server.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest
import redis
from celery import Celery
from prometheus_client import CollectorRegistry

from omni_tasks import init_app
from omni_tasks.embedded import EmbeddedServer, start_server
from omni_tasks.errors import ParkingError
from omni_tasks.observe import alerts
from omni_tasks.observe import monitor as monitoring
from omni_tasks.observe.alerts import MOST_AT_ONCE
from omni_tasks.observe.metrics import CircuitCollector
from omni_tasks.observe.monitor import Monitor
from omni_tasks.store.schema import circuit_keys, history_keys, monitor_key
from tests.support.log import events
from tests.support.observed import DEP, Held, Kept, make_manager, open_circuit, stored, tick_again


def test_an_outage_of_over_five_minutes_is_told_once_and_resolved_once(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However many monitors tick, an episode is one alert and one recovery, in the log as in any sink."""
    kept = Kept()
    managers = [make_manager(redis_server.url, key_prefix, alert_sinks=["log", kept]) for _ in range(2)]
    monitors = [Monitor(manager) for manager in managers]
    open_circuit(managers[0])
    assert tick_again(redis_client, key_prefix, monitors[0])["dep"] == "open"
    assert kept.told() == []

    # Six minutes ago, as the server's clock would have it; the probes since then have failed.
    redis_client.hincrby(circuit_keys(key_prefix, "dep")[0], "tripped_at_ms", -360_000)
    for monitor in monitors * 2:
        tick_again(redis_client, key_prefix, monitor)
    assert kept.told() == [("firing", "open_too_long", "dep")]
    [alert] = events(caplog, "circuit_breaker_alert")
    assert (alert["component"], alert["alert"], alert["failure_count"]) == ("dep", "open_too_long", 2)
    assert (alert["previous_state"], alert["failure_threshold"], alert["alert_id"]) == ("open", 2, kept.notes[0].id)

    managers[0].get("dep").reset()
    for monitor in monitors * 2:
        tick_again(redis_client, key_prefix, monitor)
    assert kept.told()[1:] == [("resolved", "open_too_long", "dep")]
    assert kept.notes[0].episode == kept.notes[1].episode
    assert len(events(caplog, "circuit_breaker_recovered")) == 1


def test_an_episode_is_refreshed(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While an alert goes on, its episode in the store keeps its beginning and takes what is new."""
    monkeypatch.setattr(alerts, "REFRESH_MS", 0)
    manager = make_manager(redis_server.url, key_prefix, alert_sinks=[])
    monitor = Monitor(manager)
    open_circuit(manager)
    redis_client.hincrby(circuit_keys(key_prefix, "dep")[0], "tripped_at_ms", -360_000)
    tick_again(redis_client, key_prefix, monitor)
    [first] = monitor._state.episodes().values()
    redis_client.hincrby(circuit_keys(key_prefix, "dep")[0], "tripped_at_ms", -60_000)
    tick_again(redis_client, key_prefix, monitor)
    [second] = monitor._state.episodes().values()
    assert (second.id, second.since_ms) == (first.id, first.since_ms)
    assert second.refreshed_ms > first.refreshed_ms
    assert second.details["seconds_open"] - first.details["seconds_open"] >= 60


def test_a_look_belongs_to_one_tick(redis_server: EmbeddedServer, key_prefix: str) -> None:
    """Of ticks that come at the same time, one looks at a circuit; it is due again when its own interval has passed."""
    circuits = {"dep": {**DEP, "monitor_interval": 30.0}, "often": {"monitor_interval": 0.001}}
    monitors = [Monitor(make_manager(redis_server.url, key_prefix, circuits)) for _ in range(2)]
    first = [monitor.tick() for monitor in monitors]
    assert {"dep", "often", "cache"} <= first[0].keys()
    assert "dep" not in first[1]
    time.sleep(0.002)
    assert monitors[1].tick() == {"often": "closed"}


def test_a_clock_that_steps_back_stops_no_look(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str
) -> None:
    """A last look in the future is one from before the server's clock stepped back."""
    monitor = Monitor(make_manager(redis_server.url, key_prefix))
    redis_client.hset(monitor_key(key_prefix, "seen"), "dep", str(2 * 10**13))
    assert "dep" in monitor.tick()


def test_the_other_rules_fire(redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str) -> None:
    """A high failure rate with enough calls behind it, flapping, and a provider that refuses the account are told."""
    kept = Kept()
    manager = make_manager(redis_server.url, key_prefix, alert_sinks=[kept])
    monitor, circuit = Monitor(manager), stored(redis_client, key_prefix)
    tick_again(redis_client, key_prefix, monitor)
    circuit(gen="g", succeeded=4, failed=15)
    tick_again(redis_client, key_prefix, monitor)
    assert kept.told() == []
    circuit(failed=17, trips=3, state="open", reason="billing", tripped_at_ms=1, open_until_ms=10**13)
    tick_again(redis_client, key_prefix, monitor)
    fired = {(alert, component) for status, alert, component in kept.told() if status == "firing"}
    assert fired == {(alert, "dep") for alert in ("failure_rate_high", "flapping", "provider_blocked", "open_too_long")}
    details = {note.alert: note.details for note in kept.notes}
    assert details["failure_rate_high"]["calls"] == 21
    assert details["provider_blocked"]["reason"] == "billing"
    assert {note.severity for note in kept.notes if note.alert == "provider_blocked"} == {"critical"}


def test_a_long_rate_limit_is_no_outage(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str
) -> None:
    """A circuit that waits because a provider asks for fewer calls is not told as open for too long."""
    kept = Kept()
    manager = make_manager(redis_server.url, key_prefix, alert_sinks=[kept])
    monitor, circuit = Monitor(manager), stored(redis_client, key_prefix)
    circuit(gen="g", state="open", reason="rate_limit", tripped_at_ms=1, open_until_ms=10**13)
    tick_again(redis_client, key_prefix, monitor)
    assert kept.told() == []
    circuit(reason="unavailable")
    tick_again(redis_client, key_prefix, monitor)
    assert kept.told() == [("firing", "open_too_long", "dep")]


def test_many_alerts_at_once_are_told_together(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str
) -> None:
    """More circuits in trouble than a person can read of are one summary; it is resolved with the last of them."""
    names = [f"c{number}" for number in range(MOST_AT_ONCE + 5)]
    kept = Kept()
    manager = make_manager(redis_server.url, key_prefix, dict.fromkeys(names, DEP), alert_sinks=[kept])
    monitor = Monitor(manager)
    for name in names:
        stored(redis_client, key_prefix, name)(gen="g", state="open", tripped_at_ms=1, open_until_ms=10**13)
    for _ in range(2):
        tick_again(redis_client, key_prefix, monitor)
    assert kept.told() == [("firing", "open_too_long", "")]
    assert kept.notes[0].details["circuits"] == len(names)
    assert len(monitor._state.episodes()) == len(names) + 1
    for name in names[1:]:
        manager.get(name).reset()
    tick_again(redis_client, key_prefix, monitor)
    assert len(kept.notes) == 1
    manager.get(names[0]).reset()
    tick_again(redis_client, key_prefix, monitor)
    assert kept.told()[1:] == [("resolved", "open_too_long", "")]
    assert monitor._state.episodes() == {}


def test_a_circuit_that_is_gone_has_no_alert(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str
) -> None:
    """What was told about a circuit ends when the circuit is taken out of the configuration."""
    manager = make_manager(redis_server.url, key_prefix, alert_sinks=[])
    open_circuit(manager)
    redis_client.hincrby(circuit_keys(key_prefix, "dep")[0], "tripped_at_ms", -360_000)
    tick_again(redis_client, key_prefix, Monitor(manager))
    kept = Kept()
    without = Monitor(make_manager(redis_server.url, key_prefix, {}, alert_sinks=[kept]))
    tick_again(redis_client, key_prefix, without)
    assert kept.told() == [("resolved", "open_too_long", "dep")]


def test_damaged_episodes_are_begun_anew(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str
) -> None:
    """An episode that cannot be read stops no tick; what goes on is told again."""
    kept = Kept()
    manager = make_manager(redis_server.url, key_prefix, alert_sinks=[kept])
    open_circuit(manager)
    redis_client.hincrby(circuit_keys(key_prefix, "dep")[0], "tripped_at_ms", -360_000)
    episodes = monitor_key(key_prefix, "alerts")
    redis_client.hset(episodes, mapping={"open_too_long:dep": "{", "flapping:dep": "[]"})
    tick_again(redis_client, key_prefix, Monitor(manager))
    assert kept.told() == [("firing", "open_too_long", "dep")]


def test_a_lost_store_is_told_by_who_finds_it_lost(
    key_prefix: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the store is away nothing can be kept there: each process tells it once, and once that it is back."""
    kept = Kept()
    with start_server() as server:
        monitor = Monitor(make_manager(server.url, key_prefix, alert_sinks=[kept]))
        monitor.tick()
        server.kill()
        assert set(monitor.tick().values()) == {"degraded"}
        assert kept.told() == []
        # Half a minute later.
        monkeypatch.setattr(monitoring, "AWAY_FOR", 0.0)
        monitor.tick()
        monitor.tick()
        assert kept.told() == [("firing", "store_degraded", "")]
        assert len(events(caplog, "circuit_monitor_failed")) == 3
    monitor._manager.redis_url = None
    monitor._store_is_back(1)
    assert kept.told()[1:] == [("resolved", "store_degraded", "")]


def test_missed_ticks_are_told(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A tick that comes more than three intervals after the last one says so."""
    monitor = Monitor(make_manager(redis_server.url, key_prefix))
    monitor.tick()
    assert events(caplog, "circuit_monitor_late") == []
    redis_client.hincrby(monitor_key(key_prefix, "seen"), "\0main", -31_000)
    monitor.tick()
    [late] = events(caplog, "circuit_monitor_late")
    assert 31 <= late["seconds"] < 40


def test_without_a_store_there_is_nothing_to_keep(key_prefix: str) -> None:
    """Circuits in one process's memory are looked at, and that is all."""
    assert Monitor(make_manager(None, key_prefix)).tick()["dep"] == "closed"


def test_the_ticks_are_on_beats_schedule(redis_server: EmbeddedServer, key_prefix: str) -> None:
    """init_app schedules the monitor, every RESILIENCE_MONITORING_INTERVAL and as often as a circuit wants, once."""
    app = Celery("scheduled", broker=redis_server.url, set_as_current=False)
    init_app(app, key_prefix=key_prefix, resilience_monitoring_interval=7.0)
    init_app(app)
    app.finalize()
    entries = {
        name: entry["schedule"]
        for name, entry in app.conf.beat_schedule.items()
        if entry["task"] == "omni_tasks.monitor"
    }
    assert entries == {
        "omni-monitor": 7.0,
        "omni-monitor-5s": 5.0,
        "omni-monitor-10s": 10.0,
        "omni-monitor-15s": 15.0,
        "omni-monitor-20s": 20.0,
    }
    assert app.tasks["omni_tasks.monitor"].apply().get()["ai_providers"] == "closed"


@pytest.mark.parametrize("name", ["seen", "alerts", "tick", "delivered", "outbox:log", "due:log"])
def test_a_key_of_another_type_begins_anew(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str, name: str
) -> None:
    """A key of the monitor's that somebody else has written to stops one tick at most."""
    monitor = Monitor(make_manager(redis_server.url, key_prefix))
    redis_client.set(monitor_key(key_prefix, name), "x")
    stored(redis_client, key_prefix)(gen="g", state="open", tripped_at_ms=1, open_until_ms=10**13)
    monitor.tick()
    assert tick_again(redis_client, key_prefix, monitor)["dep"] == "open"
    status = monitor._state.status()
    assert list(status.episodes) == ["open_too_long:dep"]
    assert status.ticks >= 1


@pytest.mark.parametrize("number", range(3))
def test_history_of_another_type_begins_anew(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str, number: int
) -> None:
    """A key of a circuit's history that somebody else has written to stops nobody."""
    monitor = Monitor(make_manager(redis_server.url, key_prefix))
    redis_client.set(history_keys(key_prefix, "dep")[number], "x")
    for _ in range(2):
        assert tick_again(redis_client, key_prefix, monitor)["dep"] == "closed"


def test_circuits_of_keys_are_monitored(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str
) -> None:
    """The circuit of a key is looked at, told about and recorded as any other, by processes that never used it."""
    kept = Kept()
    worker = make_manager(redis_server.url, key_prefix)
    open_circuit(worker, "dep:openai")
    monitor = Monitor(make_manager(redis_server.url, key_prefix, alert_sinks=[kept]))
    redis_client.hincrby(circuit_keys(key_prefix, "dep:openai")[0], "tripped_at_ms", -360_000)
    assert tick_again(redis_client, key_prefix, monitor)["dep:openai"] == "open"
    assert kept.told() == [("firing", "open_too_long", "dep:openai")]
    open_circuit(worker, "dep:deepseek")
    tick_again(redis_client, key_prefix, monitor)
    worker.get("dep:openai").reset()
    tick_again(redis_client, key_prefix, monitor)
    assert kept.told()[1:] == [("resolved", "open_too_long", "dep:openai")]
    registry = CollectorRegistry()
    registry.register(CircuitCollector(monitor._manager))
    assert registry.get_sample_value("circuit_breaker_state", {"component": "dep:deepseek"}) == 1
    assert redis_client.exists(history_keys(key_prefix, "dep:openai")[0])


def test_last_looks_of_circuits_that_are_gone_are_dropped(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str
) -> None:
    """Circuits that come and go, such as those of keys, leave nothing that grows."""
    monitor = Monitor(make_manager(redis_server.url, key_prefix))
    redis_client.hset(monitor_key(key_prefix, "seen"), mapping={f"dep:{number}": 1 for number in range(200)})
    monitor.tick()
    assert not redis_client.exists(monitor_key(key_prefix, "seen"))
    assert "dep" in monitor.tick()


class _Old(Held):
    """
    A place whose oldest task has waited for an hour and a second, and that can break.
    """

    age: float = 3601.0
    broken = False

    def counts(self, circuits: Iterable[str]) -> dict[str, int]:
        """
        One each.
        """
        if self.broken:
            raise RuntimeError("the broker is away")
        return super().counts(circuits)

    def oldest(self, circuits: Iterable[str]) -> dict[str, float]:
        """
        The same for all.
        """
        return dict.fromkeys(circuits, self.age)


def test_tasks_held_for_too_long_are_told(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A task held for more than an hour is told; while the broker cannot be asked, what was told goes on."""
    kept, place = Kept(), _Old()
    monitor = Monitor(make_manager(redis_server.url, key_prefix, alert_sinks=[kept]), lot=place)
    tick_again(redis_client, key_prefix, monitor)
    assert ("firing", "held_too_old", "dep") in kept.told()
    told = len(kept.notes)
    place.broken = True
    assert tick_again(redis_client, key_prefix, monitor)["dep"] == "closed"
    assert len(kept.notes) == told
    assert len(events(caplog, "circuit_monitor_failed")) == 1
    place.broken, place.age = False, 3599.0
    tick_again(redis_client, key_prefix, monitor)
    assert ("resolved", "held_too_old", "dep") in kept.told()


def test_held_tasks_that_may_go_are_moved_by_the_main_tick(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str
) -> None:
    """The monitor moves what no worker has moved, once a main tick."""
    moved: list[int] = []
    monitor = Monitor(make_manager(redis_server.url, key_prefix), move=lambda: moved.append(1))
    monitor.tick()
    monitor.tick()
    assert moved == [1]
    tick_again(redis_client, key_prefix, monitor)
    assert moved == [1, 1]


@pytest.mark.parametrize("error", [ParkingError("away"), redis.ConnectionError("away"), RuntimeError("away")])
def test_a_broker_that_is_away_keeps_no_alert_back(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str, error: Exception
) -> None:
    """While held tasks cannot be moved, alerts are delivered and the tick is finished: the store is not away."""

    def move() -> None:
        raise error

    kept = Kept()
    monitor = Monitor(make_manager(redis_server.url, key_prefix, alert_sinks=[kept]), move=move)
    stored(redis_client, key_prefix)(gen="g", state="open", tripped_at_ms=1, open_until_ms=10**13)
    assert monitor.tick()["dep"] == "open"
    assert kept.told() == [("firing", "open_too_long", "dep")]
    assert monitor._state.status().ticks == 1
