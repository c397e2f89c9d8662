"""
The monitor, the exporter and the log in real workers, under real beats.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest
import redis

from omni_tasks.observe.notification import Notification
from omni_tasks.store.schema import circuit_keys
from omni_tasks.tied import spawn_tied
from tests.acceptance.conftest import Stage
from tests.support.eventually import eventually
from tests.support.http_server import HttpServer, Reply
from tests.support.worker import ROOT, Worker

pytestmark = pytest.mark.acceptance


@contextmanager
def _beats(stage: Stage, count: int, extra: dict[str, str]) -> Iterator[None]:
    processes = []
    for number in range(count):
        log = (stage.folder / f"beat{number}.log").open("wb")
        command = [sys.executable, "-m", "celery", "-A", "tests.support.app", "beat", "--pidfile="]
        schedule = ["--schedule", str(stage.folder / f"schedule{number}")]
        environment = {**os.environ, **stage.environment(), **extra}
        processes.append(spawn_tied([*command, *schedule], output=log, cwd=ROOT, env=environment))
        log.close()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_two_beats_and_a_death_in_a_tick_make_one_alert(stage: Callable[..., Stage]) -> None:
    """
    Whatever beats there are and whoever dies between noticing an outage and telling of it: told once, resolved once.
    """
    play = stage(recovery_timeout=900.0, monitor_interval=0.3)
    with HttpServer() as receiver:
        receiver.reply = Reply(status=200)
        environment = {
            "OMNI_ALERT_SINKS": receiver.url,
            "OMNI_WEBHOOK_SECRET": "secret",
            "OMNI_ALERT_PRIVATE_ADDRESSES": "true",
            "RESILIENCE_MONITORING_INTERVAL": "0.3",
            "TEST_CRASH": "after_fire",
        }
        play.worker(concurrency=2, environment=environment)
        with _beats(play, 2, environment), redis.Redis.from_url(play.server.url) as client:
            play.trip()
            client.hincrby(circuit_keys(play.prefix, "dep")[0], "tripped_at_ms", -360_000)
            eventually((play.folder / "crashed").exists, within=20, what="a tick died after it had fired")
            eventually(lambda: receiver.requests, within=20, what="the alert is told")
            time.sleep(1.5)
            play.breaker.reset()
            eventually(lambda: len(receiver.requests) > 1, within=20, what="its end is told")
            time.sleep(1.5)
        notes = [Notification.from_json(request.body) for request in receiver.requests]
    assert [(note.status, note.alert, note.component) for note in notes] == [
        ("firing", "open_too_long", "dep"),
        ("resolved", "open_too_long", "dep"),
    ]
    assert notes[0].episode == notes[1].episode


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _listening(process: psutil.Process) -> set[int]:
    return {each.laddr.port for each in process.net_connections(kind="tcp") if each.status == psutil.CONN_LISTEN}


def _look(worker: Worker, children: dict[int, set[int]]) -> dict[int, set[int]]:
    """
    Note the ports of each child that lives; one whose task is done may end while it is looked at.
    """
    for child in worker.children():
        with suppress(psutil.NoSuchProcess):
            ports = _listening(child)
            if child.status() != psutil.STATUS_ZOMBIE:
                children[child.pid] = ports
    return children


def _scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def test_a_worker_exports_from_its_main_process(stage: Callable[..., Stage]) -> None:
    """With a port set, the worker's main process exports the cluster's counts, and none of its children listens."""
    play, port = stage(failure_threshold=100), _free_port()
    worker = play.worker(
        concurrency=2, arguments=("--max-tasks-per-child", "1"), environment={"OMNI_EXPORTER_PORT": str(port)}
    )
    good = play.send("plain", 4)
    eventually(lambda: {result.state for result in good} == {"SUCCESS"}, within=20, what="four ran")
    assert _scrape(port)['circuit_breaker_requests_total{component="dep"}'] == 4
    before = {child.pid for child in worker.children()}
    play.dependency.set(up=False)
    bad = play.send("plain", 3)
    eventually(lambda: {result.state for result in bad} == {"FAILURE"}, within=20, what="three failed")
    found = _scrape(port)
    assert found['circuit_breaker_requests_total{component="dep"}'] == 7
    assert found['circuit_breaker_failures_total{component="dep"}'] == 3
    assert found["circuit_breaker_lot_up"] == 1
    main = psutil.Process(worker.process.pid)
    assert port in _listening(main)
    children: dict[int, set[int]] = {}
    # Three more tasks took three more children: those were forked while the exporter was already running.
    eventually(lambda: _look(worker, children).keys() - before, within=20, what="children that came later")
    assert [pid for pid, ports in children.items() if port in ports] == []


def test_a_workers_log_is_one_form(stage: Callable[..., Stage]) -> None:
    """With omni_log_celery every line is JSON, Celery's own too, and names the task that wrote it."""
    play = stage(recovery_timeout=900.0)
    worker = play.worker(environment={"OMNI_LOG_CELERY": "true"})
    play.trip()
    eventually(lambda: worker.log.count("DependencyDownError(") >= 3, within=10, what="Celery's own lines about it")
    # The circuit is open before the one who opened it says so.
    eventually(lambda: '"circuit_breaker_open"' in worker.log, within=10, what="our own line about it")
    lines = [json.loads(line) for line in worker.log[: worker.log.rindex("\n")].splitlines() if line.startswith("{")]
    [opened] = [line for line in lines if line["event"] == "circuit_breaker_open"]
    assert opened["component"] == opened["circuit"] == "dep"
    assert opened["task"] == "tests.support.app.plain"
    assert opened["task_id"] in {result.id for result in play.results}
    failed = [line for line in lines if "DependencyDownError" in line.get("exception", "")]
    assert failed
    assert {line["logger"] for line in failed} == {"celery.app.trace"}
    # Before it is ready Celery prints its banner past every log.
    _, _, tail = worker.log.partition(" ready.")
    assert [line for line in tail.splitlines()[1:] if line and not line.startswith("{")] == []
