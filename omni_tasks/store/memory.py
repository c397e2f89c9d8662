"""
The circuits of one process: the core's rules under one lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from omni_tasks.core import machine
from omni_tasks.core.model import (
    Admission,
    Circuit,
    Draw,
    Override,
    Permit,
    Request,
    Settlement,
    Transition,
)
from omni_tasks.core.outcome import Report
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.store.base import Reading

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

    def acquire(self, config: CircuitBreakerConfig, request: Request) -> Admission:
        """
        Decide whether one more call may run.
        """
        with self._lock:
            circuit, answer = machine.acquire(self._get(config), config, request, now_ms=self._now_ms())
            self._circuits[config.name] = circuit
        return answer

    def settle(self, config: CircuitBreakerConfig, permit: Permit, report: Report) -> Settlement:
        """
        Take a finished call's report.
        """
        with self._lock:
            circuit, answer = machine.settle(self._get(config), config, permit, report, now_ms=self._now_ms())
            self._circuits[config.name] = circuit
        return answer

    def draw(self, config: CircuitBreakerConfig, wanted: int) -> Draw:
        """
        Pay for the return of up to *wanted* held tasks.
        """
        with self._lock:
            circuit, answer = machine.draw(self._get(config), config, wanted=wanted, now_ms=self._now_ms())
            self._circuits[config.name] = circuit
        return answer

    def force(self, config: CircuitBreakerConfig, override: Override, *, ttl_ms: int, op_id: str) -> Transition | None:
        """
        Follow the operator's word.
        """
        with self._lock:
            circuit, transition = machine.force(
                self._get(config), override, ttl_ms=ttl_ms, op_id=op_id, now_ms=self._now_ms()
            )
            self._circuits[config.name] = circuit
        return transition

    def reset(self, config: CircuitBreakerConfig, *, op_id: str) -> Transition | None:
        """
        Close the circuit and clear what it has counted.
        """
        with self._lock:
            circuit, transition = machine.reset(self._get(config), op_id=op_id, now_ms=self._now_ms())
            self._circuits[config.name] = circuit
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

    def _get(self, config: CircuitBreakerConfig) -> Circuit:
        return self._circuits.get(config.name) or Circuit()
