"""
The circuits of one process: the core's rules under one lock.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import islice

from omni_tasks.core import held, machine, operate
from omni_tasks.core.keys import split_key
from omni_tasks.core.model import (
    ACTIONS,
    Admission,
    Circuit,
    CircuitState,
    Draw,
    LogRecord,
    Override,
    Permit,
    Request,
    Settlement,
    Transition,
    Word,
)
from omni_tasks.core.outcome import Report
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.core.quiet import Told, marked, tally
from omni_tasks.store.base import CANDIDATES, LOG_LENGTH, Reading

__all__ = ["MemoryStore", "steady_clock"]


def steady_clock() -> Callable[[], int]:
    """
    A clock that reads Unix ms once and then only goes forward, whatever is done to the wall clock.
    """
    started_ms = time.time_ns() // 1_000_000
    started_monotonic_ns = time.monotonic_ns()
    return lambda: started_ms + (time.monotonic_ns() - started_monotonic_ns) // 1_000_000


class MemoryStore:
    """
    The reference store.  Implements :class:`omni_tasks.store.base.Store`.
    """

    def __init__(self, now_ms: Callable[[], int] | None = None) -> None:
        """
        Keep circuits by name; *now_ms* returns Unix ms and is replaced in tests.
        """
        self._now_ms = now_ms or steady_clock()
        self._lock = threading.Lock()
        self._circuits: dict[str, Circuit] = {}
        self._logs: dict[str, deque[LogRecord]] = {}
        #: Circuit -> the names of its keys' circuits, least recently used first.
        self._listed: dict[str, dict[str, None]] = {}
        _all.add(self)

    def acquire(self, config: CircuitBreakerConfig, request: Request) -> Admission:
        """
        Decide whether one more call may run.
        """
        with self._lock:
            now_ms = self._now_ms()
            if not self._has_room(config, now_ms):
                return Admission(permit=None, state=CircuitState.CLOSED, crowded=True)
            circuit, answer = machine.acquire(self._get(config), config, request, now_ms=now_ms)
            self._put(config, circuit, answer.transition, now_ms)
        return answer

    def settle(self, config: CircuitBreakerConfig, permit: Permit, report: Report) -> Settlement:
        """
        Take a finished call's report.
        """
        with self._lock:
            now_ms = self._now_ms()
            circuit, answer = machine.settle(self._get(config), config, permit, report, now_ms=now_ms)
            self._put(config, circuit, answer.transition, now_ms)
        return answer

    def tally(self, config: CircuitBreakerConfig, told: Told) -> bool:
        """
        Hear of calls that were let in while the circuit was quiet; of use to the tests, which compare stores.
        """
        with self._lock:
            before, now_ms = self._get(config), self._now_ms()
            self._put(config, tally(before, config, told, now_ms=now_ms), None, now_ms)
        return told.gen == before.gen

    def draw(self, config: CircuitBreakerConfig, wanted: int) -> Draw:
        """
        Pay for the return of up to *wanted* held tasks.
        """
        with self._lock:
            now_ms = self._now_ms()
            circuit, answer = held.draw(self._get(config), config, wanted=wanted, now_ms=now_ms)
            self._put(config, circuit, answer.transition, now_ms)
        return answer

    def force(
        self, config: CircuitBreakerConfig, override: Override, word: Word, *, ttl_ms: int = 0
    ) -> Transition | None:
        """
        Follow the operator's word until *ttl_ms* have passed; 0 means until the next one.
        """
        with self._lock:
            before, now_ms = self._get(config), self._now_ms()
            circuit, transition = operate.force(before, override, word, ttl_ms=ttl_ms, now_ms=now_ms)
            if circuit is not before:
                self._note(
                    config,
                    LogRecord(
                        at_ms=now_ms,
                        kind="operator",
                        action=ACTIONS[override],
                        actor=word.actor,
                        reason=word.reason,
                        ttl_ms=ttl_ms,
                    ),
                )
                self._put(config, circuit, transition, now_ms)
        return transition

    def reset(self, config: CircuitBreakerConfig, word: Word) -> Transition | None:
        """
        Close the circuit and clear what it has counted; its log goes on.
        """
        with self._lock:
            before, now_ms = self._get(config), self._now_ms()
            circuit, transition = operate.reset(before, word, now_ms=now_ms)
            if circuit is not before:
                self._note(
                    config,
                    LogRecord(at_ms=now_ms, kind="operator", action="reset", actor=word.actor, reason=word.reason),
                )
                self._put(config, circuit, transition, now_ms)
        return transition

    def read(self, configs: Sequence[CircuitBreakerConfig]) -> list[Reading]:
        """
        Read many circuits; changes nothing.
        """
        with self._lock:
            now_ms = self._now_ms()
            circuits = [self._get(config) for config in configs]
        return [
            Reading(
                circuit=replace(circuit, calls={}, probes={}),
                now_ms=now_ms,
                calls=len(circuit.calls),
                probes=len(circuit.probes),
                first_lease_ms=min(circuit.probes.values(), default=0),
            )
            for circuit in circuits
        ]

    def list_keys(self, configs: Sequence[CircuitBreakerConfig]) -> list[tuple[str, ...]]:
        """
        Read which keys of each circuit have a circuit of their own.
        """
        with self._lock:
            return [tuple(split_key(name)[1] for name in self._listed.get(config.name, ())) for config in configs]

    def log(self, config: CircuitBreakerConfig, *, since_ms: int = 0, limit: int = LOG_LENGTH) -> list[LogRecord]:
        """
        Read the log, oldest first: of what was written since *since_ms* the newest *limit* records.
        """
        with self._lock:
            records = [record for record in self._logs.get(config.name, ()) if record.at_ms >= since_ms]
        return records[-limit:]

    def _unlock(self) -> None:
        self._lock = threading.Lock()

    def _get(self, config: CircuitBreakerConfig) -> Circuit:
        return self._circuits.get(config.name) or Circuit()

    def _put(self, config: CircuitBreakerConfig, circuit: Circuit, transition: Transition | None, now_ms: int) -> None:
        parent, key = split_key(config.name)
        circuit = marked(circuit, config)
        if key and circuit == self._get(config):
            # Nothing to keep, so nothing to list.
            return
        self._circuits[config.name] = circuit
        if transition:
            self._note(config, LogRecord(at_ms=now_ms, kind="transition", **asdict(transition)))
        if key:
            listed = self._listed.setdefault(parent, {})
            listed.pop(config.name, None)
            listed[config.name] = None

    def _has_room(self, config: CircuitBreakerConfig, now_ms: int) -> bool:
        parent, key = split_key(config.name)
        listed = self._listed.get(parent, {})
        if not key or config.name in listed or len(listed) < config.max_keys:
            return True
        for name in list(islice(listed, CANDIDATES)):
            del listed[name]
            if _is_idle(self._circuits.get(name, Circuit()), now_ms):
                self._circuits.pop(name, None)
                self._logs.pop(name, None)
                return len(listed) < config.max_keys
            # In use is as good as used now, so that the next look finds others.
            listed[name] = None
        return False

    def _note(self, config: CircuitBreakerConfig, record: LogRecord) -> None:
        self._logs.setdefault(config.name, deque(maxlen=LOG_LENGTH)).append(record)


def _is_idle(circuit: Circuit, now_ms: int) -> bool:
    # Twin: store/lua/forget.lua.
    if circuit.state is not CircuitState.CLOSED or circuit.override is not Override.AUTO:
        return False
    return all(until_ms <= now_ms for until_ms in (*circuit.calls.values(), *circuit.probes.values()))


_all: weakref.WeakSet[MemoryStore] = weakref.WeakSet()


def _after_fork() -> None:
    # The thread that held the lock is in the parent.
    for store in tuple(_all):
        store._unlock()  # noqa: SLF001 - of this module


os.register_at_fork(after_in_child=_after_fork)
