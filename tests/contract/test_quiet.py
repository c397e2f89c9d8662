"""
Calls that a busy process lets in by a quiet circuit's own word: one short question each, and none is lost.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing import util
from typing import Any

import pytest
import redis

from omni_tasks import CircuitBreaker, CircuitBreakerConfig
from omni_tasks.core.model import Admission, Circuit, CircuitState, Override, Request, Word
from omni_tasks.core.outcome import IGNORED, SUCCESS, Outcome, Report
from omni_tasks.core.quiet import Told
from omni_tasks.embedded import EmbeddedServer
from omni_tasks.errors import StoreError
from omni_tasks.store import quiet
from omni_tasks.store.quiet import LONGEST_WAIT, QuietCircuit, tell_all
from omni_tasks.store.redis import RedisStore
from omni_tasks.store.schema import circuit_keys
from tests.support.bench import FAILURE
from tests.support.clock import Clock
from tests.support.eventually import eventually
from tests.support.stand import CONFIG, Stand
from tests.support.stopwatch import Stopwatch


class Busy(Stand):
    """
    A process that asks often, and reports itself.
    """

    store: RedisStore

    def ask(self, config: CircuitBreakerConfig = CONFIG, **request: Any) -> Admission:
        """
        Ask as a guarded call does, as if this were one of many.
        """
        circuit = self.store._quiet.of(config)
        assert circuit is not None
        circuit.asked_soon_again()
        return super().ask(config, **{"here": True, **request})

    def circuit(self, config: CircuitBreakerConfig = CONFIG) -> QuietCircuit:
        """
        What this process knows of a circuit.
        """
        circuit = self.store._quiet.known(config.name)
        assert circuit is not None
        return circuit

    def untold(self, config: CircuitBreakerConfig = CONFIG) -> tuple[int, int]:
        """
        How many calls that run, and that have ended, the circuit does not know of.
        """
        circuit = self.circuit(config)
        return len(circuit._running), len(circuit._ended)


at_leisure = pytest.mark.usefixtures("unhurried")


@pytest.fixture
def stand(redis_server: EmbeddedServer, key_prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Busy]:
    """
    A store as production uses it, in a process that is busy with a quiet circuit however slow the machine is.
    """
    monkeypatch.setattr("omni_tasks.store.quiet._SOON_S", 60.0)
    stand = Busy(RedisStore.at(redis_server.url, timeout=5.0, prefix=key_prefix), Clock())
    stand.run(SUCCESS)
    tell_all()
    yield stand
    tell_all()


@pytest.fixture
def elsewhere(redis_client: redis.Redis, key_prefix: str) -> Stand:
    """
    The same circuits, as another process sees them.
    """
    return Stand(RedisStore(redis_client, prefix=key_prefix), Clock())


@at_leisure
def test_a_busy_process_asks_once_a_call(stand: Busy, redis_client: redis.Redis) -> None:
    """
    A call that succeeds costs the server one field, read before it: no script runs.
    """
    before = _stats(redis_client)
    for _ in range(50):
        stand.run(SUCCESS)
    after = _stats(redis_client)
    # Each look at the statistics is two reads.
    assert {name: after[name] - before[name] for name in before} == {"reads": 50 + 2, "hget": 50, "evalsha": 0}
    assert stand.untold() == (0, 50)


@pytest.mark.parametrize("begin", ["open", "ramp"])
def test_a_busy_process_asks_once_where_something_is_going_on(
    begin: str, stand: Busy, elsewhere: Stand, redis_client: redis.Redis
) -> None:
    """
    Only the call that finds the word gone asks twice; until the circuit is quiet again the rules are asked at once.
    """
    config = replace(CONFIG, name=begin, failure_threshold=1, recovery_timeout=10.0 if begin == "open" else 0.001)
    stand.run(SUCCESS, config)
    elsewhere.trip(config)
    if begin == "ramp":
        _closes(elsewhere, config)
    stand.ask(config)
    before = _stats(redis_client)
    for _ in range(10):
        stand.ask(config)
    after = _stats(redis_client)
    assert {name: after[name] - before[name] for name in before} == {"reads": 10 + 2, "hget": 0, "evalsha": 10}


def _closes(stand: Stand, config: CircuitBreakerConfig) -> None:
    permit = eventually(lambda: stand.ask(config).permit, within=5)
    assert permit is not None
    assert stand.settle(permit, SUCCESS, config).state is CircuitState.CLOSED


def _stats(client: redis.Redis) -> dict[str, int]:
    stats, commands = client.info("stats"), client.info("commandstats")
    calls = {name: commands.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("hget", "evalsha")}
    return {"reads": stats["total_reads_processed"], **calls}


def test_a_circuit_hears_soon_of_what_has_ended(stand: Busy, elsewhere: Stand) -> None:
    """
    A process that falls idle has told everything before half a second is over.
    """
    with Stopwatch() as watch:
        stand.run(SUCCESS)
        eventually(lambda: elsewhere.read().circuit.succeeded == 2, within=LONGEST_WAIT * 4)
    assert watch.seconds < 0.5
    assert elsewhere.read().calls == 0


def test_a_circuit_hears_soon_of_what_runs(stand: Busy, elsewhere: Stand) -> None:
    """
    A call that takes long has its permit like any other, and its end is settled like any other's.
    """
    permit = stand.permit()
    eventually(lambda: elsewhere.read().calls == 1, within=LONGEST_WAIT * 4)
    assert elsewhere.read().circuit.admitted == 2
    assert stand.settle(permit, FAILURE).applied
    reading = elsewhere.read()
    assert (reading.circuit.failed, reading.circuit.failures, reading.calls) == (1, 1, 0)


def test_its_own_process_reads_what_has_ended(stand: Busy) -> None:
    """
    Whoever asks for the numbers in the same process finds every call that has returned.
    """
    for done in range(20):
        stand.run(SUCCESS)
        assert (stand.read().circuit.succeeded, stand.read().calls) == (done + 2, 0)


def test_what_has_ended_is_counted_as_if_it_had_been_settled(
    stand: Busy, redis_client: redis.Redis, key_prefix: str
) -> None:
    """
    The same calls, told at once and told one by one, leave the same numbers.
    """
    config = replace(CONFIG, name="slow", slow_call_duration=0.1)
    durations_ms = (0, 3, 5, 6, 99, 100, 70_000)
    one_by_one = Stand(RedisStore(redis_client, prefix=f"{key_prefix}:other"), Clock())
    for each in (stand, one_by_one):
        each.run(SUCCESS, config)
        for duration_ms in durations_ms:
            each.run(Report(Outcome.SUCCESS, duration_ms=duration_ms), config)
    assert stand.untold(config) == (0, len(durations_ms))
    told, settled = (each.read(config).circuit for each in (stand, one_by_one))
    passing = {"gen", "quiet", "changed_at_ms", "last_success_ms"}
    assert {**asdict(told), **dict.fromkeys(passing)} == {**asdict(settled), **dict.fromkeys(passing)}
    assert (told.slow, told.took_ms, told.durations) == (2, 70_213, "2,1,0,0,2,0,0,0,0,0,0,0,0,1")


def test_a_failure_comes_after_what_has_ended(stand: Busy) -> None:
    """
    Two failures with a success between them are no two in a row, although the circuit had not heard of the success.
    """
    config = replace(CONFIG, name="row", failure_threshold=2)
    stand.run(SUCCESS, config)
    for _ in range(10):
        first, second = stand.permit(config), stand.permit(config)
        stand.settle(first, FAILURE, config)
        for _ in range(3):
            stand.run(SUCCESS, config)
        assert stand.untold(config) == (0, 1)
        stand.settle(second, FAILURE, config)
        assert stand.read(config).circuit.state is CircuitState.CLOSED
        stand.run(SUCCESS, config)


@at_leisure
@at_leisure
def test_what_many_processes_have_not_told_delays_no_trip(redis_server: EmbeddedServer, key_prefix: str) -> None:
    """
    Each of them tells of its successes before its first failure; the failures of all are one row nevertheless.
    """
    fleet = [Busy(RedisStore.at(redis_server.url, timeout=5.0, prefix=key_prefix), Clock()) for _ in range(3)]
    for each in fleet:
        for _ in range(2):
            each.run(SUCCESS)
        assert each.untold()[1] > 0
    running = [each.permit() for each in fleet]
    states = [each.settle(permit, FAILURE).state for each, permit in zip(fleet, running, strict=True)]
    assert states == [CircuitState.CLOSED, CircuitState.CLOSED, CircuitState.OPEN]


@pytest.mark.parametrize("report", [FAILURE, IGNORED], ids=["failure", "ignored"])
def test_only_a_success_may_be_told_later(report: Report, stand: Busy, elsewhere: Stand) -> None:
    """
    Anything else is settled at once, after all that was before it: a failure may trip the circuit.
    """
    running, ended = stand.permit(), stand.permit()
    stand.run(SUCCESS)
    assert stand.untold() == (2, 1)
    assert stand.settle(ended, report).applied
    assert stand.untold() == (0, 0)
    reading = elsewhere.read()
    assert (reading.circuit.admitted, reading.circuit.succeeded, reading.calls) == (4, 2, 1)
    assert (reading.circuit.failed, reading.circuit.ignored) == ((1, 0) if report is FAILURE else (0, 1))
    assert stand.settle(running, SUCCESS).applied
    assert elsewhere.read().circuit.stale == 0


@at_leisure
def test_a_second_report_counts_nothing(stand: Busy) -> None:
    """
    Of a call that was let in by the circuit's word, too, only the first one is applied.
    """
    for report in (SUCCESS, FAILURE):
        permit = stand.permit()
        assert stand.settle(permit, report).applied
        assert not stand.settle(permit, report).applied
    circuit = stand.read().circuit
    assert (circuit.succeeded, circuit.failed, circuit.stale) == (2, 1, 2)


def _failing(stand: Busy, config: CircuitBreakerConfig) -> None:
    stand.run(FAILURE, config)


def _recovering(stand: Busy, config: CircuitBreakerConfig) -> None:
    stand.trip(config)
    _closes(stand, config)


def _forced(stand: Busy, config: CircuitBreakerConfig) -> None:
    stand.store.force(config, Override.FORCED_CLOSED, Word(op_id="word"))


@at_leisure
@pytest.mark.parametrize(
    ("begin", "options"),
    [
        (_failing, {}),
        (_recovering, {"failure_threshold": 1, "recovery_timeout": 0.001}),
        (_forced, {}),
        (None, {"failure_rate_threshold": 0.5}),
        (None, {"slow_call_duration": 1.0, "slow_call_rate_threshold": 0.5}),
    ],
    ids=["a failure", "a ramp", "an override", "a failure rate", "a slow rate"],
)
def test_no_call_is_let_in_unheard_where_something_is_going_on(
    begin: Callable[[Busy, CircuitBreakerConfig], None] | None, options: dict[str, Any], stand: Busy
) -> None:
    """
    While a success may matter, each call is decided and settled by the rules.
    """
    config = replace(CONFIG, name="restless", **options)
    stand.run(SUCCESS, config)
    if begin:
        begin(stand, config)
    for _ in range(2):
        stand.permit(config)
        assert stand.untold(config) == (0, 0)


@at_leisure
def test_a_newer_configuration_is_heard_by_older_processes(stand: Busy, elsewhere: Stand) -> None:
    """
    A circuit that has a rule over a rate by now is not quiet for a process that does not know of the rule.
    """
    newer = replace(CONFIG, version=2, failure_rate_threshold=0.5)
    stand.run(SUCCESS)
    elsewhere.run(SUCCESS, newer)
    stand.circuit().tell()
    stand.run(SUCCESS)
    assert stand.untold() == (0, 0)
    # What was let in before shows in the counts, and not in a window that did not exist.
    circuit = stand.read().circuit
    assert (circuit.window, circuit.succeeded) == ("00", 4)


def test_a_process_that_is_not_busy_settles_each_call(stand: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Where no question follows soon nothing is put off.
    """
    monkeypatch.setattr("omni_tasks.store.quiet._SOON_S", 0.0)
    for _ in range(3):
        permit = stand.permit()
        assert stand.untold() == (0, 0)
        stand.settle(permit, SUCCESS)
        assert stand.untold() == (0, 0)


