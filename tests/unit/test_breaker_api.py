"""
The manager, the decorator and the context manager: a circuit around plain code.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from omni_tasks import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerManager,
    CircuitOpenError,
    CircuitState,
    ConfigurationError,
    circuit_breaker,
    circuit_breaker_context,
    get_circuit_breaker_manager,
)
from omni_tasks.errors import UnknownCircuitError
from omni_tasks.manager import use_manager


class DownError(Exception):
    """
    The dependency is down.
    """


def _raise(error: BaseException) -> None:
    raise error


def _trip(breaker: CircuitBreaker) -> None:
    for _ in range(breaker.config.failure_limit):
        with pytest.raises(DownError):
            breaker.call(_raise, DownError())


# The manager


def test_breakers_are_found_by_key_and_by_name(make: Callable[..., CircuitBreakerManager]) -> None:
    """
    The key is the first word for a circuit, its configuration's name the second.
    """
    manager = make()
    assert manager.get("dep") is manager.get("dep_cb")
    assert manager.keys() == ("dep",)
    assert manager.find("nobody") is None
    with pytest.raises(UnknownCircuitError, match=r"no circuit 'nobody' .*configured: dep"):
        manager.get("nobody")


def test_the_key_defaults_to_the_name(make: Callable[..., CircuitBreakerManager]) -> None:
    """
    ``register`` gives the breaker, under the given key or its own name.
    """
    manager = make()
    first = manager.register(CircuitBreakerConfig(name="a"))
    second = manager.register(CircuitBreakerConfig(name="b"), key="other")
    assert (manager.get("a"), manager.get("other")) == (first, second)
    assert manager.keys() == ("dep", "a", "other")


def test_a_manager_calls_by_name(make: Callable[..., CircuitBreakerManager]) -> None:
    """
    ``call`` runs a function under the circuit of that name, with its arguments.
    """
    manager = make()
    assert manager.call("dep", int, "ff", base=16) == 255
    _trip(manager.get("dep"))
    with pytest.raises(CircuitOpenError):
        manager.call("dep", int)
    with pytest.raises(UnknownCircuitError):
        manager.call("nobody", int)


def test_all_metrics_and_reset(make: Callable[..., CircuitBreakerManager]) -> None:
    """
    Metrics come by key for every circuit, and one call clears them all.
    """
    manager = make()
    manager.register(CircuitBreakerConfig(name="other"))
    _trip(manager.get("dep"))
    manager.call("other", int)
    before = manager.get_all_metrics()
    assert {key: (m.name, m.state, m.total_requests) for key, m in before.items()} == {
        "dep": ("dep_cb", "open", 2),
        "other": ("other", "closed", 1),
    }
    manager.reset_all()
    assert {m.total_requests for m in manager.get_all_metrics().values()} == {0}
    assert manager.get("dep").state is CircuitState.CLOSED


def test_there_is_one_manager_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without an application it is made from the environment, once, with the ready circuits.
    """
    monkeypatch.delenv("OMNI_REDIS_URL", raising=False)
    monkeypatch.setenv("OMNI_CIRCUITS", '{"mine": {}}')
    use_manager(None)
    try:
        manager = get_circuit_breaker_manager()
        assert get_circuit_breaker_manager() is manager
        assert manager.keys() == ("ai_providers", "external_api", "database", "cache", "mine")
    finally:
        use_manager(None)


