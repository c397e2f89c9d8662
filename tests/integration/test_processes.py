"""
One circuit, many real processes: what a breaker that is shared by several round trips gets wrong.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from omni_tasks import CircuitBreakerConfig
from omni_tasks.embedded import EmbeddedServer
from tests.support.dependency import Dependency
from tests.support.eventually import eventually
from tests.support.peers import Peer, Setup, start

#: Seconds; long enough that a busy machine does what has to be done meanwhile.
RECOVERY, LEASE = 1.0, 2.0

Spawn = Callable[..., list[Peer]]


@pytest.fixture
def dependency(tmp_path: Path) -> Dependency:
    """
    What all processes call; it is well.
    """
    dependency = Dependency(tmp_path)
    dependency.set(up=True)
    return dependency


@pytest.fixture
def spawn(redis_server: EmbeddedServer, key_prefix: str, tmp_path: Path, dependency: Dependency) -> Iterator[Spawn]:
    """
    Start processes that share one circuit: three failures, open for 1 s, a probe has 2 s.
    """
    assert dependency.calls() == []
    peers: list[Peer] = []

    def start_some(count: int, clock_offsets: tuple[float, ...] = (), **options: Any) -> list[Peer]:
        defaults = {"failure_threshold": 3, "recovery_timeout": RECOVERY, "probe_lease": LEASE}
        config = CircuitBreakerConfig(**{"name": "dep_cb", **defaults, **options})
        setup = Setup(url=redis_server.url, prefix=key_prefix, config=config, folder=tmp_path)
        peers.extend(start(setup, count, clock_offsets))
        return peers

    yield start_some
    for peer in peers:
        peer.stop()


def _trip(peer: Peer, dependency: Dependency) -> None:
    """
    Fail until the circuit is open, then mend the dependency.
    """
    dependency.set(up=False)
    assert [peer.ask("call") for _ in range(3)] == ["failed"] * 3
    assert peer.ask("call") == "refused"
    dependency.set(up=True)


def _await_probe(peer: Peer) -> None:
    """
    Wait until the next call may be a probe.
    """
    eventually(lambda: peer.ask("metrics").retry_after == 0.0, within=5, what="the recovery timeout to end")


def _called_more_than(dependency: Dependency, times: int) -> bool:
    return len(dependency.calls()) > times


def _announced(peers: list[Peer]) -> Counter[str]:
    """
    What all processes together have announced.
    """
    return sum((Counter(peer.ask("told")) for peer in peers), Counter[str]())


@pytest.mark.parametrize("limit", [1, 3])
def test_at_half_open_exactly_the_limit_runs(limit: int, spawn: Spawn, dependency: Dependency) -> None:
    """
    Of twenty processes that ask at the same moment as many reach the dependency as may probe; one announces it.
    """
    peers = spawn(20, half_open_max_calls=limit, probe_lease=60.0)
    _trip(peers[0], dependency)
    failed = len(dependency.calls())
    _await_probe(peers[0])
    for peer in peers:
        peer.tell("call", together=True, held=True)
    eventually(lambda: sum(peer.answered for peer in peers) == 20 - limit, within=20, what="the others to be refused")
    eventually(partial(_called_more_than, dependency, failed + limit - 1), within=5, what="the probes to arrive")
    probing = [peer for peer in peers if not peer.answered]
    for peer in probing:
        peer.release()
    assert Counter(peer.answer() for peer in peers) == {"refused": 20 - limit, "ok": limit}
    assert len(dependency.calls()) - failed == limit
    assert _announced(peers)["circuit_breaker_half_open"] == 1
    metrics = peers[0].ask("metrics")
    assert (metrics.state, metrics.rejected_requests, metrics.outstanding_requests) == ("closed", 21 - limit, 0)


def test_forty_failures_open_once(spawn: Spawn) -> None:
    """
    Forty calls that fail at the same moment, threshold five: one opening, one log event, one signal, one callback.
    """
    peers = spawn(40, failure_threshold=5, recovery_timeout=60.0)
    for peer in peers:
        peer.tell("fail_together")
    assert Counter(peer.answer() for peer in peers) == {"failed": 40}
    assert _announced(peers) == {"circuit_breaker_open": 1, "signal opened": 1, "callback open": 1}
    metrics = peers[0].ask("metrics")
    assert (metrics.state, metrics.circuit_open_count, metrics.failed_requests) == ("open", 1, 40)
    assert metrics.consecutive_failures == 5


def test_a_killed_probe_gives_way_when_its_lease_ends(spawn: Spawn, dependency: Dependency) -> None:
    """
    After SIGKILL of a probe's process denied traffic gets another probe within its lease and a second, none before.
    """
    doomed, *others = spawn(3)
    _trip(doomed, dependency)
    failed = len(dependency.calls())
    _await_probe(doomed)
    asked_at = time.monotonic()
    doomed.tell("call", held=True)
    eventually(lambda: len(dependency.calls()) == failed + 1, within=5, what="the probe to reach the dependency")
    doomed.kill()

    denied: list[str] = []

    def a_probe_runs() -> bool:
        outcomes = [peer.ask("call") for peer in others]
        denied.extend(outcome for outcome in outcomes if outcome == "refused")
        return "ok" in outcomes

    eventually(a_probe_runs, within=LEASE + 5, what="another probe")
    lost, next_probe = dependency.calls()[failed : failed + 2]
    # The store counts whole milliseconds.
    assert asked_at + LEASE - 0.002 <= next_probe.at <= lost.at + LEASE + 1.0
    assert len(denied) >= 2
    metrics = others[0].ask("metrics")
    # The dead probe's call is outstanding until an ordinary call's lease ends; it takes no slot.
    assert (metrics.state, metrics.circuit_open_count, metrics.outstanding_requests) == ("closed", 1, 1)


def test_a_peer_and_a_forked_child_see_the_trip_at_once(spawn: Spawn, dependency: Dependency) -> None:
    """
    The first call after the trip is refused in a peer that has a connection, and in a child forked with it.
    """
    tripping, peer = spawn(2, recovery_timeout=60.0)
    assert (peer.ask("call"), peer.ask("forked_call")) == ("ok", "ok")
    _trip(tripping, dependency)
    assert (peer.ask("call"), peer.ask("forked_call"), peer.ask("call")) == ("refused",) * 3
    assert not peer.ask("metrics").degraded
    assert "circuit_breaker_open" not in peer.ask("told")


def test_wrong_wall_clocks_change_nothing(spawn: Spawn, dependency: Dependency) -> None:
    """
    With clocks five minutes fast, five minutes slow and right, a circuit waits, probes and closes as with equal ones.
    """
    fast, slow, right = spawn(3, clock_offsets=(300.0, -300.0), probe_lease=30.0, recovery_timeout=2.0)
    assert fast.ask("now") - slow.ask("now") > 599
    began = time.monotonic()
    _trip(fast, dependency)
    for peer in (fast, slow, right):
        metrics = peer.ask("metrics")
        assert 0.0 < metrics.retry_after <= 2.0
        assert 0.0 <= metrics.time_in_current_state < 30.0
    eventually(lambda: slow.ask("call") == "ok", within=10, what="a probe of the slow process")
    assert time.monotonic() - began >= 2.0
    assert [peer.ask("call") for peer in (fast, slow, right)] == ["ok"] * 3


@pytest.mark.parametrize("offset", [300.0, -300.0])
def test_a_wrong_wall_clock_does_not_end_a_lease(offset: float, spawn: Spawn, dependency: Dependency) -> None:
    """
    A process five minutes ahead, or behind, neither takes a running probe's place nor loses its own.
    """
    wrong, right = spawn(2, clock_offsets=(offset,), probe_lease=30.0)
    for probing, other in ((wrong, right), (right, wrong)):
        _trip(other, dependency)
        _await_probe(other)
        ran = len(dependency.calls())
        probing.tell("call", held=True)
        eventually(partial(_called_more_than, dependency, ran), within=5, what="the probe to reach the dependency")
        assert [other.ask("call") for _ in range(5)] == ["refused"] * 5
        probing.release()
        assert probing.answer() == "ok"
        assert other.ask("metrics").state == "closed"


def test_a_late_success_does_not_close(spawn: Spawn, dependency: Dependency) -> None:
    """
    A call that began before the trip and succeeds after it leaves the circuit open, for every process.
    """
    slow, peer = spawn(2, recovery_timeout=60.0)
    slow.tell("call", held=True)
    eventually(lambda: len(dependency.calls()) == 1, within=5, what="the slow call to begin")
    _trip(peer, dependency)
    before = peer.ask("metrics")
    slow.release()
    assert slow.answer() == "ok"
    after = peer.ask("metrics")
    assert (after.state, after.circuit_open_count, after.last_state_change) == ("open", 1, before.last_state_change)
    assert after.successful_requests == before.successful_requests + 1
    assert (slow.ask("call"), peer.ask("call")) == ("refused", "refused")


def test_a_late_failure_does_not_extend(spawn: Spawn, dependency: Dependency) -> None:
    """
    A call that began before the trip and fails after it leaves the wait as it was.
    """
    slow, peer = spawn(2, recovery_timeout=60.0)
    slow.tell("fail_late")
    eventually(lambda: peer.ask("metrics").outstanding_requests == 1, within=5, what="the slow call to begin")
    _trip(peer, dependency)
    before = peer.ask("metrics")
    slow.release()
    assert slow.answer() == "failed"
    after = peer.ask("metrics")
    assert after.failed_requests == before.failed_requests + 1
    assert (after.state, after.circuit_open_count, after.last_state_change) == ("open", 1, before.last_state_change)
    assert after.retry_after <= before.retry_after


def test_a_neutral_probe_gives_its_turn_to_another_process(spawn: Spawn, dependency: Dependency) -> None:
    """
    A probe that ends without a word about the dependency changes nothing; the next process probes.
    """
    first, second = spawn(2)
    _trip(first, dependency)
    _await_probe(first)
    assert first.ask("say_nothing") == "refused"
    assert first.ask("metrics").state == "half_open"
    assert second.ask("call") == "ok"
    assert second.ask("metrics").state == "closed"


def test_after_a_failed_probe_every_process_waits_in_full(spawn: Spawn, dependency: Dependency) -> None:
    """
    A reopened circuit refuses every process for the whole recovery timeout again.
    """
    peers = spawn(4)
    _trip(peers[0], dependency)
    dependency.set(up=False)
    _await_probe(peers[0])
    before = time.monotonic()
    assert peers[0].ask("call") == "failed"
    dependency.set(up=True)
    while (outcomes := [peer.ask("call") for peer in peers]) == ["refused"] * 4:
        pass
    assert time.monotonic() - before >= RECOVERY
    assert "ok" in outcomes


def test_the_operators_word_is_heard_at_once(spawn: Spawn) -> None:
    """
    From the moment it was said, the next call of every process follows it; lifting it works the same way.
    """
    operator, *peers = spawn(4)
    assert [peer.ask("call") for peer in peers] == ["ok"] * 3
    for word, outcome in (("force_open", "refused"), ("force_close", "ok"), ("force_open", "refused"), ("reset", "ok")):
        operator.ask("say", word=word)
        assert [peer.ask("call") for peer in peers] == [outcome] * 3
    assert _announced(peers)["circuit_breaker_open"] == 0
    assert _announced([operator])["circuit_breaker_open"] == 2
