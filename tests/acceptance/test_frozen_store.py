"""
A store that is frozen for five seconds under load, and a store that is down together with the dependency.

Real processes with several threads each; what is measured is what a caller waits for.
"""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import pytest

from omni_tasks import CircuitBreakerConfig, CircuitBreakerManager, CircuitOpenError, ResilienceConfiguration
from omni_tasks.embedded import EmbeddedServer, start_server
from tests.support.stopwatch import waited

pytestmark = pytest.mark.acceptance

PROCESSES, THREADS = 2, 4

#: Seconds between two calls of a thread.
PAUSE = 0.005

#: Seconds of load before, during and after the freeze.
BEFORE, FROZEN, AFTER = 1.5, 5.0, 3.0

#: What one decision may cost at most, and what is called slow, seconds.
LONGEST, SLOW = 0.25, 0.15

CIRCUITS = {
    "well": CircuitBreakerConfig(name="well"),
    "dead": CircuitBreakerConfig(name="dead", failure_threshold=1, recovery_timeout=600.0),
    "both": CircuitBreakerConfig(name="both", failure_threshold=5, recovery_timeout=600.0),
}


@dataclass(frozen=True)
class Call:
    """
    One call of one thread.

    Attributes:
        began: By the machine's monotonic clock, in seconds.

        ended: The same.

        how: How it ended.

        waited: For how long its thread had stood ready to run, no processor being free, in all its life when it began,
            in seconds.

        starved: For how long it did during the call, in seconds.
    """

    began: float
    ended: float
    how: str
    waited: float
    starved: float

    @property
    def seconds(self) -> float:
        """
        How long it took, without that.
        """
        return self.ended - self.began - self.starved


@dataclass
class Seen:
    """
    What one process has seen.
    """

    #: Of the circuit that is closed, by thread.
    calls: list[list[Call]] = field(default_factory=list)
    #: Of the circuit that is open in the store.
    dead: list[Call] = field(default_factory=list)
    #: Log records of ours.
    records: list[str] = field(default_factory=list)


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.events.append(next((event for event in ("degraded", "recovered") if event in text), text))


def _manager(url: str, prefix: str) -> CircuitBreakerManager:
    return CircuitBreakerManager(ResilienceConfiguration(redis_url=url, key_prefix=prefix, circuits=CIRCUITS))


def _load(url: str, prefix: str, pipe: Connection) -> None:
    records, seen = _Records(), Seen()
    logging.getLogger().addHandler(records)
    manager, stop = _manager(url, prefix), threading.Event()
    seen.calls = [[] for _ in range(THREADS)]
    threads = [threading.Thread(target=_calls, args=(manager, "well", stop, calls)) for calls in seen.calls]
    threads.append(threading.Thread(target=_calls, args=(manager, "dead", stop, seen.dead)))
    for thread in threads:
        thread.start()
    pipe.send("ready")
    pipe.recv()
    stop.set()
    for thread in threads:
        thread.join()
    seen.records = records.events
    pipe.send(seen)


def _calls(manager: CircuitBreakerManager, name: str, stop: threading.Event, calls: list[Call]) -> None:
    while not stop.is_set():
        began, ready = time.monotonic(), waited("/proc/thread-self")
        try:
            manager.call(name, int)
            how = "passed"
        except CircuitOpenError:
            how = "refused"
        except Exception as error:  # noqa: BLE001 - what it was is what is shown
            how = repr(error)
        calls.append(Call(began, time.monotonic(), how, ready, waited("/proc/thread-self") - ready))
        time.sleep(PAUSE)


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """
    A server to be ill-treated.
    """
    with start_server() as started:
        yield started


def _run(work: Callable[..., None], arguments: tuple[Any, ...], act: Callable[[], None]) -> list[Any]:
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(PROCESSES):
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(*arguments, theirs), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        assert pipe.recv() == "ready"
    act()
    for pipe in pipes:
        pipe.send("stop")
    answers = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join(10)
    return answers


