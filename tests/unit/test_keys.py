"""
Breakers per key: how they are made, found, configured, listened to, reset and bounded.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable
from typing import Any

import pytest

from omni_tasks import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerManager,
    CircuitOpenError,
    CircuitState,
    ConfigurationError,
    ResilienceConfiguration,
    circuit_breaker,
    circuit_breaker_context,
    signals,
)
from omni_tasks.errors import UnknownCircuitError
from omni_tasks.manager import use_manager
from omni_tasks.store.memory import MemoryStore
from tests.support.log import events
from tests.unit.conftest import CONFIG

CLOSED, OPEN = CircuitState.CLOSED, CircuitState.OPEN


class DownError(Exception):
    """
    The dependency is down.
    """


def _fail(breaker: CircuitBreaker, times: int = 2) -> None:
    def fail() -> None:
        raise DownError

    for _ in range(times):
        with pytest.raises(DownError):
            breaker.call(fail)


# Names


def test_a_key_has_a_breaker_of_its_own(breaker: CircuitBreaker) -> None:
    """
    It has its circuit's rules, a name and a key of its own, and a state of its own.
    """
    openai = breaker.keyed("openai")
    assert (openai.key, openai.config.name, openai.parent) == ("dep:openai", "dep_cb:openai", breaker)
    assert openai.config.failure_threshold == CONFIG.failure_threshold
    _fail(openai)
    assert (openai.state, breaker.state, breaker.keyed("deepseek").state) == (OPEN, CLOSED, CLOSED)
    with pytest.raises(CircuitOpenError, match="'dep_cb:openai' is open"):
        openai.call(int)


def test_a_key_is_found_by_every_name(make: Callable[..., CircuitBreakerManager]) -> None:
    """
    ``keyed``, the manager's key and the circuit's name lead to one breaker.
    """
    manager = make()
    openai = manager.get("dep").keyed("openai")
    assert manager.get("dep:openai") is openai
    assert manager.find("dep_cb:openai") is openai
    assert manager.get("dep:a:b").config.name == "dep_cb:a:b"
    assert manager.find("nobody:openai") is None
    for wrong in ("nobody:openai", "dep:", "dep:" + "k" * 201, "dep:\n"):
        with pytest.raises(UnknownCircuitError, match="configured: dep"):
            manager.get(wrong)


class Model(str, enum.Enum):  # noqa: UP042 - the kind whose str() is not its value
    """
    Models, as many applications name them.
    """

    SMALL = "small"


@pytest.mark.parametrize(("value", "key"), [("a", "a"), (7, "7"), (-1, "-1"), (Model.SMALL, "small"), ("k" * 200,) * 2])
def test_values_that_are_keys(value: Any, key: str, breaker: CircuitBreaker) -> None:
    """
    Text, whole numbers, and what derives from them by its value.
    """
    assert breaker.keyed(value) is breaker.keyed(key)
    assert breaker.keyed(value).key == f"dep:{key}"


@pytest.mark.parametrize("value", ["", "k" * 201, "a\nb", None, 1.5, True, b"a", ["a"], 10**300])
def test_values_that_are_no_keys(value: Any, breaker: CircuitBreaker) -> None:
    """
    ``keyed`` refuses them by name.
    """
    with pytest.raises(ConfigurationError, match=r"^key must be 1-200 printable characters"):
        breaker.keyed(value)


def test_a_key_has_no_keys(breaker: CircuitBreaker) -> None:
    """
    Circuits per key are one level deep.
    """
    with pytest.raises(ConfigurationError, match=r"^keyed must be asked of a circuit that is not one of a key"):
        breaker.keyed("a").keyed("b")


def test_a_colon_is_for_keys() -> None:
    """
    A circuit's own name has none, so no key's circuit can be mistaken for another.
    """
    with pytest.raises(ConfigurationError, match=r"^name must be without a colon; for a circuit of a key use keyed"):
        CircuitBreaker(CircuitBreakerConfig(name="a:b"), store=MemoryStore())


# Configuration


def _manager(circuits: dict[str, Any]) -> CircuitBreakerManager:
    return CircuitBreakerManager(ResilienceConfiguration.load({"omni_circuits": circuits}, {}))


def test_a_key_may_be_configured_apart() -> None:
    """
    Its entry changes what it names; the rest is its circuit's, wherever that one's entry stands.
    """
    manager = _manager(
        {"ai_providers:openai": {"failure_threshold": 1}, "ai_providers": {"recovery_timeout": 7, "max_keys": 9}}
    )
    openai, other = manager.get("ai_providers:openai").config, manager.get("ai_providers:other").config
    assert (openai.name, openai.failure_threshold, openai.recovery_timeout) == ("ai_providers_cb:openai", 1, 7)
    assert (other.failure_threshold, other.recovery_timeout, other.max_keys) == (5, 7, 9)
    assert manager.get("ai_providers").keyed("openai").config is openai
    assert manager.configured() == ("ai_providers", "external_api", "database", "cache")
    assert manager.keys() == (*manager.configured(), "ai_providers:openai")


@pytest.mark.parametrize(
    ("circuits", "message"),
    [
        ({"nobody:a": {}}, r"^omni_circuits\['nobody:a'\] must be of a configured circuit, a colon and a key"),
        ({"cache:": {}}, r"^omni_circuits\['cache:'\] must be of a configured circuit, a colon and a key"),
        ({":a": {}}, r"^omni_circuits\[':a'\] must be of a configured circuit, a colon and a key"),
        ({"cache:a": {"name": "x"}}, r"^omni_circuits\['cache:a'\]\['name'\] must be left out: it is cache's"),
        ({"cache:a": {"max_keys": 5}}, r"^omni_circuits\['cache:a'\]\['max_keys'\] must be left out"),
        ({"cache:a": {"recovery_timeout": 0}}, r"^omni_circuits\['cache:a'\]\['recovery_timeout'\] must be a number"),
        ({7: {}}, r"^omni_circuits must be a mapping of circuit key to a mapping of options"),
    ],
)
def test_wrong_entries_are_refused_in_one_line(circuits: dict[Any, Any], message: str) -> None:
    """
    A key's entry needs its circuit, and cannot change what follows from that.
    """
    with pytest.raises(ConfigurationError, match=message) as caught:
        ResilienceConfiguration.load({"omni_circuits": circuits}, {})
    assert "\n" not in str(caught.value)


def test_a_key_is_registered_under_its_circuit(make: Callable[..., CircuitBreakerManager]) -> None:
    """
    ``register`` takes a key's configuration too, if its name is the key's and its circuit is there.
    """
    manager = make()
    config = CircuitBreakerConfig(name="dep_cb:a", failure_threshold=9)
    assert manager.register(config, "dep:a") is manager.get("dep:a")
    assert manager.register(config) is manager.get("dep:a")
    assert manager.get("dep:a").config is config
    with pytest.raises(ConfigurationError, match=r"^name of dep:b must be 'dep_cb:b', got 'other'"):
        manager.register(CircuitBreakerConfig(name="other"), "dep:b")
    with pytest.raises(ConfigurationError, match=r"^circuit must be a configured circuit, .*configured: dep\)"):
        manager.register(CircuitBreakerConfig(name="nobody:a"))


# Faces


def test_the_decorator_takes_a_key(breaker: CircuitBreaker) -> None:
    """
    A function of the call's arguments, or the key itself; around functions and coroutine functions.
    """

    @circuit_breaker("dep", key=lambda model, **_: model)
    def ask(model: str, *, prompt: str = "") -> str:
        return model + prompt

    @circuit_breaker("dep", key="fixed")
    async def tell() -> None:
        raise DownError

    assert (ask("small", prompt="!"), ask("large")) == ("small!", "large")
    for _ in range(2):
        with pytest.raises(DownError):
            asyncio.run(tell())
    assert set(breaker.keys()) == {"small", "large", "fixed"}
    assert breaker.keyed("fixed").state is OPEN
    assert breaker.get_metrics().total_requests == 0


def test_the_context_manager_takes_a_key(breaker: CircuitBreaker) -> None:
    """
    It yields the key's breaker.
    """
    with circuit_breaker_context("dep", key="openai") as inside:
        assert inside is breaker.keyed("openai")
    with circuit_breaker_context("dep:openai") as inside:
        assert inside is breaker.keyed("openai")
    assert breaker.keyed("openai").get_metrics().successful_requests == 2


def test_keys_nest_beside_each_other(breaker: CircuitBreaker) -> None:
    """
    A call of one key inside a call of another is a call of its own; of the same key, or of the circuit, likewise.
    """
    with breaker, breaker.keyed("a"), breaker.keyed("b"), breaker.keyed("a"), breaker:
        assert [b.get_metrics().outstanding_requests for b in (breaker, breaker.keyed("a"), breaker.keyed("b"))] == [
            1,
            1,
            1,
        ]


NO_KEYS: dict[str, Any] = {
    "takes other arguments": lambda **_: "x",
    "gives none": lambda *_: None,
    "gives an empty one": lambda *_: "",
    "raises": lambda *_: 1 / 0,
    "is empty": "",
    "is a number": 1.5,
}


@pytest.mark.parametrize("key", NO_KEYS.values(), ids=NO_KEYS)
def test_a_key_that_cannot_be_used(key: Any, breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture) -> None:
    """
    The call belongs to the circuit itself, whatever is wrong with its key; that is logged once, not at every call.
    """

    @circuit_breaker("dep", key=key)
    def fetch(value: int) -> int:
        return value

    assert [fetch(number) for number in range(3)] == [0, 1, 2]
    assert (breaker.get_metrics().successful_requests, breaker.keys()) == (3, ())
    [said] = events(caplog, "circuit_key_unusable")
    assert said["component"] == "dep"
    assert "test_a_key_that_cannot_be_used.<locals>.fetch" in said["where"]


def test_a_blocks_key_that_cannot_be_used(breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture) -> None:
    """
    The block belongs to the circuit itself.
    """
    wrong: Any = ""
    for name in ("dep", "dep"):
        with circuit_breaker_context(name, key=wrong) as inside:
            assert inside is breaker
    assert len(events(caplog, "circuit_key_unusable")) == 1
    with circuit_breaker_context("dep:a", key="b") as inside:
        assert inside is breaker.keyed("a")


# Who is told


def test_a_circuits_callbacks_hear_of_its_keys(breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture) -> None:
    """
    They are called with the key's breaker; so are the signals, and the log names it.
    """
    told: list[CircuitBreaker] = []
    sent: list[str] = []

    def receive(sender: str, **_: Any) -> None:
        sent.append(sender)

    breaker.add_on_open_callback(told.append)
    signals.circuit_opened.connect(receive)
    caplog.set_level(logging.WARNING, "omni_tasks")
    try:
        _fail(breaker.keyed("openai"))
    finally:
        signals.circuit_opened.disconnect(receive)
    assert told == [breaker.keyed("openai")]
    assert sent == ["dep:openai"]
    assert [event["component"] for event in events(caplog, "circuit_breaker_open")] == ["dep:openai"]


def test_a_keys_own_callbacks(breaker: CircuitBreaker) -> None:
    """
    They hear of that key alone, after the circuit's, and however many other keys the process has met since.
    """
    told: list[str] = []
    breaker.add_on_open_callback(lambda _: told.append("circuit"))
    breaker.keyed("a").add_on_open_callback(lambda cb: told.append(cb.key))
    for number in range(2_000):
        breaker.keyed(number)
    _fail(breaker.keyed("b"))
    _fail(breaker.keyed("a"))
    assert told == ["circuit", "circuit", "dep:a"]


# Reading and resetting


def test_metrics_show_every_key(make: Callable[..., CircuitBreakerManager]) -> None:
    """
    By the names they are asked for by, after the configured circuits; also keys that another process has brought.
    """
    manager = make()
    manager.get("dep").keyed("a").call(int)
    CircuitBreaker(CONFIG, store=manager._store).keyed("b").call(int)
    metrics = manager.get_all_metrics()
    assert {key: (m.name, m.total_requests) for key, m in metrics.items()} == {
        "dep": ("dep_cb", 0),
        "dep:a": ("dep_cb:a", 1),
        "dep:b": ("dep_cb:b", 1),
    }
    assert manager.keys() == tuple(metrics)


def test_reset_alone_and_together(make: Callable[..., CircuitBreakerManager]) -> None:
    """
    ``reset`` is for one circuit, a key's or the circuit itself; ``all_keys`` and ``reset_all`` are for all.
    """
    manager = make()
    breaker = manager.get("dep")
    circuits = [breaker, breaker.keyed("a"), breaker.keyed("b")]

    def states() -> list[CircuitState]:
        return [circuit.state for circuit in circuits]

    for circuit in circuits:
        _fail(circuit)
    breaker.reset()
    assert states() == [CLOSED, OPEN, OPEN]
    breaker.keyed("a").reset()
    assert states() == [CLOSED, CLOSED, OPEN]
    breaker.reset(all_keys=True)
    assert states() == [CLOSED] * 3
    _fail(breaker.keyed("a"))
    manager.reset_all()
    assert states() == [CLOSED] * 3


# Bounds


def test_a_key_without_room_shares_its_circuit() -> None:
    """
    Where every key is in use another one's calls are the circuit's own: counted there, refused there, reported there.
    """
    parent = CircuitBreaker(
        CircuitBreakerConfig(name="dep_cb", failure_threshold=2, max_keys=2), store=MemoryStore(), key="dep"
    )
    for key in ("a", "b"):
        _fail(parent.keyed(key))
    late = parent.keyed("late")
    assert late.call(int, "7") == 7
    with late:
        pass

    async def block() -> None:
        async with late:
            pass

    asyncio.run(block())
    metrics = parent.get_metrics()
    assert (metrics.successful_requests, metrics.outstanding_requests, parent.keys()) == (3, 0, ("a", "b"))
    _fail(late)
    with pytest.raises(CircuitOpenError, match="'dep_cb' is open"):
        late.call(int)


def test_a_shared_circuit_knows_that_it_is_held() -> None:
    """
    Inside a call that shares the circuit, calls of the key and of the circuit run on its permit.
    """
    parent = CircuitBreaker(CircuitBreakerConfig(name="dep", failure_threshold=1, max_keys=1), store=MemoryStore())
    _fail(parent.keyed("a"), 1)
    with parent.keyed("late"), parent.keyed("late"), parent:
        assert parent.get_metrics().outstanding_requests == 1


def test_a_key_gets_its_circuit_when_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A process that found no room asks again after a while.
    """
    parent = CircuitBreaker(CircuitBreakerConfig(name="dep", failure_threshold=1, max_keys=1), store=MemoryStore())
    _fail(parent.keyed("a"), 1)
    parent.keyed("late").call(int)
    parent.keyed("a").reset()
    monkeypatch.setattr(parent, "_full_until_monotonic", 0.0)
    parent.keyed("late").call(int)
    assert parent.keys() == ("late",)


