"""
The mover and the lot's index: it looks at circuits that hold tasks, and at no others.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from queue import Empty
from types import SimpleNamespace

import pytest
import redis
from celery import Celery
from kombu.connection import Connection

from omni_tasks import init_app
from omni_tasks.embedded import EmbeddedServer
from omni_tasks.integration.install import Integration, integration_of
from omni_tasks.integration.mover import MoverStep, move_held_tasks
from omni_tasks.store.quiet import tell_all


@pytest.fixture
def integration(redis_server: EmbeddedServer, key_prefix: str) -> Iterator[Integration]:
    """
    An application with three circuits of its own, whose queue is empty.
    """
    app = Celery("mover", broker=redis_server.url, set_as_current=False)
    app.conf.task_default_queue = key_prefix
    init_app(app, key_prefix=key_prefix, circuits={name: {"ramp_initial_rate": 50.0} for name in ("a", "b", "c")})
    yield integration_of(app)
    app.close()


def _hold(integration: Integration, circuit: str, count: int = 1) -> None:
    app = integration.app
    with Connection(app.conf.broker_url) as connection, connection.SimpleQueue(app.conf.task_default_queue) as queue:
        for number in range(count):
            app.send_task("work", args=[circuit, number])
            message = queue.get(timeout=5)
            integration.lot.park(circuit, message, 1.0)
            message.ack()


def _queued(integration: Integration) -> int:
    app = integration.app
    count = 0
    with Connection(app.conf.broker_url) as connection, connection.SimpleQueue(app.conf.task_default_queue) as queue:
        try:
            while True:
                queue.get(block=False).ack()
                count += 1
        except Empty:
            return count


def test_the_index_names_who_holds(integration: Integration) -> None:
    """A circuit enters it with the first task it holds and leaves it with the last, whatever its name."""
    for circuit in ("a", "b:k{e}y:%", "ä"):
        _hold(integration, circuit, 2)
    assert integration.lot.holding() == sorted(["a", "b:k{e}y:%", "ä"])
    assert integration.lot.unpark("ä", 1, "") == 1
    assert "ä" in integration.lot.holding()
    assert integration.lot.unpark("ä", 1, "") == 1
    assert integration.lot.holding() == sorted(["a", "b:k{e}y:%"])


def test_a_keys_tasks_return(integration: Integration) -> None:
    """What a circuit of a key holds leaves as its own circuit allows, though nobody has configured it."""
    _hold(integration, "b:key", 3)
    integration.manager.get("b:key").force_open()
    assert move_held_tasks(integration) == 0
    integration.manager.get("b:key").release_force()
    assert move_held_tasks(integration) >= 1
    assert _queued(integration) >= 1


def test_nothing_is_stranded(integration: Integration, caplog: pytest.LogCaptureFixture) -> None:
    """What is held by circuits that are not configured any more returns in handfuls; that is logged once for each."""
    caplog.set_level(logging.WARNING)
    _hold(integration, "gone", 25)
    _hold(integration, "gone:key")
    assert move_held_tasks(integration) == 0
    assert [move_held_tasks(integration, sweep=True) for _ in range(3)] == [21, 5, 0]
    assert integration.lot.holding() == []
    assert _queued(integration) == 26
    said = [record.getMessage() for record in caplog.records if "not configured any more" in record.getMessage()]
    assert len(said) == 2


def test_the_work_does_not_grow_with_the_circuits(integration: Integration, redis_client: redis.Redis) -> None:
    """One circuit that holds costs as many commands among two thousand as among three."""

    def commands() -> int:
        before = int(redis_client.info("stats")["total_commands_processed"])
        move_held_tasks(integration)
        return int(redis_client.info("stats")["total_commands_processed"]) - before

    _hold(integration, "a:0", 2)
    integration.manager.get("a:0").force_open()
    tell_all()
    commands()
    few = commands()
    for number in range(1, 500):
        integration.manager.get(f"a:{number}").call(int)
    # A success may wait for the next question, which would be the mover's.
    tell_all()
    assert commands() == few


def test_a_keys_ramp_ends(integration: Integration) -> None:
    """A sweep goes on asking for the key's circuit until it no longer limits the rate of starts."""
    _hold(integration, "a:key")
    move_held_tasks(integration)
    assert integration.lot.holding() == []
    assert integration.ramping == {"a:key"}
    move_held_tasks(integration, sweep=True)
    assert integration.ramping == set()


class _Timer:
    """
    The worker's timer; what it is to repeat is called by the test.
    """

    def call_repeatedly(self, seconds: float, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
        self.seconds, self.tick = seconds, functools.partial(function, *arguments)


def test_while_a_circuit_ramps_the_mover_looks_more_often(integration: Integration, redis_client: redis.Redis) -> None:
    """At every tick of 50 ms, else at every fourth: no start that was earned is lost for a look that comes late."""
    timer = _Timer()
    MoverStep(None).start(SimpleNamespace(app=integration.app, timer=timer))
    assert timer.seconds == 0.05

    def looks(ticks: int) -> int:
        redis_client.config_resetstat()
        for _ in range(ticks):
            timer.tick()
        return int(redis_client.info("commandstats")["cmdstat_smembers"]["calls"])

    assert looks(8) == 2
    _hold(integration, "a", 20)
    # The next look finds that it ramps.
    assert looks(4) == 1
    assert looks(4) == 4


def test_with_resilience_off_everything_leaves(integration: Integration) -> None:
    """Held tasks of any circuit, configured or not, return when nobody holds any more."""
    for circuit in ("a", "b:key", "gone"):
        _hold(integration, circuit)
    init_app(integration.app, enable_resilience=False)
    assert move_held_tasks(integration) == 3
    assert _queued(integration) == 3