def test_a_frozen_store_costs_one_slow_decision(server: EmbeddedServer, key_prefix: str) -> None:
    """
    Five seconds of SIGSTOP are one wait of at most 250 ms a process, at 0.9 of the healthy rate or more afterwards.

    No call ends in an exception, there are two log records, and within a second of its return the store's word counts.
    """
    with pytest.raises(ZeroDivisionError):
        _manager(server.url, key_prefix).call("dead", lambda: 1 / 0)
    moments: list[float] = []

    def freeze() -> None:
        time.sleep(BEFORE)
        server.pause()
        moments.append(time.monotonic())
        time.sleep(FROZEN)
        server.resume()
        moments.append(time.monotonic())
        time.sleep(AFTER)

    processes: list[Seen] = _run(_load, (server.url, key_prefix), freeze)
    frozen, thawed = moments
    for seen in processes:
        calls = [call for thread in seen.calls for call in thread]
        assert {call.how for call in calls} == {"passed"}
        slow = [call for call in calls if call.seconds > SLOW and call.began > frozen - LONGEST]
        # Those that were under way, together; each thread once.
        assert 1 <= len(slow) <= THREADS
        first, last = min(call.began for call in slow), max(call.ended for call in slow)
        # Each of the process's threads may have kept the others waiting.
        threads = [call for thread in (*seen.calls, seen.dead) for call in thread]
        starved = sum(call.starved for call in threads if call.ended > first and call.began < last)
        assert last - first - starved <= LONGEST
        assert all(call.began < frozen + LONGEST for call in slow)
        healthy = _rate(seen.calls, frozen - BEFORE + 0.5, frozen)
        alone = _rate(seen.calls, last, thawed)
        figures = f"{healthy:.0f} calls/s before, {alone:.0f} alone, slow: {[round(call.seconds, 3) for call in slow]}"
        print(figures)  # noqa: T201 - the figures
        assert alone >= 0.9 * healthy
        wrong = [call for call in seen.dead if call.began > thawed and call.how == "passed"]
        right = wrong[-1].ended - thawed - (wrong[-1].waited - wrong[0].waited) if wrong else 0.0
        print(f"right again after {right:.3f} s")  # noqa: T201 - the figure
        assert right <= 1.0
        assert any(call.how == "refused" for call in seen.dead if call.began > thawed + 1.0)
        assert seen.records == ["degraded", "recovered"]


def _rate(threads: list[list[Call]], begin: float, end: float) -> float:
    """
    Count the calls a second in that time, without the time that their threads stood ready.
    """
    rate = 0.0
    for thread in threads:
        calls = [call for call in thread if begin <= call.began and call.ended <= end]
        rate += len(calls) / (end - begin - (calls[-1].waited - calls[0].waited))
    return rate


def _suffer(url: str, prefix: str, pipe: Connection) -> None:
    manager, reached = _manager(url, prefix), 0
    manager.call("both", int)
    pipe.send("ready")
    pipe.recv()
    lock = threading.Lock()

    def fail() -> None:
        nonlocal reached
        with lock:
            reached += 1
        time.sleep(0.02)
        raise ConnectionError

    def suffer() -> None:
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            try:
                manager.call("both", fail)
            except (CircuitOpenError, ConnectionError):
                time.sleep(PAUSE)

    threads = [threading.Thread(target=suffer) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send(reached)


@pytest.mark.parametrize("harm", [EmbeddedServer.kill, EmbeddedServer.pause], ids=["killed", "frozen"])
def test_store_and_dependency_down(
    harm: Callable[[EmbeddedServer], None], server: EmbeddedServer, key_prefix: str
) -> None:
    """
    With both away each process lets the threshold reach the dependency, and what its other threads had in flight.
    """
    reached = _run(_suffer, (server.url, key_prefix), lambda: harm(server))
    print(f"reached the dependency: {reached}")  # noqa: T201 - the figure
    assert all(
        CIRCUITS["both"].failure_limit <= calls <= CIRCUITS["both"].failure_limit + THREADS - 1 for calls in reached
    )
