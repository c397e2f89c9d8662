"""
The exporter over HTTP, as Prometheus asks it.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from omni_tasks.cli import main
from omni_tasks.embedded import EmbeddedServer, start_server
from omni_tasks.observe.exporter import Exporter
from omni_tasks.observe.metrics import CircuitCollector
from omni_tasks.observe.monitor import Monitor
from omni_tasks.observe.push import push
from omni_tasks.store.schema import circuit_keys, monitor_key
from omni_tasks.tied import spawn_tied
from tests.support.eventually import eventually
from tests.support.http_server import HttpServer, Reply
from tests.support.log import events
from tests.support.observed import Held, make_manager, open_circuit, stored, tick_again
from tests.support.stopwatch import Stopwatch
from tests.support.worker import ROOT


@contextmanager
def _serving(collector: CircuitCollector) -> Iterator[Exporter]:
    exporter = Exporter(collector, host="127.0.0.1", port=0)
    exporter.start()
    try:
        yield exporter
    finally:
        exporter.close()


def _get(port: int, path: str = "/metrics", accept: str = "") -> tuple[int, str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Accept": accept} if accept else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own server
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, "", ""


def _answers(port: int) -> bool:
    try:
        return _get(port)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def _openmetrics(text: str) -> list[Metric]:
    return list(openmetrics.text_string_to_metric_families(text))  # type: ignore[no-untyped-call] # left untyped there


def _values(text: str) -> dict[str, float]:
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if not line.startswith("#")
    }


def test_metrics_are_the_clusters(redis_server: EmbeddedServer, key_prefix: str) -> None:
    """What one process did is exported by another, under the promised names."""
    worker = make_manager(redis_server.url, key_prefix)
    worker.call("dep", int)
    open_circuit(worker)
    with _serving(CircuitCollector(make_manager(redis_server.url, key_prefix))) as exporter:
        status, kind, text = _get(exporter.port)
    values = _values(text)
    assert (status, kind.partition(";")[0]) == (200, "text/plain")
    assert values['circuit_breaker_requests_total{component="dep"}'] == 3
    assert values['circuit_breaker_failures_total{component="dep"}'] == 2
    assert values['circuit_breaker_failure_rate{component="dep"}'] == pytest.approx(2 / 3)
    assert values['circuit_breaker_state{component="dep"}'] == 1
    assert values["circuit_breaker_store_up"] == 1


def test_whoever_asks_for_openmetrics_gets_it(redis_server: EmbeddedServer, key_prefix: str) -> None:
    """Both forms can be read by Prometheus' own parsers, and say the same."""
    manager = make_manager(redis_server.url, key_prefix)
    Monitor(manager).tick()
    with _serving(CircuitCollector(manager, Held())) as exporter:
        _, plain_kind, plain = _get(exporter.port)
        _, kind, text = _get(exporter.port, accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert plain_kind.startswith("text/plain")
    names = {family.name for family in _openmetrics(text)}
    assert names == {family.name for family in read_text(plain)}
    assert {"circuit_breaker_requests", "circuit_breaker_call_duration_seconds", "circuit_breaker_held_tasks"} <= names


def test_other_pages_are_not_there(key_prefix: str) -> None:
    """Besides the metrics there is a sign of life, and nothing else."""
    with _serving(CircuitCollector(make_manager(None, key_prefix))) as exporter:
        assert _get(exporter.port, "/-/healthy")[0] == 200
        assert [_get(exporter.port, path)[0] for path in ("/", "/metrics/x", "/favicon.ico")] == [404] * 3


def test_a_client_that_says_nothing_is_hung_up_on(key_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a request is closed in time, and others are answered meanwhile."""
    monkeypatch.setattr("omni_tasks.observe.exporter._Handler.timeout", 0.2)
    with (
        _serving(CircuitCollector(make_manager(None, key_prefix))) as exporter,
        socket.create_connection(("127.0.0.1", exporter.port), timeout=5) as silent,
    ):
        assert _get(exporter.port)[0] == 200
        assert silent.recv(1) == b""


def test_more_clients_than_places_are_turned_away(key_prefix: str) -> None:
    """Connections that are held open cannot pile up in the process."""
    with _serving(CircuitCollector(make_manager(None, key_prefix))) as exporter:
        held = [socket.create_connection(("127.0.0.1", exporter.port), timeout=5) for _ in range(16)]
        with socket.create_connection(("127.0.0.1", exporter.port), timeout=5) as extra:
            assert extra.recv(1) == b""
        for each in held:
            each.close()
        eventually(lambda: _answers(exporter.port), within=10, what="an answer when there is room again")


def test_a_frozen_store_is_told_within_a_second(key_prefix: str) -> None:
    """While the store does not answer, the scrape does: the circuits' series are gone, and up says 0."""
    with start_server() as server:
        manager = make_manager(server.url, key_prefix, store_timeout=60.0)
        backlogs = redis.Redis.from_url(server.url)

        class Frozen(Held):
            def counts(self, circuits: Iterable[str]) -> dict[str, int]:
                backlogs.ping()
                return super().counts(circuits)

        with _serving(CircuitCollector(manager, Frozen())) as exporter:
            assert _values(_get(exporter.port)[2])["circuit_breaker_store_up"] == 1
            os.kill(server.pid, signal.SIGSTOP)
            try:
                for _ in range(2):
                    with Stopwatch() as watch:
                        values = _values(_get(exporter.port)[2])
                    assert watch.seconds < 1
                    assert values["circuit_breaker_store_up"] == 0
                    # Nobody knows whose held tasks to ask for.
                    assert "circuit_breaker_lot_up" not in values
                    assert not [name for name in values if "component=" in name]
                assert _values(_get(exporter.port)[2])["circuit_breaker_store_errors_total"] == 3
            finally:
                os.kill(server.pid, signal.SIGCONT)
            eventually(
                lambda: _values(_get(exporter.port)[2])["circuit_breaker_store_up"] == 1, within=10, what="store back"
            )


def test_scrapes_at_the_same_time_say_the_same(redis_server: EmbeddedServer, key_prefix: str) -> None:
    """Whoever asks while another is being answered gets the circuits too: two of Prometheus are no outage."""
    together = threading.Barrier(4)

    class Slow(Held):
        def counts(self, circuits: Iterable[str]) -> dict[str, int]:
            time.sleep(0.1)
            return super().counts(circuits)

    with _serving(CircuitCollector(make_manager(redis_server.url, key_prefix), Slow())) as exporter:

        def scrape(_number: int) -> dict[str, float]:
            together.wait(timeout=10)
            return _values(_get(exporter.port)[2])

        with ThreadPoolExecutor(together.parties) as pool:
            pages = list(pool.map(scrape, range(together.parties)))
    names = ("circuit_breaker_store_up", "circuit_breaker_lot_up", 'circuit_breaker_held_tasks{component="dep"}')
    assert [[page.get(name) for name in names] for page in pages] == [[1, 1, 1]] * together.parties
    assert {page["circuit_breaker_store_errors_total"] for page in pages} == {0}


def test_a_silent_store_exports_no_state(key_prefix: str) -> None:
    """While the store is away its series are gone: nothing reads as closed."""
    with start_server() as server:
        registry = CollectorRegistry()
        registry.register(CircuitCollector(make_manager(server.url, key_prefix)))
        server.kill()
        assert registry.get_sample_value("circuit_breaker_store_up") == 0
        assert registry.get_sample_value("circuit_breaker_state", {"component": "dep"}) is None


def test_the_monitor_is_exported(redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str) -> None:
    """Ticks, alerts that go on, deliveries, and whether ticks are missing can be read by the exporter."""
    manager = make_manager(redis_server.url, key_prefix)
    registry = CollectorRegistry()
    registry.register(CircuitCollector(manager))
    value = registry.get_sample_value
    assert value("circuit_breaker_monitor_last_tick_timestamp_seconds") is None
    stored(redis_client, key_prefix)(gen="g", state="open", tripped_at_ms=1, open_until_ms=10**13)
    tick_again(redis_client, key_prefix, Monitor(manager))
    assert value("circuit_breaker_monitor_ticks_total") == 1
    assert value("circuit_breaker_monitor_interval_seconds") == 10
    assert abs((value("circuit_breaker_monitor_last_tick_timestamp_seconds") or 0) - int(redis_client.time()[0])) < 5
    assert value("circuit_breaker_alerts_firing", {"alert": "open_too_long", "component": "dep"}) == 1
    assert value("circuit_breaker_alerts_firing", {"alert": "monitor_stale", "component": ""}) is None
    assert value("circuit_breaker_alert_deliveries_total", {"sink": "log", "result": "delivered"}) == 1
    redis_client.hincrby(monitor_key(key_prefix, "tick"), "last_ms", -61_000)
    assert value("circuit_breaker_alerts_firing", {"alert": "monitor_stale", "component": ""}) == 1


def test_a_monitor_that_never_ran_is_stale(redis_server: EmbeddedServer, key_prefix: str) -> None:
    """Where no tick ever comes that is told as if one had come just before the exporter looked first."""
    collector, registry = CircuitCollector(make_manager(redis_server.url, key_prefix)), CollectorRegistry()
    registry.register(collector)

    def stale() -> float | None:
        return registry.get_sample_value("circuit_breaker_alerts_firing", {"alert": "monitor_stale", "component": ""})

    assert stale() is None
    # A minute and a second ago.
    collector._first_read_ms -= 61_000
    assert stale() == 1


def test_damaged_fields_make_no_series_that_prometheus_refuses(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str
) -> None:
    """Whatever is in a circuit's hash, counters are not negative and the whole page can be read."""
    stored(redis_client, key_prefix)(
        gen="g", trips="9", opened="1", durations="1,x,-3", took_ms="x", state="\xff", override="?", failed="9" * 30
    )
    redis_client.hset(monitor_key(key_prefix, "tick"), mapping={"last_ms": "x", "took_ms": "", "ticks": "-1"})
    redis_client.hset(monitor_key(key_prefix, "delivered"), mapping={"nonsense": "x", b"\xff": "1"})
    with _serving(CircuitCollector(make_manager(redis_server.url, key_prefix))) as exporter:
        _, _, text = _get(exporter.port, accept="application/openmetrics-text")
    assert 'circuit_breaker_state{component="dep"} 0' in text
    assert _openmetrics(text)


def test_metrics_are_pushed(redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str) -> None:
    """Each tick replaces what the Pushgateway has; its password goes into a header and nowhere else."""
    with HttpServer() as gateway:
        gateway.reply = Reply(status=200)
        url = gateway.url.replace("http://", "http://omni:hush@")
        manager = make_manager(redis_server.url, key_prefix, pushgateway_url=url)
        tick_again(redis_client, key_prefix, Monitor(manager))
        [request] = gateway.requests
    assert request.path == "/v1/metrics/job/omni_tasks"
    assert request.headers["authorization"] == "Basic b21uaTpodXNo"
    assert _values(request.body.decode())['circuit_breaker_state{component="dep"}'] == 0
    assert "hush" not in repr(manager.settings)


def test_a_pushgateway_that_is_away_stops_nothing(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The tick goes on, and says what was not taken without the password."""
    manager = make_manager(redis_server.url, key_prefix, pushgateway_url="http://omni:hush@127.0.0.1:1/")
    assert tick_again(redis_client, key_prefix, Monitor(manager))["dep"] == "closed"
    assert len(events(caplog, "circuit_metrics_not_pushed")) == 1
    assert "hush" not in caplog.text
    with pytest.raises(OSError, match="ConnectError"):
        push("http://127.0.0.1:1", CollectorRegistry())


# ---------------------------------------------------------------- the command


def test_the_command_serves_until_it_is_stopped(redis_server: EmbeddedServer, key_prefix: str, tmp_path: Path) -> None:
    """`omni exporter` reads the environment, says where it listens, and ends well when its supervisor says so."""
    environment = {**os.environ, "OMNI_REDIS_URL": redis_server.url, "OMNI_KEY_PREFIX": key_prefix}
    with (tmp_path / "log").open("wb") as log:
        process = spawn_tied(
            [sys.executable, "-m", "omni_tasks.cli", "exporter", "--port", "0"], output=log, env=environment, cwd=ROOT
        )
    try:
        said = eventually(
            lambda: re.search(r"127\.0\.0\.1:(\d+)/", (tmp_path / "log").read_text()),
            within=20,
            what="the exporter says where it listens",
        )
        assert said is not None
        port = int(said[1])
        assert _values(_get(port)[2])['circuit_breaker_state{component="ai_providers"}'] == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        process.wait()


def test_circuits_are_shown(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`omni circuits` shows a line a circuit, or all numbers as JSON."""
    monkeypatch.setenv("OMNI_REDIS_URL", redis_server.url)
    monkeypatch.setenv("OMNI_KEY_PREFIX", key_prefix)
    redis_client.hset(circuit_keys(key_prefix, "cache_cb")[0], mapping={"gen": "g", "state": "open", "failed": 7})
    shown = CliRunner().invoke(main, ["circuits"])
    assert shown.exit_code == 0
    lines = [line.split() for line in shown.output.splitlines()]
    assert lines[0][:2] == ["CIRCUIT", "STATE"]
    assert ["cache", "open", "7", "7", "0", "-", "-"] in lines
    told = json.loads(CliRunner().invoke(main, ["circuits", "--json"]).output)
    assert told["cache"]["failed_requests"] == 7


@pytest.mark.parametrize(
    ("arguments", "environment", "why"),
    [
        (["circuits"], {"OMNI_REDIS_URL": ""}, "OMNI_REDIS_URL must be set"),
        (["circuits"], {"OMNI_REDIS_URL": "http://x"}, "OMNI_REDIS_URL must be a redis://"),
        (["circuits"], {"OMNI_REDIS_URL": "redis://127.0.0.1:1"}, "does not answer"),
        (["exporter", "--app", "no_such_app"], {}, "--app no_such_app"),
        (["exporter", "--host", "192.0.2.1"], {"OMNI_REDIS_URL": "redis://127.0.0.1:1"}, "cannot listen on 192.0.2.1"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], environment: dict[str, str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that cannot do its work ends with 2 and one line that says why."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ended = CliRunner().invoke(main, arguments)
    assert ended.exit_code == 2
    assert why in ended.output
    assert len(ended.output.splitlines()) == 1


def test_the_command_is_installed() -> None:
    """The package brings the command `omni`."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - needed here only

    [script] = entry_points(group="console_scripts", name="omni")
    assert script.load() is main
    assert subprocess.check_output([sys.executable, "-m", "omni_tasks.cli", "--help"], cwd=ROOT)
