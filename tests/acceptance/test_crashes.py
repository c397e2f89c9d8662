"""
Processes are killed for real, and the account still balances.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import psutil
import pytest
import redis

from omni_tasks.embedded import EmbeddedServer, start_server
from tests.acceptance.conftest import Stage
from tests.support.eventually import eventually

pytestmark = pytest.mark.acceptance


def test_a_killed_worker_loses_nothing(stage: Callable[..., Stage]) -> None:
    """Kill -9 of the process group while 100 are held and 4 run: none lost, each held task runs exactly once."""
    play = stage(recovery_timeout=2.0, failure_threshold=3, ramp_initial_rate=20.0)
    late = {"TEST_PREFETCH": "1"}
    worker = play.worker(environment=late)
    play.dependency.set(up=True, delay=3600)
    running = play.send("late", 4)
    eventually(lambda: len(play.dependency.calls()) == 4, within=20, what="four run")
    # A refusal needs no child, but it needs a slot, and these four are taken.
    play.breaker.force_open()
    second = play.worker(environment=late)
    held = play.send("late", 100)
    eventually(lambda: play.held() == 100, within=30, what="a hundred held")
    worker.kill()
    second.kill()
    # As if the visibility timeout of the four had passed; a short one might pass before the second worker is there.
    with redis.Redis.from_url(play.server.url) as client:
        unacked = client.zrange("unacked_index", 0, -1)
        assert len(unacked) == 4
        client.zadd("unacked_index", dict.fromkeys(unacked, 0))
    play.dependency.set(up=True)
    play.breaker.release_force()
    play.worker(environment=late)
    for result in running + held:
        result.get(timeout=60)
    runs = Counter(call.task_id for call in play.dependency.calls(phase="end"))
    assert [runs[result.id] for result in held] == [1] * 100
    assert [runs[result.id] for result in running] == [1] * 4
    assert play.held() == 0


def test_a_killed_probe_frees_its_slot_and_counts_once(stage: Callable[..., Stage]) -> None:
    """Kill -9 of the probe's child: one failure is counted, and another probe runs within lease + 1 s."""
    play = stage(recovery_timeout=1.0, probe_lease=4.0)
    play.worker()
    play.dependency.set(up=False)
    play.send("plain", 3)
    eventually(lambda: play.breaker.state == "open", within=20, what="open")
    failed_before = play.breaker.get_metrics().failed_requests
    play.dependency.set(up=True, delay=60)
    results = play.send("plain", 2)
    probe = eventually(lambda: play.dependency.calls()[3:], within=10, what="a probe runs")[0]
    play.dependency.set(up=True)
    psutil.Process(probe.pid).kill()
    next_probe = eventually(lambda: play.dependency.calls()[4:], within=15, what="another probe")[0]
    assert next_probe.at - probe.at <= 4.0 + 1.0
    eventually(lambda: play.breaker.state == "closed", within=10, what="closed")
    assert play.breaker.get_metrics().failed_requests == failed_before + 1
    survivors = [result for result in results if result.id != probe.task_id]
    assert [result.get(timeout=20)["retries"] for result in survivors] == [0]


def test_a_crash_between_parking_and_acknowledging_runs_the_task_once(stage: Callable[..., Stage]) -> None:
    """A copy that the broker delivers again after its twin was parked is dropped: one run, not two."""
    play = stage()
    play.breaker.force_open()
    quick = {"TEST_VISIBILITY_TIMEOUT": "2"}
    victim = play.worker(environment={**quick, "TEST_CRASH": "after_park"})
    [result] = play.send("plain")
    eventually(lambda: victim.process.poll() is not None, within=20, what="the worker has died")
    assert play.held() == 1
    successor = play.worker(environment=quick)
    eventually(lambda: successor.log.count(f"[{result.id}] received") == 1, within=20, what="delivered again")
    play.breaker.release_force()
    assert result.get(timeout=20)["holds"] == 1
    eventually(lambda: successor.log.count(f"[{result.id}] received") == 2, within=20, what="both copies seen")
    assert [call.task_id for call in play.dependency.calls()] == [result.id]


@pytest.fixture
def second_server() -> Iterator[EmbeddedServer]:
    """
    A store that is not the broker.
    """
    with start_server() as server:
        yield server


def test_a_killed_store_stops_no_task(stage: Callable[..., Stage], second_server: EmbeddedServer) -> None:
    """With the store gone, tasks go on under the workers' own circuits, and the state says that it is degraded."""
    # No recovery window passes meanwhile: a probe would be one call more.
    play = stage(recovery_timeout=30.0)
    worker = play.worker(environment={"OMNI_REDIS_URL": second_server.url})
    [first] = play.send("plain")
    first.get(timeout=10)
    second_server.kill()
    results = play.send("plain", 20)
    assert [result.get(timeout=20)["retries"] for result in results] == [0] * 20
    inspect = play.app.control.inspect(timeout=5)
    [circuits] = inspect._request("circuits").values()
    assert circuits["dep"]["degraded"] is True
    assert "circuit_store_degraded" in worker.log
    play.dependency.set(up=False)
    refused = play.send("plain", 12)
    eventually(lambda: {result.state for result in refused} <= {"FAILURE", "RETRY"}, within=20, what="all answered")
    # One worker's own circuit: the threshold and what was in flight, not all twelve.  Four are: the pool
    # fills a child's slot before it tells the worker how the child's last task ended.
    assert len(play.dependency.calls()) - 21 <= 3 + 4


def test_a_store_that_is_away_at_the_start_is_said_in_one_line(
    stage: Callable[..., Stage], second_server: EmbeddedServer
) -> None:
    """A worker whose store is away starts, says so in one line without the password, and runs tasks."""
    play = stage()
    url = second_server.url.replace("redis://", "redis://:secret@")
    second_server.kill()
    worker = play.worker(environment={"OMNI_REDIS_URL": url})
    lines = [line for line in worker.log.splitlines() if "omni_redis_url_unreachable" in line]
    assert len(lines) == 1
    assert "***" in lines[0]
    assert "secret" not in worker.log
    [result] = play.send("plain")
    result.get(timeout=20)


def test_a_store_that_comes_back_frees_held_tasks(stage: Callable[..., Stage], second_server: EmbeddedServer) -> None:
    """Nothing held moves while the store is away; when it is back, held tasks leave without any fresh traffic."""
    play = stage(recovery_timeout=30.0)
    worker = play.worker(environment={"OMNI_REDIS_URL": second_server.url})
    play.dependency.set(up=False)
    tripping = play.send("plain", 3)
    # Not when they have called: until the third has reported, another may still start.
    eventually(lambda: all(result.state == "FAILURE" for result in tripping), within=20, what="tripped")
    results = play.send("plain", 10)
    eventually(lambda: play.held() == 10, within=20, what="ten held")
    second_server.kill()
    eventually(lambda: "circuit_store_degraded" in worker.log, within=20, what="the outage was noticed")
    play.dependency.set(up=True)
    assert play.held() == 10
    # It comes back empty: the circuit is closed, and the ten leave along a ramp, not as a wave.
    second_server.restart()
    assert [result.get(timeout=30)["retries"] for result in results] == [0] * 10
    starts = [call.at for call in play.dependency.calls()[3:]]
    assert starts[-1] - starts[0] > 1.0
