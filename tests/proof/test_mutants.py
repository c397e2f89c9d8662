"""
The tests of the scripts notice when a script is wrong: each of the mutants is told from the original.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache

import pytest
import redis

from omni_tasks.core.model import Admission, Permit
from omni_tasks.core.outcome import SUCCESS, Outcome, Report
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.errors import StoreError
from omni_tasks.store.base import Store
from omni_tasks.store.memory import MemoryStore
from tests.contract import test_differential as differential
from tests.contract.test_store_contract import CASES
from tests.proof.mutants import MUTANTS
from tests.proof.patched import AmbiguousTextError, patched_store
from tests.support.bench import FAILURE
from tests.support.clock import Clock
from tests.support.stand import CONFIG, Stand

SEEDS = range(24)

#: One step of a walk: the instant, the question, the answer, the circuit afterwards.
Step = tuple[int, Callable[[Store], object], object, dict[str, object]]


@cache
def _walk(seed: int) -> tuple[CircuitBreakerConfig, list[Step]]:
    """
    The differential test's walk, with what the pure machine says at each step: the same for all mutants.
    """
    rng = random.Random(seed)
    clock, config = Clock(), differential._config(rng)
    memory, permits, steps = MemoryStore(clock), list[Permit](), list[Step]()
    for number in range(differential.STEPS):
        clock.advance(rng.choice(differential.CLOCK_STEPS_MS))
        ask = differential._question(rng, config, permits, number)
        answer = ask(memory)
        if isinstance(answer, Admission) and answer.permit:
            permits.append(answer.permit)
        steps.append((clock.now_ms, ask, answer, asdict(memory.read([config])[0])))
    return config, steps


def _unknown(stand: Stand) -> list[object]:
    stand.settle(Permit("p", "lost", 7, probe=True))
    return [stand.read().circuit.stale]


def _lapsed_call(stand: Stand) -> list[object]:
    stand.permit()
    stand.permit(lease_ms=CONFIG.longest_lease_ms + 1)
    stand.clock.advance(CONFIG.longest_lease_ms)
    stand.ask()
    return [stand.read().circuit.expired]


def _cuts(stand: Stand) -> list[object]:
    steep = replace(CONFIG, ramp_initial_rate=1.0, failure_threshold=50)
    stand.store.draw(steep, 1)
    for _ in range(9):
        stand.run(SUCCESS, steep)
    rates = list[object]()
    for wait_ms in (0, 499, 1):
        stand.clock.advance(wait_ms)
        stand.run(FAILURE, steep)
        rates.append(stand.read().circuit.ramp_rate_mps)
    return rates


def _slow_failures(stand: Stand) -> list[object]:
    slow = replace(CONFIG, slow_call_duration=0.1, slow_call_rate_threshold=0.5, minimum_calls=2)
    return [stand.run(Report(Outcome.FAILURE, 0, 100), slow).state.value for _ in range(2)]


def _drawn(stand: Stand) -> list[object]:
    counts = list[object]()
    for wait_ms in (stand.trip().retry_after_ms, 999, 1):
        stand.clock.advance(wait_ms)
        counts.append(stand.store.draw(CONFIG, 1).count)
    return counts


def _asked_again(stand: Stand, report: Report) -> list[object]:
    two = replace(CONFIG, half_open_max_calls=2)
    stand.clock.advance(stand.trip(two).retry_after_ms)
    failing = stand.permit(two)
    stand.permit(two, permit_id="again")
    stand.settle(failing, config=two)
    again = stand.permit(two, permit_id="again")
    return [again.probe, stand.settle(again, report, two).transition, stand.read(two).circuit.reopens]


#: Where the walks seldom come.
TARGETED: dict[str, tuple[Callable[[Stand], list[object]], list[object]]] = {
    "a report to an unknown circuit counts nothing": (_unknown, [0]),
    "a call's lease ends to the millisecond, its own longer one later": (_lapsed_call, [1]),
    "one cut of the ramp in 500 ms": (_cuts, [7000, 7000, 4900]),
    "a failure that took long is slow too": (_slow_failures, ["closed", "open"]),
    "a drawn task that is lost is replaced after 1 s": (_drawn, [1, 0, 1]),
    "a probe asked for again does not close an open circuit": (
        lambda stand: _asked_again(stand, SUCCESS),
        [True, None, 1],
    ),
    "a probe asked for again does not reopen an open circuit": (
        lambda stand: _asked_again(stand, FAILURE),
        [True, None, 1],
    ),
}


def _differs(make: Callable[[Callable[[], int], str], Store]) -> str:
    """
    Ask a store what the contract and the differential tests ask.

    Args:
        make: Makes the store, on a clock and for keys of its own.

    Returns:
        The first thing it does otherwise, or ``""``.
    """
    try:
        for name, (act, expected) in {**CASES, **TARGETED}.items():
            clock = Clock()
            if act(Stand(make(clock, f"case {name}"), clock)) != expected:
                return name
    except (AssertionError, StoreError) as error:
        return f"a case could not be finished: {error!r}"
    return next(filter(None, (_strays(make, seed) for seed in SEEDS)), "")


def _strays(make: Callable[[Callable[[], int], str], Store], seed: int) -> str:
    clock, (config, steps) = Clock(), _walk(seed)
    store = make(clock, f"walk {seed}")
    for number, (now_ms, ask, answer, circuit) in enumerate(steps):
        clock.now_ms = now_ms
        try:
            same = ask(store) == answer and asdict(store.read([config])[0]) == circuit
        except StoreError as error:
            return f"walk {seed}, step {number}: {error}"
        if not same:
            return f"walk {seed}, step {number}"
    return ""


def _maker(
    client: redis.Redis, prefix: str, patches: list[tuple[str, str, str]]
) -> Callable[[Callable[[], int], str], Store]:
    return lambda clock, name: patched_store(client, prefix=f"{prefix} {name}", patches=patches, now_ms=clock)


def test_the_scripts_as_they_are_differ_in_nothing(redis_client: redis.Redis, key_prefix: str) -> None:
    """
    Unpatched scripts pass all that the mutants must fail.
    """
    assert not _differs(_maker(redis_client, key_prefix, []))


@pytest.mark.parametrize("case", TARGETED)
def test_the_pure_machine_says_the_same(case: str) -> None:
    """
    What is asked of the scripts beyond the contract holds for the pure machine too.
    """
    act, expected = TARGETED[case]
    clock = Clock()
    assert act(Stand(MemoryStore(clock), clock)) == expected


@pytest.mark.parametrize(
    ("file", "original", "replacement"),
    [mutant[:3] for mutant in MUTANTS],
    ids=[f"{file}: {reason}" for file, _, _, reason in MUTANTS],
)
def test_a_mutant_is_noticed(
    file: str, original: str, replacement: str, redis_client: redis.Redis, key_prefix: str
) -> None:
    """
    A script that is wrong in this one way gives another answer or leaves another circuit.
    """
    assert _differs(_maker(redis_client, key_prefix, [(file, original, replacement)]))


def test_a_mutant_must_fit_the_script(redis_client: redis.Redis, key_prefix: str) -> None:
    """
    A patch whose text is not there exactly once says so, instead of testing the original.
    """
    for original in ("not in any script", "local "):
        with pytest.raises(AmbiguousTextError, match=r"acquire\.lua: .* times, wanted: once"):
            patched_store(redis_client, prefix=key_prefix, patches=[("acquire", original, "")])


def test_there_are_enough_mutants() -> None:
    """
    At least forty, each of another text or with another replacement.
    """
    assert len({mutant[:3] for mutant in MUTANTS}) == len(MUTANTS) >= 40