def test_who_does_not_report_here_is_let_in_by_the_rules(stand: Busy) -> None:
    """
    A worker's gate asks in one process and reports in another: the permit is the store's from the start.
    """
    stand.permit(here=False)
    assert stand.untold() == (0, 0)


def test_a_trip_is_seen_by_the_next_question(stand: Busy, elsewhere: Stand) -> None:
    """
    However busy a process is, it asks before each call.
    """
    late = stand.permit()
    elsewhere.trip()
    assert stand.ask().permit is None
    assert stand.settle(late, SUCCESS).applied
    reading = elsewhere.read()
    assert (reading.circuit.state, reading.circuit.succeeded) == (CircuitState.OPEN, 1)


@at_leisure
def test_what_belongs_to_an_earlier_epoch_only_counts(stand: Busy, elsewhere: Stand) -> None:
    """
    A success from before a trip that is told after it changes no state and ends no row of failures.
    """
    stand.run(SUCCESS)
    running = stand.permit()
    elsewhere.trip()
    before = elsewhere.read().circuit
    stand.circuit().tell()
    after = elsewhere.read()
    assert asdict(after.circuit) == {
        **asdict(before),
        "admitted": before.admitted + 2,
        "succeeded": before.succeeded + 1,
        "successes_in_a_row": 1,
        "last_success_ms": after.circuit.last_success_ms,
    }
    assert after.calls == 1
    assert stand.settle(running, FAILURE).applied
    assert elsewhere.read().circuit.failures == before.failures


