"""
Successes that a busy process leaves to its next question: fewer round trips, and none is lost.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import util
from typing import Any

import pytest
import redis

from omni_tasks import CircuitBreaker, CircuitBreakerConfig
from omni_tasks.core.model import CircuitState, Permit
from omni_tasks.core.outcome import IGNORED, SUCCESS, Outcome, Report
from omni_tasks.embedded import EmbeddedServer
from omni_tasks.store.redis import RedisStore
from omni_tasks.store.reports import LONGEST_WAIT, send_all
from tests.support.bench import FAILURE
from tests.support.clock import Clock
from tests.support.eventually import eventually
from tests.support.stand import CONFIG, Stand
from tests.support.stopwatch import Stopwatch


@pytest.fixture
def stand(redis_server: EmbeddedServer, key_prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """
    A store as production uses it, in a process that is busy, however slow the machine is.
    """
    monkeypatch.setattr("omni_tasks.store.reports._SOON_S", 60.0)
    store = RedisStore.at(redis_server.url, timeout=5.0, prefix=key_prefix)
    stand = Stand(store, Clock())
    _keep_busy(stand)
    yield stand
    send_all()


@pytest.fixture
def elsewhere(redis_client: redis.Redis, key_prefix: str) -> Stand:
    """
    The same circuits, as another process sees them.
    """
    return Stand(RedisStore(redis_client, prefix=key_prefix), Clock())


BUSY = replace(CONFIG, name="busy")


def _keep_busy(stand: Stand) -> None:
    for _ in range(3):
        stand.run(SUCCESS, BUSY)


def _idle(stand: Stand) -> int:
    assert isinstance(stand.store, RedisStore)
    return len(stand.store._scripts._where.lines("any")._idle)


def _waits(stand: Stand) -> int:
    assert isinstance(stand.store, RedisStore)
    return len(stand.store._scripts._where.lines("any")._reports._waiting)


@pytest.mark.usefixtures("unhurried")
def test_a_busy_process_asks_once_a_call(stand: Stand, redis_client: redis.Redis) -> None:
    """
    A call that succeeds costs the server two scripts and one read: its report comes with the next call's question.
    """
    before = _stats(redis_client)
    for _ in range(50):
        stand.run(SUCCESS)
    after = _stats(redis_client)
    # The second reading of the statistics is one read more.
    assert after["reads"] - before["reads"] in {50 + 1, 51 + 1}
    assert after["scripts"] - before["scripts"] in {99, 100, 101}


def _stats(client: redis.Redis) -> dict[str, int]:
    stats, commands = client.info("stats"), client.info("commandstats")
    return {"reads": stats["total_reads_processed"], "scripts": commands["cmdstat_evalsha"]["calls"]}


def test_what_was_left_arrives_soon_without_another_call(stand: Stand, elsewhere: Stand) -> None:
    """
    A process that falls idle has told everything before half a second is over.
    """
    with Stopwatch() as watch:
        stand.run(SUCCESS)
        eventually(lambda: elsewhere.read().circuit.succeeded == 1, within=LONGEST_WAIT * 4)
    assert watch.seconds < 0.5
    assert elsewhere.read().calls == 0


def test_its_own_process_reads_what_was_left(stand: Stand) -> None:
    """
    Whoever asks for the numbers in the same process finds every call that has returned.
    """
    for done in range(20):
        stand.run(SUCCESS)
        assert (stand.read().circuit.succeeded, stand.read().calls) == (done + 1, 0)


@pytest.mark.usefixtures("unhurried")
def test_a_failure_comes_after_what_was_left(stand: Stand) -> None:
    """
    Two failures with a success between them are no two in a row, although the success was left.
    """
    config = replace(CONFIG, failure_threshold=2)
    for _ in range(10):
        stand.run(FAILURE, config)
        _keep_busy(stand)
        stand.run(SUCCESS, config)
        assert _waits(stand) == 1
        stand.run(FAILURE, config)
        assert stand.read(config).circuit.state is CircuitState.CLOSED
        stand.run(SUCCESS, config)


@pytest.mark.parametrize("report", [FAILURE, IGNORED], ids=["failure", "ignored"])
def test_only_a_success_is_left(report: Report, stand: Stand) -> None:
    """
    Anything else is answered at once: a failure may trip the circuit.
    """
    stand.run(report)
    assert _waits(stand) == 0


def test_a_success_that_may_change_the_state_is_not_left(stand: Stand) -> None:
    """
    A probe's success closes the circuit, and under a rate rule a success may make the window large enough to judge.
    """
    config = CircuitBreakerConfig(name="rates", failure_threshold=None, failure_rate_threshold=0.5, minimum_calls=1)
    _keep_busy(stand)
    stand.run(SUCCESS, config)
    assert _waits(stand) == 0
    probed = replace(CONFIG, name="probed", failure_threshold=1, recovery_timeout=0.001)
    stand.run(FAILURE, probed)
    permit = eventually(lambda: stand.ask(probed).permit, within=5)
    assert permit is not None
    assert permit.probe
    assert stand.settle(permit, SUCCESS, probed).state is CircuitState.CLOSED
    assert stand.read(probed).circuit.state is CircuitState.CLOSED


def test_a_process_that_is_not_busy_leaves_nothing(redis_server: EmbeddedServer, key_prefix: str) -> None:
    """
    Where no question follows, as in a worker's child that only reports, each success is answered at once.
    """
    stand = Stand(RedisStore.at(redis_server.url, timeout=5.0, prefix=key_prefix), Clock())
    permits = [stand.permit() for _ in range(5)]
    for permit in permits:
        stand.settle(permit, SUCCESS)
        assert _waits(stand) == 0


@pytest.mark.usefixtures("unhurried")
def test_a_lost_script_is_sent_again(stand: Stand, redis_client: redis.Redis) -> None:
    """
    After SCRIPT FLUSH both the question and the report in front of it are taken.
    """
    stand.run(SUCCESS)
    _keep_busy(stand)
    stand.run(SUCCESS)
    assert _waits(stand) == 1
    redis_client.script_flush()
    assert stand.read().circuit.succeeded == 2


_CALLS = """
import sys
from omni_tasks import CircuitBreaker, CircuitBreakerConfig
from omni_tasks.breaker import open_store
url, prefix, end = sys.argv[1:]
breaker = CircuitBreaker(CircuitBreakerConfig(name="contract"), store=open_store(url, prefix=prefix, timeout=5.0))
for _ in range(20):
    breaker.call(int)
