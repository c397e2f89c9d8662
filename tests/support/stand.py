"""
One store of circuits, asked by hand at the instants the test chooses.
"""

from __future__ import annotations

from typing import Any

from omni_tasks.core.model import Admission, Override, Permit, Request, Settlement, Transition, Word
from omni_tasks.core.outcome import Report
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.store.base import Reading, Store
from tests.support.bench import FAILURE
from tests.support.clock import Clock

__all__ = ["CONFIG", "Stand"]

#: The circuit that is asked where the test names no other.
CONFIG = CircuitBreakerConfig(
    name="contract",
    failure_threshold=3,
    recovery_timeout=10.0,
    max_recovery_timeout=40.0,
    backoff_factor=2.0,
    probe_lease=2.0,
    call_lease=60.0,
)


class Stand:
    """
    A store and its clock.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        """
        Ask *store*, which reads *clock*.
        """
        self.store = store
        self.clock = clock
        self._asked = self._said = 0

    def ask(self, config: CircuitBreakerConfig = CONFIG, **request: Any) -> Admission:
        """
        Ask whether a call may run.
        """
        self._asked += 1
        return self.store.acquire(config, Request(**{"permit_id": f"p{self._asked}", **request}))

    def permit(self, config: CircuitBreakerConfig = CONFIG, **request: Any) -> Permit:
        """
        Ask, and be let through.
        """
        permit = self.ask(config, **request).permit
        assert permit is not None
        return permit

    def settle(self, permit: Permit, report: Report = FAILURE, config: CircuitBreakerConfig = CONFIG) -> Settlement:
        """
        Report how a call ended.
        """
        return self.store.settle(config, permit, report)

    def run(self, report: Report = FAILURE, config: CircuitBreakerConfig = CONFIG) -> Settlement:
        """
        Ask, be let through and report at once.
        """
        return self.settle(self.permit(config), report, config)

    def trip(self, config: CircuitBreakerConfig = CONFIG) -> Settlement:
        """
        Fail until the circuit opens.
        """
        for _ in range(config.failure_limit - 1):
            self.run(config=config)
        return self.run(config=config)

    def probe(self) -> Permit:
        """
        Trip, wait, and get the first probe's permit.
        """
        self.clock.advance(self.trip().retry_after_ms)
        permit = self.permit()
        assert permit.probe
        return permit

    def force(self, override: Override, ttl_ms: int = 0) -> Transition | None:
        """
        Speak as the operator.
        """
        self._said += 1
        return self.store.force(CONFIG, override, Word(op_id=f"word{self._said}"), ttl_ms=ttl_ms)

    def read(self, config: CircuitBreakerConfig = CONFIG) -> Reading:
        """
        Read one circuit.
        """
        return self.store.read([config])[0]
