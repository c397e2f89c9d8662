"""
One call's way through a circuit: let in, running, reported.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, Self, cast

from omni_tasks.core.model import Admission, Permit
from omni_tasks.core.outcome import IGNORED, Outcome, judge

if TYPE_CHECKING:
    from omni_tasks.breaker import CircuitBreaker

__all__ = [
    "FailedProbe",
    "GuardedBlocks",
    "GuardedCall",
    "failed_probe_behind",
    "holding",
    "is_held",
    "watching_probes",
]

P = ParamSpec("P")

#: How many errors, each raised from the next, are looked through for a failed probe's.
_LONGEST_CHAIN = 20


class _Hold:
    """
    That a call runs on a permit of some circuits, until it has ended.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names
        # A task that was started inside the call has a copy of its context, and may outlive it.
        self.live = True


#: The permits that the current call runs on.
_holds: ContextVar[tuple[_Hold, ...]] = ContextVar("omni_tasks_holds", default=())


def is_held(name: str) -> bool:
    """
    Whether the current call runs on a permit of the circuit *name*.
    """
    return any(hold.live and name in hold.names for hold in _holds.get())


@contextmanager
def holding(*names: str) -> Iterator[None]:
    """
    Let calls of the circuits *names* inside the block run on a permit the caller already holds.
    """
    hold = _begin(frozenset(names))
    try:
        yield
    finally:
        _end(hold)


def _begin(names: frozenset[str]) -> _Hold:
    hold = _Hold(names)
    _holds.set((*_holds.get(), hold))
    return hold


def _end(hold: _Hold) -> None:
    hold.live = False
    # Not by a token: a generator may be ended in another context than it was begun in.
    _holds.set(tuple(other for other in _holds.get() if other is not hold))


@dataclass(frozen=True, slots=True)
class FailedProbe:
    """
    A call that was let through as a probe and found its dependency down.

    Attributes:
        error: What ended the call.

        open_for: Seconds the circuit stays open from then; 0.0 where that is not known.
    """

    breaker: CircuitBreaker
    error: BaseException
    open_for: float


#: The probes that have failed in the task body running here; ``None`` outside of one.
_failed_probes: ContextVar[list[FailedProbe] | None] = ContextVar("omni_tasks_failed_probes", default=None)


@contextmanager
def watching_probes() -> Iterator[None]:
    """
    Remember the probes that fail inside the block, for :func:`failed_probe_behind`.
    """
    token = _failed_probes.set([])
    try:
        yield
    finally:
        _failed_probes.reset(token)


def failed_probe_behind(error: BaseException) -> FailedProbe | None:
    """
    The failed probe whose error *error* is, or was raised from; ``None`` without one.
    """
    failed = _failed_probes.get() or []
    link: BaseException | None = error
    # A chain may be a ring; nobody raises a thousand errors from each other.
    for _ in range(_LONGEST_CHAIN if failed else 0):
        for probe in failed:
            if probe.error is link:
                return probe
        link = link and (link.__cause__ or link.__context__)
    return None


