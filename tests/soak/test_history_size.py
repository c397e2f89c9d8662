"""
What the history of many circuits takes in Redis.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from omni_tasks.core.durations import record
from omni_tasks.embedded import start_server
from omni_tasks.observe.history import MINUTES, QUARTERS, Recorder
from omni_tasks.observe.scripts import open_client
from omni_tasks.store.schema import circuit_keys, history_keys
from tests.support.observed import make_manager

pytestmark = pytest.mark.soak

CIRCUITS, DAYS = 500, 7
START = 1_700_000_000_000


def test_five_hundred_circuits_over_seven_days() -> None:
    """
    With a call in every minute of every circuit, 500 circuits x 7 days of buckets stay below 64 MiB.

    Every bucket is made by the script that makes it in life, one record a minute, for one circuit; the others
    are copies of its keys.
    """
    rng = random.Random(1)
    with start_server() as server:
        client = open_client(server.url, timeout=60.0)
        config = make_manager(None, "h").settings.circuits["dep"]
        recorder = Recorder(client, prefix="h")
        calls = failed = slow = took_ms = 0
        durations = ""
        for minute in range(DAYS * 24 * 60):
            for _ in range(rng.randint(1, 30)):
                duration = round(rng.lognormvariate(6, 1))
                durations, took_ms, calls = record(durations, duration), took_ms + duration, calls + 1
                failed, slow = failed + (rng.random() < 0.05), slow + (duration > 1000)
            fields: Any = {
                "gen": "g", "succeeded": calls - failed, "failed": failed, "slow": slow, "took_ms": took_ms,
                "durations": durations, "rejected": failed, "held": failed,
            }  # fmt: skip
            client.hset(circuit_keys("h", "dep")[0], mapping=fields)
            recorder.record([config], rate_window=300, trips_window=600, now_ms=START + minute * 60_000)
        keys = history_keys("h", "dep")
        assert client.xlen(keys[1]) >= MINUTES
        assert client.xlen(keys[2]) >= QUARTERS - 1
        sizes = [int(client.memory_usage(key, samples=0) or 0) for key in keys]
        before = int(client.info("memory")["used_memory"])
        for number in range(CIRCUITS - 1):
            for source, target in zip(keys, history_keys("h", f"c{number}"), strict=True):
                client.copy(source, target)
        total = int(client.info("memory")["used_memory"]) - before + sum(sizes)
        print(f"\none circuit: {dict(zip(('buckets', 'minutes', 'quarters'), sizes, strict=True))} bytes")  # noqa: T201 - the figure
        print(f"{CIRCUITS} circuits: {total} bytes, {total / CIRCUITS:.0f} each")  # noqa: T201 - the figure
        assert total < 64 * 2**20
