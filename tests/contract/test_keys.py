"""
Circuits per key, on memory and on a real server alike: apart from each other, listed, and bounded in number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import redis

from omni_tasks.core.model import Admission, CircuitState, Override, Permit, Request, Word
from omni_tasks.core.outcome import SUCCESS
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.store.base import CANDIDATES, Store
from omni_tasks.store.memory import MemoryStore
from omni_tasks.store.redis import RedisStore
from tests.support.clock import Clock
from tests.support.stand import CONFIG, Stand

MOST = 3
PARENT = replace(CONFIG, max_keys=MOST)


@pytest.fixture(params=["memory", "redis"])
def stand(request: pytest.FixtureRequest, key_prefix: str) -> Stand:
    """
    Either store, empty.
    """
    clock = Clock()
    if request.param == "memory":
        return Stand(MemoryStore(clock), clock)
    client: redis.Redis = request.getfixturevalue("redis_client")
    return Stand(RedisStore(client, prefix=key_prefix, now_ms=clock), clock)


def _of(key: str, parent: CircuitBreakerConfig = PARENT) -> CircuitBreakerConfig:
    return replace(parent, name=f"{parent.name}:{key}")


def _use(stand: Stand, *keys: str) -> None:
    for key in keys:
        stand.run(SUCCESS, _of(key))
        stand.clock.advance(1_000)


def _keys(stand: Stand, parent: CircuitBreakerConfig = PARENT) -> tuple[str, ...]:
    return stand.store.list_keys([parent])[0]


def test_keys_do_not_touch_each_other(stand: Stand) -> None:
    """
    A key that trips leaves its circuit and the other keys closed.
    """
    _use(stand, "a", "b")
    stand.trip(_of("a"))
    states = [reading.circuit.state for reading in stand.store.read([PARENT, _of("a"), _of("b")])]
    assert states == [CircuitState.CLOSED, CircuitState.OPEN, CircuitState.CLOSED]


@pytest.mark.parametrize("key", ["a:b", "{a}", "keys", "circuit", "%3A", "ä ☃", "k" * 200, "*"])
def test_a_key_is_listed_as_it_was_given(key: str, stand: Stand) -> None:
    """
    Whatever characters it has, a key comes back from the list as it went in, and its circuit is its own.
    """
    stand.trip(_of(key))
    assert _keys(stand) == (key,)
    assert [r.circuit.state for r in stand.store.read([_of(key), PARENT])] == [CircuitState.OPEN, CircuitState.CLOSED]


def test_keys_are_listed_by_their_last_use(stand: Stand) -> None:
    """
    Least recently used first, circuit by circuit; a circuit without keys lists none.
    """
    _use(stand, "a", "b", "c", "a")
    assert stand.store.list_keys([PARENT, replace(CONFIG, name="other")]) == [("b", "c", "a"), ()]


def test_looking_lists_nothing(stand: Stand) -> None:
    """
    Reading a key's circuit, or reporting to one that was forgotten, does not bring it into being.
    """
    stand.read(_of("a"))
    stand.settle(Permit("p", "lost", 7, probe=False), config=_of("a"))
    assert _keys(stand) == ()


def test_the_least_recently_used_makes_room(stand: Stand) -> None:
    """
    With no room left, the key that was used longest ago is forgotten, and starts anew when it comes back.
    """
    _use(stand, "a", "b", "c", "a", "new")
    assert _keys(stand) == ("c", "a", "new")
    assert stand.read(_of("b")).circuit.gen == ""
    assert stand.read(_of("a")).circuit.succeeded == 2


def _open(stand: Stand) -> None:
    stand.trip(_of("a"))


def _probing(stand: Stand) -> None:
    stand.clock.advance(stand.trip(_of("a")).retry_after_ms)
    assert stand.permit(_of("a")).probe


def _calling(stand: Stand) -> None:
    stand.permit(_of("a"))


def _forced(stand: Stand) -> None:
    stand.store.force(_of("a"), Override.FORCED_CLOSED, Word(op_id="operator"))


@pytest.mark.parametrize("keep_in_use", [_open, _probing, _calling, _forced])
def test_what_is_in_use_is_not_forgotten(keep_in_use: Callable[[Stand], None], stand: Stand) -> None:
    """
    A circuit that is open, probes, has a call running or follows the operator outlives those that are idle.
    """
    keep_in_use(stand)
    before = stand.read(_of("a")).circuit
    stand.clock.advance(1_000)
    _use(stand, "b", "c", "new")
    assert set(_keys(stand)) == {"a", "c", "new"}
    assert stand.read(_of("a")).circuit == before


def test_a_call_that_never_reported_does_not_keep_its_key_for_good(stand: Stand) -> None:
    """
    When a lost call's lease has ended its circuit counts as idle again.
    """
    stand.permit(_of("a"))
    stand.clock.advance(PARENT.longest_lease_ms)
    _use(stand, "b", "c", "new")
    assert _keys(stand) == ("b", "c", "new")


def test_no_room_is_said(stand: Stand) -> None:
    """
    Where every key is in use the answer to another one is "crowded": nothing was decided, written or announced.
    """
    for key in ("a", "b", "c"):
        stand.trip(_of(key))
    assert stand.ask(_of("new")) == Admission(permit=None, state=CircuitState.CLOSED, crowded=True)
    assert set(_keys(stand)) == {"a", "b", "c"}
    assert stand.read(_of("new")).circuit.gen == ""
    assert not stand.ask(_of("a")).crowded


def test_room_is_found_behind_those_in_use(stand: Stand) -> None:
    """
    However many of the oldest are in use, asking again finds an idle one behind them.
    """
    parent = replace(CONFIG, max_keys=2 * CANDIDATES + 1)
    for number in range(2 * CANDIDATES):
        stand.trip(_of(f"open{number}", parent))
        stand.clock.advance(1)
    stand.run(SUCCESS, _of("idle", parent))
    answers = []
    for _ in range(3):
        stand.clock.advance(1)
        answers.append(stand.ask(_of("new", parent)).crowded)
    assert answers == [True, True, False]
    assert "idle" not in _keys(stand, parent)


def test_the_circuit_itself_always_has_room(stand: Stand) -> None:
    """
    The limit is for keys; the circuit that configures them is asked as ever.
    """
    for key in ("a", "b", "c"):
        stand.trip(_of(key))
    assert not stand.permit(PARENT).probe


def test_never_more_than_the_limit(stand: Stand) -> None:
    """
    Eight threads that meet forty keys at once leave no more circuits than there may be, and no answer out.
    """
    barrier, answers = threading.Barrier(8), list[Admission]()

    def ask(store: Store, number: int) -> None:
        barrier.wait(timeout=10)
        for turn in range(5):
            config = _of(f"{number}-{turn}")
            answer = store.acquire(config, Request(permit_id=f"{number}-{turn}"))
            if answer.permit:
                store.settle(config, answer.permit, SUCCESS)
            answers.append(answer)

    threads = [threading.Thread(target=ask, args=(stand.store, number)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(_keys(stand)) == MOST
    assert len(answers) == 40


# Redis only


@pytest.fixture
def shared(redis_client: redis.Redis, key_prefix: str) -> Stand:
    """
    The Redis store.
    """
    clock = Clock()
    return Stand(RedisStore(redis_client, prefix=key_prefix, now_ms=clock), clock)


def test_forgetting_leaves_nothing_behind(shared: Stand, redis_client: redis.Redis, key_prefix: str) -> None:
    """
    A thousand keys that came and went leave the keys of the last few in Redis.
    """
    for number in range(1_000):
        shared.run(config=_of(str(number)))
        shared.clock.advance(1)
    tag = f"{key_prefix}:{{contract}}:"
    left = {key.decode().removeprefix(tag) for key in redis_client.scan_iter(f"{key_prefix}:*")}
    assert left == {"keys", *(f"{number}:circuit" for number in (997, 998, 999))}


def test_a_decision_about_a_key_is_one_round_trip(shared: Stand, redis_client: redis.Redis) -> None:
    """
    Once listed, a key's circuit costs what any circuit costs, however many keys there are.
    """
    parent = replace(CONFIG, max_keys=1_000)

    def commands() -> int:
        stats = redis_client.info("commandstats")
        return sum(stats[name]["calls"] for name in stats if name.startswith("cmdstat_evalsha"))

    for number in range(500):
        shared.permit(_of(str(number), parent))
    before = commands()
    for number in range(500):
        shared.permit(_of(str(number), parent))
    assert commands() - before == 500


def test_a_damaged_list_stops_nothing(shared: Stand, redis_client: redis.Redis, key_prefix: str) -> None:
    """
    Without its list a key's circuit goes on as it was, and is listed again with the next call.
    """
    shared.trip(_of("a"))
    redis_client.delete(f"{key_prefix}:{{contract}}:keys")
    refused = shared.ask(_of("a"))
    assert (refused.state, refused.crowded) == (CircuitState.OPEN, False)
    assert _keys(shared) == ("a",)
