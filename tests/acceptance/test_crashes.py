"""
Processes are killed for real, and the account still balances.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from omni_tasks.embedded import EmbeddedServer, start_server
from tests.acceptance.conftest import OUR_FETCH, Stage
from tests.support.account import Feed, account
from tests.support.eventually import eventually
from tests.support.rabbitmq import AMQP_URL, require_rabbitmq

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
    # Short: where the worker hears of the kill just before the lease ends, the circuit opens once more.
    play = stage(recovery_timeout=0.2, probe_lease=4.0)
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
    # The worker gives a child that was lost some time to have reported, and reports in its place then.
    counted = failed_before + 1
    eventually(lambda: play.breaker.get_metrics().failed_requests == counted, within=20, what="the lost one counts")
    survivors = [result for result in results if result.id != probe.task_id]
    assert [result.get(timeout=20)["retries"] for result in survivors] == [0]
    assert play.breaker.get_metrics().failed_requests == counted


#: Where a worker may be killed, and on which brokers there is such a moment; all but the first ones take `make soak`.
POINTS = {
    "parked, not noted": ("rabbitmq",),
    "parked": ("redis", "rabbitmq", "rabbitmq-store"),
    "moved, not noted": ("rabbitmq",),
    "moved": ("redis", "rabbitmq"),
    "before parking": ("redis", "rabbitmq"),
    "acknowledged": ("redis", "rabbitmq"),
    "before moving": ("redis", "rabbitmq"),
}


@pytest.mark.parametrize(
    ("point", "broker"),
    [
        pytest.param(point, broker, marks=[pytest.mark.soak] * (point in list(POINTS)[4:]))
        for point, brokers in POINTS.items()
        for broker in brokers
    ],
)
def test_a_kill_at_any_point_of_holding_runs_each_task_once(
    stage: Callable[..., Stage], point: str, broker: str
) -> None:
    """Kill -9 of the process group at that very point: every task runs once, and no copy of one is left anywhere."""
    if broker != "redis":
        require_rabbitmq()
    play = stage("" if broker == "redis" else AMQP_URL, broker.partition("-")[2] or "broker", ramp_initial_rate=50.0)
    # On Redis the copy of a killed worker comes again after this time.
    quick = {"TEST_VISIBILITY_TIMEOUT": "2"}
    mortal = {**quick, "TEST_CRASH": point}
    if "mov" in point:
        results = play.send("late", 5)
        play.park_by_hand(5)
        # A mover only: what it pushes would at once be popped by itself, and on Redis be lost with it.
        victim = play.worker(environment=mortal, concurrency=2, arguments=("-Q", f"{play.queue}-none"))
    else:
        play.breaker.force_open()
        results = play.send("late")
        victim = play.worker(environment=mortal, concurrency=2)
    eventually(lambda: victim.process.poll() is not None, within=40, what="the worker has died")
    play.breaker.release_force()
    successor = play.worker(environment=quick, concurrency=2)
    for result in results:
        result.get(timeout=40)
    eventually(lambda: play.left() == play.held() == 0, within=40, what="no copy is left")
    # Now a copy that it may still have in hand goes back.
    successor.stop()
    assert play.left() == 0
    assert Counter(call.task_id for call in play.dependency.calls()) == {result.id: 1 for result in results}


@pytest.mark.soak
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("broker", ["rabbitmq", "redis, our fetch", "redis", "redis, without circuits"])
def test_fifty_kills(
    stage: Callable[..., Stage], capsys: pytest.CaptureFixture[str], tmp_path: Path, broker: str
) -> None:
    """
    Kill -9 of the process group fifty times while 2,000 tasks are held and released.

    None runs again but those that a kill found in a child's hand, and those are no more than there are children.
    None is lost, but where kombu's own transport fetches from Redis what it had taken off its list and not yet noted,
    as it is without circuits.
    """
    on_redis, guarded, traced = broker != "rabbitmq", "without" not in broker, "our fetch" in broker
    if not on_redis:
        require_rabbitmq()
    play = stage("" if on_redis else AMQP_URL, failure_threshold=100_000, ramp_initial_rate=100.0)
    play.dependency.set(up=True, delay=0.02)
    feed = Feed(play.server.url, tmp_path)
    environment = {"TEST_VISIBILITY_TIMEOUT": "10", "ENABLE_RESILIENCE": "true" if guarded else "false"}
    if traced:
        environment |= OUR_FETCH
    sent = {result.id for result in play.send("late", 2000)}
    kills: list[float] = []
    chance = random.Random(4)
    for number in range(50):
        (play.breaker.force_open if number % 2 else play.breaker.release_force)()
        worker = play.worker(environment=environment, concurrency=2)
        time.sleep(chance.uniform(0.05, 1.0))
        worker.kill()
        kills.append(time.monotonic())
    play.breaker.release_force()
    last = play.worker(environment=environment)

    def settled() -> bool:
        all_ended = {call.task_id for call in play.dependency.calls(phase="end")} == sent
        return (all_ended or (on_redis and not traced)) and play.left() == play.held() == 0

    eventually(settled, within=300, what="every task has run, or is nowhere")
    last.stop()
    feed.close()
    found = account(sent, play.dependency.calls(), play.dependency.calls(phase="end"), kills)
    with capsys.disabled():
        print(f"\n{broker}: {len(kills)} kills, {len(sent)} tasks: {found}")  # noqa: T201 - what `make soak` is run for
    moves = Feed.last_moves(tmp_path, found.lost)
    # The last that was done with each: somebody put it on the list.  Only kombu's BRPOP takes it off there.
    popped = {lost for lost, (command, key) in moves.items() if command.endswith("PUSH") and key.startswith(play.queue)}
    assert found.lost == (popped if on_redis and not traced else set())
    # One a worker.
    assert len(found.lost) <= len(kills)
    assert play.left() == play.held() == 0
    assert found.others == 0
    assert found.worst <= 2
    assert found.unacknowledged <= len(kills)


@pytest.mark.soak
def test_a_broker_that_is_killed_keeps_what_it_holds(stage: Callable[..., Stage]) -> None:
    """Redis is killed with a thousand tasks held and started again from its file: every one runs, once."""
    play = stage(ramp_initial_rate=50.0)
    play.breaker.force_open()
    play.worker()
    results = play.send("plain", 1000)
    eventually(lambda: play.held() == 1000, within=120, what="a thousand held")
    play.server.kill()
    play.server.restart()
    # It answers before it has read its file.
    eventually(lambda: not redis.Redis.from_url(play.server.url).info("persistence")["loading"], within=30, what="read")
    assert play.held() == 1000
    play.breaker.release_force()
    eventually(lambda: len(play.dependency.calls(phase="end")) >= 1000, within=180, what="all have run")
    eventually(lambda: play.left() == play.held() == 0, within=40, what="no copy is left")
    assert Counter(call.task_id for call in play.dependency.calls()) == {result.id: 1 for result in results}


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
