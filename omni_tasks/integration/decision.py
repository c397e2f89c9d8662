"""
What the gate has decided about a message, on its way from the worker's parent to the child that runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from omni_tasks.core.model import Permit
from omni_tasks.errors import CircuitOpenError
from omni_tasks.integration.held import TICKET_HEADER

if TYPE_CHECKING:
    from celery.app.task import Context

__all__ = ["DECISION_KEY", "Decision"]

#: Where the gate puts its decision in the request's dictionary.
DECISION_KEY = "omni_decision"


@dataclass(frozen=True, slots=True)
class Decision:
    """
    One decision.

    Attributes:
        circuit: Key of the circuit that was asked: the child must settle with this very one.

        permit: ``None`` where the circuit only watches, and where it refused.

        refusal: Why the task's fallback must answer; ``None`` where the body runs.
    """

    circuit: str
    permit: Permit | None = None
    refusal: CircuitOpenError | None = None

    def put(self, request_dict: dict[str, Any]) -> None:
        """
        Give it to the child with the request; as plain values, for it may come into a message's headers.
        """
        permit, refusal = self.permit, self.refusal
        request_dict[DECISION_KEY] = [
            self.circuit,
            [permit.id, permit.gen, permit.epoch, permit.probe, permit.local] if permit else None,
            list(refusal.args) if refusal else None,
        ]

    @classmethod
    def take(cls, request: Context) -> Self | None:
        """
        Take it out of a request; ``None`` where the gate has not decided.

        Celery gives a retry's message the headers of the run before: neither the
        permit nor the ticket that paid for this start may pay for the next.
        """
        fields = request.__dict__.pop(DECISION_KEY, None)
        for key in (DECISION_KEY, TICKET_HEADER):
            if isinstance(request.headers, dict):
                request.headers.pop(key, None)
        if fields is None:
            return None
        circuit, permit, refusal = fields
        return cls(circuit, Permit(*permit) if permit else None, CircuitOpenError(*refusal) if refusal else None)
