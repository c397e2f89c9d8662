"""
What the scripts answer, read into the core's answers.

Raises, each of them: TypeError or ValueError, where an answer is not one of ours.
"""

from __future__ import annotations

from typing import Any

from omni_tasks.core.model import Admission, CircuitState, Draw, Permit, Request, Settlement, Transition, Word
from omni_tasks.store.base import Reading
from omni_tasks.store.schema import circuit_from_reply

__all__ = ["COUNTED", "admission", "draw", "followed", "reading", "settlement", "tally", "text"]

#: What becomes of a success while nothing is going on.
COUNTED = Settlement(applied=True, state=CircuitState.CLOSED)


def admission(request: Request, answer: Any) -> tuple[Admission, bool]:
    """
    Read what acquire.lua says to *request*, and whether the circuit is quiet.
    """
    kind, gen, epoch, state, retry_after_ms, previous, failures, reason, quiet = answer
    if kind == b"crowded":
        return Admission(permit=None, state=_state(state), crowded=True), False
    probe = kind == b"probe"
    admitted = Admission(
        permit=Permit(request.permit_id, text(gen), epoch, probe=probe) if kind else None,
        state=_state(state),
        retry_after_ms=retry_after_ms,
        transition=_transition(previous, state, epoch, failures, text(reason)),
    )
    return admitted, bool(quiet)


def settlement(answer: Any) -> Settlement:
    """
    Read what settle.lua says.
    """
    applied, state, open_ms, previous, epoch, failures, reason = answer
    return Settlement(
        applied=bool(applied),
        state=_state(state),
        retry_after_ms=open_ms,
        transition=_transition(previous, state, epoch, failures, text(reason)),
    )


def tally(answer: Any) -> bool:
    """
    Read what tally.lua says.
    """
    [known] = answer
    return bool(known)


def draw(answer: Any) -> Draw:
    """
    Read what draw.lua says.
    """
    count, ticket, state, ramping, previous, epoch, failures, reason = answer
    return Draw(
        count=count,
        ticket=text(ticket),
        state=_state(state),
        ramping=bool(ramping),
        transition=_transition(previous, state, epoch, failures, text(reason)),
    )


def followed(word: Word, answer: Any) -> Transition | None:
    """
    Read what force.lua or reset.lua says to *word*.
    """
    state, previous, epoch, failures = answer
    return _transition(previous, state, epoch, failures, word.reason)


def reading(answer: Any) -> Reading:
    """
    Read what snapshot.lua says.
    """
    now, flat, calls, probes, lease = answer
    return Reading(circuit=circuit_from_reply(flat), now_ms=now, calls=calls, probes=probes, first_lease_ms=lease)


def text(raw: bytes) -> str:
    """
    Read a text that may have been damaged, and must still come back as it was given out.
    """
    return raw.decode(errors="surrogateescape")


def _state(raw: bytes) -> CircuitState:
    return CircuitState(raw.decode())


def _transition(previous: bytes, current: bytes, epoch: int, failures: int, reason: str) -> Transition | None:
    if previous == current:
        return None
    return Transition(previous=_state(previous), current=_state(current), epoch=epoch, failures=failures, reason=reason)
