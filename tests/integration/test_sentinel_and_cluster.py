"""
A store that sentinels watch, a store that is a cluster, a store behind TLS.
"""

from __future__ import annotations

import signal
import ssl
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import pytest
import redis
import trustme
from redis.cluster import RedisCluster

from omni_tasks import CircuitBreaker, CircuitBreakerConfig, CircuitOpenError, CircuitState, StoreError
from omni_tasks.breaker import open_store
from omni_tasks.core.model import Request
from omni_tasks.core.outcome import SUCCESS
from omni_tasks.embedded import EmbeddedServer
from omni_tasks.store.connect import connect
from omni_tasks.store.failover import FailoverStore
from omni_tasks.store.redis import RedisStore
from omni_tasks.store.schema import circuit_keys
from tests.support.bench import FAILURE
from tests.support.clock import Clock
from tests.support.eventually import eventually
from tests.support.proxy import Proxy
from tests.support.servers import HOST, Watched, cluster, watched
from tests.support.stand import CONFIG, Stand
from tests.support.stopwatch import Stopwatch

TIMEOUT = 0.5

#: Circuits whose keys are on each of three nodes.
CIRCUITS = [CircuitBreakerConfig(name=f"circuit-{number}", failure_threshold=2) for number in range(12)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[int, Popen[bytes]]]]:
    """
    Three nodes of one cluster.
    """
    with cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture
def cluster_url(nodes: list[tuple[int, Popen[bytes]]]) -> str:
    """
    Two of the nodes; the third is found.
    """
    return "redis+cluster://" + ",".join(f"{HOST}:{port}" for port, _ in nodes[:2])


def _trip(breaker: CircuitBreaker) -> None:
    while breaker.state is CircuitState.CLOSED:
        with pytest.raises(ZeroDivisionError):
            breaker.call(lambda: 1 / 0)


def test_a_circuit_on_a_cluster_is_one_circuit(
    nodes: list[tuple[int, Popen[bytes]]], cluster_url: str, key_prefix: str
) -> None:
    """
    Circuits on all three nodes count, trip, refuse and are read together; another process's breaker sees the same.
    """
    store = open_store(cluster_url, prefix=key_prefix)
    for number, config in enumerate(CIRCUITS):
        for _ in range(20):
            assert CircuitBreaker(config, store=store).call(int, "1") == 1
        if number % 2:
            _trip(CircuitBreaker(config, store=store))
    elsewhere = open_store(cluster_url, prefix=key_prefix)
    readings = elsewhere.read(CIRCUITS)
    assert not any(reading.degraded for reading in readings)
    assert [reading.circuit.state for reading in readings] == [CircuitState.CLOSED, CircuitState.OPEN] * 6
    # The last successes of a busy process may be on their way for a moment.
    eventually(
        lambda: {(seen.circuit.succeeded, seen.calls) for seen in elsewhere.read(CIRCUITS)} == {(20, 0)}, within=5
    )
    with pytest.raises(CircuitOpenError):
        CircuitBreaker(CIRCUITS[1], store=elsewhere).call(int)
    for port, _ in nodes:
        with redis.Redis(HOST, port) as client:
            assert client.keys(f"{key_prefix}:*"), "a node has no circuit: nothing was shown"


