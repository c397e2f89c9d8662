"""
What the gate promises when something around it is slow, away, or stops.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
from celery import Celery
from celery.result import AsyncResult

from omni_tasks import CircuitBreaker, ParkingError
from omni_tasks.breaker import open_store
from omni_tasks.embedded import start_server
from tests.acceptance.conftest import Stage
from tests.support.eventually import eventually
from tests.support.versions import OUTLIVES_ITS_BROKER, RECONNECTS

pytestmark = pytest.mark.acceptance


@pytest.mark.parametrize("pool", ["threads", pytest.param("gevent", marks=pytest.mark.soak)])
def test_a_pool_with_a_queue_asks_only_for_what_it_runs(stage: Callable[..., Stage], pool: str) -> None:
    """Sixty prefetched tasks meet a dead dependency: it gets the threshold's calls and one per slot, not sixty."""
    play = stage(recovery_timeout=30.0)
    play.dependency.set(up=False, delay=0.2)
    play.send("plain", 60)
    play.worker(pool=pool, environment={"TEST_PREFETCH": "20"})
    eventually(lambda: play.held() >= 60 - 7, within=20, what="the others are held")
    assert len(play.dependency.calls()) <= 3 + 4
    play.breaker.force_close()
    play.dependency.set(up=True)
    eventually(lambda: play.held() == 0, within=20, what="the pool goes on")


def test_a_frozen_result_backend_does_not_stop_the_worker(stage: Callable[..., Stage]) -> None:
    """While nobody reads what the worker writes, it goes on holding tasks; what it could not write stays unwritten."""
    play = stage()
    play.breaker.force_open()
    with start_server() as backend:
        worker = play.worker(environment={"TEST_RESULT_BACKEND": backend.url})
        backend.pause()
        try:
            began = time.monotonic()
            play.send("plain", 30)
            eventually(lambda: play.held() == 30, within=15, what="all held")
            assert time.monotonic() - began < 10
            assert play.app.control.ping(timeout=3)
        finally:
            backend.resume()
        play.breaker.release_force()
        eventually(lambda: len(play.dependency.calls("end")) == 30, within=30, what="all ran")
        # Stopped while its backend still answers.
        worker.stop()


@pytest.mark.soak
def test_a_long_probe_is_started_once(stage: Callable[..., Stage]) -> None:
    """A probe that outlasts the visibility timeout is acknowledged in time: nobody else starts it."""
    play = stage(recovery_timeout=0.5, probe_lease=30.0)
    play.worker(environment={"TEST_VISIBILITY_TIMEOUT": "3"})
    play.trip()
    play.dependency.set(up=True, delay=8.0)
    [result] = play.send("plain")
    result.get(timeout=30)
    time.sleep(2)
    assert Counter(call.task_id for call in play.dependency.calls())[result.id] == 1


def test_a_failed_probe_of_a_circuit_in_the_body_is_held_again(stage: Callable[..., Stage]) -> None:
    """A task held for a circuit that its body met does not fail as that circuit's probe, and spends no retry."""
    play = stage(recovery_timeout=0.5)
    play.worker()
    play.trip()
    [result] = play.send("nested")
    eventually(lambda: play.breaker.get_metrics().circuit_open_count >= 3, within=20, what="it has probed in vain")
    assert result.state == "RETRY"
    play.dependency.set(up=True)
    assert result.get(timeout=20) >= 2
    assert Counter(call.ok for call in play.dependency.calls() if call.task_id == result.id)[True] == 1


def test_tasks_held_for_a_circuit_in_their_bodies_return_along_a_ramp(stage: Callable[..., Stage]) -> None:
    """
    Their calls are those the ramp waits for: it grows.  One a second would leave 35 of them after 25 seconds.
    """
    play = stage()
    play.breaker.force_open()
    play.worker()
    play.send("nested", 60)
    eventually(lambda: play.held() == 60, within=30, what="held")
    play.breaker.release_force()
    eventually(lambda: len(play.dependency.calls("end")) == 60, within=25, what="all have run")


@pytest.mark.soak
@pytest.mark.skipif(not RECONNECTS, reason="this Celery hears nothing of its children after it lost the broker")
@pytest.mark.parametrize("back_in_time", [True, False], ids=["back", "gone"])
def test_a_task_that_cannot_be_held_ends_in_a_declared_state(
    stage: Callable[..., Stage], *, back_in_time: bool
) -> None:
    """
    A task with early acknowledgement meets an open circuit in its body while the broker is away.

    The worker goes on trying to hold it.  Where the worker has to stop before the broker is back, the
    task fails and says why.
    """
    play = stage()
    with start_server() as elsewhere:
        breaker = CircuitBreaker(play.breaker.config, store=open_store(elsewhere.url, prefix=play.prefix))
        breaker.force_open()
        urls = {"TEST_RESULT_BACKEND": elsewhere.url, "OMNI_REDIS_URL": elsewhere.url}
        worker = play.worker(environment=urls, concurrency=2)
        app = Celery("reader", backend=elsewhere.url, set_as_current=False)
        result = AsyncResult(play.send("nested", args=[3.0])[0].id, app=app)
        eventually((play.folder / "begun").exists, within=20, what="it runs")
        play.server.kill()
        eventually((play.folder / "ended").exists, within=20, what="it has met the open circuit")
        if back_in_time:
            play.server.restart()
            eventually(lambda: f"{result.id}] held" in worker.log, within=40, what="held after all")
            breaker.release_force()
            assert result.get(timeout=30) == 1
        else:
            worker.process.terminate()
            worker.process.wait(timeout=30)
            assert (result.state, type(result.result)) == ("FAILURE", ParkingError)
        app.close()
        worker.stop()