class GuardedCall:
    """
    One call; made anew for each.  Enter it, run, leave it with how it ended.
    """

    def __init__(self, breaker: CircuitBreaker) -> None:
        """
        Prepare to ask *breaker*.
        """
        self.breaker = breaker
        self._answering = breaker
        self._permit: Permit | None = None
        self._hold: _Hold | None = None
        self._started = 0.0
        self._lock = threading.Lock()
        self._abandoned = False

    def enter(self) -> None:
        """
        Take a permit, where the call needs one of its own.

        Raises:
            CircuitOpenError: Refused.
        """
        if self._asks:
            self._take(*self.breaker.ask(here=True))
        self._begin()

    async def enter_async(self) -> None:
        """
        As :meth:`enter`; the store is asked in a thread, because a slow answer must not stop the event loop.
        """
        if self._asks:
            try:
                await asyncio.shield(_in_thread(self._ask_for_loop))
            except asyncio.CancelledError:
                # The thread goes on asking.  A permit that nobody knows of would stay taken for its whole
                # lease: the thread gives it back, or, where it has just ended, we do.
                with self._lock:
                    self._abandoned = True
                await self._give_back()
                raise
        self._begin()

    def leave(self, error: BaseException | None, result: object = None) -> None:
        """
        Report how the call ended: with *error*, or with *result*.
        """
        self._report(error, result, self._stop())

    async def leave_async(self, error: BaseException | None, result: object = None) -> None:
        """
        As :meth:`leave`, without stopping the event loop.
        """
        duration = self._stop()
        if self._permit is not None:
            # Shielded, because a cancelled caller must still give its permit back.
            await asyncio.shield(_in_thread(self._report, error, result, duration))

    @property
    def _asks(self) -> bool:
        # Where an outer call holds a permit it reports for both: asking again would make a probe refuse itself.
        return self.breaker.enabled and not self.breaker.is_held

    def _ask_for_loop(self) -> None:
        answer = self.breaker.ask(here=True)
        with self._lock:
            if not self._abandoned:
                self._take(*answer)
                return
        answering, admission = answer
        if admission.permit is not None:
            answering.settle(admission.permit, IGNORED)

    async def _give_back(self) -> None:
        if self._permit is not None:
            await asyncio.shield(_in_thread(self._answering.settle, self._permit, IGNORED))

    def _take(self, answering: CircuitBreaker, admission: Admission) -> None:
        if admission.refused:
            raise answering.refusal(admission)
        self._answering, self._permit = answering, admission.permit

    def _begin(self) -> None:
        if self.breaker.enabled:
            self._hold = _begin(frozenset({self.breaker.config.name, self._answering.config.name}))
        self._started = time.monotonic()

    def _stop(self) -> float:
        if self._hold is not None:
            _end(self._hold)
        return time.monotonic() - self._started

    def _report(self, error: BaseException | None, result: object, duration: float) -> None:
        permit, self._permit = self._permit, None
        if permit is None:
            return
        if error is None or isinstance(error, Exception):
            report = judge(self._answering.config, error, result, duration=duration)
        else:
            # Cancelled or interrupted: that says nothing about the dependency.
            report = IGNORED
        settlement = self._answering.settle(permit, report)
        noted = _failed_probes.get()
        if noted is not None and permit.probe and error is not None and report.outcome is Outcome.FAILURE:
            noted.append(FailedProbe(self._answering, error, settlement.retry_after_ms / 1000))


def _in_thread(function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[object]:
    # As asyncio.to_thread(), but no task: an event loop that ends cancels every task, also one that a shield holds.
    call = functools.partial(copy_context().run, function, *args, **kwargs)
    return asyncio.get_running_loop().run_in_executor(None, call)


#: The ``with breaker`` blocks the current call is inside of, outermost first.
_entered: ContextVar[tuple[GuardedCall, ...]] = ContextVar("omni_tasks_entered", default=())


class GuardedBlocks:
    """
    What makes a breaker a context manager, for ``with`` and for ``async with``.
    """

    def __enter__(self) -> Self:
        """
        Take a permit for the block.

        Raises:
            CircuitOpenError: Refused; the block does not run.
        """
        call = GuardedCall(self._breaker)
        call.enter()
        _entered.set((*_entered.get(), call))
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """
        Settle the block's permit by how the block ended.
        """
        self._leave_block().leave(error)

    async def __aenter__(self) -> Self:
        """
        Take a permit for the block without stopping the event loop.

        Raises:
            CircuitOpenError: Refused; the block does not run.
        """
        call = GuardedCall(self._breaker)
        await call.enter_async()
        _entered.set((*_entered.get(), call))
        return self

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """
        Settle the block's permit by how the block ended.
        """
        await self._leave_block().leave_async(error)

    def _leave_block(self) -> GuardedCall:
        entered = _entered.get()
        call = next((call for call in reversed(entered) if call.breaker is self._breaker), None)
        if call is None:
            raise RuntimeError(
                f"the block of circuit {self._breaker.config.name!r} ends in another context than it began in; "
                "use circuit_breaker_context() there"
            )
        _entered.set(tuple(other for other in entered if other is not call))
        return call

    @property
    def _breaker(self) -> CircuitBreaker:
        return cast("CircuitBreaker", self)
