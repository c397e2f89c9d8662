"""
Real processes that share a circuit, each told what to do over a pipe.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

from omni_tasks import CircuitBreaker, CircuitBreakerConfig, CircuitBreakerMetrics, CircuitOpenError, signals
from omni_tasks.breaker import open_store
from tests.support.dependency import Dependency, DependencyDownError

__all__ = ["Peer", "Setup", "start"]

#: Seconds after which something is wrong with the test itself.
PATIENCE = 30.0


@dataclass(frozen=True, kw_only=True)
class Setup:
    """
    What all peers of a test have in common.

    Attributes:
        url: The shared store.

        prefix: First part of its keys.

        config: The circuit.

        folder: The dependency's.
    """

    url: str
    prefix: str
    config: CircuitBreakerConfig
    folder: Path


class Peer:
    """
    One process.
    """

    def __init__(self, setup: Setup, barrier: Barrier, clock_offset: float) -> None:
        """
        Start it; its wall clock is *clock_offset* seconds off.
        """
        context = multiprocessing.get_context("forkserver")
        self._pipe, theirs = context.Pipe()
        # Kept here too: the semaphores behind them are gone with their last owner, and the child looks them up late.
        self._barrier, self._release = barrier, context.Event()
        self.process = context.Process(
            target=_serve, args=(theirs, setup, barrier, self._release, clock_offset), daemon=True
        )
        self.process.start()
        theirs.close()

    def tell(self, verb: str, **arguments: Any) -> None:
        """
        Begin something; :meth:`answer` gives its result.
        """
        self._pipe.send((verb, arguments))

    def answer(self) -> Any:
        """
        The result of what was begun.
        """
        assert self._pipe.poll(PATIENCE), "the process does not answer"
        answer = self._pipe.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def ask(self, verb: str, **arguments: Any) -> Any:
        """
        Do something and wait for its result.
        """
        self.tell(verb, **arguments)
        return self.answer()

    @property
    def answered(self) -> bool:
        """
        Whether a result is there.
        """
        return self._pipe.poll()

    def release(self) -> None:
        """
        Let its held call go on.
        """
        self._release.set()

    def kill(self) -> None:
        """
        SIGKILL, as an out-of-memory killer would.
        """
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(PATIENCE)

    def stop(self) -> None:
        """
        End it, whatever it does.
        """
        self.process.kill()
        self.process.join(PATIENCE)
        self.process.close()
        self._pipe.close()


def start(setup: Setup, count: int, clock_offsets: tuple[float, ...] = ()) -> list[Peer]:
    """
    Start *count* processes that can wait for each other.

    Args:
        setup: What they have in common.

        count: Processes, >= 1.

        clock_offsets: Seconds by which the wall clocks of the first ones are wrong.
    """
    context = multiprocessing.get_context("forkserver")
    # Imported once, in the process all others are forked from.
    context.set_forkserver_preload([__name__])
    barrier = context.Barrier(count)
    offsets = (*clock_offsets, *[0.0] * count)[:count]
    return [Peer(setup, barrier, offset) for offset in offsets]


def _serve(pipe: Connection, setup: Setup, barrier: Barrier, release: Event, clock_offset: float) -> None:
    if clock_offset:
        _shift_clock(clock_offset)
    child = _Child(setup, barrier, release)
    with suppress(EOFError):
        while True:
            verb, arguments = pipe.recv()
            try:
                pipe.send(getattr(child, verb)(**arguments))
            except Exception as error:  # noqa: BLE001 - the test is told
                pipe.send(error)


def _shift_clock(seconds: float) -> None:
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + seconds
    time.time_ns = lambda: real_ns() + int(seconds * 1e9)


class _Child(logging.Handler):
    """
    What a process can be told; a handler, to keep what the package logs.
    """

    def __init__(self, setup: Setup, barrier: Barrier, release: Event) -> None:
        super().__init__()
        self._told: list[str] = []
        self._barrier, self._release = barrier, release
        self._dependency = Dependency(setup.folder)
        # A crowd on few cores is slow: only a store that is really away may count as away.
        self._breaker = CircuitBreaker(
            setup.config, store=open_store(setup.url, prefix=setup.prefix, timeout=10.0), key="dep"
        )
        logger = logging.getLogger("omni_tasks")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)
        for name, sent in (("opened", signals.circuit_opened), ("half_opened", signals.circuit_half_opened)):
            sent.connect(self._keep(f"signal {name}"), weak=False)
        self._breaker.add_on_open_callback(self._keep("callback open"))

    def emit(self, record: logging.LogRecord) -> None:
        self._told.append(json.loads(record.getMessage())["event"])

    def told(self) -> list[str]:
        """
        What this process has announced: events, signals, callbacks.
        """
        return self._told

    def call(self, *, together: bool = False, held: bool = False) -> str:
        """
        Call the dependency: "ok", "failed" or "refused"; at the same time as the others; until the test lets it go on.
        """

        def body() -> None:
            self._dependency.call(str(os.getpid()))
            if held:
                self._release.wait(PATIENCE)

        if together:
            self._barrier.wait(PATIENCE)
        return self._outcome(body)

    def fail_together(self) -> str:
        """
        Hold a permit until all hold one, then fail.
        """

        def body() -> None:
            self._barrier.wait(PATIENCE)
            raise DependencyDownError

        return self._outcome(body)

    def fail_late(self) -> str:
        """
        Fail when the test lets it, long after the call began.
        """

        def body() -> None:
            self._release.wait(PATIENCE)
            raise DependencyDownError

        return self._outcome(body)

    def say_nothing(self) -> str:
        """
        Make a call whose end says nothing about the dependency.
        """

        def body() -> None:
            raise CircuitOpenError("another_cb", "open", 1.0)

        return self._outcome(body)

    def forked_call(self) -> str:
        """
        Call from a child that was forked with everything this process has open.
        """
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(theirs, self.call().encode())
            finally:
                os._exit(0)
        os.close(theirs)
        os.waitpid(pid, 0)
        with os.fdopen(ours) as answer:
            return answer.read()

    def metrics(self) -> CircuitBreakerMetrics:
        """
        The circuit as this process reads it.
        """
        return self._breaker.get_metrics()

    def say(self, *, word: str) -> None:
        """
        Speak as the operator.
        """
        getattr(self._breaker, word)()

    def now(self) -> float:
        """
        Its wall clock.
        """
        return time.time()

    def _outcome(self, body: Callable[[], None]) -> str:
        try:
            self._breaker.call(body)
        except CircuitOpenError:
            return "refused"
        except DependencyDownError:
            return "failed"
        return "ok"

    def _keep(self, what: str) -> Callable[..., None]:
        return lambda *_args, **_kwargs: self._told.append(what)
