"""
Eight processes on one circuit see what one process after the other could have seen.

``OMNI_HISTORIES`` is the number of histories: 40 by default, 1,000 every night.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator

import pytest
import redis

from omni_tasks.core.model import Admission, Circuit, CircuitState, Permit, Request
from omni_tasks.embedded import EmbeddedServer
from tests.proof import histories
from tests.proof.histories import CONFIGS, PROCESSES, Pool, RacyStore, pool
from tests.proof.linearizability import Call, Operation, Verdict, apply, check, seen_as
from tests.support.clock import START_MS

HISTORIES = int(os.environ.get("OMNI_HISTORIES", "40"))

#: A broken store is caught by chance; all of these histories in a row without a catch is a checker that sees nothing.
MOST_TRIES = 60

BROKEN = {
    "a GET and a SET apart": None,
    "reports are not fenced by the epoch": [
        ("settle", "if not ignored and given_in == ticket() then", "if not ignored then")
    ],
    "reports are not fenced by the permit": [("settle", "if held > 0 then", "if true then")],
    "the same question is given a second permit": [
        ("acquire", "if call('ZSCORE', KEYS[2], permit_key(permit_id)) then return 'call' end", ""),
        ("acquire", "if call('ZSCORE', KEYS[3], permit_key(permit_id)) then return 'probe' end", ""),
    ],
}


@pytest.fixture(scope="module")
def processes(redis_server: EmbeddedServer) -> Iterator[Pool]:
    """
    The processes, for all tests here.
    """
    with pool(redis_server.url) as started:
        yield started


@pytest.mark.timeout(1800)
def test_every_history_has_an_order(processes: Pool) -> None:
    """
    Whatever eight processes ask at once, one order explains all answers and the circuit they leave; none is undecided.
    """
    verdicts, met, operations = Counter[Verdict](), 0, 0
    for seed in range(HISTORIES):
        config = CONFIGS[seed % len(CONFIGS)]
        history = processes.history(config, seed, [])
        verdicts[check(history, config)] += 1
        operations += len(history)
        met += _most_at_once(history) > 1
    print(f"{verdicts}, {operations:,} operations, {met} histories with operations that met")  # noqa: T201 - the figure
    assert verdicts == {Verdict.LINEARIZABLE: HISTORIES}
    # Processes that took turns would have shown nothing.
    assert met > HISTORIES / 2


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_store_is_rejected(broken: str, processes: Pool) -> None:
    """
    The checker sees a store that decides between two commands, and one without each of the guards.
    """
    for seed in range(MOST_TRIES):
        config = CONFIGS[seed % len(CONFIGS)]
        if check(processes.history(config, seed, BROKEN[broken]), config) is Verdict.VIOLATION:
            return
    pytest.fail(f"{MOST_TRIES} histories of {PROCESSES} processes were all explained")


def test_the_racy_store_is_right_while_nobody_meets(redis_client: redis.Redis, key_prefix: str) -> None:
    """
    It is the race that is rejected, not the store's answers: one process alone is explained.
    """
    for seed, config in enumerate(CONFIGS):
        racy, rng = RacyStore(redis_client, f"{key_prefix}-{seed}"), random.Random(seed)
        alone = list(histories._ask_at_random(racy, config, rng, "alone"))
        assert check(alone, config) is Verdict.LINEARIZABLE


def _ask(permit_id: str, called_ns: int, returned_ns: int, circuit: Circuit) -> tuple[Call, Circuit]:
    operation = Operation(asked=Request(permit_id=permit_id), now_ms=START_MS)
    after, answer = apply(circuit, CONFIGS[0], operation)
    return Call(called_ns, returned_ns, operation, answer), after


def test_the_order_of_calls_that_met_is_free() -> None:
    """
    Of two calls that met either may have come first; of two that did not, the one that had returned.
    """
    first, circuit = _ask("a", 10, 20, Circuit())
    second, _ = _ask("b", 5, 30, circuit)
    assert check([second, first], CONFIGS[0]) is Verdict.LINEARIZABLE
    earlier = Call(1, 2, second.operation, second.answer)
    assert check([earlier, first], CONFIGS[0]) is Verdict.VIOLATION


def test_an_answer_nobody_would_give_is_rejected() -> None:
    """
    An answer of another circuit has no place in any order.
    """
    operation = Operation(asked=Request(permit_id="a"), now_ms=START_MS)
    answer = Admission(permit=Permit("a", "elsewhere", 7, probe=True), state=CircuitState.HALF_OPEN)
    assert check([Call(1, 2, operation, answer)], CONFIGS[0]) is Verdict.VIOLATION


def test_a_call_that_takes_long_is_not_taken_for_a_later_one() -> None:
    """
    Of two steps of a search that differ in which calls are placed, neither hides the other, however far apart.
    """
    assert len({seen_as(1 << call, Circuit()) for call in range(200)}) == 200


def test_a_search_too_long_is_undecided() -> None:
    """
    A search that is given up says so, and does not call it a pass.
    """
    first, circuit = _ask("a", 1, 2, Circuit())
    second, _ = _ask("b", 3, 4, circuit)
    assert check([first, second], CONFIGS[0], most_states=1) is Verdict.UNDECIDED


def _most_at_once(history: list[Call]) -> int:
    edges = sorted([(call.called_ns, 1) for call in history] + [(call.returned_ns, -1) for call in history])
    now = most = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most