@at_leisure
def test_what_belongs_to_lost_state_is_stale(stand: Busy, elsewhere: Stand, redis_client: redis.Redis) -> None:
    """
    A server that has forgotten the circuit counts none of its calls.
    """
    stand.run(SUCCESS)
    running = stand.permit()
    redis_client.flushdb()
    stand.circuit().tell()
    assert elsewhere.read().circuit == Circuit()
    elsewhere.run(SUCCESS)
    assert not stand.settle(running, SUCCESS).applied
    circuit = elsewhere.read().circuit
    assert (circuit.admitted, circuit.succeeded, circuit.stale) == (1, 1, 1)


def test_a_report_waits_until_its_call_is_told(stand: Busy, elsewhere: Stand) -> None:
    """
    A failure must not overtake what tells the circuit of its call: it would be taken for a stranger's.
    """
    circuit, permit = stand.circuit(), stand.permit()
    begun, goes_on = threading.Event(), threading.Event()
    send = circuit._send

    def slowly(told: Told) -> object:
        begun.set()
        assert goes_on.wait(10)
        return send(told)

    circuit._send = slowly
    teller = threading.Thread(target=circuit.tell)
    teller.start()
    assert begun.wait(10)
    answers: list[bool] = []
    reporter = threading.Thread(target=lambda: answers.append(stand.settle(permit, FAILURE).applied))
    reporter.start()
    reporter.join(0.1)
    assert answers == []
    goes_on.set()
    for thread in (teller, reporter):
        thread.join(10)
    assert answers == [True]
    assert (elsewhere.read().circuit.failed, elsewhere.read().circuit.stale) == (1, 0)