@pytest.mark.skipif(not OUTLIVES_ITS_BROKER, reason="this Celery ends its worker, or hears nothing of its children")
@pytest.mark.soak
@pytest.mark.parametrize("how", ["gone", "mute"])
def test_a_warm_shutdown_waits_once_for_all_that_cannot_be_held(stage: Callable[..., Stage], how: str) -> None:
    """Eight tasks have run, and their lot is away: SIGTERM ends the worker within five seconds, none without a word."""
    play = stage()
    # Without a limit kombu itself, and the worker with it, waits for a mute Redis for as long as that takes.
    play.transport = {"socket_timeout": 1, "socket_connect_timeout": 1}
    with start_server() as elsewhere, contextlib.ExitStack() as stack:
        CircuitBreaker(play.breaker.config, store=open_store(elsewhere.url, prefix=play.prefix)).force_open()
        urls = {"TEST_RESULT_BACKEND": elsewhere.url, "OMNI_REDIS_URL": elsewhere.url}
        worker = play.worker(environment=urls, concurrency=8)
        reader = Celery("reader", backend=elsewhere.url, set_as_current=False)
        early, late = play.send("nested", 4, args=[5.0]), play.send("nested_late", 4, args=[5.0])
        results = [AsyncResult(task.id, app=reader) for task in early]
        eventually(lambda: worker.log.count("] received") == 8, within=3, what="all run")
        port = play.server.port
        play.server.kill()
        ids = {task.id for task in (*early, *late)}
        eventually(lambda: all(f"{one}] cannot be held" in worker.log for one in ids), within=10, what="all tried")
        began = time.monotonic()
        worker.process.terminate()
        if how == "mute":
            # From the first of the last tries on, whoever connects is left without an answer.
            eventually(lambda: "cannot be held" in worker.log.partition("Warm shutdown")[2], within=5, what="it tries")
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        worker.process.wait(timeout=40)
        took = time.monotonic() - began
        stack.close()
        # For the clients that are still subscribed.
        play.server.restart()
        print(f"ended after {took:.2f} s")  # noqa: T201 - the figure
        assert took < 5
        assert "8 tasks could not be held: the broker delivers 4 again, 4 fail" in worker.log
        assert [(result.state, type(result.result)) for result in results] == [("FAILURE", ParkingError)] * 4
        reader.close()


@pytest.mark.parametrize(
    "pool",
    [
        "prefork",
        pytest.param("threads", marks=pytest.mark.soak),
        pytest.param("gevent", marks=pytest.mark.soak),
        pytest.param("solo", marks=pytest.mark.soak),
    ],
)
def test_an_error_in_the_gate_stops_no_worker(stage: Callable[..., Stage], pool: str) -> None:
    """Whatever goes wrong in the gate is logged; the child asks the circuit instead, and the worker goes on."""
    play = stage()
    worker = play.worker(pool=pool, environment={"TEST_BROKEN_GATE": "1"})
    results = play.send("plain", 8)
    assert [result.get(timeout=20)["retries"] for result in results] == [0] * 8
    # A success may wait for the next question.
    eventually(lambda: play.breaker.get_metrics().successful_requests == 8, within=10, what="all reported")
    assert worker.process.poll() is None
    assert "the task goes on without it" in worker.log


def test_holding_spends_no_retry(stage: Callable[..., Stage]) -> None:
    """Held twenty times, then failing for real: exactly max_retries retries, and so has the next of its class."""
    play = stage(failure_threshold=1000)
    worker = play.worker()
    play.breaker.force_open()
    [held] = play.send("manual_retry")
    for times in range(1, 21):
        eventually(partial(_is_held, play, times), within=10, what="held")
        play.lot.unpark("dep", 1, "")
    eventually(lambda: play.held() == 1, within=10, what="held for the last time")
    play.dependency.set(up=False)
    play.breaker.force_close()
    [other] = play.send("manual_retry")
    # Not their states: Celery publishes a retry without a countdown before it writes RETRY.
    eventually(lambda: worker.log.count("raised unexpected") == 2, within=20, what="both have failed for good")
    calls = Counter(call.task_id for call in play.dependency.calls())
    assert (calls[held.id], calls[other.id]) == (4, 4)


def _is_held(play: Stage, times: int) -> bool:
    return [task.holds for task in play.lot.list("dep")] == [times]
