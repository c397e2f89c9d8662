"""
Fallbacks: what a refused or failed call gets instead, and why it is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from omni_tasks import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerManager,
    CircuitOpenError,
    ConfigurationError,
    ResilienceConfiguration,
    circuit_breaker,
    circuit_breaker_context,
)
from omni_tasks.manager import use_manager


class DownError(Exception):
    """
    The dependency is down.
    """


class WrongError(Exception):
    """
    The dependency works; the request was wrong.
    """

    circuit_outcome = "ignored"


def _remember(*args: Any, reason: BaseException, **kwargs: Any) -> tuple[Any, ...]:
    return type(reason), args, kwargs


async def _remember_later(*args: Any, reason: BaseException, **kwargs: Any) -> tuple[Any, ...]:
    await asyncio.sleep(0)
    return _remember(*args, reason=reason, **kwargs)


def _fetch(value: int, *, error: BaseException | None = None) -> Any:
    if error:
        raise error
    return value


async def _fetch_later(value: int, *, error: BaseException | None = None) -> Any:
    await asyncio.sleep(0)
    return _fetch(value, error=error)


@pytest.fixture(params=["function", "coroutine"])
def guarded(request: pytest.FixtureRequest) -> Callable[..., Callable[..., Any]]:
    """
    Decorate a function or a coroutine function with the circuit ``dep``; either is called as a function.
    """

    def make(**options: Any) -> Callable[..., Any]:
        if request.param == "function":
            return circuit_breaker("dep", **options)(_fetch)
        coroutine = circuit_breaker("dep", **options)(_fetch_later)
        return lambda *args, **kwargs: asyncio.run(coroutine(*args, **kwargs))

    return make


def test_a_refused_call_gets_the_value(guarded: Callable[..., Callable[..., Any]], breaker: CircuitBreaker) -> None:
    """
    A value is the answer as it is; what runs is not touched, nor what fails.
    """
    fetch = guarded(fallback={"cached": True})
    assert fetch(7) == 7
    with pytest.raises(DownError):
        fetch(7, error=DownError())
    breaker.force_open()
    assert fetch(7) == {"cached": True}
    assert breaker.get_metrics().rejected_requests == 1


def test_a_function_is_told_why(guarded: Callable[..., Callable[..., Any]], breaker: CircuitBreaker) -> None:
    """
    It gets the call's own arguments, and the refusal as ``reason``.
    """
    breaker.force_open()
    assert guarded(fallback=_remember)(7, error=None) == (CircuitOpenError, (7,), {"error": None})


def test_a_failed_call_gets_it_when_told_so(
    guarded: Callable[..., Callable[..., Any]], breaker: CircuitBreaker
) -> None:
    """
    With ``fallback_on="failed"`` a counted failure is answered too; it counts all the same.
    """
    fetch, error = guarded(fallback=_remember, fallback_on="failed"), DownError()
    assert fetch(7, error=error) == (DownError, (7,), {"error": error})
    assert fetch(7, error=error)[0] is DownError
    assert fetch(7)[0] is CircuitOpenError
    metrics = breaker.get_metrics()
    assert (metrics.failed_requests, metrics.rejected_requests) == (2, 1)


@pytest.mark.parametrize("error", [WrongError(), KeyboardInterrupt(), CircuitOpenError("other", "open", 1.0)])
def test_what_says_nothing_of_the_dependency_is_the_callers(error: BaseException, breaker: CircuitBreaker) -> None:
    """
    An ignored exception, an interruption, and the refusal of another circuit inside pass through.
    """
    with pytest.raises(type(error)):
        circuit_breaker("dep", fallback=1, fallback_on="failed")(_fetch)(7, error=error)
    assert breaker.get_metrics().failed_requests == 0


def test_the_reason_is_the_exception_where_the_call_has_one_too(breaker: CircuitBreaker) -> None:
    """
    A call's own argument of that name does not make the fallback fail.
    """

    @circuit_breaker("dep", fallback=_remember)
    def fetch(*, reason: str) -> object:
        return reason

    breaker.force_open()
    assert fetch(reason="because") == (CircuitOpenError, (), {})


def test_a_fallback_that_fails_shows_both(breaker: CircuitBreaker) -> None:
    """
    Its own exception is the caller's, and the reason is behind it.
    """

    def fail(*_: Any, reason: BaseException) -> None:
        raise WrongError(str(reason))

    breaker.force_open()
    with pytest.raises(WrongError) as caught:
        breaker.call_with_fallback(_fetch, fail, 7)
    assert isinstance(caught.value.__context__, CircuitOpenError)


def test_a_coroutine_fallback(breaker: CircuitBreaker) -> None:
    """
    Around a coroutine function a fallback may be one; around a function it is refused at once.
    """
    breaker.force_open()
    told = asyncio.run(circuit_breaker("dep", fallback=_remember_later)(_fetch_later)(7))
    assert told == (CircuitOpenError, (7,), {})
    with pytest.raises(TypeError, match=r"the fallback of _fetch must be a plain function.*_remember_later"):
        circuit_breaker("dep", fallback=_remember_later)(_fetch)


def test_a_word_that_does_not_exist() -> None:
    """
    ``fallback_on`` is checked where it is written.
    """
    with pytest.raises(ConfigurationError, match=r"^fallback_on must be one of refused, failed, got 'sometimes'"):
        circuit_breaker("dep", fallback=1, fallback_on="sometimes")


# Of the circuit, of the call


@pytest.fixture
def manager() -> CircuitBreakerManager:
    """
    The process's manager, with a circuit that has a fallback.
    """
    config = CircuitBreakerConfig(name="dep_cb", failure_threshold=1, fallback=_remember)
    manager = CircuitBreakerManager(ResilienceConfiguration(circuits={"dep": config}))
    use_manager(lambda: manager)
    manager.get("dep").force_open()
    return manager


def test_a_circuit_has_one_for_all_calls(manager: CircuitBreakerManager) -> None:
    """
    ``call`` on breaker and manager, and the decorator, answer with it; a key's circuit has its circuit's.
    """
    expected: tuple[Any, ...] = (CircuitOpenError, (7,), {})
    manager.get("dep:a").force_open()
    assert manager.get("dep").call(_fetch, 7) == expected
    assert manager.call("dep", _fetch, 7) == expected
    assert manager.call("dep:a", _fetch, 7) == expected
    assert circuit_breaker("dep")(_fetch)(7) == expected


def test_a_calls_own_comes_first(manager: CircuitBreakerManager) -> None:
    """
    The decorator's and the call's are stronger than the circuit's.
    """
    assert circuit_breaker("dep", fallback="mine")(_fetch)(7) == "mine"
    assert manager.get("dep").call_with_fallback(_fetch, "mine", 7) == "mine"


def test_a_block_has_none(manager: CircuitBreakerManager) -> None:
    """
    Nothing can be returned from a block: it is refused.
    """
    with pytest.raises(CircuitOpenError), circuit_breaker_context("dep"):
        pass
    with pytest.raises(CircuitOpenError), manager.get("dep"):
        pass


def test_settings_name_one() -> None:
    """
    In ``omni_circuits`` text is the dotted name of a value or a function; what a key inherits is not looked up again.
    """
    given = {
        "cache": {"fallback": "os.path:sep", "fallback_on": "failed"},
        "cache:a": {},
        "database": {"fallback": "os.path:join"},
        "external_api": {"fallback": [1, 2]},
    }
    circuits = ResilienceConfiguration.load({"omni_circuits": given}, {}).circuits
    assert (circuits["cache"].fallback, circuits["cache"].fallback_on) == ("/", "failed")
    assert (circuits["cache:a"].fallback, circuits["cache:a"].fallback_on) == ("/", "failed")
    assert callable(circuits["database"].fallback)
    assert circuits["external_api"].fallback == [1, 2]
    with pytest.raises(ConfigurationError, match=r"made of names that can be imported"):
        ResilienceConfiguration.load({"omni_circuits": {"cache": {"fallback": "no.such:thing"}}}, {})


@pytest.mark.parametrize("settings", [{"enable_resilience": False}, {"mode": "off"}], ids=["disabled", "off"])
def test_switched_off_there_is_none(settings: dict[str, Any], make: Callable[..., CircuitBreakerManager]) -> None:
    """
    With resilience disabled, or the circuit off, a call's failure is its own.
    """
    mode = settings.pop("mode", "enforce")
    manager = make(**settings)
    manager.register(CircuitBreakerConfig(name="dep", mode=mode, fallback=1, fallback_on="failed"), "dep")
    for function in (_fetch, _fetch_later):
        with pytest.raises(DownError):
            asyncio.run(_called(circuit_breaker("dep", fallback=2, fallback_on="failed")(function)))
    with pytest.raises(DownError):
        manager.call("dep", _fetch, 7, error=DownError())


async def _called(function: Callable[..., Any]) -> Any:
    answer = function(7, error=DownError())
    return await answer if asyncio.iscoroutine(answer) else answer