exec(end)
"""


@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", "1 / 0"])
def test_a_process_that_ends_has_told_everything(
    end: str, redis_server: EmbeddedServer, key_prefix: str, elsewhere: Stand
) -> None:
    """
    At its normal end, at an exit and at an exception.
    """
    subprocess.run(
        [sys.executable, "-c", _CALLS, redis_server.url, key_prefix, end], check=False, stderr=subprocess.DEVNULL
    )
    reading = elsewhere.read()
    assert (reading.circuit.succeeded, reading.calls) == (20, 0)


def _call(url: str, prefix: str, name: str) -> None:
    stand = Stand(RedisStore.at(url, timeout=5.0, prefix=prefix), Clock())
    for number in range(20):
        permit = stand.permit(permit_id=f"{name}-{number}")
        stand.settle(permit, SUCCESS)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_that_ends_has_told_everything(
    method: str, redis_server: EmbeddedServer, key_prefix: str, elsewhere: Stand
) -> None:
    """
    Also where multiprocessing ends it, which runs no atexit.
    """
    context: Any = multiprocessing.get_context(method)
    child = context.Process(target=_call, args=(redis_server.url, key_prefix, method))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    reading = elsewhere.read()
    assert (reading.circuit.succeeded, reading.calls) == (20, 0)


@pytest.mark.usefixtures("unhurried")
def test_what_waits_at_a_fork_is_the_parents(stand: Stand, elsewhere: Stand) -> None:
    """
    A forked child sends none of it, and neither uses nor hears its parent's connections.
    """
    stand.run(SUCCESS)
    assert (_waits(stand), _idle(stand)) == (1, 1)
    child = os.fork()
    if child == 0:
        try:
            # From the start: two threads of the child must not find them both.
            begins_anew = (_waits(stand), _idle(stand)) == (0, 0)
            send_all()
            stand.run(FAILURE)
        except BaseException:  # noqa: BLE001 - the child must end here, whatever happens
            os._exit(1)
        os._exit(0 if begins_anew else 2)
    assert os.waitpid(child, 0)[1] == 0
    reading = stand.read()
    assert (reading.circuit.succeeded, reading.circuit.failed, reading.calls) == (1, 1, 0)
    assert elsewhere.read().circuit.stale == 0


def test_a_killed_process_loses_its_last_report_to_the_lease(
    redis_server: EmbeddedServer, key_prefix: str, redis_client: redis.Redis
) -> None:
    """
    A kill -9 between a success and its report leaves one permit, which its lease takes back: counted as expired.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _CALLS, redis_server.url, key_prefix, "import os; os.kill(os.getpid(), 9)"]
    )
    assert process.wait(30) == -signal.SIGKILL
    clock = Clock()
    later = Stand(RedisStore(redis_client, prefix=key_prefix, now_ms=clock), clock)
    reading = later.read()
    assert (reading.circuit.succeeded, reading.calls) in {(19, 1), (20, 0)}
    clock.now_ms = int(time.time() * 1000) + 2 * CircuitBreakerConfig(name="contract").longest_lease_ms
    later.ask()
    reading = later.read()
    assert reading.circuit.succeeded + reading.circuit.expired == 20
    assert reading.circuit.admitted == reading.circuit.succeeded + reading.circuit.expired + reading.calls


