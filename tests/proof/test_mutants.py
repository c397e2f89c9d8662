"""
The tests of the scripts notice when a script is wrong: each of the mutants is told from the original.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import pytest
import redis

from omni_tasks.core import durations
from omni_tasks.core.model import Admission, LogRecord, Override, Permit, Word
from omni_tasks.core.outcome import SUCCESS, Outcome, Report
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.core.quiet import Told
from omni_tasks.errors import StoreError
from omni_tasks.store.memory import MemoryStore
from omni_tasks.store.redis import RedisStore
from tests.contract import test_differential as differential
from tests.contract.test_differential import Verbs
from tests.contract.test_store_contract import CASES
from tests.proof.mutants import MUTANTS
from tests.proof.patched import AmbiguousTextError, patched_store
from tests.support.bench import FAILURE
from tests.support.clock import Clock
from tests.support.stand import CONFIG, Stand

SEEDS = range(24)

#: One step of a walk: the instant, the question, the answer, the circuit afterwards.
Step = tuple[int, Callable[[Verbs], object], object, dict[str, object]]


@cache
def _walk(seed: int) -> tuple[CircuitBreakerConfig, list[Step], list[LogRecord]]:
    """
    The differential test's walk, with what the pure machine says at each step and logs: the same for all mutants.
    """
    rng = random.Random(seed)
    clock, configs = Clock(), differential._configs(rng)
    config = configs[0]
    memory, permits, steps = MemoryStore(clock), list[Permit](), list[Step]()
    for number in range(differential.STEPS):
        clock.advance(rng.choice(differential.CLOCK_STEPS_MS))
        ask = differential._question(rng, rng.choice(configs), permits, number)
        answer = ask(memory)
        if isinstance(answer, Admission) and answer.permit:
            permits.append(answer.permit)
        steps.append((clock.now_ms, ask, answer, asdict(memory.read([config])[0])))
    return config, steps, memory.log(config)


def _unknown(stand: Stand) -> list[object]:
    stand.settle(Permit("p", "lost", 7, probe=True))
    return [stand.read().circuit.stale, stand.read().circuit.quiet]


def _words(stand: Stand) -> list[object]:
    said = list[object]()
    for report, override in ((SUCCESS, Override.FORCED_OPEN), (SUCCESS, Override.AUTO), (FAILURE, Override.AUTO)):
        stand.run(report)
        said.append(stand.read().circuit.quiet)
        stand.force(override)
        said.append(stand.read().circuit.quiet)
        stand.force(Override.AUTO)
    return said


def _tell(stand: Stand, config: CircuitBreakerConfig = CONFIG, *, gen: str = "p1", epoch: int = 0, **told: Any) -> bool:
    assert isinstance(stand.store, MemoryStore | RedisStore)
    return stand.store.tally(config, Told(gen=gen, epoch=epoch, **told))


def _told(stand: Stand) -> list[object]:
    known = [_tell(stand, gen="lost", succeeded=7)]
    stand.run(SUCCESS)
    stand.run(Report(Outcome.SUCCESS, duration_ms=3))
    stand.clock.advance(5)
    known += [
        _tell(stand, gen="lost", succeeded=7),
        _tell(stand, succeeded=3, slow=2, took_ms=12, durations=durations.written([5, 7])),
    ]
    c = stand.read().circuit
    counted = [c.admitted, c.succeeded, c.successes_in_a_row, c.slow, c.took_ms, c.stale, c.durations[:8]]
    return [*known, *counted, c.last_success_ms == stand.clock.now_ms]


def _told_without_a_measure(stand: Stand) -> list[object]:
    stand.run(SUCCESS)
    _tell(stand, succeeded=1, durations=durations.written([]))
    return [stand.read().circuit.durations, stand.read().circuit.succeeded]


def _told_what_runs(stand: Stand) -> list[object]:
    stand.run(SUCCESS)
    seen = list[object]()
    for wait_ms in (0, 59_999, 1, 29_999):
        stand.clock.advance(wait_ms)
        # By the tally itself: nobody else asks.
        _tell(stand, running={"short": 0, "long": 90_000} if wait_ms in {0, 59_999} else {})
        seen.append((stand.read().circuit.admitted, stand.read().calls, stand.read().circuit.expired))
    return [*seen, stand.settle(Permit("long", "p1", 0, probe=False), SUCCESS).applied]


def _told_too_late(stand: Stand) -> list[object]:
    stand.run(SUCCESS)
    stand.run(FAILURE)
    _tell(stand, succeeded=1)
    return [stand.read().circuit.failures]


def _unlimited(stand: Stand) -> list[object]:
    fast = replace(CONFIG, ramp_initial_rate=9999.0, failure_threshold=1)
    stand.clock.advance(stand.trip(fast).retry_after_ms)
    said = list[object]()
    for _ in range(2):
        stand.run(SUCCESS, fast)
        said.append(stand.read().circuit.quiet)
    return said


def _told_by_the_newer(stand: Stand) -> list[object]:
    stand.run(SUCCESS)
    _tell(stand, replace(CONFIG, version=3), succeeded=1)
    return [stand.read().circuit.policy.partition(",")[0]]


def _lapsed_call(stand: Stand) -> list[object]:
    stand.permit()
    stand.permit(lease_ms=CONFIG.longest_lease_ms + 1)
    stand.clock.advance(CONFIG.longest_lease_ms)
    stand.ask()
    return [stand.read().circuit.expired]


def _cuts(stand: Stand) -> list[object]:
    steep = replace(CONFIG, ramp_initial_rate=1.0, failure_threshold=50)
    stand.run(SUCCESS, steep)
    stand.permit(steep, ticket=stand.store.draw(steep, 1).ticket)
    for _ in range(9):
        stand.run(SUCCESS, steep)
    rates = list[object]()
    for wait_ms in (0, 499, 1):
        stand.clock.advance(wait_ms)
        stand.run(FAILURE, steep)
        rates.append(stand.read().circuit.ramp_rate_mps)
    return rates


def _failing(stand: Stand, *waits_ms: int) -> list[object]:
    running, states = [stand.permit() for _ in waits_ms], list[object]()
    for permit, wait_ms in zip(running, waits_ms, strict=True):
        stand.clock.advance(wait_ms)
        states.append(stand.settle(permit).state.value)
    return states


def _eases(stand: Stand) -> list[object]:
    stand.store.draw(CONFIG, 1)
    return _failing(stand, 0, 0, 0, 499, 1, 0)


def _eases_after_no_draw(stand: Stand) -> list[object]:
    stand.store.draw(CONFIG, 1)
    return _failing(stand, 1, 0, 499, 0)


def _eases_after_no_cut(stand: Stand) -> list[object]:
    stand.store.draw(CONFIG, 1)
    states = _failing(stand, 0, 0)
    stand.clock.advance(1500)
    return [*states, stand.store.draw(CONFIG, 1).count, *_failing(stand, 0)]


def _eased_in_the_future(stand: Stand) -> list[object]:
    stand.store.draw(CONFIG, 1)
    running = [stand.permit() for _ in range(3)]
    stand.settle(running[0])
    stand.clock.advance(-3_600_000)
    return [stand.settle(permit).state.value for permit in running[1:]]


def _slow_failures(stand: Stand) -> list[object]:
    slow = replace(CONFIG, slow_call_duration=0.1, slow_call_rate_threshold=0.5, minimum_calls=2)
    return [stand.run(Report(Outcome.FAILURE, 0, 100), slow).state.value for _ in range(2)]


def _drawn(stand: Stand) -> list[object]:
    counts = list[object]()
    for wait_ms in (stand.trip().retry_after_ms, 999, 1):
        stand.clock.advance(wait_ms)
        counts.append(stand.store.draw(CONFIG, 1).count)
    return counts


def _stepped_back(stand: Stand) -> list[object]:
    anew = replace(CONFIG, stable_seconds=0.0, failure_threshold=1)
    stand.clock.advance(stand.trip(anew).retry_after_ms)
    stand.run(SUCCESS, anew)
    call = stand.permit(anew)
    stand.clock.advance(-3_600_000)
    return [stand.settle(call, config=anew).retry_after_ms]


def _drawn_in_the_future(stand: Stand) -> list[object]:
    stand.clock.advance(stand.trip().retry_after_ms)
    counts = list[object]([stand.store.draw(CONFIG, 1).count])
    stand.clock.advance(-3_600_000)
    stand.ask()
    stand.clock.advance(10_000)
    return [*counts, stand.store.draw(CONFIG, 1).count]


def _begun_by_the_operator(stand: Stand) -> list[object]:
    stand.force(Override.FORCED_OPEN)
    return [stand.read().circuit.gen]


def _health_asks_for_long(stand: Stand) -> list[object]:
    stand.trip()
    return [stand.settle(stand.permit(health=True), Report(Outcome.FAILURE, 10**7)).retry_after_ms]


def _forgets_late(stand: Stand) -> list[object]:
    # A closing in the future, after a clock step back, is one of now; later it is as long ago as it is.
    flappy = replace(CONFIG, stable_seconds=10.0, failure_threshold=1)
    stand.clock.advance(stand.trip(flappy).retry_after_ms)
    stand.run(SUCCESS, flappy)
    stand.clock.advance(-3_600_000)
    stand.ask(flappy)
    stand.clock.advance(10_000)
    return [stand.run(config=flappy).retry_after_ms]


def _damaged_policy(stand: Stand) -> list[object]:
    newer = replace(CONFIG, version=3, failure_threshold=1)
    stand.run(SUCCESS, newer)
    return [stand.run(config=replace(CONFIG, version=2)).state.value]


def _quick_calls(stand: Stand) -> list[object]:
    for duration_ms in (3, 3, 5, 6, 70_000):
        stand.run(Report(Outcome.SUCCESS, duration_ms=duration_ms))
    circuit = stand.read().circuit
    now = circuit.last_success_ms == stand.clock.now_ms
    return [circuit.durations, circuit.took_ms, circuit.succeeded, circuit.successes_in_a_row, now]


def _reported_twice_in_quiet(stand: Stand) -> list[object]:
    stand.run(SUCCESS)
    permit = stand.permit()
    applied = [stand.settle(permit, SUCCESS).applied for _ in range(2)]
    return [*applied, stand.read().circuit.succeeded, stand.read().circuit.stale]


def _asked_twice_in_quiet(stand: Stand) -> list[object]:
    stand.run(SUCCESS)
    first = stand.permit(permit_id="twice")
    assert stand.permit(permit_id="twice") == first
    return [stand.read().calls, stand.read().circuit.admitted]


def _quiet_with_a_lapsed_lease(stand: Stand) -> list[object]:
    stand.permit()
    stand.permit(lease_ms=90_000)
    stand.clock.advance(60_000)
    stand.run(SUCCESS)
    return [stand.read().circuit.expired, stand.read().calls]


def _newer_than_quiet(stand: Stand) -> list[object]:
    stand.run(SUCCESS, replace(CONFIG, version=2, failure_rate_threshold=0.5, minimum_calls=1, window_calls=1))
    stand.run(SUCCESS)
    windows = [stand.read().circuit.window]
    stand.run(SUCCESS, replace(CONFIG, version=3))
    return [*windows, stand.read().circuit.policy.partition(",")[0]]


def _old_probe_in_quiet(stand: Stand) -> list[object]:
    two = replace(CONFIG, half_open_max_calls=2)
    stand.clock.advance(stand.trip(two).retry_after_ms)
    stand.permit(two)
    stand.run(SUCCESS, two)
    # Without a ramp; the other probe is still out.
    stand.store.draw(two, 0)
    stand.clock.advance(60_000)
    stand.run(SUCCESS, two)
    return [stand.read(two).probes, stand.read(two).calls]


def _stepped_back_in_quiet(stand: Stand) -> list[object]:
    stand.run(SUCCESS)
    stand.clock.advance(-3_600_000)
    stand.run(SUCCESS)
    circuit = stand.read().circuit
    return [circuit.changed_at_ms == stand.clock.now_ms]


def _late_in_quiet(stand: Stand) -> list[object]:
    late = stand.permit()
    stand.store.reset(CONFIG, Word(op_id="operator"))
    stand.run(FAILURE)
    return [stand.settle(late, SUCCESS).applied, stand.read().circuit.failures]


def _keys_by_use(stand: Stand) -> list[object]:
    # In quiet, first by a call, then by a report alone.
    first, second = (replace(CONFIG, name=f"{CONFIG.name}:{key}") for key in ("first", "second"))
    orders: list[object] = []
    for config in (first, second):
        stand.run(SUCCESS, config)
        stand.clock.advance(10)
    permit = stand.permit(first)
    orders += stand.store.list_keys([CONFIG])
    stand.clock.advance(10)
    stand.run(SUCCESS, second)
    stand.clock.advance(10)
    stand.settle(permit, SUCCESS, first)
    return [*orders, *stand.store.list_keys([CONFIG])]


def _many_words(stand: Stand) -> list[object]:
    for _ in range(3):
        stand.force(Override.FORCED_OPEN)
    return [record.action for record in stand.store.log(CONFIG)]


#: Where the walks seldom come.
TARGETED: dict[str, tuple[Callable[[Stand], list[object]], list[object]]] = {
    "a report to an unknown circuit counts nothing": (_unknown, [0, ""]),
    "the word of a circuit": (_words, ["0 p1", "", "2 p1", "3 p1", "", ""]),
    "calls that are told of are counted": (_told, [False, False, True, 5, 5, 5, 2, 15, 7, "2,1,0,0,", True]),
    "calls that nobody measured": (_told_without_a_measure, ["", 2]),
    "a call that runs still has a permit and a lease": (
        _told_what_runs,
        [(3, 2, 0), (3, 2, 0), (3, 1, 1), (3, 1, 1), True],
    ),
    "a success from before a row of failures does not end it": (_told_too_late, [1]),
    "a ramp that limits nothing is over": (_unlimited, ["", "3 p1"]),
    "a tally brings a newer policy": (_told_by_the_newer, ["3"]),
    "a call's lease ends to the millisecond, its own longer one later": (_lapsed_call, [1]),
    "one cut of the ramp in 500 ms": (_cuts, [7000, 7000, 4900]),
    "what was started before a step back does not trip": (_eases, [*["closed"] * 4, "open", "open"]),
    "a threshold is a threshold where no task has left lately": (
        _eases_after_no_draw,
        [*["closed"] * 2, "open", "open"],
    ),
    "a threshold is a threshold after the ramp's half second": (_eases_after_no_cut, ["closed", "closed", 1, "open"]),
    "a step back in the future excuses nothing": (_eased_in_the_future, ["closed", "open"]),
    "a failure that took long is slow too": (_slow_failures, ["closed", "open"]),
    "a drawn task that is lost is replaced after 1 s": (_drawn, [1, 0, 1]),
    "after a clock step back nothing is unstable that never is": (_stepped_back, [10_000]),
    "tasks drawn in the future are not on their way": (_drawn_in_the_future, [1, 1]),
    "the operator's first word names the circuit": (_begun_by_the_operator, ["word1"]),
    "a health check's Retry-After has a cap": (_health_asks_for_long, [40_000]),
    "a closing in the future is one of now": (_forgets_late, [10_000]),
    "the newest version decides": (_damaged_policy, ["open"]),
    "a call that took little counts in its range": (_quick_calls, ["3,1,0,0,0,0,0,0,0,0,0,0,0,1", 70_017, 5, 5, True]),
    "a second report while nothing is going on": (_reported_twice_in_quiet, [True, False, 2, 1]),
    "the same question while nothing is going on": (_asked_twice_in_quiet, [1, 2]),
    "a lease that has ended while nothing is going on": (_quiet_with_a_lapsed_lease, [1, 1]),
    "a newer policy while nothing is going on": (_newer_than_quiet, ["0", "3"]),
    "an old probe while nothing is going on": (_old_probe_in_quiet, [0, 1]),
    "a clock step back while nothing is going on": (_stepped_back_in_quiet, [True]),
    "a late success while nothing is going on": (_late_in_quiet, [False, 1]),
    "keys by their last use while nothing is going on": (_keys_by_use, [("second", "first"), ("second", "first")]),
    "every word is logged": (_many_words, ["force_open", "", "force_open", "force_open"]),
}


def _differs(make: Callable[[Callable[[], int], str], Verbs]) -> str:
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


def _strays(make: Callable[[Callable[[], int], str], Verbs], seed: int) -> str:
    clock, (config, steps, log) = Clock(), _walk(seed)
    store = make(clock, f"walk {seed}")
    for number, (now_ms, ask, answer, circuit) in enumerate(steps):
        clock.now_ms = now_ms
        try:
            same = ask(store) == answer and asdict(store.read([config])[0]) == circuit
        except StoreError as error:
            return f"walk {seed}, step {number}: {error}"
        if not same:
            return f"walk {seed}, step {number}"
    return "" if store.log(config) == log else f"the log of walk {seed}"


def _maker(
    client: redis.Redis, prefix: str, patches: list[tuple[str, str, str]]
) -> Callable[[Callable[[], int], str], Verbs]:
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
