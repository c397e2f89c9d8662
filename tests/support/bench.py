"""
One circuit on the pure rules, driven by hand at the instants the test chooses.
"""

from __future__ import annotations

from typing import Any

from omni_tasks.core import held, machine, operate
from omni_tasks.core.model import Admission, Circuit, Draw, Override, Permit, Request, Settlement, Transition, Word
from omni_tasks.core.outcome import Outcome, Report
from omni_tasks.core.policy import CircuitBreakerConfig
from tests.support.clock import START_MS

__all__ = ["FAILURE", "Bench"]

FAILURE = Report(Outcome.FAILURE)

#: What decides about the next call; the rest of a circuit is for its readers.
_RULES = ("state", "epoch", "override", "opened_at_ms", "open_until_ms", "failures", "reopens", "probe_successes")


class Bench:
    """
    A circuit, its configuration and its clock.

    Attributes:
        now_ms: Unix ms; the test sets it.
    """

    def __init__(self, **options: Any) -> None:
        """
        Three failures trip it for 10 s and a probe has 2 s, unless *options* say otherwise.
        """
        defaults = {"name": "bench", "failure_threshold": 3, "recovery_timeout": 10.0, "probe_lease": 2.0}
        self.config = CircuitBreakerConfig(**{**defaults, **options})
        self.circuit = Circuit()
        self.now_ms = START_MS
        self._asked = self._said = 0

    @property
    def rules(self) -> tuple[object, ...]:
        """
        What decides about the next call.
        """
        return tuple(getattr(self.circuit, name) for name in _RULES)

    def ask(self, permit_id: str = "", **request: Any) -> Admission:
        """
        Ask whether a call may run.
        """
        self._asked += 1
        asked = Request(permit_id=permit_id or f"p{self._asked}", **request)
        self.circuit, admission = machine.acquire(self.circuit, self.config, asked, now_ms=self.now_ms)
        return admission

    def permit(self, **request: Any) -> Permit:
        """
        Ask, and be let through.
        """
        permit = self.ask(**request).permit
        assert permit is not None
        return permit

    def settle(self, permit: Permit, report: Report = FAILURE) -> Settlement:
        """
        Report how a call ended.
        """
        self.circuit, settlement = machine.settle(self.circuit, self.config, permit, report, now_ms=self.now_ms)
        return settlement

    def run(self, report: Report = FAILURE) -> Settlement:
        """
        Ask, be let through and report at once.
        """
        return self.settle(self.permit(), report)

    def trip(self, report: Report = FAILURE) -> Settlement:
        """
        Fail until the circuit opens; *report* is the last failure.
        """
        for _ in range(self.config.failure_limit - 1):
            self.run()
        return self.run(report)

    def probe(self) -> Permit:
        """
        Trip, wait, and get the first probe's permit.
        """
        self.trip()
        self.now_ms = self.circuit.open_until_ms
        return self.permit()

    def draw(self, wanted: int) -> Draw:
        """
        Ask how many held tasks may leave.
        """
        self.circuit, answer = held.draw(self.circuit, self.config, wanted=wanted, now_ms=self.now_ms)
        return answer

    def force(self, override: Override, ttl_ms: int = 0) -> Transition | None:
        """
        Speak as the operator.
        """
        self._said += 1
        self.circuit, transition = operate.force(
            self.circuit, override, Word(op_id=f"word{self._said}"), ttl_ms=ttl_ms, now_ms=self.now_ms
        )
        return transition

    def reset(self) -> Transition | None:
        """
        Reset as the operator.
        """
        self._said += 1
        self.circuit, transition = operate.reset(self.circuit, Word(op_id=f"word{self._said}"), now_ms=self.now_ms)
        return transition
