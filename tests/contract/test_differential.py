"""
The Redis scripts and the pure machine give the same answers to the same questions at the same instants.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict

import pytest
import redis

from omni_tasks.core import durations
from omni_tasks.core.model import Admission, Override, Permit, Request, Word
from omni_tasks.core.outcome import Outcome, Report
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.core.quiet import Told
from omni_tasks.store.base import Reading
from omni_tasks.store.memory import MemoryStore
from omni_tasks.store.redis import RedisStore
from tests.support.clock import Clock

#: A store with every verb of the scripts.
Verbs = MemoryStore | RedisStore

STEPS = 400

#: Mostly small, around the waits and leases of the configurations below; a server's clock may also step back.
CLOCK_STEPS_MS = [0, 0, 1, 7, 100, 299, 300, 301, 499, 500, 501, 2000, 59_999, 100_000, -50, -5000, -3_600_000]


def _configs(rng: random.Random) -> list[CircuitBreakerConfig]:
    """
    The configurations of the processes that share a circuit: mostly one, else of different versions.
    """
    if rng.random() < 0.6:
        return [_config(rng)]
    return [_config(rng, version=version) for version in (0, 1, 2, 2)]


def _config(rng: random.Random, *, version: int = 0) -> CircuitBreakerConfig:
    return CircuitBreakerConfig(
        name="differential {x}:y",
        failure_threshold=rng.choice([1, 2, 5, 50]),
        recovery_timeout=rng.choice([0.5, 2.0, 60.0]),
        half_open_max_calls=rng.choice([1, 2, 3]),
        success_threshold=rng.choice([1, 2]),
        probe_lease=rng.choice([0.3, 5.0]),
        call_lease=rng.choice([5.0, 3600.0]),
        backoff_factor=rng.choice([1.0, 1.5, 2.0]),
        max_recovery_timeout=rng.choice([4.0, 3600.0]),
        ramp_initial_rate=rng.choice([1.0, 2.0, 50.0]),
        failure_rate_threshold=rng.choice([None, 0.5, 1 / 3, 1.0]),
        slow_call_duration=0.1,
        slow_call_rate_threshold=rng.choice([None, None, 0.5, 0.9]),
        minimum_calls=rng.choice([1, 2, 5]),
        window_calls=rng.choice([5, 10]),
        window_seconds=rng.choice([None, None, 0.5, 7.0, 600.0]),
        jitter=rng.choice([0.0, 0.0, 0.1, 1.0]),
        stable_seconds=rng.choice([0.0, 1.0, 60.0]),
        version=version,
    )


@pytest.mark.parametrize("seed", range(24))
def test_both_stores_walk_the_same_path(seed: int, redis_client: redis.Redis, key_prefix: str) -> None:
    """Any sequence of verbs and clock steps leaves memory and Redis with equal answers and equal circuits."""
    rng = random.Random(seed)
    clock, configs = Clock(), _configs(rng)
    shared = RedisStore(redis_client, prefix=key_prefix, now_ms=clock)
    stores: list[Verbs] = [MemoryStore(clock), shared]
    permits: list[Permit] = []
    for step in range(STEPS):
        clock.advance(rng.choice(CLOCK_STEPS_MS))
        config = rng.choice(configs)
        ask = _question(rng, config, permits, step)
        answers = [ask(store) for store in stores]
        assert answers[0] == answers[1], step
        if isinstance(answers[0], Admission) and answers[0].permit:
            permits.append(answers[0].permit)
        one, other = (asdict(store.read(configs[:1])[0]) for store in stores)
        assert one == other, step
        _check_accounts(stores[0].read(configs[:1])[0])
    logs = [store.log(configs[0]) for store in stores]
    assert logs[0] == logs[1]


def _check_accounts(reading: Reading) -> None:
    c = reading.circuit
    assert c.admitted == c.succeeded + c.failed + c.ignored + c.expired + reading.calls + reading.probes
    assert c.rejected >= c.held
    assert sum(durations.counts(c.durations)) <= c.succeeded + c.failed


def _question(
    rng: random.Random, config: CircuitBreakerConfig, permits: list[Permit], step: int
) -> Callable[[Verbs], object]:
    verb = rng.choices(["acquire", "settle", "tally", "draw", "force", "reset"], [40, 40, 8, 12, 3, 1])[0]
    if verb == "tally" and permits:
        return _tells(rng, config, permits, step)
    if verb == "settle" and permits:
        permit = permits.pop(rng.randrange(len(permits))) if rng.random() < 0.9 else permits[0]
        outcome = rng.choices(list(Outcome), [5, 4, 1])[0]
        report = Report(
            outcome,
            rng.choice([0, 0, 3000, 10**7]),
            rng.choice([0, 5, 6, 99, 100, 101, 60_000, 60_001]),
            trip=rng.random() < 0.1,
            reason=rng.choice(["", "auth", "r" * 64, "\u00e4 b"]),
        )
        return lambda store: store.settle(config, permit, report)
    if verb == "draw":
        wanted = rng.choice([0, 1, 5, 1000])
        return lambda store: store.draw(config, wanted)
    if verb == "force":
        override, ttl_ms = rng.choice(list(Override)), rng.choice([0, 100, 5000])
        return lambda store: store.force(config, override, _word(step), ttl_ms=ttl_ms)
    if verb == "reset":
        return lambda store: store.reset(config, _word(step))
    known = permits[-1].id if permits and rng.random() < 0.1 else None
    ticket = rng.choice([f"{permits[-1].gen}:{permits[-1].epoch}", ""]) if permits else ""
    request = Request(
        permit_id=known or f"p{step}",
        lease_ms=rng.choice([0, 0, 50, 10_000]),
        paced=rng.random() < 0.7,
        ticket=ticket,
        health=rng.random() < 0.1,
    )
    return lambda store: store.acquire(config, request)


def _tells(
    rng: random.Random, config: CircuitBreakerConfig, permits: list[Permit], step: int
) -> Callable[[Verbs], object]:
    """
    Calls of a process that trusted the circuit's word: of the last epoch, an earlier one, or of a circuit long lost.
    """
    of = rng.choice([*permits[-3:], Permit("", "lost", step, probe=False)])
    took_ms = rng.choices([0, 5, 6, 100, 60_001], k=rng.randrange(4))
    running = {f"t{step - back}": rng.choice([0, 10_000]) for back in range(rng.randrange(3))}
    permits.extend(Permit(permit_id, of.gen, of.epoch, probe=False) for permit_id in running)
    told = Told(
        gen=of.gen,
        epoch=of.epoch,
        running=running,
        succeeded=len(took_ms),
        slow=rng.randrange(2),
        took_ms=sum(took_ms),
        durations=durations.written(filter(None, took_ms)),
    )
    return lambda store: store.tally(config, told)


def _word(step: int) -> Word:
    # Some are said again: the same id, for a while.
    return Word(op_id=f"op {step // 40}", actor=f"actor {step}", reason="" if step % 2 else "why \u00e4")