@at_leisure
def test_what_could_not_be_told_is_not_told_twice(stand: Busy, redis_client: redis.Redis) -> None:
    """
    A connection that was cut leaves it open whether the circuit has heard: its calls are counted once, or not at all.
    """
    for _ in range(3):
        stand.run(SUCCESS)
    redis_client.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(StoreError):
        stand.circuit().tell()
    stand.run(SUCCESS)
    circuit = stand.read().circuit
    assert (circuit.admitted, circuit.succeeded, circuit.stale) == (2, 2, 0)


def test_what_another_thread_could_not_tell_is_no_second_wait(stand: Busy) -> None:
    """
    A report that waits for a telling that fails is not answered by a second wait for the same silent server.
    """
    circuit = stand.circuit()
    begun, goes_on = threading.Event(), threading.Event()

    def silent(_told: Told) -> object:
        begun.set()
        assert goes_on.wait(10)
        raise StoreError("silent")

    circuit._send = silent
    permit = stand.permit()
    teller = threading.Thread(target=tell_all)
    teller.start()
    assert begun.wait(10)
    errors: list[str] = []

    def report() -> None:
        try:
            stand.settle(permit, FAILURE)
        except StoreError as error:
            errors.append(str(error))

    reporter = threading.Thread(target=report)
    reporter.start()
    eventually(lambda: circuit._is_telling and reporter.is_alive(), within=5)
    reporter.join(0.1)
    goes_on.set()
    for thread in (teller, reporter):
        thread.join(10)
    assert len(errors) == 1
    assert "another thread" in errors[0]


