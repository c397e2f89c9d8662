"""
What a decision costs, by the server's own statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis

from bench.closed_path import measure
from omni_tasks.core.outcome import SUCCESS, Outcome, Report
from omni_tasks.embedded import EmbeddedServer, start_server
from omni_tasks.store.connect import connect
from omni_tasks.store.redis import RedisStore
from tests.support.clock import Clock
from tests.support.stand import CONFIG, Stand

#: Commands of the statistics themselves, and of making a connection.
_OURS = ("cmdstat_info", "cmdstat_config", "cmdstat_hello", "cmdstat_client")


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """
    A server nobody else asks.
    """
    with start_server() as started:
        yield started


def _commands(client: redis.Redis) -> tuple[int, dict[str, int]]:
    stats, commands = client.info("stats"), client.info("commandstats")
    counted = {name: row["calls"] for name, row in commands.items() if not name.startswith(_OURS)}
    return stats["total_reads_processed"], counted


def _cost(client: redis.Redis, stand: Stand) -> list[tuple[int, dict[str, int]]]:
    costs = []
    dead = replace(CONFIG, name="dead", recovery_timeout=3600.0, max_recovery_timeout=3600.0)
    permits = [stand.permit() for _ in range(2)]
    for ask in (
        stand.permit,
        lambda: stand.settle(permits[0], Report(Outcome.SUCCESS)),
        lambda: stand.settle(permits[1], Report(Outcome.FAILURE)),
        lambda: stand.ask(dead),
        lambda: stand.store.draw(CONFIG, 5),
        stand.read,
    ):
        stand.run(SUCCESS)
        if stand.read(dead).circuit.state == "closed":
            stand.trip(dead)
        reads, before = _commands(client)
        ask()
        more, after = _commands(client)
        # Two questions for the statistics lie between.
        costs.append(
            (more - reads - 2, {name: n - before.get(name, 0) for name, n in after.items() if n != before.get(name, 0)})
        )
    return costs


def test_a_decision_costs_the_same_however_much_there_is(server: EmbeddedServer) -> None:
    """
    One round trip each, and the same commands with nothing else there as with 500 circuits and 10,000 held tasks.
    """
    with connect(server.url, timeout=5.0) as client:
        stand = Stand(RedisStore(client), Clock())
        _cost(client, stand)
        alone = _cost(client, stand)
        for number in range(500):
            stand.run(SUCCESS, replace(CONFIG, name=f"circuit {number}"))
        with client.pipeline(transaction=False) as pipe:
            for number in range(10_000):
                pipe.zadd("omni:lot:contract:order", {f"task-{number}": number})
                pipe.hset("omni:lot:contract:envelopes", f"task-{number}", "x" * 100)
            pipe.execute()
        crowded = _cost(client, stand)
    assert [trips for trips, _ in alone] == [1] * 6
    assert crowded == alone


@pytest.mark.usefixtures("unhurried")
def test_a_call_through_a_closed_circuit(server: EmbeddedServer) -> None:
    """
    One round trip and no script a call; in time a small multiple of one GET, and threads are not serialised.

    The bounds on time hold on a machine that others use; `make bench` shows the figures.
    """
    figures = measure(server.url, batches=10)
    assert figures.round_trips == pytest.approx(1.0, abs=0.02)
    assert figures.scripts < 0.02
    assert figures.best_to_get < 2.0
    assert figures.threads_to_bare < 2.5
