"""
Histories of one circuit that real processes use at the same time.
"""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any, Protocol

import redis

from omni_tasks.core.model import Admission, Circuit, Override, Permit, Request, Word
from omni_tasks.core.outcome import Outcome, Report
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.store.redis import RedisStore
from tests.proof.linearizability import Call, Operation, apply
from tests.proof.patched import patched_store
from tests.support.clock import START_MS, Clock

__all__ = ["CONFIGS", "PROCESSES", "Pool", "RacyStore", "pool"]

PROCESSES = 8
OPERATIONS = 12

#: Every few operations each process finds its time this much later: enough for open circuits to let probes through.
_TICK_MS = 250

CONFIGS = [
    CircuitBreakerConfig(
        name="histories",
        failure_threshold=threshold,
        recovery_timeout=0.5,
        half_open_max_calls=probes,
        success_threshold=probes,
        probe_lease=0.4,
        call_lease=2.0,
        failure_rate_threshold=rate,
        minimum_calls=4,
        window_calls=10,
    )
    for threshold, probes, rate in [(2, 1, None), (3, 2, 0.5), (50, 1, 0.5)]
]


class _Asks(Protocol):
    def __call__(self, config: CircuitBreakerConfig, operation: Operation) -> object: ...


class _Scripts:
    """
    Asks a Redis store, at each operation's own instant.
    """

    def __init__(self, store: RedisStore, clock: Clock) -> None:
        self._store, self._clock = store, clock

    def __call__(self, config: CircuitBreakerConfig, operation: Operation) -> object:
        self._clock.now_ms, asked = operation.now_ms, operation.asked
        if asked is None:
            return self._store.read([config])[0]
        if isinstance(asked, Request):
            return self._store.acquire(config, asked)
        if isinstance(asked, int):
            return self._store.draw(config, asked)
        if len(asked) == 2:
            return self._store.settle(config, *asked)
        override, ttl_ms, op_id = asked
        if override is None:
            return self._store.reset(config, Word(op_id=op_id))
        return self._store.force(config, override, Word(op_id=op_id), ttl_ms=ttl_ms)


class RacyStore:
    """
    The pure rules between a GET and a SET: what nobody should build, here to be caught.
    """

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        """
        Keep the circuit under *prefix*.
        """
        self._client, self._key = client, f"{prefix}:racy"

    def __call__(self, config: CircuitBreakerConfig, operation: Operation) -> object:
        """
        Ask, without making sure that nobody asks in between.
        """
        raw: Any = self._client.get(self._key)
        circuit, answer = apply(pickle.loads(raw) if raw else Circuit(), config, operation)  # noqa: S301 - our own bytes
        self._client.set(self._key, pickle.dumps(circuit))
        return answer


def _asker(client: redis.Redis, prefix: str, patches: list[tuple[str, str, str]] | None) -> _Asks:
    if patches is None:
        return RacyStore(client, prefix)
    clock = Clock()
    return _Scripts(patched_store(client, prefix=prefix, patches=patches, now_ms=clock), clock)


def _ask_at_random(ask: _Asks, config: CircuitBreakerConfig, rng: random.Random, name: str) -> Iterator[Call]:
    permits, requests = list[Permit](), list[Request]()
    for number in range(OPERATIONS):
        now_ms = START_MS + number // 3 * _TICK_MS + rng.choice([0, 0, 0, 1, 100, -50])
        verb = rng.choices(["acquire", "again", "settle", "read", "draw", "operator"], [35, 10, 35, 12, 6, 2])[0]
        asked: Any
        if verb == "settle" and permits:
            permit = permits[-1] if rng.random() < 0.2 else permits.pop(rng.randrange(len(permits)))
            asked = permit, Report(rng.choices(list(Outcome), [4, 5, 1])[0])
        elif verb == "again" and requests:
            asked = rng.choice(requests)
        elif verb == "read":
            # It shows what later answers depend on, so a wrong order is found out soon.
            asked = None
        elif verb == "draw":
            asked = rng.choice([0, 1, 5])
        elif verb == "operator":
            asked = rng.choice([*Override, None]), rng.choice([0, 300]), f"op-{name}-{number}"
        else:
            # Some attempts are shared: the same question from more than one process at once.
            shared = rng.random() < 0.2
            asked = Request(permit_id=f"shared-{number}" if shared else f"{name}-{number}", paced=rng.random() < 0.5)
            requests.append(asked)
        call = _asked(ask, config, Operation(asked=asked, now_ms=now_ms))
        yield call
        if isinstance(call.answer, Admission) and call.answer.permit:
            permits.append(call.answer.permit)


def _asked(ask: _Asks, config: CircuitBreakerConfig, operation: Operation) -> Call:
    called_ns = time.monotonic_ns()
    answer = ask(config, operation)
    return Call(called_ns, time.monotonic_ns(), operation, answer)


def _work(url: str, pipe: Connection, barrier: Barrier) -> None:
    with redis.Redis.from_url(url) as client:
        while (job := pipe.recv()) is not None:
            prefix, patches, config, seed, name = job
            ask, rng = _asker(client, prefix, patches), random.Random(f"{seed} {name}")
            client.ping()
            barrier.wait(timeout=60)
            pipe.send(list(_ask_at_random(ask, config, rng, name)))


class Pool:
    """
    Processes that stay for many histories.
    """

    def __init__(self, client: redis.Redis, pipes: list[Connection]) -> None:
        """
        Ask through *pipes*, and look at the end of a history through *client*.
        """
        self._client, self._pipes = client, pipes

    def history(
        self, config: CircuitBreakerConfig, seed: int, patches: list[tuple[str, str, str]] | None = None
    ) -> list[Call]:
        """
        Let every process use one new circuit at once.

        Args:
            config: The circuit's.

            seed: What the processes ask follows from it; how their questions meet does not.

            patches: Of the scripts; ``None`` for a :class:`RacyStore`.

        Returns:
            Every operation; a reading of the circuit as it was left comes last.
        """
        prefix = f"history-{uuid.uuid4().hex[:12]}"
        for number, pipe in enumerate(self._pipes):
            pipe.send((prefix, patches, config, seed, f"w{number}"))
        calls = list(itertools.chain.from_iterable(pipe.recv() for pipe in self._pipes))
        calls.append(_asked(_asker(self._client, prefix, patches), config, Operation(asked=None, now_ms=START_MS)))
        return calls


@contextmanager
def pool(url: str) -> Iterator[Pool]:
    """
    Start the processes, on the server at *url*; end them afterwards.
    """
    # Spawned, not forked: each has its own connection and its own everything.
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PROCESSES)
    pipes, workers = list[Connection](), list[Any]()
    for _ in range(PROCESSES):
        ours, theirs = context.Pipe()
        worker = context.Process(target=_work, args=(url, theirs, barrier), daemon=True)
        worker.start()
        theirs.close()
        pipes.append(ours)
        workers.append(worker)
    client = redis.Redis.from_url(url)
    try:
        yield Pool(client, pipes)
        for pipe in pipes:
            pipe.send(None)
    finally:
        client.close()
        for pipe, worker in zip(pipes, workers, strict=True):
            pipe.close()
            worker.join(timeout=10)
            if worker.is_alive():
                worker.kill()
                worker.join()
            worker.close()