def test_a_process_keeps_a_limited_number_of_breakers(breaker: CircuitBreaker) -> None:
    """
    However many keys it meets.
    """
    first = breaker.keyed("first")
    for number in range(2_000):
        breaker.keyed(number)
    assert len(breaker.known_keys._recent) == 1_000
    assert breaker.keyed("first") is not first
    assert breaker.keyed(1_999) is breaker.keyed(1_999)


# Resilience switched off


def test_switched_off_keys_pass_through(make: Callable[..., CircuitBreakerManager]) -> None:
    """
    With ENABLE_RESILIENCE=false no key is computed, counted or refused, not even by an open circuit.
    """
    manager = make(enable_resilience=False)
    manager.get("dep:a").force_open()
    asked: list[int] = []

    @circuit_breaker("dep", key=asked.append)
    def fetch(value: int) -> int:
        return value

    async def block() -> CircuitBreaker | None:
        async with circuit_breaker_context("dep", key="a") as inside, manager.get("dep:a"):
            return inside

    assert (fetch(1), manager.call("dep:a", int, "2"), manager.get("dep:a").call(int, "3")) == (1, 2, 3)
    with circuit_breaker_context("dep", key="a") as inside, manager.get("dep:a"):
        assert inside is None
    assert asyncio.run(block()) is None
    assert asked == []
    assert {key: m.rejected_requests for key, m in manager.get_all_metrics().items()} == {"dep": 0, "dep:a": 0}


def test_a_breaker_of_its_own_reads_the_switch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without a manager the environment says whether resilience is on.
    """
    monkeypatch.delenv("OMNI_REDIS_URL", raising=False)
    monkeypatch.setenv("ENABLE_RESILIENCE", "false")
    breaker = CircuitBreaker(CONFIG)
    breaker.force_open()
    assert (breaker.enabled, breaker.call(int, "1"), breaker.keyed("a").enabled) == (False, 1, False)
    use_manager(None)
