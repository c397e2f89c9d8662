"""
A store that is killed, frozen, full or read-only: decisions go on in the process, and say so.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from omni_tasks import CircuitBreakerManager, CircuitOpenError, ResilienceConfiguration, StoreError
from omni_tasks.core.model import Admission, CircuitState, Override, Permit, Request, Word
from omni_tasks.core.outcome import SUCCESS
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.embedded import EmbeddedServer, EmbeddedServerError, start_server
from omni_tasks.store.failover import FailoverStore, StorePolicy
from omni_tasks.store.memory import MemoryStore
from omni_tasks.store.redis import RedisStore, connect
from tests.support.bench import FAILURE
from tests.support.clock import Clock
from tests.support.eventually import eventually
from tests.support.stand import CONFIG, Stand
from tests.support.stopwatch import Stopwatch

#: Longest wait for one answer of the store, seconds.
TIMEOUT = 0.3

#: Seconds nobody waits out here, and seconds that have passed by the next call.
LONG, SHORT = 600.0, 1e-6


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """
    A server to be ill-treated by one test; without one the test is skipped on a laptop and fails in CI.
    """
    try:
        started = start_server()
    except EmbeddedServerError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with started:
        yield started


class Shared:
    """
    A failover store over *server*, what it has said about its state, and circuits asked by hand.
    """

    def __init__(self, server: EmbeddedServer, *, pause: float, policy: StorePolicy = "local") -> None:
        """
        Leave the server alone for *pause* seconds after it did not answer.
        """
        self.said: list[tuple[bool, str]] = []
        self.client = connect(server.url, timeout=TIMEOUT)
        self.store = FailoverStore(
            RedisStore(self.client),
            pause=pause,
            policy=policy,
            on_change=lambda away, why: self.said.append((away, why)),
        )
        self.stand = Stand(self.store, Clock())

    def comes_back(self) -> None:
        """
        Go on asking until the server is shared again; a thread has to find out first.
        """
        eventually(self._is_back, within=5.0, what="decisions are shared again")

    def _is_back(self) -> bool:
        self.store.draw(CONFIG, 0)
        return not self.store.degraded

    @property
    def changes(self) -> list[bool]:
        """
        Whether the store was away, each time that changed.
        """
        return [away for away, _ in self.said]


@pytest.fixture
def patient(server: EmbeddedServer) -> Iterator[Shared]:
    """
    A store that asks again after ten minutes; it has been used once.
    """
    shared = Shared(server, pause=LONG)
    shared.stand.run(SUCCESS)
    yield shared
    shared.client.close()


@pytest.fixture
def eager(server: EmbeddedServer) -> Iterator[Shared]:
    """
    A store that asks again with the next call; it has been used once.
    """
    shared = Shared(server, pause=SHORT)
    shared.stand.run(SUCCESS)
    yield shared
    shared.client.close()


def _seconds(act: Callable[[], object]) -> float:
    with Stopwatch() as watch:
        act()
    return watch.seconds


HARM = pytest.mark.parametrize("harm", [EmbeddedServer.kill, EmbeddedServer.pause], ids=["killed", "paused"])


@HARM
def test_only_the_first_call_pays_and_only_the_deadline(
    harm: Callable[[EmbeddedServer], None], server: EmbeddedServer, patient: Shared
) -> None:
    """
    A killed or frozen server costs one call at most twice the deadline; a hundred calls after it cost next to nothing.
    """
    harm(server)
    assert _seconds(lambda: patient.stand.run(SUCCESS)) <= 2 * TIMEOUT
    assert _seconds(lambda: [patient.stand.run(SUCCESS) for _ in range(100)]) < TIMEOUT
    assert patient.store.errors == 1


def test_a_server_that_is_frozen_from_the_start_costs_no_more(server: EmbeddedServer) -> None:
    """
    A first connection to a frozen server, which the kernel accepts in its name, is bounded as well.
    """
    server.pause()
    fresh = Shared(server, pause=LONG)
    assert _seconds(fresh.stand.permit) <= 2 * TIMEOUT
    assert fresh.changes == [True]
    fresh.client.close()


@HARM
def test_a_lost_store_is_never_read_as_healthy(
    harm: Callable[[EmbeddedServer], None], server: EmbeddedServer, patient: Shared
) -> None:
    """
    While the store is away permits say that they are local, readings that they are degraded, and circuits still trip.
    """
    harm(server)
    assert patient.stand.permit().local
    assert patient.stand.trip().state is CircuitState.OPEN
    refused = patient.stand.ask()
    assert (refused.permit, refused.state) == (None, CircuitState.OPEN)
    assert patient.store.degraded
    assert patient.stand.read().degraded
    assert patient.store.draw(CONFIG, 5).count == 0
    assert patient.changes == [True]
    assert patient.said[0][1]


def test_a_frozen_server_that_goes_on_is_shared_again(server: EmbeddedServer, eager: Shared) -> None:
    """
    After its return calls are shared, the state from before is there, and both changes are told once.
    """
    server.pause()
    eager.stand.run(SUCCESS)
    server.resume()
    eager.comes_back()
    assert not eager.stand.permit().local
    reading = eager.stand.read()
    assert (reading.degraded, reading.circuit.succeeded) == (False, 1)
    assert not eager.store.degraded
    assert eager.changes == [True, False]


def test_a_server_that_comes_back_empty_is_shared_again(server: EmbeddedServer, eager: Shared) -> None:
    """
    After a crash without data the circuit starts anew, shared; a permit from before the crash changes nothing.
    """
    old = eager.stand.permit()
    server.kill()
    assert eager.stand.permit().local
    server.restart()
    eager.comes_back()
    new = eager.stand.permit()
    assert not new.local
    assert new.gen != old.gen
    assert not eager.stand.settle(old).applied
    assert eager.stand.settle(new).applied


def test_a_report_goes_where_its_permit_came_from(server: EmbeddedServer, eager: Shared) -> None:
    """
    A local permit's failure never reaches the shared circuit; a shared permit's report in between is dropped.
    """
    shared = eager.stand.permit()
    server.pause()
    local = eager.stand.permit()
    assert local.local
    assert not eager.stand.settle(shared).applied
    server.resume()
    eager.comes_back()
    assert eager.stand.settle(local).applied
    assert eager.stand.read().circuit.failed == 0


@HARM
def test_the_operator_is_told(harm: Callable[[EmbeddedServer], None], server: EmbeddedServer, eager: Shared) -> None:
    """
    Forcing and resetting fail loudly while the store is away: a word only one process hears would mislead.
    """
    harm(server)
    with pytest.raises(StoreError, match="force"):
        eager.stand.force(Override.FORCED_OPEN)
    with pytest.raises(StoreError, match="reset"):
        eager.store.reset(CONFIG, Word(op_id="operator"))
    assert eager.stand.permit().local


def test_a_read_only_store_is_degraded(eager: Shared) -> None:
    """
    A replica still answers readings; decisions are local, readings say so, and nothing flaps.
    """
    eager.client.replicaof("127.0.0.1", "1")
    for _ in range(3):
        assert eager.stand.permit().local
        assert eager.stand.read().degraded
    assert eager.changes == [True]
    eager.client.replicaof("NO", "ONE")
    eager.comes_back()
    assert not eager.stand.permit().local
    assert not eager.stand.read().degraded
    assert eager.changes == [True, False]


def test_a_full_store_goes_on_deciding(eager: Shared) -> None:
    """
    A server over its memory limit still admits, trips, draws, obeys and logs: each script takes away before it adds.
    """
    eager.client.config_set("maxmemory", 1)
    assert eager.stand.trip().state is CircuitState.OPEN
    assert eager.stand.ask().permit is None
    assert eager.store.draw(CONFIG, 5).count == 0
    assert eager.stand.read().circuit.failed == CONFIG.failure_threshold
    assert eager.stand.force(Override.FORCED_CLOSED) is not None
    assert [record.kind for record in eager.store.log(CONFIG)] == ["transition", "operator", "transition"]
    assert eager.changes == []


def test_the_log_of_a_store_that_is_away_is_the_processs_own(server: EmbeddedServer, patient: Shared) -> None:
    """
    While the store is away the log shows what the local circuit did.
    """
    assert patient.store.log(CONFIG) == []
    server.kill()
    patient.stand.trip()
    assert [record.current for record in patient.store.log(CONFIG)] == [CircuitState.OPEN]
    assert patient.changes == [True]


def test_a_log_that_cannot_be_read_is_told(server: EmbeddedServer, eager: Shared) -> None:
    """
    An error of the server, and no server, are the store's error.
    """
    shared = RedisStore(eager.client)
    eager.client.config_set("requirepass", "another")
    eager.client.connection_pool.disconnect()
    with pytest.raises(StoreError, match=r"^log 'contract': "):
        shared.log(CONFIG)
    server.kill()
    with pytest.raises(StoreError, match=r"^log 'contract': "):
        shared.log(CONFIG)


def test_a_wrong_password_is_not_told(server: EmbeddedServer, eager: Shared) -> None:
    """
    A server that refuses the password is a store that is away; the reason given does not name the password.
    """
    eager.client.config_set("requirepass", "another")
    wrong = FailoverStore(
        RedisStore(connect(server.url.replace("redis://", "redis://:hunter2@"), timeout=TIMEOUT)),
        on_change=lambda away, why: eager.said.append((away, why)),
    )
    assert Stand(wrong, Clock()).permit().local
    with pytest.raises(StoreError) as caught:
        wrong.reset(CONFIG, Word(op_id="operator"))
    for text in (eager.said[0][1], str(caught.value)):
        assert "password" in text
        assert "hunter2" not in text


def test_a_manager_goes_on_alone(server: EmbeddedServer) -> None:
    """
    Calls keep their results and their errors while the store is away, and every metric says that it is degraded.
    """
    config = CircuitBreakerConfig(name="alone", failure_threshold=2)
    manager = CircuitBreakerManager(
        ResilienceConfiguration(
            redis_url=server.url, circuits={"alone": config}, store_timeout=TIMEOUT, store_retry_interval=LONG
        )
    )
    assert manager.call("alone", int, "1") == 1
    assert not manager.degraded
    server.kill()
    assert manager.call("alone", int, "2") == 2
    for _ in range(2):
        with pytest.raises(ValueError, match="invalid literal"):
            manager.call("alone", int, "x")
    with pytest.raises(CircuitOpenError):
        manager.call("alone", int, "3")
    assert manager.degraded
    metrics = manager.get_all_metrics()["alone"]
    assert (metrics.degraded, metrics.state, metrics.failed_requests) == (True, "open", 2)
    with pytest.raises(StoreError):
        manager.get("alone").force_open()
    with pytest.raises(StoreError):
        manager.reset_all()


def test_failures_are_counted_where_a_store_is_away(server: EmbeddedServer, eager: Shared) -> None:
    """
    Each question the shared store did not answer adds one to the process's count, those of the thread that asks too.
    """
    server.kill()
    assert eager.stand.permit().local
    counted = eager.store.errors
    assert counted >= 1
    eventually(lambda: eager.stand.read().degraded and eager.store.errors > counted, within=5.0)


@pytest.mark.parametrize(
    ("policy", "permits", "state"),
    [("admit", [True] * 5, "closed"), ("refuse", [False] * 5, "open"), ("local", [True] * 3 + [False] * 2, "open")],
)
def test_the_policy_says_what_happens_meanwhile(
    policy: StorePolicy, permits: list[bool], state: str, server: EmbeddedServer
) -> None:
    """
    While the store is away all calls run, none does, or the process trips a circuit of its own; all shown as degraded.
    """
    shared = Shared(server, pause=LONG, policy=policy)
    server.kill()
    answers = []
    for _ in permits:
        answer = shared.stand.ask()
        answers.append(answer.permit is not None)
        if answer.permit:
            assert answer.permit.local
            shared.stand.settle(answer.permit, FAILURE)
        else:
            assert answer.retry_after_ms > 0
    assert answers == permits
    reading = shared.stand.read()
    assert (reading.degraded, reading.circuit.effective_state.value) == (True, state)
    assert shared.store.errors == 1
    assert shared.changes == [True]
    shared.client.close()


def test_a_refusal_by_policy_is_the_circuits_own(server: EmbeddedServer) -> None:
    """
    With the policy "refuse" a call meets CircuitOpenError, whose wait is the time until the store is asked again.
    """
    manager = CircuitBreakerManager(
        ResilienceConfiguration.load(
            {"omni_redis_url": server.url, "omni_store_policy": "refuse", "omni_store_retry_interval": 7}, environ={}
        )
    )
    assert manager.call("cache", int, "1") == 1
    server.kill()
    with pytest.raises(CircuitOpenError) as refused:
        manager.call("cache", int, "2")
    assert (refused.value.state, refused.value.retry_after) == ("open", 7.0)
    assert manager.get("cache").get_metrics().state == "open"


def test_threads_that_wait_give_up_together(server: EmbeddedServer) -> None:
    """
    Eight threads that ask a frozen server are back after one deadline: when the first gives up, all do.
    """
    shared = Shared(server, pause=LONG)
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            list(threads.map(lambda _: shared.stand.run(SUCCESS), range(8)))
        server.pause()
        with Stopwatch() as watch:
            # Later than the first, so that each would wait for longer than it does.
            waits = [threads.submit(_late, shared, 0.02 * number) for number in range(8)]
            assert all(wait.result().local for wait in waits)
        assert watch.seconds < TIMEOUT + 0.1
    assert shared.changes == [True]
    shared.client.close()


def _late(shared: Shared, seconds: float) -> Permit:
    threading.Event().wait(seconds)
    return shared.stand.permit()


def test_a_long_freeze_costs_one_wait(server: EmbeddedServer) -> None:
    """
    Over many retry intervals no call waits but the first: a thread asks whether the server answers.
    """
    shared = Shared(server, pause=0.05)
    shared.stand.run(SUCCESS)
    server.pause()
    assert _seconds(shared.stand.permit) <= 2 * TIMEOUT
    slowest, until = 0.0, time.monotonic() + 5 * TIMEOUT
    while time.monotonic() < until:
        slowest = max(slowest, _seconds(shared.stand.permit))
    assert slowest < TIMEOUT
    assert shared.store.errors > 2
    server.resume()
    shared.comes_back()
    assert shared.changes == [True, False]
    shared.client.close()


def _asks() -> bool:
    return any(thread.name == "omni-store" for thread in threading.enumerate())


def test_a_forked_child_asks_for_itself(server: EmbeddedServer) -> None:
    """
    A child of a process whose store is away finds its return, although the parent's thread is not in it.
    """
    shared = Shared(server, pause=0.05)
    server.pause()
    assert shared.stand.permit().local
    # Until the parent's thread asks.
    eventually(lambda: shared.stand.permit().local and _asks(), within=5)
    child = os.fork()
    if child == 0:
        try:
            shared.comes_back()
        except BaseException:  # noqa: BLE001 - the child must end here, whatever happens
            os._exit(1)
        os._exit(0)
    server.resume()
    assert os.waitpid(child, 0)[1] == 0
    shared.client.close()


class _TimeLimit(BaseException):
    """
    What a signal raises in the middle of anything.
    """


class _Interrupted(MemoryStore):
    """
    A shared store that is away once; the next question to it is interrupted.
    """

    ends: Iterator[BaseException] = iter(())

    def acquire(self, config: CircuitBreakerConfig, request: Request) -> Admission:
        """
        End as told, then answer.
        """
        for end in self.ends:
            raise end
        return super().acquire(config, request)


def test_an_attempt_that_is_interrupted_is_made_again() -> None:
    """
    A time limit that ends the one call which tries the store does not leave the process alone for ever.
    """
    shared = _Interrupted()
    shared.ends = iter([StoreError("away"), _TimeLimit()])
    store = FailoverStore(shared, pause=SHORT)
    stand = Stand(store, Clock())
    assert stand.permit().local

    def interrupted() -> bool:
        try:
            stand.ask()
        except _TimeLimit:
            return True
        return False

    eventually(interrupted, within=5.0)
    eventually(lambda: not stand.permit().local, within=5.0)
    assert not store.degraded


def test_a_full_store_goes_on_with_a_quiet_circuit(eager: Shared) -> None:
    """
    Calls that succeed are admitted and counted on a full server, too.
    """
    eager.stand.run(SUCCESS)
    eager.client.config_set("maxmemory", 1)
    for _ in range(3):
        assert eager.stand.run(SUCCESS).applied
    assert eager.stand.read().circuit.succeeded == 5
    assert eager.changes == []
