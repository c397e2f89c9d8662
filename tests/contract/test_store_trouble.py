"""
What else can be wrong with a store, each with the answer that docs/store-trouble.md gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from omni_tasks.core.model import CircuitState, Word
from omni_tasks.core.outcome import SUCCESS
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.embedded import EmbeddedServer, start_server
from omni_tasks.errors import StoreError, StoreReplyError
from omni_tasks.store.failover import FailoverStore
from omni_tasks.store.redis import RedisStore, connect
from tests.support.bench import FAILURE
from tests.support.clock import Clock
from tests.support.eventually import eventually
from tests.support.proxy import Proxy
from tests.support.stand import CONFIG, Stand
from tests.support.stopwatch import Stopwatch

TIMEOUT = 0.3

REPOSITORY = Path(__file__).parents[2]


def _port(server: EmbeddedServer) -> int:
    return int(re.sub(r".*:(\d+)/\d+$", r"\1", server.url))


def _is_back(store: FailoverStore, config: CircuitBreakerConfig) -> bool:
    store.draw(config, 0)
    return not store.degraded


@pytest.fixture
def proxy(redis_server: EmbeddedServer) -> Iterator[Proxy]:
    """
    A server that can be made to break its answers.
    """
    with Proxy(_port(redis_server)) as between:
        yield between


def test_every_row_names_its_tests() -> None:
    """
    Each kind of trouble in the table is shown by tests that exist.
    """
    table = (REPOSITORY / "docs" / "store-trouble.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("| ") and "`test_" in line]
    assert len(rows) >= 13
    tests = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").rglob("test_*.py"))
    for row in rows:
        for name in re.findall(r"`(test_\w+)`", row):
            assert f"def {name}(" in tests, name


@pytest.mark.parametrize("cut_after", [0, 1, 6], ids=["before the answer", "in its first line", "in its middle"])
def test_an_answer_cut_off_is_no_answer(cut_after: int, proxy: Proxy, key_prefix: str) -> None:
    """
    A connection that closes inside an answer is asked again once, on a new one; cut again, decisions are local.
    """
    url = f"redis://127.0.0.1:{proxy.port}/0"
    store = FailoverStore(RedisStore(connect(url, timeout=TIMEOUT), prefix=key_prefix), pause=0.01)
    stand = Stand(store, Clock())
    stand.run(SUCCESS)
    proxy.cut_after = cut_after
    connections = proxy.connections
    with Stopwatch() as watch:
        assert stand.permit().local
    assert watch.seconds < TIMEOUT
    # The thread that looks for its return makes its own.
    assert proxy.connections == connections + 1
    proxy.cut_after = None
    eventually(lambda: _is_back(store, CONFIG), within=5)
    assert not stand.permit().local


def test_a_question_whose_answer_was_cut_off_is_not_asked_twice(
    proxy: Proxy, redis_server: EmbeddedServer, key_prefix: str
) -> None:
    """
    What the lost answer's question did stays done, once: the repetition finds the permit that was given.
    """
    url = f"redis://127.0.0.1:{proxy.port}/0"
    stand = Stand(RedisStore(connect(url, timeout=TIMEOUT), prefix=key_prefix), Clock())
    stand.run(FAILURE)
    proxy.cut_after = 0
    with pytest.raises(StoreError):
        stand.ask(permit_id="lost")
    with connect(redis_server.url, timeout=TIMEOUT) as client:
        reading = Stand(RedisStore(client, prefix=key_prefix), Clock()).read()
    assert (reading.calls, reading.circuit.admitted) == (1, 2)


def test_a_connection_closed_while_idle_goes_unnoticed(redis_client: redis.Redis, key_prefix: str) -> None:
    """
    A server, or something between, that hangs up on idle connections costs no decision.
    """
    address = redis_client.connection_pool.connection_kwargs
    stand = Stand(
        RedisStore.at(f"redis://{address['host']}:{address['port']}/0", timeout=TIMEOUT, prefix=key_prefix), Clock()
    )
    for _ in range(3):
        stand.run(SUCCESS)
        redis_client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert stand.run(FAILURE).applied
    assert stand.read().circuit.failed == 3


def test_connections_may_be_lost_any_number_of_times(redis_client: redis.Redis, key_prefix: str) -> None:
    """
    A process that has connected anew hundreds of times goes on: only those that are open count.
    """
    address = redis_client.connection_pool.connection_kwargs
    store = RedisStore.at(f"redis://{address['host']}:{address['port']}/0", timeout=TIMEOUT, prefix=key_prefix)
    for _ in range(300):
        redis_client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        store.read([CONFIG])


def test_scripts_that_are_lost_are_sent_again(redis_client: redis.Redis, key_prefix: str) -> None:
    """
    After SCRIPT FLUSH every verb goes on, with one question more.
    """
    stand = Stand(RedisStore(redis_client, prefix=key_prefix), Clock())
    for ask in (stand.permit, stand.run, stand.read, lambda: stand.store.draw(CONFIG, 1)):
        redis_client.script_flush()
        ask()
    redis_client.script_flush()
    stand.store.reset(CONFIG, Word(op_id="operator"))
    assert stand.read().circuit.epoch == 1


@pytest.mark.parametrize("answer", ["return 1", "return {}", "return {'call', 'gen', 0, 'ajar', 0, 'ajar', 0}"])
def test_an_answer_that_is_not_ours_is_no_answer(answer: str, redis_client: redis.Redis, key_prefix: str) -> None:
    """
    A server that answers something else, as one between versions might, is a store that is away.
    """
    shared = RedisStore(redis_client, prefix=key_prefix)
    shared._scripts.put("acquire", answer)
    with pytest.raises(StoreReplyError, match="acquire 'contract'"):
        Stand(shared, Clock()).ask()
    assert Stand(FailoverStore(shared), Clock()).permit().local


def test_an_evicted_circuit_begins_anew() -> None:
    """
    Where the server throws keys away a circuit starts closed in a new incarnation; no call ends in an error.
    """
    config = CircuitBreakerConfig(name="evicted", failure_threshold=3, recovery_timeout=600.0)
    with start_server() as server, connect(server.url, timeout=5.0) as client:
        stand = Stand(FailoverStore(RedisStore(client)), Clock())
        old = stand.permit(config)
        assert stand.trip(config).state is CircuitState.OPEN
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 200_000)
        for number in range(4000):
            client.set(f"filler:{number}", b"x" * 200)
            if not number % 100:
                stand.store.draw(CircuitBreakerConfig(name="other"), 0)
        assert not client.exists(f"omni:{{{config.name}}}:circuit")
        new = stand.permit(config)
        assert (new.gen == old.gen, new.local) == (False, False)
        # What was given before the loss counts for nothing now.
        assert not stand.settle(old, FAILURE, config).applied
        assert stand.trip(config).state is CircuitState.OPEN


def test_a_restart_without_data_is_no_flood() -> None:
    """
    An open circuit whose server comes back empty lets the threshold through, then it is open again.
    """
    config = CircuitBreakerConfig(name="forgotten", failure_threshold=3, recovery_timeout=600.0)
    with start_server() as server, connect(server.url, timeout=5.0) as client:
        store = FailoverStore(RedisStore(client), pause=0.01)
        stand = Stand(store, Clock())
        stand.trip(config)
        server.kill()
        reached = 0
        for _ in range(50):
            permit = stand.ask(config).permit
            reached += permit is not None
            if permit:
                stand.settle(permit, FAILURE, config)
        # The process's own circuit.
        assert reached == 3
        server.restart()
        eventually(lambda: _is_back(store, config), within=5)
        for _ in range(50):
            permit = stand.ask(config).permit
            reached += permit is not None
            if permit:
                stand.settle(permit, FAILURE, config)
        assert reached == 6
