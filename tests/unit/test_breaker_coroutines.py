"""
A circuit around coroutines: cancellation, concurrency, and a store that answers late.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from omni_tasks import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerManager,
    CircuitOpenError,
    circuit_breaker,
    circuit_breaker_context,
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


# async with


def test_an_async_block_is_guarded(breaker: CircuitBreaker) -> None:
    """
    It yields the breaker; its failures count, and once open the block does not run: by name and on a breaker alike.
    """

    async def main() -> None:
        async with circuit_breaker_context("dep") as inside, breaker as itself:
            assert inside is itself is breaker
        async with circuit_breaker_context("nobody") as inside:
            assert inside is None
        with pytest.raises(DownError):
            async with circuit_breaker_context("dep"):
                raise DownError
        with pytest.raises(DownError):
            async with breaker:
                raise DownError
        for block in (circuit_breaker_context("dep"), breaker):
            with pytest.raises(CircuitOpenError):
                async with block:
                    raise AssertionError

    _run(main)
    metrics = breaker.get_metrics()
    assert (metrics.successful_requests, metrics.failed_requests, metrics.rejected_requests) == (1, 2, 2)


def test_async_blocks_side_by_side_and_nested(breaker: CircuitBreaker) -> None:
    """
    Blocks of tasks side by side, entered and left in any order, are calls of their own; one in another is none.
    """
    most: list[int] = []

    async def work(number: int) -> None:
        await asyncio.sleep(0.001 * (number % 3))
        async with breaker, breaker, circuit_breaker_context("dep"):
            await asyncio.sleep(0.001 * ((7 - number) % 3))
            most.append(breaker.get_metrics().outstanding_requests)

    async def main() -> None:
        await asyncio.gather(*(work(number) for number in range(10)))

    _run(main)
    metrics = breaker.get_metrics()
    assert (metrics.successful_requests, metrics.outstanding_requests) == (10, 0)
    assert max(most) > 1


def test_a_task_that_outlives_its_block_asks_for_itself(breaker: CircuitBreaker) -> None:
    """
    A task started in a block runs on the block's permit while that lasts, and no longer.
    """

    async def main() -> list[int]:
        ended, seen = asyncio.Event(), list[int]()

        async def work() -> None:
            async with breaker:
                seen.append(breaker.get_metrics().outstanding_requests)
            await ended.wait()
            async with breaker:
                seen.append(breaker.get_metrics().outstanding_requests)

        async with breaker:
            task = asyncio.create_task(work())
            await asyncio.sleep(0.01)
        ended.set()
        await task
        return seen

    assert _run(main) == [1, 1]
    assert breaker.get_metrics().total_requests == 2


def test_a_cancelled_async_block_gives_its_permit_back(breaker: CircuitBreaker) -> None:
    """
    Cancelling is neutral, also for a block.
    """

    async def main() -> None:
        began = asyncio.Event()

        async def hang() -> None:
            async with circuit_breaker_context("dep"):
                began.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(hang())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    _run(main)
    metrics = breaker.get_metrics()
    assert (metrics.outstanding_requests, metrics.total_requests, metrics.failed_requests) == (0, 1, 0)


def test_a_coroutine_cancelled_while_it_asks_does_not_wait(make: Callable[..., CircuitBreakerManager]) -> None:
    """
    However often it is cancelled, and however late the store answers: the permit is given back when the answer comes.
    """
    manager, store = make(), SlowStore()
    manager._store = store
    breaker = manager.register(CONFIG, "dep")

    async def block() -> None:
        async with breaker:
            raise AssertionError

    async def main() -> None:
        task = asyncio.create_task(block())
        await asyncio.to_thread(store.asked.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        store.may_answer.set()

    _run(main)
    metrics = breaker.get_metrics()
    assert (metrics.outstanding_requests, metrics.total_requests) == (0, 1)


def test_a_slow_store_does_not_stop_the_loop_of_a_block(make: Callable[..., CircuitBreakerManager]) -> None:
    """
    While one block waits for the store's answer the other tasks go on.
    """
    manager, store = make(), SlowStore()
    manager._store = store
    manager.register(CONFIG, "dep")

    async def block() -> str:
        async with circuit_breaker_context("dep"):
            return "ran"

    async def answer() -> None:
        await asyncio.to_thread(store.asked.wait, 10)
        store.may_answer.set()

    async def main() -> str:
        ran, _ = await asyncio.gather(block(), answer())
        return ran

    assert _run(main) == "ran"


def test_a_block_may_end_in_another_context(breaker: CircuitBreaker) -> None:
    """
    Frameworks enter a generator in one thread or context and end it in another: the permit is still given back.
    """

    def dependency() -> Iterator[None]:
        with circuit_breaker_context("dep"):
            yield

    generator = dependency()
    contextvars.copy_context().run(next, generator)
    assert breaker.get_metrics().outstanding_requests == 1
    contextvars.copy_context().run(lambda: list(generator))
    assert breaker.get_metrics().outstanding_requests == 0


def test_a_breaker_as_a_block_ends_where_it_began(breaker: CircuitBreaker) -> None:
    """
    The one breaker cannot tell its blocks apart in another context, and says what can.
    """
    contextvars.copy_context().run(breaker.__enter__)
    with pytest.raises(RuntimeError, match=r"'dep_cb' ends in another context.*circuit_breaker_context"):
        breaker.__exit__(None, None, None)


def test_the_loops_end_loses_no_report(breaker: CircuitBreaker) -> None:
    """
    A loop that ends while a report waits for a thread does not take it along.
    """
    free = threading.Event()

    async def main() -> None:
        loop, left = asyncio.get_running_loop(), asyncio.Event()
        loop.set_default_executor(ThreadPoolExecutor(max_workers=1))

        async def call() -> None:
            try:
                async with circuit_breaker_context("dep"):
                    # Not awaited: it keeps the only thread busy.
                    _ = loop.run_in_executor(None, free.wait, 10)
                    left.set()
            finally:
                free.set()

        task = asyncio.create_task(call())
        await left.wait()
        assert not task.done()

    asyncio.run(main())
    metrics = breaker.get_metrics()
    assert (metrics.successful_requests, metrics.outstanding_requests) == (1, 0)


def test_one_context_manager_is_one_block_among_tasks(breaker: CircuitBreaker) -> None:
    """
    Of two tasks that enter it at once, one is told.
    """
    block = circuit_breaker_context("dep")

    async def enter() -> None:
        async with block:
            await asyncio.sleep(0)

    async def main() -> tuple[object, object]:
        return await asyncio.gather(enter(), enter(), return_exceptions=True)

    first, second = asyncio.run(main())
    assert first is None
    assert isinstance(second, RuntimeError)
    metrics = breaker.get_metrics()
    assert (metrics.successful_requests, metrics.outstanding_requests) == (1, 0)
    breaker.force_open()
    for _ in range(2):
        with pytest.raises(CircuitOpenError), block:
            pass


def test_one_context_manager_is_one_block(breaker: CircuitBreaker) -> None:
    """
    It may be used again when its block has ended, not before.
    """
    block = circuit_breaker_context("dep")
    for _ in range(2):
        with block, pytest.raises(RuntimeError, match="guards one block at a time"):
            block.__enter__()
    assert breaker.get_metrics().total_requests == 2
