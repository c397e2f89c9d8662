"""
No lost key and no unreadable field wedges a circuit; time is what the test says it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import fields, replace

import pytest
import redis

from omni_tasks.core.model import Circuit, CircuitState, Override, Permit, Word
from omni_tasks.core.outcome import SUCCESS, Outcome, Report
from omni_tasks.core.ramp import bound_ramp
from omni_tasks.core.wire import Policy
from omni_tasks.store.redis import RedisStore
from omni_tasks.store.schema import circuit_keys, script_text
from tests.support.bench import FAILURE
from tests.support.clock import Clock
from tests.support.stand import CONFIG, Stand

OPEN, CLOSED = CircuitState.OPEN, CircuitState.CLOSED

#: The longest a circuit may ever refuse without hearing anything new, in ms.
LONGEST_MS = CONFIG.longest_open_ms + CONFIG.longest_lease_ms


@pytest.fixture
def shared(redis_client: redis.Redis, key_prefix: str) -> Stand:
    """
    The Redis store.
    """
    clock = Clock()
    return Stand(RedisStore(redis_client, prefix=key_prefix, now_ms=clock), clock)


def _as_closed(stand: Stand) -> None:
    stand.run(SUCCESS)
    stand.run()


def _as_open(stand: Stand) -> None:
    stand.trip()


def _as_reopened(stand: Stand) -> None:
    stand.settle(stand.probe())


def _as_half_open(stand: Stand) -> None:
    stand.probe()


def _as_ramping(stand: Stand) -> None:
    stand.settle(stand.probe(), SUCCESS)
    stand.run()
    stand.store.draw(CONFIG, 10)


def _as_forced_open(stand: Stand) -> None:
    stand.trip()
    stand.force(Override.FORCED_OPEN, ttl_ms=5_000)


DAMAGED = [_as_closed, _as_open, _as_reopened, _as_half_open, _as_ramping, _as_forced_open]

FIELDS = [field.name for field in fields(Circuit) if field.name not in {"calls", "probes"}]

GARBAGE: list[bytes | None] = [
    None,  # the field is deleted
    b"",
    b"garbage",
    b"\xff\xfe",
    b"nan",
    b"-inf",
    b"1e300",
    b"1",
    b"-99999999999999",
    b"9007199254740993",
    b"99999999999999",
]


def _damages(stand: Stand, client: redis.Redis, key: str) -> Iterator[tuple[str, bytes | None]]:
    """
    Put the circuit back as it was, then damage one field; give the field and what it says now.
    """
    whole = {k: client.dump(k) for k in circuit_keys(key.split(":", maxsplit=1)[0], CONFIG.name)}
    began_ms = stand.clock.now_ms
    for field, garbage in itertools.product(FIELDS, GARBAGE):
        # A far end of the operator's word is no garbage: it is what the operator may have said.
        if (field, garbage) != ("override_until_ms", b"99999999999999"):
            for name, dump in whole.items():
                client.delete(name)
                if dump is not None:
                    client.restore(name, 0, dump)
            stand.clock.now_ms = began_ms
            if garbage is None:
                client.hdel(key, field)
            else:
                client.hset(key, field, garbage)
            yield field, garbage


@pytest.mark.parametrize("prepare", DAMAGED, ids=lambda prepare: prepare.__name__.removeprefix("_as_"))
def test_no_damaged_field_wedges_the_circuit(
    prepare: Callable[[Stand], None], shared: Stand, redis_client: redis.Redis, key_prefix: str
) -> None:
    """
    With any field deleted or unreadable every verb answers, and a task's call runs within longest wait + lease.
    """
    prepare(shared)
    for damage in _damages(shared, redis_client, circuit_keys(key_prefix, CONFIG.name)[0]):
        shared.read()
        shared.store.draw(CONFIG, 10)
        deadline_ms = shared.clock.now_ms + LONGEST_MS
        admission = shared.ask(paced=True)
        while admission.permit is None:
            assert 0 < admission.retry_after_ms <= CONFIG.longest_open_ms, damage
            shared.clock.advance(admission.retry_after_ms)
            assert shared.clock.now_ms <= deadline_ms, damage
            admission = shared.ask(paced=True)
        assert shared.settle(admission.permit).applied, damage


@pytest.mark.parametrize("prepare", DAMAGED, ids=lambda prepare: prepare.__name__.removeprefix("_as_"))
def test_a_damaged_circuit_still_trips_and_closes(
    prepare: Callable[[Stand], None], shared: Stand, redis_client: redis.Redis, key_prefix: str
) -> None:
    """
    With any field deleted or unreadable the circuit still opens on failures and still closes on a probe's success.
    """
    prepare(shared)
    for damage in _damages(shared, redis_client, circuit_keys(key_prefix, CONFIG.name)[0]):
        for report, wanted in ((FAILURE, OPEN), (SUCCESS, CLOSED)):
            for _ in range(20):
                admission = shared.ask()
                if admission.permit is None:
                    shared.clock.advance(admission.retry_after_ms)
                elif shared.settle(admission.permit, report).state is wanted:
                    break
            assert shared.read().circuit.effective_state is wanted, (damage, report)


@pytest.mark.parametrize("durations", ["", "garbage", "1,2", "1" + ",0" * 14, "9" * 400, "1" + ",-1" * 13])
def test_damaged_durations_are_zeros(durations: str, shared: Stand, redis_client: redis.Redis, key_prefix: str) -> None:
    """
    Durations that cannot be read begin anew with the next call; a policy that cannot be read is none.
    """
    key = circuit_keys(key_prefix, CONFIG.name)[0]
    shared.run(SUCCESS)
    redis_client.hset(key, mapping={"durations": durations, "policy": durations, "last_op": durations})
    shared.run(Report(Outcome.SUCCESS, duration_ms=7))
    assert shared.read().circuit.durations == "0,1" + ",0" * 12
    newer = replace(CONFIG, version=2)
    shared.run(SUCCESS, newer)
    assert shared.read().circuit.policy == newer.policy.text


def test_a_stored_policy_is_read_as_the_pure_rules_read_it(
    shared: Stand, redis_client: redis.Redis, key_prefix: str
) -> None:
    """
    Numbers that were not written as we write them are numbers all the same.
    """
    newer = replace(CONFIG, version=2, failure_threshold=1).policy
    text = newer.text.replace(",", ",00")
    assert Policy.parse(text) == newer
    redis_client.hset(circuit_keys(key_prefix, CONFIG.name)[0], "policy", text)
    assert shared.run().state is OPEN


@pytest.mark.parametrize("stored_mps", [1, 2_000, 9_999, 10**12])
def test_a_stored_rate_is_kept_within_its_bounds(
    stored_mps: int, shared: Stand, redis_client: redis.Redis, key_prefix: str
) -> None:
    """
    A ramp slower than the configured first rate, or faster than any, is brought back as the pure rules do it.
    """
    _as_ramping(shared)
    redis_client.hset(circuit_keys(key_prefix, CONFIG.name)[0], "ramp_rate_mps", stored_mps)
    expected = bound_ramp(Circuit(ramp_rate_mps=stored_mps), least_mps=CONFIG.ramp_initial_mps)
    shared.ask()
    assert shared.read().circuit.ramp_rate_mps == expected.ramp_rate_mps


def test_any_number_of_reopenings_is_worked_out_at_once(
    shared: Stand, redis_client: redis.Redis, key_prefix: str
) -> None:
    """
    A back-off whose steps are too small to see does not keep the server busy.
    """
    config = replace(CONFIG, recovery_timeout=0.5, backoff_factor=1.001)
    shared.trip(config)
    shared.clock.advance(500)
    probe = shared.permit(config)
    redis_client.hset(circuit_keys(key_prefix, config.name)[0], "reopens", 10**12)
    assert shared.settle(probe, config=config).retry_after_ms == 500


#: What somebody else may write over a key.
OTHERS: dict[str, Callable[[redis.Redis, str], object]] = {
    "a string": lambda client, key: client.set(key, "something else"),
    "a list": lambda client, key: client.lpush(key, "something else"),
    "a set": lambda client, key: client.sadd(key, "something else"),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("broken", [(0,), (1,), (2,), (3,), (0, 1, 2, 3)], ids=str)
def test_a_key_of_another_type_is_lost_and_begins_anew(
    broken: tuple[int, ...], other: str, shared: Stand, redis_client: redis.Redis, key_prefix: str
) -> None:
    """
    Whichever keys were overwritten, every verb answers at once, and the circuit still opens, logs it and closes.
    """
    keys = circuit_keys(key_prefix, CONFIG.name)
    verbs: list[Callable[[], object]] = [
        shared.read,
        lambda: shared.store.log(CONFIG),
        lambda: shared.store.draw(CONFIG, 1),
        shared.run,
        lambda: shared.force(Override.FORCED_OPEN),
        lambda: shared.force(Override.AUTO),
        lambda: shared.settle(Permit("lost", "gen", 1, probe=True)),
        lambda: shared.store.reset(CONFIG, Word(op_id="reset")),
        shared.trip,
    ]
    for verb in verbs:
        for number in broken:
            redis_client.delete(keys[number])
            OTHERS[other](redis_client, keys[number])
        verb()
    while (answer := shared.ask()).permit is None:
        shared.clock.advance(answer.retry_after_ms)
    shared.settle(answer.permit, SUCCESS)
    assert shared.read().circuit.state is CLOSED
    assert [record.kind for record in shared.store.log(CONFIG)]


def test_another_error_of_the_server_is_no_lost_key(redis_client: redis.Redis, key_prefix: str) -> None:
    """
    Only a key of another type is deleted; any other error ends the script and is the store's error.
    """
    shared = Stand(RedisStore(redis_client, prefix=key_prefix, now_ms=Clock()), Clock())
    shared.trip()
    text = script_text("draw").replace(
        "'ZREMRANGEBYSCORE', KEYS[2], '-inf', now", "'ZREMRANGEBYSCORE', KEYS[2], 'x', now"
    )
    keys = circuit_keys(key_prefix, CONFIG.name)
    with pytest.raises(redis.ResponseError, match="min or max is not a float"):
        redis_client.eval(text, 4, *keys, shared.clock(), CONFIG.policy.text, 1)
    assert shared.read().circuit.state is OPEN


@pytest.mark.parametrize("prepare", DAMAGED, ids=lambda prepare: prepare.__name__.removeprefix("_as_"))
@pytest.mark.parametrize("lost", [0, 1, 2], ids=["circuit", "calls", "probes"])
def test_no_lost_key_wedges_the_circuit(
    prepare: Callable[[Stand], None], lost: int, shared: Stand, redis_client: redis.Redis, key_prefix: str
) -> None:
    """
    With any of its three keys deleted the circuit lets a call run within longest wait + lease.
    """
    prepare(shared)
    redis_client.delete(circuit_keys(key_prefix, CONFIG.name)[lost])
    deadline_ms = shared.clock.now_ms + LONGEST_MS
    admission = shared.ask()
    while admission.permit is None:
        shared.clock.advance(admission.retry_after_ms)
        assert shared.clock.now_ms <= deadline_ms
        admission = shared.ask()