def test_threads_that_wait_do_not_queue_up(stand: Busy) -> None:
    """
    Who waits while a circuit is told waits for one more telling at most, however many others wait too.
    """
    circuit = stand.circuit()
    begun, goes_on, sent = threading.Event(), threading.Event(), []
    send = circuit._send

    def slowly(told: Told) -> object:
        sent.append(told)
        begun.set()
        assert goes_on.wait(10)
        # Another thread goes on making calls.
        stand.run(SUCCESS)
        return send(told)

    stand.run(SUCCESS)
    circuit._send = slowly
    teller = threading.Thread(target=circuit.tell)
    teller.start()
    assert begun.wait(10)
    waiting = threading.Semaphore(0)

    def wait() -> None:
        waiting.release()
        circuit.tell()

    threads = [threading.Thread(target=wait) for _ in range(10)]
    for thread in threads:
        thread.start()
        assert waiting.acquire(timeout=10)
    # What they have to do first is to read the clock and to wait for a lock.
    threads[-1].join(0.2)
    goes_on.set()
    for thread in (teller, *threads):
        thread.join(10)
    # The thread that tells often may have waited with them.
    assert len(sent) <= 3


@at_leisure
def test_a_server_that_only_reads_is_noticed(stand: Busy, redis_client: redis.Redis) -> None:
    """
    It still gives its word, but cannot be told: the next call meets the rules, and says so.
    """
    stand.run(SUCCESS)
    redis_client.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(StoreError):
            stand.circuit().tell()
        with pytest.raises(StoreError):
            stand.store.acquire(CONFIG, Request(permit_id="next", here=True))
    finally:
        redis_client.config_set("min-replicas-to-write", 0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_broke_has_a_successor(stand: Busy, elsewhere: Stand) -> None:
    """
    Whatever ends the thread that tells, later calls are told.
    """
    circuit = stand.circuit()
    send = circuit._send

    def broken(_told: Told) -> object:
        circuit._send = send
        raise ValueError("of no kind that is expected")

    eventually(lambda: stand.untold() == (0, 0), within=5)
    circuit._send = broken
    stand.run(SUCCESS)
    eventually(lambda: stand.store._quiet._thread is None, within=5)
    before = elsewhere.read().circuit.succeeded
    stand.run(SUCCESS)
    eventually(lambda: elsewhere.read().circuit.succeeded > before, within=5)


@at_leisure
def test_a_lost_script_is_sent_again(stand: Busy, redis_client: redis.Redis) -> None:
    """
    After SCRIPT FLUSH what is told is taken all the same.
    """
    stand.run(SUCCESS)
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
    quiet._SOON_S = quiet.LONGEST_WAIT = 60.0
    stand = Busy(RedisStore.at(url, timeout=5.0, prefix=prefix), Clock())
    for number in range(20):
        stand.settle(stand.permit(permit_id=f"{name}-{number}"), SUCCESS)
    assert stand.untold()[1] > 0


@at_leisure
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


@at_leisure
def test_what_is_untold_at_a_fork_is_the_parents(stand: Busy, elsewhere: Stand) -> None:
    """
    A forked child tells none of it, and neither uses nor hears its parent's connections.
    """
    stand.run(SUCCESS)
    assert (stand.untold(), _idle(stand)) == ((0, 1), 1)
    child = os.fork()
    if child == 0:
        try:
            # From the start: two threads of the child must not find them both.
            begins_anew = (stand.store._quiet.known(CONFIG.name), _idle(stand)) == (None, 0)
            tell_all()
            stand.run(FAILURE)
        except BaseException:  # noqa: BLE001 - the child must end here, whatever happens
            os._exit(1)
        os._exit(0 if begins_anew else 2)
    assert os.waitpid(child, 0)[1] == 0
    reading = stand.read()
    assert (reading.circuit.succeeded, reading.circuit.failed, reading.calls) == (2, 1, 0)
    assert elsewhere.read().circuit.stale == 0


def _idle(stand: Busy) -> int:
    return len(stand.store._scripts._where.lines("any")._idle)


def test_the_accounts_balance_after_a_kill(
    redis_server: EmbeddedServer, key_prefix: str, redis_client: redis.Redis
) -> None:
    """
    A kill -9 takes with it what the circuit was not told: calls that are nowhere counted, and no permit stays.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _CALLS, redis_server.url, key_prefix, "import os; os.kill(os.getpid(), 9)"]
    )
    assert process.wait(30) == -signal.SIGKILL
    clock = Clock()
    later = Stand(RedisStore(redis_client, prefix=key_prefix, now_ms=clock), clock)
    clock.now_ms = int(time.time() * 1000) + 2 * CircuitBreakerConfig(name="contract").longest_lease_ms
    permit = later.permit()
    reading = later.read()
    assert reading.circuit.admitted == reading.circuit.succeeded + reading.circuit.expired + reading.calls
    assert reading.circuit.admitted <= 21
    assert later.settle(permit, SUCCESS).applied
    assert later.read().calls == 0


def test_the_accounts_balance_under_threads(redis_server: EmbeddedServer, key_prefix: str, elsewhere: Stand) -> None:
    """
    Eight threads, some of whose calls fail, and one that tells all the time: every call is counted once.
    """
    store = RedisStore.at(redis_server.url, timeout=5.0, prefix=key_prefix)
    breaker = CircuitBreaker(replace(CONFIG, failure_threshold=1000), store=store)
    done = threading.Event()

    def call() -> None:
        for number in range(100):
            with suppress(ZeroDivisionError):
                breaker.call(divmod, 1, number % 10)

    def tell() -> None:
        while not done.is_set():
            tell_all()

    threads = [threading.Thread(target=call) for _ in range(8)]
    teller = threading.Thread(target=tell)
    for thread in (*threads, teller):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    teller.join()
    tell_all()
    assert elsewhere.read().calls == 0
    circuit = elsewhere.read().circuit
    assert (circuit.admitted, circuit.succeeded, circuit.failed, circuit.stale) == (800, 720, 80, 0)


def test_the_thread_that_tells_ends_and_starts_again(
    stand: Busy, elsewhere: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A process that is idle for long has no thread of ours, and has one again when it has something to tell.
    """
    monkeypatch.setattr("omni_tasks.store.quiet._IDLE_S", 0.0)
    stand.run(SUCCESS)
    eventually(lambda: stand.store._quiet._thread is None, within=5)
    stand.run(SUCCESS)
    eventually(lambda: elsewhere.read().circuit.succeeded == 3, within=5)


_LETS_GO = """
del breaker
import gc, os, threading
gc.collect()
for thread in threading.enumerate():
    if thread.name == "omni-quiet":
        thread.join()
os._exit(0)
"""


def test_what_is_untold_is_kept_when_its_store_is_not(
    redis_server: EmbeddedServer, key_prefix: str, elsewhere: Stand
) -> None:
    """
    A breaker that was made for some calls, and is forgotten after them, has told of all of them.
    """
    hurried = "import omni_tasks.store.quiet as quiet; quiet._IDLE_S = 0.0" + _LETS_GO
    subprocess.run([sys.executable, "-c", _CALLS, redis_server.url, key_prefix, hurried], check=True)
    reading = elsewhere.read()
    assert (reading.circuit.succeeded, reading.calls) == (20, 0)


def test_what_is_done_at_the_end_is_noted_once(stand: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A process that is busy now and then does not remember each time.
    """
    stand.run(SUCCESS)
    noted = len(vars(util)["_finalizer_registry"])
    monkeypatch.setattr("omni_tasks.store.quiet._IDLE_S", 0.0)
    for _ in range(3):
        stand.run(SUCCESS)
        eventually(lambda: stand.store._quiet._thread is None, within=5)
    assert len(vars(util)["_finalizer_registry"]) == noted


@at_leisure
def test_a_word_of_somebody_elses_is_not_believed(stand: Busy, redis_client: redis.Redis, key_prefix: str) -> None:
    """
    What no script has written is no word; the rules decide, and set it right.
    """
    key = circuit_keys(key_prefix, CONFIG.name)[0]
    word = redis_client.hget(key, "quiet")
    for damage in ("", "x", "1", "-1 gen", " gen", "\u00b2 gen", "9" * 5000 + " gen"):
        redis_client.hset(key, "quiet", damage)
        stand.run(SUCCESS)
        assert stand.untold() == (0, 0)
        assert redis_client.hget(key, "quiet") == word
    redis_client.hset(key, "quiet", "7 another")
    permit = stand.permit()
    stand.circuit().tell()
    assert redis_client.hget(key, "quiet") == word
    assert not stand.settle(permit, FAILURE).applied
