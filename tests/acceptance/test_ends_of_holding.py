"""
How a held task ends that never gets its turn: it expires, is revoked, or has waited for as long as it may.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import redis
from celery import Celery, Signature
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from omni_tasks import HoldExpiredError
from omni_tasks.embedded import start_server
from omni_tasks.integration.lot import Lot
from tests.acceptance.conftest import Stage
from tests.support.eventually import eventually
from tests.support.worker import ROOT

pytestmark = pytest.mark.acceptance

either_broker = pytest.mark.parametrize(
    "broker",
    ["redis", pytest.param("rabbitmq", marks=pytest.mark.soak), pytest.param("quorum", marks=pytest.mark.soak)],
)


@either_broker
def test_expired_tasks_leave_at_once_and_unpaid(stage_on: Callable[..., Stage], broker: str) -> None:
    """While the circuit stays open, fifty held tasks end as REVOKED when they expire, and only they."""
    play = stage_on(broker)
    play.breaker.force_open()
    play.worker()
    [waits] = play.send("plain")
    expiring = play.send("plain", 50, expires=4)
    eventually(lambda: play.held() == 51, within=15, what="all held")
    eventually(lambda: play.held() == 1, within=12, what="fifty have left")
    eventually(lambda: {result.state for result in expiring} == {"REVOKED"}, within=10, what="REVOKED")
    assert waits.state == "RETRY"
    assert play.dependency.calls() == []
    assert play.breaker.get_metrics().outstanding_requests == 0


@either_broker
def test_a_revoked_task_never_runs(stage_on: Callable[..., Stage], broker: str) -> None:
    """Revoked by id or by stamp while held, with every worker that heard of it gone: it ends as REVOKED."""
    play = stage_on(broker)
    play.breaker.force_open()
    first = play.worker()
    by_id, stays = play.send("plain", 2)
    task: Signature = play.app.signature("tests.support.app.plain")
    task.stamp(batch="b1")
    by_stamp = task.apply_async()
    play.results.append(by_stamp)
    eventually(lambda: play.held() == 3, within=15, what="all held")
    by_id.revoke()
    by_stamp.revoke_by_stamped_headers({"batch": ["b1"]})
    eventually(lambda: play.app.control.inspect(timeout=3).revoked(), within=10, what="the worker has heard")
    eventually(lambda: play.held() == 1, within=10, what="they leave at once, open circuit or not")
    first.kill()
    play.worker()
    play.breaker.release_force()
    assert stays.get(timeout=20)["holds"] == 1
    eventually(lambda: (by_id.state, by_stamp.state) == ("REVOKED", "REVOKED"), within=10, what="REVOKED")
    assert [call.task_id for call in play.dependency.calls()] == [stays.id]


@either_broker
def test_a_task_held_for_too_long_fails_and_says_so(stage_on: Callable[..., Stage], broker: str) -> None:
    """After omni_max_hold it is a FAILURE with a HoldExpiredError, and its link_error is told."""
    play = stage_on(broker)
    play.breaker.force_open()
    play.worker(environment={"OMNI_MAX_HOLD": "2"})
    [result] = play.send("plain", link_error=play.app.signature("tests.support.app.note"))
    with pytest.raises(HoldExpiredError) as caught:
        result.get(timeout=20)
    assert caught.value.circuit == "dep"
    assert caught.value.held_for >= 2
    eventually(lambda: play.told() == "HoldExpiredError", within=10, what="link_error")
    assert play.held() == 0


@pytest.mark.parametrize("how", ["frozen", "killed"])
def test_how_a_held_task_ended_is_told_when_the_result_backend_is_back(stage: Callable[..., Stage], how: str) -> None:
    """Held for too long, expired or revoked while nobody can be told: the worker stays well, none runs, each ends."""
    play = stage()
    play.breaker.force_open()
    with start_server(data_dir=play.folder) as backend, contextlib.ExitStack() as stack:
        reader = Celery("reader", backend=backend.url, set_as_current=False)
        stack.callback(reader.close)
        urls = {"TEST_RESULT_BACKEND": backend.url, "TEST_BACKEND_PAUSE": "3"}
        worker = play.worker(environment={**urls, "OMNI_MAX_HOLD": "9"})
        # More than the worker takes ahead.
        sent = [*play.send("plain", 10), *play.send("plain", 10, expires=8)]
        stamped = play.app.signature("tests.support.app.plain")
        stamped.stamp(batch="b1")
        sent += [stamped.apply_async() for _ in range(10)]
        play.results += sent[-10:]
        eventually(lambda: play.held() == 30, within=10, what="all held")
        (backend.pause if how == "frozen" else backend.kill)()
        sent[-1].revoke_by_stamped_headers({"batch": ["b1"]})
        eventually(lambda: "Result backend left alone" in worker.log, within=20, what="their time is over")
        began = time.monotonic()
        [later] = play.send("nested")
        eventually(lambda: f"{later.id}] held" in worker.log, within=5, what="a fresh task is taken up, and held")
        while time.monotonic() < began + 10:
            assert play.app.control.ping(timeout=5, limit=1)
        # Those that had left already come to the gate, or are discarded before it.
        assert isinstance(play.lot, Lot)
        assert play.lot.unpark_due("dep", may=lambda: True) >= 20
        eventually(lambda: worker.log.count("] stays unacknowledged") >= 10, within=5, what="they are not ended")
        assert play.app.control.ping(timeout=5, limit=1)
        (backend.resume if how == "frozen" else backend.restart)()
        # It answers before it has read its file.
        with redis.Redis.from_url(backend.url) as operator:
            eventually(lambda: not operator.info("persistence")["loading"], within=10, what="read")
        results = [AsyncResult(one.id, app=reader) for one in sent]
        eventually(lambda: all(result.ready() for result in results), within=20, what="all have ended")
        ends = [type(result.result) for result in results]
        assert ends == [HoldExpiredError] * 10 + [TaskRevokedError] * 20
        assert play.dependency.calls() == []
        # Stopped while its backend still answers.
        worker.stop()


@either_broker
@pytest.mark.soak
def test_dead_letters_can_be_seen_and_replayed(stage_on: Callable[..., Stage], broker: str) -> None:
    """A task that asks for it is kept when its time is over; an operator lists it and sends it back, and it runs."""
    play = stage_on(broker)
    play.breaker.force_open()
    play.worker()
    play.worker()
    [result] = play.send("kept")
    eventually(lambda: result.state == "REJECTED", within=20, what="REJECTED")
    [shown] = celery(play, "inspect", "dead_letters", "dep")[0].values()
    assert [task["task_id"] for task in shown["dep"]] == [result.id]
    play.dependency.set(up=True)
    play.breaker.release_force()
    answers = celery(play, "control", "held_replay", "dep")
    said = sorted(next(iter(answer.values()))["ok"] for answer in answers)
    assert said == ["1 returned", "carried out by another worker"]
    assert result.get(timeout=20) == result.id
    assert len(play.dependency.calls()) == 1


@either_broker
def test_an_operator_speaks_through_celery_control(stage_on: Callable[..., Stage], broker: str) -> None:
    """force_open with an end, an actor and a reason, held, drain, release and reset, from the plain command line."""
    play = stage_on(broker)
    play.worker()
    [opened] = celery(play, "control", "circuit_force_open", "dep", "60", "ann", "maintenance")
    assert list(opened.values()) == [{"ok": "dep is forced open"}]
    metrics = play.breaker.get_metrics()
    assert metrics.state == "open"
    assert 50 < metrics.retry_after <= 60
    [result] = play.send("plain")
    eventually(lambda: play.held() == 1, within=10, what="held")
    [held] = celery(play, "inspect", "held")[0].values()
    assert [(task["task_id"], task["holds"]) for task in held["dep"]] == [(result.id, 1)]
    say(play, "held_drain", circuit="dep", count=5)
    eventually(lambda: [task.holds for task in play.lot.list("dep")] == [2], within=10, what="held again")
    assert say(play, "circuit_force_open", circuit="nope")["error"].startswith("no circuit 'nope' is configured")
    assert say(play, "circuit_force_close", circuit="dep", ttl=-5)["error"].startswith("ttl must be above 0")
    assert say(play, "held_drain", circuit="dep", count=0)["error"].startswith("count must be a whole number")
    say(play, "circuit_release", circuit="dep")
    assert result.get(timeout=20)["holds"] == 2
    eventually(lambda: play.breaker.get_metrics().total_requests == 1, within=5, what="its run is counted")
    say(play, "circuit_force_close", circuit="dep", actor="ann", reason="it is well")
    assert play.breaker.state == "closed"
    say(play, "circuit_reset", circuit="dep")
    assert play.breaker.get_metrics().total_requests == 0


@either_broker
def test_equal_held_tasks_are_held_once(stage_on: Callable[..., Stage], broker: str) -> None:
    """Of tasks with an equal hold_key the first waits and runs, the next end as REVOKED; later another may wait."""
    play = stage_on(broker)
    play.breaker.force_open()
    play.worker()
    [first] = play.send("refresh", args=["Bonn"])
    eventually(lambda: play.held() == 1, within=10, what="held")
    again = play.send("refresh", 3, args=["Bonn"])
    [other] = play.send("refresh", args=["Kiel"])
    eventually(lambda: {result.state for result in again} == {"REVOKED"}, within=10, what="dropped")
    eventually(lambda: play.held() == 2, within=10, what="the other city is held")
    play.breaker.release_force()
    assert [result.get(timeout=20) for result in (first, other)] == ["Bonn", "Kiel"]
    play.breaker.force_open()
    play.send("refresh", args=["Bonn"])
    eventually(lambda: play.held() == 1, within=10, what="the next outage")
    assert len(play.dependency.calls()) == 2


@either_broker
def test_a_probe_that_failed_waits_only_where_no_equal_does(stage_on: Callable[..., Stage], broker: str) -> None:
    """Of tasks with an equal hold_key one waits, also when the next is held while the first finds it is down."""
    play = stage_on(broker, recovery_timeout=0.5)
    play.worker()
    play.trip()
    play.dependency.set(up=False, delay=0.5)
    results = play.send("refresh", args=["Bonn"])
    for _ in range(3):
        probed = len(play.dependency.calls())
        eventually(partial(_has_called, play, probed + 1), within=20, what="a probe runs")
        results += play.send("refresh", args=["Bonn"])
    play.breaker.force_open()

    def one_waits() -> bool:
        return [result.state for result in results].count("REVOKED") == len(results) - 1 and play.held() == 1

    eventually(one_waits, within=20, what="one waits, the others have ended")
    play.dependency.set(up=True)
    play.breaker.release_force()
    eventually(lambda: [result.state for result in results].count("SUCCESS") == 1, within=20, what="it has run")


@either_broker
def test_a_task_that_ran_without_a_gate_keeps_none_of_its_hold_key_out(
    stage_on: Callable[..., Stage], broker: str
) -> None:
    """What was held and let go by a worker with resilience switched off waits no longer: the next is held, and runs."""
    play = stage_on(broker)
    play.breaker.force_open()
    worker = play.worker()
    [first] = play.send("refresh", args=["Bonn"])
    eventually(lambda: play.held() == 1, within=10, what="held")
    worker.stop()
    worker = play.worker(environment={"ENABLE_RESILIENCE": "false"})
    assert first.get(timeout=20) == "Bonn"
    worker.stop()
    play.worker()
    [later] = play.send("refresh", args=["Bonn"])
    eventually(lambda: play.held() == 1, within=10, what="the next is held")
    play.breaker.release_force()
    assert later.get(timeout=20) == "Bonn"


def test_a_task_that_could_not_be_held_keeps_none_of_its_hold_key_out(stage: Callable[..., Stage]) -> None:
    """What was to wait, was not taken by the lot, and ran when the circuit closed: the next is held, and runs."""
    play = stage()
    order = f"{play.prefix}:lot:dep:order"
    server = redis.Redis.from_url(play.server.url)
    server.set(order, "somebody else's")
    play.breaker.force_open()
    worker = play.worker()
    [first] = play.send("refresh", args=["Bonn"])
    eventually(lambda: "] stays unacknowledged" in worker.log, within=10, what="it cannot be held")
    play.breaker.release_force()
    assert first.get(timeout=20) == "Bonn"
    server.delete(order)
    play.breaker.force_open()
    [later] = play.send("refresh", args=["Bonn"])
    eventually(lambda: play.held() == 1, within=10, what="the next is held")
    play.breaker.release_force()
    assert later.get(timeout=20) == "Bonn"


@either_broker
def test_a_retry_has_not_been_held_yet(stage_on: Callable[..., Stage], broker: str) -> None:
    """A task that was held, ran, and is retried for real may wait as long as any other, from its own start on."""
    play = stage_on(broker, failure_threshold=1000)
    play.breaker.force_open()
    play.worker()
    play.send("manual_retry")
    eventually(lambda: play.held() == 1, within=10, what="held")
    [before] = play.lot.list("dep")
    play.dependency.set(up=False, delay=0.5)
    play.breaker.release_force()
    eventually(play.dependency.calls, within=20, what="it runs")
    play.breaker.force_open()
    eventually(lambda: play.held() == 1, within=20, what="its retry is held")
    [after] = play.lot.list("dep")
    assert after.task_id == before.task_id
    assert after.holds == 1
    assert after.held_since > before.held_since


@either_broker
@pytest.mark.parametrize("expires", [2, None], ids=["expired", "revoked"])
def test_a_task_that_ended_while_held_keeps_none_of_its_hold_key_out(
    stage_on: Callable[..., Stage], broker: str, expires: int | None
) -> None:
    """The first of a hold_key expires or is revoked while it waits: the next is held, and runs."""
    play = stage_on(broker)
    play.breaker.force_open()
    play.worker()
    [first] = play.send("refresh", args=["Bonn"], expires=expires)
    eventually(lambda: play.held() == 1, within=10, what="held")
    if expires is None:
        first.revoke()
    # It has left before its end is told, or is told of before it has left.
    eventually(lambda: first.state == "REVOKED" and play.held() == 0, within=30, what="ended")
    [later] = play.send("refresh", args=["Bonn"])
    eventually(lambda: play.held() == 1, within=10, what="the next is held")
    play.breaker.release_force()
    assert later.get(timeout=20) == "Bonn"


@either_broker
def test_a_good_probe_goes_first(stage_on: Callable[..., Stage], broker: str) -> None:
    """Of the held tasks the one that says it is a good probe is let through first, however late it came."""
    play = stage_on(broker, recovery_timeout=4.0)
    play.worker()
    play.trip()
    play.send("plain", 5)
    [cheap] = play.send("cheap")
    eventually(lambda: play.held() == 6, within=10, what="all held")
    play.dependency.set(up=True)
    before = len(play.dependency.calls())
    assert cheap.get(timeout=20) == cheap.id
    assert play.dependency.calls()[before].task_id == cheap.id


def _has_called(play: Stage, times: int) -> bool:
    return len(play.dependency.calls()) >= times


def say(play: Stage, command: str, **arguments: Any) -> dict[str, str]:
    """
    Say something to the first worker, and read its answer.
    """
    [answer] = play.app.control.broadcast(
        command, arguments=arguments, destination=[play.workers[0].name], reply=True, limit=1, timeout=10
    )
    [said] = answer.values()
    return dict(said)


def celery(play: Stage, *words: str) -> list[dict[str, Any]]:
    """
    Say something with the celery program, and read the answers of this stage's workers: a broker may have others.
    """
    said = subprocess.run(
        [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "tests.support.app",
            words[0],
            "--json",
            "--timeout",
            "2",
            "--destination",
            ",".join(worker.name for worker in play.workers),
            "--",
            *words[1:],
        ],
        cwd=ROOT,
        env={**play.environment(), "PATH": "", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answers = json.loads(said.stdout)
    return answers if isinstance(answers, list) else [{name: answer} for name, answer in answers.items()]
