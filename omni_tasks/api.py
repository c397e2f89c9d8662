"""
The decorator and the context manager: a circuit around plain code.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, ParamSpec, TypeVar, cast

from omni_tasks.breaker import CircuitBreaker
from omni_tasks.errors import CircuitOpenError
from omni_tasks.fallback import Fallback
from omni_tasks.guarded import GuardedCall
from omni_tasks.keyed import Key, breaker_for
from omni_tasks.manager import get_circuit_breaker_manager

__all__ = ["circuit_breaker", "circuit_breaker_context"]

P = ParamSpec("P")
R = TypeVar("R")


def circuit_breaker(
    name: str, *, key: Key = None, fallback: object = None, fallback_on: str | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """
    Put the circuit *name* around a function or a coroutine function.

    The circuit is looked up at each call, so a module can be imported before
    anything is configured.

    Args:
        name: The circuit's key or name.

        key: Which of the circuit's keys a call belongs to: text, a whole number, or a function of the call's
            arguments.  Where it cannot be used the call belongs to the circuit itself; that is logged once.

        fallback: What a refused call returns: a value, or a function called with the call's arguments and
            ``reason``, the exception; around a coroutine function it may be one too.  ``None`` for the circuit's own.

        fallback_on: ``"failed"`` to answer for calls that ran and counted as failures too, ``"refused"`` not to;
            ``None`` for the circuit's own.

    Raises:
        TypeError: At once: it is a generator function, whose body runs after its call has returned.  Or it is a
            plain function and its fallback a coroutine function.

        ConfigurationError: At once: *fallback_on* is no such word.

        UnknownCircuitError: At the call: no such circuit.

        CircuitOpenError: At the call: refused, and there is no fallback; the function did not run.
    """
    Fallback.of(fallback, fallback_on)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        _check(name, function, fallback)
        where = f"@circuit_breaker on {function.__module__}.{function.__qualname__}"

        def find(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[CircuitBreaker, Fallback | None]:
            breaker = get_circuit_breaker_manager().get(name)
            if breaker.enabled:
                breaker = breaker_for(breaker, key, args, kwargs, where=where)
            return breaker, Fallback.of(fallback, fallback_on, breaker.config)

        if inspect.iscoroutinefunction(function):
            return cast("Callable[P, R]", _around_coroutine(find, function))

        @functools.wraps(function)
        def around(*args: P.args, **kwargs: P.kwargs) -> R:
            breaker, answer = find(args, kwargs)
            return breaker.call_with_fallback(function, answer, *args, **kwargs)

        return around

    return decorate


def _check(name: str, function: Callable[..., Any], fallback: object) -> None:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"circuit_breaker({name!r}) guards functions and coroutine functions, got the generator function "
            f"{function.__qualname__}: use circuit_breaker_context({name!r}) inside it"
        )
    if inspect.iscoroutinefunction(fallback) and not inspect.iscoroutinefunction(function):
        raise TypeError(
            f"the fallback of {function.__qualname__} must be a plain function, as it is one itself, got the "
            f"coroutine function {fallback.__qualname__}"
        )


def _around_coroutine(
    find: Callable[[tuple[Any, ...], dict[str, Any]], tuple[CircuitBreaker, Fallback | None]],
    function: Callable[P, Coroutine[Any, Any, R]],
) -> Callable[P, Coroutine[Any, Any, R]]:
    @functools.wraps(function)
    async def around(*args: P.args, **kwargs: P.kwargs) -> R:
        breaker, fallback = find(args, kwargs)
        call = GuardedCall(breaker)
        try:
            await call.enter_async()
        except CircuitOpenError as refusal:
            if fallback is None:
                raise
            return cast("R", await _awaited(fallback.give(refusal, args, kwargs)))
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            await call.leave_async(error)
            if fallback is None or not breaker.enabled or not fallback.covers(breaker.config, error):
                raise
            return cast("R", await _awaited(fallback.give(error, args, kwargs)))
        await call.leave_async(None, result)
        return result

    return around


async def _awaited(answer: Any) -> Any:
    return await answer if inspect.isawaitable(answer) else answer


class _Block(AbstractContextManager["CircuitBreaker | None"], AbstractAsyncContextManager["CircuitBreaker | None"]):
    """
    One block.  It keeps its call itself: it may be left in another context, or thread, than it was entered in.
    """

    def __init__(self, name: str, key: str | int | None) -> None:
        self._name = name
        self._key = key
        self._call: GuardedCall | None = None

    def __enter__(self) -> CircuitBreaker | None:
        call = self._call = self._prepare()
        if call is None:
            return None
        try:
            call.enter()
        except BaseException:
            self._call = None
            raise
        return call.breaker

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.leave(error)

    async def __aenter__(self) -> CircuitBreaker | None:
        call = self._call = self._prepare()
        if call is None:
            return None
        try:
            await call.enter_async()
        except BaseException:
            self._call = None
            raise
        return call.breaker

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        call, self._call = self._call, None
        if call is not None:
            await call.leave_async(error)

    def _prepare(self) -> GuardedCall | None:
        if self._call is not None:
            raise RuntimeError(f"circuit_breaker_context({self._name!r}) guards one block at a time; make one for each")
        manager = get_circuit_breaker_manager()
        breaker = manager.find(self._name) if manager.enabled else None
        if breaker is None:
            return None
        return GuardedCall(breaker_for(breaker, self._key, (), {}, where="circuit_breaker_context()"))


def circuit_breaker_context(name: str, *, key: str | int | None = None) -> _Block:
    """
    Put the circuit *name* around a block: ``with`` or ``async with``, which does not stop the event loop.

    The block gets the breaker, or ``None`` when no circuit of that name is
    configured or resilience is disabled: then it simply runs.  A block has no
    fallback: catch the :class:`CircuitOpenError`.

    Args:
        name: The circuit's key or name.

        key: Which of the circuit's keys the block belongs to.

    Raises:
        CircuitOpenError: On entering: refused; the block does not run.
    """
    return _Block(name, key)
