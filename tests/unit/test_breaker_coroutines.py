"""
A circuit around coroutines: cancellation, concurrency, and a store that answers late.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from omni_tasks import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerManager,
    CircuitOpenError,
    circuit_breaker,
)
from omni_tasks.core.model import Admission, Request
from omni_tasks.store.memory import MemoryStore
from tests.unit.conftest import CONFIG


class DownError(Exception):
    """
    The dependency is down.
    """


def _run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(main())


def test_a_coroutine_function_stays_one(breaker: CircuitBreaker) -> None:
    """
    It is still a coroutine function; its result, its error and its refusal are the awaiting caller's.
    """

    @circuit_breaker("dep")
    async def fetch(error: Exception | None = None) -> str:
        """Fetch."""
        await asyncio.sleep(0)
        if error:
            raise error
        return "fetched"

    async def main() -> None:
        assert await fetch() == "fetched"
        for _ in range(2):
            with pytest.raises(DownError):
                await fetch(DownError())
        with pytest.raises(CircuitOpenError):
            await fetch()

    assert inspect.iscoroutinefunction(fetch)
    assert (fetch.__name__, fetch.__doc__) == ("fetch", "Fetch.")
    _run(main)
    metrics = breaker.get_metrics()
    assert (metrics.successful_requests, metrics.failed_requests, metrics.rejected_requests) == (1, 2, 1)


def test_coroutines_side_by_side_have_permits_of_their_own(breaker: CircuitBreaker) -> None:
    """
    Ten coroutines at once are ten calls; one inside another is one.
    """

    @circuit_breaker("dep")
    async def inner() -> None:
        await asyncio.sleep(0)

    @circuit_breaker("dep")
    async def outer() -> None:
        await inner()

    async def main() -> None:
        await asyncio.gather(*(outer() for _ in range(10)))

    _run(main)
    assert breaker.get_metrics().total_requests == 10


def test_a_cancelled_coroutine_gives_its_permit_back(breaker: CircuitBreaker) -> None:
    """
    Cancelling is neutral: the permit is free again, nothing counts for or against the dependency.
    """

    async def main() -> None:
        began = asyncio.Event()

        @circuit_breaker("dep")
        async def hang() -> None:
            began.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(hang())
        await began.wait()
        assert breaker.get_metrics().outstanding_requests == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    _run(main)
    metrics = breaker.get_metrics()
    assert (metrics.outstanding_requests, metrics.total_requests, metrics.failed_requests) == (0, 1, 0)


class SlowStore(MemoryStore):
    """
    A store that answers when the test says so.
    """

    def __init__(self) -> None:
        """
        Begin silent.
        """
        super().__init__()
        self.asked, self.may_answer = threading.Event(), threading.Event()

    def acquire(self, config: CircuitBreakerConfig, request: Request) -> Admission:
        """
        Answer late.
        """
        self.asked.set()
        assert self.may_answer.wait(timeout=10)
        return super().acquire(config, request)


@pytest.mark.parametrize("refused", [False, True])
def test_a_coroutine_cancelled_while_it_asks_gives_its_permit_back(
    refused: bool,  # noqa: FBT001 - a parameter of the test
    make: Callable[..., CircuitBreakerManager],
) -> None:
    """
    A permit granted after its caller has gone is given back, the function is not called, and a refusal is nothing.
    """
    manager, store = make(), SlowStore()
    manager._store = store
    breaker = manager.register(CONFIG, "dep")
    if refused:
        breaker.force_open()
    called: list[int] = []

    @circuit_breaker("dep")
    async def fetch() -> None:
        called.append(1)

    async def main() -> None:
        task = asyncio.create_task(fetch())
        await asyncio.to_thread(store.asked.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        store.may_answer.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    _run(main)
    assert called == []
    metrics = breaker.get_metrics()
    assert (metrics.outstanding_requests, metrics.total_requests) == (0, 0 if refused else 1)


def test_a_coroutine_cancelled_while_it_reports_still_reports(breaker: CircuitBreaker) -> None:
    """
    A report that waits for a free thread is made, however often its caller is cancelled meanwhile.
    """
    free = threading.Event()

    async def main() -> None:
        loop, began = asyncio.get_running_loop(), asyncio.Event()
        loop.set_default_executor(ThreadPoolExecutor(max_workers=1))

        @circuit_breaker("dep")
        async def hang() -> None:
            began.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(hang())
        await began.wait()
        busy = loop.run_in_executor(None, free.wait, 10)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        free.set()
        await busy
        await asyncio.to_thread(int)

    _run(main)
    assert breaker.get_metrics().outstanding_requests == 0


def test_a_slow_store_does_not_stop_the_event_loop(make: Callable[..., CircuitBreakerManager]) -> None:
    """
    While one coroutine waits for the store's answer the others go on.
    """
    manager, store = make(), SlowStore()
    manager._store = store
    manager.register(CONFIG, "dep")

    @circuit_breaker("dep")
    async def fetch() -> str:
        return "fetched"

    async def answer() -> None:
        await asyncio.to_thread(store.asked.wait, 10)
        store.may_answer.set()

    async def main() -> str:
        fetched, _ = await asyncio.gather(fetch(), answer())
        return fetched

    assert _run(main) == "fetched"
