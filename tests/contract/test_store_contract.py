"""
What every store of circuits promises, on memory and on a real server alike; time is what the test says it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import redis

from omni_tasks.core.keys import split_key
from omni_tasks.core.model import Admission, CircuitState, LogRecord, Override, Permit, Request, Settlement, Word
from omni_tasks.core.outcome import IGNORED, SUCCESS, Outcome, Report
from omni_tasks.core.waits import retry_after
from omni_tasks.store.base import Store
from omni_tasks.store.memory import MemoryStore
from omni_tasks.store.redis import RedisStore
from omni_tasks.store.schema import circuit_keys, list_key
from tests.support.bench import FAILURE
from tests.support.clock import START_MS, Clock
from tests.support.stand import CONFIG, Stand

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, key_prefix: str) -> tuple[Store, Clock]:
    """
    An empty store and the clock it reads.
    """
    clock = Clock()
    if request.param == "memory":
        return MemoryStore(clock), clock
    client: redis.Redis = request.getfixturevalue("redis_client")
    return RedisStore(client, prefix=key_prefix, now_ms=clock), clock


@pytest.fixture
def stand(store: tuple[Store, Clock]) -> Stand:
    """
    Either store.
    """
    return Stand(*store)


@pytest.fixture
def shared(redis_client: redis.Redis, key_prefix: str) -> Stand:
    """
    The Redis store.
    """
    clock = Clock()
    return Stand(RedisStore(redis_client, prefix=key_prefix, now_ms=clock), clock)


# One table of cases: what is done, and the answers it must give


def _trip(stand: Stand) -> list[object]:
    return [stand.run().transition is not None for _ in range(3)] + [stand.ask()]


def _success_between(stand: Stand) -> list[object]:
    return [stand.run(report).state for report in (FAILURE, FAILURE, SUCCESS, FAILURE, IGNORED, FAILURE)]


def _wait(stand: Stand) -> list[object]:
    stand.trip()
    stand.clock.advance(9_999)
    early = stand.ask().retry_after_ms
    stand.clock.advance(1)
    return [early, stand.permit().probe, stand.ask()]


def _lapse(stand: Stand) -> list[object]:
    dead = stand.probe()
    stand.clock.advance(1_999)
    early = stand.ask().retry_after_ms
    stand.clock.advance(1)
    another = stand.permit().probe
    reading = stand.read()
    return [early, another, reading.probes, reading.calls, reading.circuit.expired, stand.settle(dead, SUCCESS).state]


def _close(stand: Stand) -> list[object]:
    closing = stand.settle(stand.probe(), SUCCESS)
    return [closing.state, closing.transition is not None, stand.read().circuit.failures]


def _reopen(stand: Stand) -> list[object]:
    waits: list[object] = [stand.settle(stand.probe()).retry_after_ms]
    for _ in range(2):
        stand.clock.advance(40_000)
        waits.append(stand.run().retry_after_ms)
    return waits


def _retry_after(stand: Stand) -> list[object]:
    stand.run()
    stand.run()
    straggler = stand.permit()
    long = stand.run(Report(Outcome.FAILURE, 30_000))
    return [long.retry_after_ms, stand.settle(straggler, Report(Outcome.FAILURE, 39_000)).retry_after_ms]


def _late(stand: Stand) -> list[object]:
    early, later = stand.permit(), stand.permit()
    stand.trip()
    return [stand.settle(early, SUCCESS), stand.settle(later), stand.read().circuit.open_until_ms - START_MS]


def _twice(stand: Stand) -> list[object]:
    permit = stand.permit()
    return [stand.settle(permit).applied, stand.settle(permit).applied, stand.read().circuit.failed]


def _again(stand: Stand) -> list[object]:
    first, second = stand.ask(permit_id="x"), stand.ask(permit_id="x")
    return [first == second, stand.read().circuit.admitted]


def _neutral_probe(stand: Stand) -> list[object]:
    return [stand.settle(stand.probe(), IGNORED), stand.permit().probe]


def _forced_open(stand: Stand) -> list[object]:
    stand.force(Override.FORCED_OPEN, ttl_ms=5_000)
    refused = stand.ask()
    stand.clock.advance(5_000)
    lifted = stand.ask()
    return [refused, lifted.permit is not None, lifted.transition is not None]


def _forced_for_good(stand: Stand) -> list[object]:
    stand.force(Override.FORCED_OPEN)
    stand.clock.advance(10**9)
    return [stand.ask(), stand.force(Override.AUTO) is not None, stand.ask().permit is not None]


def _forced_closed(stand: Stand) -> list[object]:
    stand.trip()
    stand.force(Override.FORCED_CLOSED)
    return [stand.run(SUCCESS).state, stand.run().state, stand.force(Override.AUTO) is not None, stand.ask().state]


def _reset(stand: Stand) -> list[object]:
    probe = stand.probe()
    transition = stand.store.reset(CONFIG, Word(op_id="operator"))
    return [transition is not None, stand.settle(probe).applied, stand.read().circuit.admitted, stand.ask().state]


def _clock_back(stand: Stand) -> list[object]:
    stand.trip()
    stand.clock.advance(-3_600_000)
    refused = stand.ask().retry_after_ms
    stand.clock.advance(10_000)
    return [refused, stand.permit().probe]


def _unknown(stand: Stand) -> list[object]:
    return [stand.settle(Permit("p", "lost", 7, probe=True)), stand.read().circuit.gen]


def _ramp(stand: Stand) -> list[object]:
    stand.settle(stand.probe(), SUCCESS)
    ticket = stand.store.draw(CONFIG, 10)
    drawn = [stand.ask(paced=True, ticket=ticket.ticket).permit is not None for _ in range(ticket.count)]
    return [ticket.count, *drawn, stand.ask(paced=True).retry_after_ms, stand.ask().permit is not None]


def _again_later(stand: Stand) -> list[object]:
    lost = stand.permit(permit_id="x")
    stand.trip()
    refused = stand.ask(permit_id="x").permit
    stand.clock.advance(10_000)
    again = stand.permit(permit_id="x")
    return [refused, again.probe, again.epoch - lost.epoch, stand.settle(lost, SUCCESS).state]


def _same_word(stand: Stand) -> list[object]:
    stand.run()
    word = Word(op_id="word 1", actor="me", reason="test")
    said = [stand.store.force(CONFIG, Override.FORCED_OPEN, word, ttl_ms=wait) for wait in (0, 5_000)]
    reset = [stand.store.reset(CONFIG, replace(word, op_id="2")) for _ in range(2)]
    records = [record.action for record in stand.store.log(CONFIG) if record.kind == "operator"]
    answers = [answer and answer.reason for answer in (*said, *reset)]
    return [said[0] == said[1], reset[0] == reset[1], answers, records, stand.read().circuit.epoch]


def _enough_alone(stand: Stand) -> list[object]:
    settled = stand.run(Report(Outcome.FAILURE, 30_000, trip=True, reason="billing"))
    return [settled.state, settled.retry_after_ms, stand.read().circuit.reason]


def _health(stand: Stand) -> list[object]:
    stand.trip()
    check = stand.permit(health=True)
    second = stand.ask(health=True)
    failed = stand.settle(check, Report(Outcome.FAILURE, 20_000)).retry_after_ms
    passed = stand.settle(stand.permit(health=True), SUCCESS)
    return [check.probe, second.permit, failed, passed.state, passed.retry_after_ms, stand.run(SUCCESS).state]


def _unstable(stand: Stand) -> list[object]:
    waits = list[object]()
    for closed_ms in (59_999, 60_000, 0):
        waits.append(stand.trip().retry_after_ms)
        stand.clock.advance(stand.ask().retry_after_ms)
        stand.run(SUCCESS)
        stand.clock.advance(closed_ms)
    return waits


def _older(stand: Stand) -> list[object]:
    newer = replace(CONFIG, version=2, failure_threshold=1, recovery_timeout=20.0)
    older = replace(CONFIG, version=1, failure_threshold=9)
    stand.run(SUCCESS, newer)
    return [stand.run(config=older).retry_after_ms, stand.ask(older).retry_after_ms, stand.read().circuit.policy]


def _took(stand: Stand) -> list[object]:
    for outcome, took_ms in (
        (Outcome.SUCCESS, 5),
        (Outcome.FAILURE, 60_001),
        (Outcome.IGNORED, 7),
        (Outcome.SUCCESS, 0),
    ):
        stand.run(Report(outcome, duration_ms=took_ms))
    circuit = stand.read().circuit
    return [circuit.took_ms, circuit.durations]


def _held(stand: Stand) -> list[object]:
    stand.trip()
    for paced in (True, False, True):
        stand.ask(paced=paced)
    circuit = stand.read().circuit
    return [circuit.rejected, circuit.held]


REFUSED = Admission(permit=None, state=OPEN, retry_after_ms=10_000)

CASES: dict[str, tuple[Callable[[Stand], list[object]], list[object]]] = {
    "the third failure trips": (_trip, [False, False, True, REFUSED]),
    "a success starts the count again, a neutral outcome does not": (_success_between, [CLOSED] * 6),
    "open until the recovery timeout, then one probe": (
        _wait,
        [1, True, Admission(permit=None, state=HALF_OPEN, retry_after_ms=2_000)],
    ),
    "a lapsed lease frees the slot and proves nothing; a late report in its epoch does": (
        _lapse,
        [1, True, 1, 1, 0, CLOSED],
    ),
    "a successful probe closes": (_close, [CLOSED, True, 0]),
    "reopening backs off up to the cap": (_reopen, [20_000, 40_000, 40_000]),
    "a retry-after lengthens the wait, a late one does not": (_retry_after, [30_000, 30_000]),
    "late reports change nothing": (
        _late,
        [
            Settlement(applied=True, state=OPEN, retry_after_ms=10_000),
            Settlement(applied=True, state=OPEN, retry_after_ms=10_000),
            10_000,
        ],
    ),
    "settling twice counts once": (_twice, [True, False, 1]),
    "asking again gives the same permit": (_again, [True, 1]),
    "a neutral probe gives its permit back": (_neutral_probe, [Settlement(applied=True, state=HALF_OPEN), True]),
    "forced open until its time to live": (_forced_open, [replace(REFUSED, retry_after_ms=5_000), True, True]),
    "forced open until it is lifted": (_forced_for_good, [REFUSED, True, True]),
    "forced closed counts only": (_forced_closed, [CLOSED, CLOSED, True, OPEN]),
    "reset voids permits": (_reset, [True, False, 0, CLOSED]),
    "a clock that steps back does not lengthen the wait": (_clock_back, [10_000, True]),
    "a report to an unknown circuit creates nothing": (_unknown, [Settlement(applied=False, state=CLOSED), ""]),
    "the ramp paces tasks, not plain calls": (_ramp, [1, True, 500, True]),
    "asking again in a later epoch is a new question": (_again_later, [None, True, 2, HALF_OPEN]),
    "a word said again is followed once": (_same_word, [True, True, ["test"] * 4, ["force_open", "reset"], 2]),
    "one failure may be enough alone": (_enough_alone, [OPEN, 30_000, "billing"]),
    "a health check ends the wait, or lets it be": (_health, [True, None, 20_000, OPEN, 0, CLOSED]),
    "the back-off goes on until the circuit was stable": (_unstable, [10_000, 20_000, 10_000]),
    "an older configuration changes nothing": (
        _older,
        [20_000, 20_000, replace(CONFIG, version=2, failure_threshold=1, recovery_timeout=20.0).policy.text],
    ),
    "durations are counted by range": (_took, [60_006, "1" + ",0" * 12 + ",1"]),
    "refusals of tasks are counted apart": (_held, [3, 2]),
}


@pytest.mark.parametrize("case", CASES)
def test_rules(case: str, stand: Stand) -> None:
    """
    The case's name is what the store does.
    """
    act, expected = CASES[case]
    assert act(stand) == expected


# What a store adds to the rules


def test_every_change_and_every_word_is_in_the_log(stand: Stand) -> None:
    """
    One record for each transition, also one that time brought about, and for each of the operator's words.
    """
    stand.run(Report(Outcome.FAILURE, trip=True, reason="auth"))
    stand.clock.advance(10_000)
    stand.run(SUCCESS)
    word = Word(op_id="1", actor="me", reason="drill")
    stand.store.force(CONFIG, Override.FORCED_OPEN, word, ttl_ms=5_000)
    stand.clock.advance(5_000)
    stand.store.draw(CONFIG, 0)
    stand.store.reset(CONFIG, replace(word, op_id="2"))
    opened, half, closed, said, forced, ended, reset = stand.store.log(CONFIG)

    def change(after_s: int, epoch: int, previous: CircuitState, current: CircuitState, reason: str = "") -> LogRecord:
        at_ms, failures = START_MS + after_s * 1_000, int(epoch in {1, 2})
        return LogRecord(
            at_ms=at_ms,
            kind="transition",
            previous=previous,
            current=current,
            epoch=epoch,
            failures=failures,
            reason=reason,
        )

    assert opened == change(0, 1, CLOSED, OPEN, "auth")
    assert half == change(10, 2, OPEN, HALF_OPEN, "auth")
    assert closed == change(10, 3, HALF_OPEN, CLOSED)
    assert forced == change(10, 4, CLOSED, OPEN, "drill")
    assert ended == change(15, 5, OPEN, CLOSED)
    spoken = LogRecord(at_ms=START_MS + 10_000, kind="operator", action="force_open", actor="me", reason="drill")
    assert said == replace(spoken, ttl_ms=5_000)
    assert reset == replace(spoken, at_ms=START_MS + 15_000, action="reset")


def test_the_log_is_read_from_a_moment_on(stand: Stand) -> None:
    """
    Of what was written since a moment the newest records come, oldest first; also after a clock step back.
    """
    for _ in range(3):
        stand.clock.advance(1_000)
        stand.force(Override.AUTO)
    stand.clock.advance(-2_000)
    stand.force(Override.FORCED_OPEN, ttl_ms=7)
    moments = [record.at_ms - START_MS for record in stand.store.log(CONFIG)]
    assert moments == [1_000, 2_000, 3_000, 1_000, 1_000]
    since = stand.store.log(CONFIG, since_ms=START_MS + 2_000)
    assert [record.at_ms - START_MS for record in since] == [2_000, 3_000]
    assert [record.kind for record in stand.store.log(CONFIG, limit=2)] == ["operator", "transition"]
    assert stand.store.log(replace(CONFIG, name="unused")) == []


def test_the_log_is_bounded(stand: Stand) -> None:
    """
    The last thousand records are kept; the oldest goes when another comes.
    """
    for number in range(1_003):
        stand.store.force(CONFIG, Override.AUTO, Word(op_id=str(number), actor=str(number)))
    assert [record.actor for record in stand.store.log(CONFIG)] == [str(number) for number in range(3, 1_003)]


def test_permits_are_accounted_for(stand: Stand) -> None:
    """
    Admitted = succeeded + failed + ignored + expired + outstanding, exactly.
    """
    kept = [stand.permit() for _ in range(4)]
    for permit, report in zip(kept[:3], (SUCCESS, FAILURE, IGNORED), strict=True):
        stand.settle(permit, report)
    stand.clock.advance(CONFIG.longest_lease_ms)
    stand.permit()
    reading = stand.read()
    circuit = reading.circuit
    assert (circuit.admitted, circuit.succeeded, circuit.failed, circuit.ignored) == (5, 1, 1, 1)
    assert (circuit.expired, reading.calls, reading.probes) == (1, 1, 0)


def test_a_reading_shows_probes_and_their_first_lease(stand: Stand) -> None:
    """
    Permits that are out are read as numbers, and the first probe's lease by its end.
    """
    stand.probe()
    reading = stand.read()
    assert (reading.probes, reading.first_lease_ms - reading.now_ms, reading.degraded) == (1, 2_000, False)


def test_many_circuits_are_read_in_order(stand: Stand) -> None:
    """
    Readings come in the order they were asked for; a circuit nobody has used reads as closed.
    """
    names = ["b", "a", "unused"]
    configs = [replace(CONFIG, name=name) for name in names]
    stand.trip(configs[0])
    stand.run(SUCCESS, configs[1])
    states = [(reading.circuit.state, reading.circuit.succeeded) for reading in stand.store.read(configs)]
    assert states == [(OPEN, 0), (CLOSED, 1), (CLOSED, 0)]
    assert stand.store.read([]) == []


HOSTILE = [
    "a",
    "a:",
    ":a",
    "a:keys",
    "a:b:circuit",
    "a:b:keys",
    "a:b ",
    "A",
    "a ",
    "a:b",
    "a{b}",
    "{a}b",
    "}{",
    "a:circuit",
    "a%3Ab",
    "a*",
    "a?[b]",
    "\u00e4",
    "a\u0308",
    "a/b",
    "../a",
    "\N{SNOWMAN}",
]


def test_hostile_names_do_not_touch_each_other(stand: Stand) -> None:
    """
    Names with braces, colons, wildcards, and names that differ in one accent are different circuits.
    """
    configs = [replace(CONFIG, name=name, failure_threshold=1) for name in HOSTILE]
    for config in configs[::2]:
        stand.run(config=config)
    assert [reading.circuit.state for reading in stand.store.read(configs)] == [OPEN, CLOSED] * (len(HOSTILE) // 2)


def test_keys_are_injective_and_in_one_slot() -> None:
    """
    No two names share a key, and the keys of one circuit share their hash tag.
    """
    keys = [circuit_keys("omni", name) for name in HOSTILE]
    assert len({key for four in keys for key in four}) == 4 * len(HOSTILE)
    # The list of keys is that of the circuit which configures them.
    lists = {list_key("omni", name) for name in HOSTILE}
    assert len(lists) == len({split_key(name)[0] for name in HOSTILE})
    assert not lists & {key for four in keys for key in four}
    for four in keys:
        tags = {key[key.index("{") + 1 : key.index("}")] for key in four}
        assert len(tags) == 1
        assert all(key.count("{") == key.count("}") == 1 for key in four)


def test_only_one_of_many_threads_gets_the_probe(stand: Stand) -> None:
    """
    Twelve threads that ask at the same moment share one probe.
    """
    stand.clock.advance(stand.trip().retry_after_ms)
    barrier, granted = threading.Barrier(12), list[Permit | None]()

    def ask(number: int) -> None:
        barrier.wait(timeout=10)
        granted.append(stand.store.acquire(CONFIG, Request(permit_id=f"thread{number}")).permit)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert sum(permit is not None for permit in granted) == 1
    assert len(granted) == 12


# Redis only


def _dump(client: redis.Redis, prefix: str) -> dict[bytes, object]:
    return {key: client.dump(key) for key in client.scan_iter(match=f"{prefix}:*")}


def test_reading_changes_nothing(shared: Stand, redis_client: redis.Redis, key_prefix: str) -> None:
    """
    However much time has passed, a reading leaves every key as it was.
    """
    shared.probe()
    shared.clock.advance(10**9)
    before = _dump(redis_client, key_prefix)
    shared.read()
    shared.read(replace(CONFIG, name="unused"))
    assert _dump(redis_client, key_prefix) == before != {}


def test_foreign_entries_of_a_log_are_left_out(shared: Stand, redis_client: redis.Redis, key_prefix: str) -> None:
    """
    What is no record of ours, or cannot be read, is not shown.
    """
    key = circuit_keys(key_prefix, CONFIG.name)[3]
    entries: list[Any] = [
        {"kind": "transition", "from": "open", "to": "gone"},
        {"something": "else"},
        {b"\xff": b"\xff"},
    ]
    for entry in entries:
        redis_client.xadd(key, entry)
    redis_client.xadd(key, {"kind": "operator", "at_ms": "nan", "actor": b"\xff"})
    assert shared.store.log(CONFIG) == [LogRecord(at_ms=0, kind="operator", actor="\ufffd")]


def test_a_script_flush_goes_unnoticed(shared: Stand, redis_client: redis.Redis) -> None:
    """
    A server that has forgotten the scripts, after a restart or a flush, is given them again.
    """
    shared.run()
    redis_client.script_flush()
    shared.run()
    redis_client.script_flush()
    assert shared.read().circuit.failures == 2
    redis_client.script_flush()
    assert shared.store.draw(CONFIG, 0).count == 0


def test_a_decision_and_a_reading_are_one_round_trip_each(shared: Stand, redis_client: redis.Redis) -> None:
    """
    Once the server knows the scripts, one command goes over the wire per decision and per circuit read.
    """

    def commands() -> int:
        stats = redis_client.info("commandstats")
        return sum(stats[name]["calls"] for name in stats if name.split("_")[1].startswith(("evalsha", "script")))

    shared.run()
    shared.read()
    before = commands()
    shared.run()
    assert commands() - before == 2
    shared.store.read([replace(CONFIG, name=name) for name in "abc"])
    assert commands() - before == 2 + 3


def test_time_is_the_servers(redis_client: redis.Redis, key_prefix: str) -> None:
    """
    Without a clock of a test the store reads the server's, not the process's.
    """
    store = RedisStore(redis_client, prefix=key_prefix)
    seconds, microseconds = redis_client.time()
    stand = Stand(store, Clock())
    stand.run()
    since_ms = stand.read().circuit.last_failure_ms - (seconds * 1000 + microseconds // 1000)
    assert 0 <= since_ms < 5_000


def test_a_refusal_is_worth_waiting_for(shared: Stand) -> None:
    """
    The wait of a refusal is what the pure rules say for the circuit that was stored.
    """
    shared.trip()
    shared.clock.advance(3_210)
    refused = shared.ask()
    reading = shared.read()
    assert refused.retry_after_ms == retry_after(reading.circuit, CONFIG, now_ms=reading.now_ms) == 6_790
