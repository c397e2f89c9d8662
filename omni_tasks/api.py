"""
The decorator and the context manager: a circuit around plain code.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, ParamSpec, TypeVar, cast

from omni_tasks.breaker import CircuitBreaker
from omni_tasks.errors import CircuitOpenError
from omni_tasks.manager import get_circuit_breaker_manager

__all__ = ["circuit_breaker", "circuit_breaker_context"]

P = ParamSpec("P")
R = TypeVar("R")


def circuit_breaker(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """
    Put the circuit *name* around a function or a coroutine function.

    The circuit is looked up at each call, so a module can be imported before
    anything is configured.

    Raises:
        TypeError: At once: it is a generator function, whose body runs after its call has returned.

        UnknownCircuitError: At the call: no such circuit.

        CircuitOpenError: At the call: refused, the function did not run.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"circuit_breaker({name!r}) guards functions and coroutine functions, got the generator function "
                f"{function.__qualname__}: use circuit_breaker_context({name!r}) inside it"
            )
        if inspect.iscoroutinefunction(function):
            return cast("Callable[P, R]", _around_coroutine(name, function))

        @functools.wraps(function)
        def around(*args: P.args, **kwargs: P.kwargs) -> R:
            return get_circuit_breaker_manager().call(name, function, *args, **kwargs)

        return around

    return decorate


def _around_coroutine(name: str, function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    @functools.wraps(function)
    async def around(*args: P.args, **kwargs: P.kwargs) -> R:
        manager = get_circuit_breaker_manager()
        breaker = manager.get(name)
        if not manager.enabled:
            return await function(*args, **kwargs)
        # The store is asked in a thread: a slow answer must not stop the event loop.
        asking = asyncio.ensure_future(asyncio.to_thread(breaker.admit))
        try:
            permit = await asyncio.shield(asking)
        except asyncio.CancelledError as cancelled:
            # The thread goes on asking.  Its answer is waited for, which the store's deadline bounds:
            # a permit that nobody knows of would stay taken for its whole lease.
            with contextlib.suppress(CircuitOpenError):
                await asyncio.to_thread(breaker.report, await asking, cancelled)
            raise
        error: BaseException | None = None
        result: R | None = None
        started = time.monotonic()
        try:
            with breaker.holding():
                result = await function(*args, **kwargs)
        except BaseException as caught:
            error = caught
            raise
        else:
            return result
        finally:
            took = time.monotonic() - started
            # Shielded, because a cancelled caller must still give its permit back.
            await asyncio.shield(asyncio.to_thread(breaker.report, permit, error, result, duration=took))

    return around


@contextlib.contextmanager
def circuit_breaker_context(name: str) -> Iterator[CircuitBreaker | None]:
    """
    Put the circuit *name* around a block.

    Yields:
        The breaker, or ``None`` when no circuit of that name is configured or
        resilience is disabled: then the block simply runs.

    Raises:
        CircuitOpenError: Refused; the block does not run.
    """
    manager = get_circuit_breaker_manager()
    breaker = manager.find(name) if manager.enabled else None
    if breaker is None:
        yield None
        return
    with breaker:
        yield breaker