def test_a_wrong_environment_is_refused_when_the_manager_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The manager's first use names the wrong variable.
    """
    monkeypatch.setenv("ENABLE_RESILIENCE", "maybe")
    use_manager(None)
    with pytest.raises(ConfigurationError, match=r"^ENABLE_RESILIENCE must be"):
        get_circuit_breaker_manager()


# The decorator


def test_a_function_keeps_its_face(breaker: CircuitBreaker) -> None:
    """
    Name, docstring and signature stay; arguments and result pass through.
    """

    @circuit_breaker("dep")
    def add(a: int, b: int = 2) -> int:
        """Add."""
        return a + b

    assert (add.__name__, add.__doc__, str(inspect.signature(add))) == (
        "add",
        "Add.",
        "(a: 'int', b: 'int' = 2) -> 'int'",
    )
    assert add(1, b=4) == 5
    assert breaker.get_metrics().successful_requests == 1


def test_a_function_is_guarded(breaker: CircuitBreaker) -> None:
    """
    Its failures trip the circuit with its own errors, then it is refused without being called.
    """
    calls: list[int] = []

    @circuit_breaker("dep")
    def fetch() -> None:
        calls.append(1)
        raise DownError

    for _ in range(2):
        with pytest.raises(DownError):
            fetch()
    with pytest.raises(CircuitOpenError):
        fetch()
    assert len(calls) == 2
    assert breaker.state is CircuitState.OPEN


def test_the_circuit_is_looked_up_at_the_call(make: Callable[..., CircuitBreakerManager]) -> None:
    """
    A module may be imported before its circuit is configured; an unknown circuit is the call's error.
    """

    @circuit_breaker("later")
    def fetch() -> int:
        return 1

    with pytest.raises(UnknownCircuitError):
        fetch()
    make().register(CircuitBreakerConfig(name="later"))
    assert fetch() == 1


def test_decorated_functions_may_call_each_other(breaker: CircuitBreaker) -> None:
    """
    Two functions of one circuit, one inside the other, are one call.
    """

    @circuit_breaker("dep")
    def inner() -> int:
        return 1

    @circuit_breaker("dep_cb")
    def outer() -> int:
        return inner() + 1

    assert outer() == 2
    assert breaker.get_metrics().total_requests == 1


def test_a_generator_function_is_refused() -> None:
    """
    Its body runs after its call has returned: counting the call would call every failure a success.
    """

    def numbers() -> Iterator[int]:
        yield 1

    async def later() -> AsyncIterator[int]:
        yield 1

    for function in (numbers, later):
        with pytest.raises(TypeError, match=rf"{function.__name__}: use circuit_breaker_context\('dep'\) inside it"):
            circuit_breaker("dep")(function)


# The context manager


def test_a_block_is_guarded(breaker: CircuitBreaker) -> None:
    """
    It yields the breaker; its failures count, and once open the block does not run.
    """
    with circuit_breaker_context("dep") as inside:
        assert inside is breaker
    for _ in range(2):
        with pytest.raises(DownError), circuit_breaker_context("dep"):
            raise DownError
    ran: list[int] = []
    with pytest.raises(CircuitOpenError), circuit_breaker_context("dep"):
        ran.append(1)
    assert ran == []
    assert breaker.get_metrics().total_requests == 3


def test_an_unknown_circuit_lets_the_block_run(breaker: CircuitBreaker) -> None:
    """
    Without a circuit of that name the block gets None and simply runs; its errors are its own.
    """
    with circuit_breaker_context("nobody") as inside:
        assert inside is None
    with pytest.raises(DownError), circuit_breaker_context("nobody"):
        raise DownError
    assert breaker.get_metrics().total_requests == 0


def test_blocks_of_one_circuit_nest(breaker: CircuitBreaker) -> None:
    """
    A block within a block of the same circuit, by key or by name, runs on the outer one's permit.
    """
    with circuit_breaker_context("dep") as outer, circuit_breaker_context("dep_cb") as inner:
        assert outer is inner is breaker
    assert breaker.get_metrics().total_requests == 1


# Resilience switched off


def test_switched_off_everything_passes_through(make: Callable[..., CircuitBreakerManager]) -> None:
    """
    With ENABLE_RESILIENCE=false nothing is counted or refused, not even by an open circuit.
    """
    manager = make(enable_resilience=False)
    manager.get("dep").force_open()

    @circuit_breaker("dep")
    def plain() -> int:
        return 1

    @circuit_breaker("dep")
    async def coroutine() -> int:
        return 2

    assert (plain(), asyncio.run(coroutine()), manager.call("dep", int, "3")) == (1, 2, 3)
    with circuit_breaker_context("dep") as inside:
        assert inside is None
    for _ in range(5):
        with pytest.raises(DownError):
            manager.call("dep", _raise, DownError())
    metrics = manager.get_all_metrics()["dep"]
    assert (metrics.total_requests, metrics.rejected_requests) == (0, 0)
