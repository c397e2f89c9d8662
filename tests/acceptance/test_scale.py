"""
Many held tasks, and a broker that dies under them.  `make soak` runs these and prints what they measured.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

import psutil
import pytest
import redis
from celery.result import AsyncResult

from omni_tasks.integration.holding import QUORUM
from tests.acceptance.conftest import Stage
from tests.support.dependency import Call
from tests.support.eventually import eventually
from tests.support.rabbitmq import AMQP_URL, RabbitNode, channel_to, quorum_options, require_rabbitmq

pytestmark = [pytest.mark.acceptance, pytest.mark.soak, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    """
    A RabbitMQ that may be killed.
    """
    made = RabbitNode(tmp_path_factory.mktemp("rabbitmq"))
    yield made
    made.stop()


def _send(play: Stage, count: int, name: str = "plain") -> list[AsyncResult]:
    with play.app.producer_or_acquire() as producer:
        return play.send(name, count, producer=producer, ignore_result=count > 5_000)


@pytest.mark.parametrize(
    ("broker", "parking", "count"),
    [("redis", "broker", 100_000), ("rabbitmq", "broker", 20_000), ("rabbitmq", "store", 20_000)],
)
def test_held_tasks_cost_the_worker_nothing(
    stage: Callable[..., Stage], capsys: pytest.CaptureFixture[str], broker: str, parking: str, count: int
) -> None:
    """
    With so many held: 20 MB more in the worker's parent at most, another circuit's task starts in 1 s.

    A warm stop takes 5 s at most.
    """
    if broker == "rabbitmq":
        require_rabbitmq()
    play = stage(AMQP_URL if broker == "rabbitmq" else "", parking, recovery_timeout=600.0)
    worker = play.worker(concurrency=2)
    play.trip()
    first = play.send("plain", 200)
    eventually(lambda: play.held() == 200, within=30, what="warm")
    parent = psutil.Process(worker.process.pid)
    server = redis.Redis.from_url(play.server.url)
    before, kept = parent.memory_info().rss, server.info("memory")["used_memory"]
    began = time.monotonic()
    _send(play, count - len(first))
    eventually(lambda: play.held() == count, within=1200, what="all held")
    took = time.monotonic() - began
    grown = (parent.memory_info().rss - before) / 1e6
    kept = (server.info("memory")["used_memory"] - kept) / count
    began = time.monotonic()
    [ready] = play.send("elsewhere")
    ready.get(timeout=30)
    ran = time.monotonic() - began
    began = time.monotonic()
    worker.stop()
    stopped = time.monotonic() - began
    with capsys.disabled():
        print(  # noqa: T201 - what `make soak` is run for
            f"\n{count} held on {broker} ({parking}): {count / took:.0f} a second; parent {grown:+.1f} MB; "
            f"the store {kept:.0f} B a task; a ready task after {ran:.2f} s; a warm stop {stopped:.2f} s"
        )
    assert play.held() == count
    assert grown <= 20
    assert ran < 1
    assert stopped < 5


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_ten_thousand_return_without_a_second_trip(
    stage: Callable[..., Stage], capsys: pytest.CaptureFixture[str], broker: str
) -> None:
    """A dependency that heals to 100 a second is not knocked down again, and new tasks run while the held return."""
    if broker == "rabbitmq":
        require_rabbitmq()
    play = stage(AMQP_URL if broker == "rabbitmq" else "", failure_threshold=5, recovery_timeout=5.0)
    play.worker(concurrency=4)
    play.trip()
    held = [result.id for result in _send(play, 10_000, "patient")]
    eventually(lambda: play.held() >= len(held), within=600, what="all held")
    capacity, began = 100.0, time.monotonic()
    play.dependency.set(up=True, delay=0.01, capacity=capacity)
    fresh: dict[str, float] = {}
    while waiting := play.held():
        assert time.monotonic() < began + 600, f"{waiting} are still held"
        fresh[play.send("patient", ignore_result=True)[0].id] = time.monotonic()
        time.sleep(0.2)

    def ends() -> list[Call]:
        return play.dependency.calls(phase="end")

    eventually(lambda: len(ends()) >= len(held) + len(fresh), within=600, what="every task has run")
    took, runs = ends()[-1].at - began, Counter(call.task_id for call in ends())
    waits = sorted(call.at - fresh[call.task_id] for call in ends() if call.task_id in fresh)
    overloads = sum(not call.ok for call in play.dependency.calls() if call.at > began)
    along = sum(wait < 2 for wait in waits) / len(waits)
    with capsys.disabled():
        print(  # noqa: T201 - as above
            f"\n{len(held)} held on {broker} returned in {took:.0f} s, the least is {len(runs) / capacity:.0f} s; "
            f"{overloads} overload answers; of {len(fresh)} new tasks {along:.0%} ran within 2 s, "
            f"half within {waits[len(waits) // 2]:.2f} s, all within {waits[-1]:.0f} s"
        )
    assert [runs[task_id] for task_id in [*held, *fresh]] == [1] * (len(held) + len(fresh))
    trips = [entry for entry in play.breaker.read_log() if (entry.previous, entry.current) == ("closed", "open")]
    assert len(trips) == 1
    assert play.breaker.state == "closed"
    assert overloads <= len(runs) / 20
    # Behind all the held, half of them would wait for half of the time or longer.
    assert waits[len(waits) // 2] < 2


@pytest.mark.parametrize("parking", ["broker", "store"])
def test_a_broker_that_is_killed_keeps_what_it_holds(
    stage: Callable[..., Stage], node: RabbitNode, parking: str
) -> None:
    """RabbitMQ is killed with a thousand tasks held and started again: every one runs, once."""
    play = stage(node.url, parking, ramp_initial_rate=50.0)
    play.breaker.force_open()
    play.worker()
    results = _send(play, 1000)
    eventually(lambda: play.held() == 1000, within=60, what="a thousand held")
    node.kill()
    node.restart()
    play.breaker.release_force()
    for result in results:
        result.get(timeout=120)
    runs = Counter(call.task_id for call in play.dependency.calls(phase="end"))
    assert [runs[result.id] for result in results] == [1] * 1000


def test_a_broker_that_takes_nothing_holds_up_nobody(stage: Callable[..., Stage], node: RabbitNode) -> None:
    """Under its memory alarm RabbitMQ confirms nothing: the worker stays well, and when it is over all run, once."""
    play = stage(node.url, ramp_initial_rate=50.0)
    play.breaker.force_open()
    results = _send(play, 20)
    node.control("set_vm_memory_high_watermark", "0.000001")
    worker = play.worker(concurrency=2)
    eventually(lambda: worker.log.count("unacknowledged: RabbitMQ: TimeoutError") >= 3, within=60, what="it was tried")
    node.control("set_vm_memory_high_watermark", "0.4")
    play.breaker.release_force()
    for result in results:
        result.get(timeout=90)
    runs = Counter(call.task_id for call in play.dependency.calls(phase="end"))
    assert [runs[result.id] for result in results] == [1] * 20


def test_native_delayed_delivery_and_quorum_queues(stage: Callable[..., Stage], node: RabbitNode) -> None:
    """Tasks with a countdown come by Celery's own delay queues into a quorum queue: they are held, and run once."""
    play = stage(node.url)
    play.app.conf.update(quorum_options(play.queue))
    play.breaker.force_open()
    worker = play.worker(environment={"TEST_QUORUM": "1"})
    results = play.send("plain", 20, countdown=1)
    eventually(lambda: play.held() == 20, within=30, what="all held")
    # RabbitMQ delayed them, not the worker.
    assert "ETA" not in worker.log
    with channel_to(node.url) as channel:
        channel.queue_declare(f"{play.prefix}:held:dep", durable=True, auto_delete=False, arguments=dict(QUORUM))
    play.breaker.release_force()
    assert [result.get(timeout=30) for result in results] == [{"retries": 0, "holds": 1}] * 20
    runs = Counter(call.task_id for call in play.dependency.calls(phase="end"))
    assert [runs[result.id] for result in results] == [1] * 20