def test_a_circuit_whose_slot_has_moved_is_followed(
    nodes: list[tuple[int, Popen[bytes]]], cluster_url: str, key_prefix: str
) -> None:
    """
    A circuit whose slot another node takes over keeps its state, for a store that knew the old place.
    """
    store, config = RedisStore.at(cluster_url, timeout=TIMEOUT, prefix=key_prefix), CIRCUITS[0]
    stand = Stand(store, Clock())
    stand.run(FAILURE, config)
    clients = {port: redis.Redis(HOST, port) for port, _ in nodes}
    ids = {port: client.execute_command("CLUSTER", "MYID").decode() for port, client in clients.items()}
    slot = clients[nodes[0][0]].execute_command("CLUSTER", "KEYSLOT", circuit_keys(key_prefix, config.name)[0])
    source = next(port for port in clients if slot * 3 // 16384 == [n for n, _ in nodes].index(port))
    target = next(port for port in clients if port != source)
    clients[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    clients[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    there = clients[source].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
    clients[source].execute_command("MIGRATE", HOST, target, "", 0, 1000, "KEYS", *there)
    # Between two nodes a script that names a key not made yet is refused: the circuit is away for so long.
    with pytest.raises(StoreError):
        stand.ask(config)
    for port in (target, source):
        clients[port].execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
    for _ in range(3):
        assert stand.run(SUCCESS, config).applied
    reading = stand.read(config).circuit
    assert (reading.failed, reading.succeeded) == (1, 3)
    for client in clients.values():
        client.close()


def test_a_frozen_node_costs_its_own_circuits_one_deadline(
    nodes: list[tuple[int, Popen[bytes]]], cluster_url: str, key_prefix: str
) -> None:
    """
    Circuits of the other nodes are answered meanwhile; redis-py's retries and its search for the slots cost no wait.
    """
    store = RedisStore.at(cluster_url, timeout=TIMEOUT, prefix=key_prefix)
    stand, client = Stand(store, Clock()), connect(cluster_url, timeout=TIMEOUT)
    assert isinstance(client, RedisCluster)
    by_port: dict[int, CircuitBreakerConfig] = {}
    for config in CIRCUITS:
        stand.run(SUCCESS, config)
        by_port[client.get_node_from_key(circuit_keys(key_prefix, config.name)[0]).port] = config
    port, process = nodes[2]
    others = [config for at, config in by_port.items() if at != port]
    process.send_signal(signal.SIGSTOP)
    try:
        with Stopwatch() as watch, pytest.raises(StoreError):
            stand.ask(by_port[port])
        assert watch.seconds < TIMEOUT + 0.15
    finally:
        process.send_signal(signal.SIGCONT)
    assert all(stand.ask(config).permit for config in others)
    eventually(lambda: _answers(store, by_port[port]), within=10)
    client.close()


def _answers(store: RedisStore, config: CircuitBreakerConfig) -> bool:
    try:
        return bool(store.read([config]))
    except StoreError:
        return False


def test_a_cluster_that_is_not_there_is_a_store_that_is_away() -> None:
    """
    Opening it asks nobody; the first call finds it away and decides alone.
    """
    store = open_store("redis+cluster://127.0.0.1:1,127.0.0.1:2", timeout=TIMEOUT)
    assert isinstance(store, FailoverStore)
    answer = store.acquire(CONFIG, Request(permit_id="p"))
    assert answer.permit is not None
    assert answer.permit.local
    assert store.degraded


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Watched]:
    """
    A primary, a replica and a sentinel.
    """
    with watched(tmp_path) as started:
        yield started


def test_a_failover_keeps_the_state(guarded: Watched, key_prefix: str) -> None:
    """
    After the primary is killed its replica is promoted; decisions are shared again, and the open circuit is open.
    """
    (_, process), (replica, _) = guarded.servers
    store = open_store(guarded.url, prefix=key_prefix, timeout=TIMEOUT, pause=0.1)
    assert isinstance(store, FailoverStore)
    breaker = CircuitBreaker(CIRCUITS[0], store=store)
    _trip(breaker)
    eventually(guarded.is_replicated, within=5)
    process.kill()
    process.wait()
    # With the shared circuit away the process's own decides: it is closed, and says so as degraded.
    assert breaker.call(int, "1") == 1
    assert breaker.get_metrics().degraded
    eventually(lambda: _shared_again(store), within=20, what="the replica is asked")
    with pytest.raises(CircuitOpenError):
        breaker.call(int)
    metrics = breaker.get_metrics()
    assert (metrics.state, metrics.degraded, metrics.circuit_open_count) == (CircuitState.OPEN, False, 1)
    with redis.Redis(HOST, replica) as client:
        assert client.role()[0] == b"master"


def _shared_again(store: FailoverStore) -> bool:
    store.draw(CIRCUITS[0], 0)
    return not store.degraded


def test_a_primary_that_steps_down_goes_unnoticed(guarded: Watched, key_prefix: str) -> None:
    """
    Once the sentinel names another primary, the old one's "read-only" sends the same question there: none is local.
    """
    stand = Stand(RedisStore.at(guarded.url, timeout=TIMEOUT, prefix=key_prefix), Clock())
    stand.run(FAILURE)
    eventually(guarded.is_replicated, within=5)
    with redis.Redis(HOST, guarded.sentinel, decode_responses=True) as sentinel:
        eventually(lambda: _fail_over(sentinel), within=20, what="the sentinel takes the order")
        (old, _), (new, _) = guarded.servers
        eventually(lambda: sentinel.sentinel_master("circuits")["port"] == new, within=20)
    with redis.Redis(HOST, old) as client:
        # The sentinel would do it with its next look, up to ten seconds later.
        client.replicaof(HOST, new)
    assert stand.run(FAILURE).applied
    assert stand.read().circuit.failed == 2


def _fail_over(sentinel: redis.Redis) -> bool:
    try:
        return bool(sentinel.execute_command("SENTINEL", "FAILOVER", "circuits"))
    except redis.ResponseError:
        return False


def _context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def test_tls_is_verified(redis_server: EmbeddedServer, key_prefix: str, tmp_path: Path) -> None:
    """
    A certificate nobody vouches for, or one for another name, is refused; with its authority in the URL it is taken.
    """
    authority, known = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(known))
    port = int(redis_server.url.rsplit(":", 1)[1].partition("/")[0])
    with Proxy(port, _context(authority, HOST)) as proxy, Proxy(port, _context(authority, "other.invalid")) as other:
        with pytest.raises(StoreError, match="certificate verify failed"):
            _ask_at(f"rediss://{HOST}:{proxy.port}/0", key_prefix)
        with pytest.raises(StoreError, match="certificate verify failed"):
            _ask_at(f"rediss://{HOST}:{other.port}/0?ssl_ca_certs={known}", key_prefix)
        assert _ask_at(f"rediss://{HOST}:{proxy.port}/0?ssl_ca_certs={known}", key_prefix)
        # The broker's own words for "do not verify" are understood, too.
        assert _ask_at(f"rediss://{HOST}:{other.port}/0?ssl_cert_reqs=none", key_prefix)


def _ask_at(url: str, prefix: str) -> bool:
    answer = RedisStore.at(url, timeout=2.0, prefix=prefix).acquire(CONFIG, Request(permit_id="p"))
    return answer.permit is not None