def test_the_accounts_balance_under_threads(redis_server: EmbeddedServer, key_prefix: str, elsewhere: Stand) -> None:
    """
    Eight threads that leave and take along each other's reports: every call is counted once.
    """
    store = RedisStore.at(redis_server.url, timeout=5.0, prefix=key_prefix)
    breaker = CircuitBreaker(CONFIG, store=store)
    threads = [threading.Thread(target=lambda: [breaker.call(int) for _ in range(100)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: elsewhere.read().calls == 0, within=2)
    circuit = elsewhere.read().circuit
    assert (circuit.admitted, circuit.succeeded, circuit.stale) == (800, 800, 0)


def test_the_thread_that_sends_ends_and_starts_again(
    stand: Stand, elsewhere: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A process that is idle for long has no thread of ours, and has one again when it leaves a report.
    """
    monkeypatch.setattr("omni_tasks.store.reports._IDLE_S", 0.0)
    eventually(lambda: not _senders(), within=5)
    stand.run(SUCCESS)
    _keep_busy(stand)
    assert _senders()
    eventually(lambda: elsewhere.read(BUSY).calls == 0, within=2)


_LETS_GO = """
del breaker
import gc, os, threading
gc.collect()
for thread in threading.enumerate():
    if thread.name == "omni-reports":
        thread.join()
os._exit(0)
"""


def test_what_waits_is_kept_when_its_store_is_not(
    redis_server: EmbeddedServer, key_prefix: str, elsewhere: Stand
) -> None:
    """
    A breaker that was made for some calls, and is forgotten after them, has told of all of them.
    """
    hurried = "import omni_tasks.store.reports as reports; reports._IDLE_S = 0.0" + _LETS_GO
    subprocess.run([sys.executable, "-c", _CALLS, redis_server.url, key_prefix, hurried], check=True)
    reading = elsewhere.read()
    assert (reading.circuit.succeeded, reading.calls) == (20, 0)


def test_what_is_done_at_the_end_is_noted_once(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A process that is busy now and then does not remember each time.
    """
    noted = len(vars(util)["_finalizer_registry"])
    monkeypatch.setattr("omni_tasks.store.reports._IDLE_S", 0.0)
    for _ in range(3):
        eventually(lambda: not _senders(), within=5)
        _keep_busy(stand)
        assert _senders()
    assert len(vars(util)["_finalizer_registry"]) == noted


def _senders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "omni-reports"]


def test_a_made_up_settlement_is_what_it_will_be(stand: Stand) -> None:
    """
    A report that is left is answered as one that was applied.
    """
    permit = Permit("nobody", "nowhere", 0, probe=False)
    answer = stand.settle(permit, Report(Outcome.SUCCESS))
    assert (answer.applied, answer.state, answer.transition) == (True, CircuitState.CLOSED, None)
