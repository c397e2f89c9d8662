"""
What a held task that comes back to the gate is asked first: has its time run out, was it revoked meanwhile.

Nobody waits for such a task, so it does not ask the circuit.  Which moment has
come is the lot's word, by its server's clock; no worker's clock is asked.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery.worker import state
from celery.worker.request import Request

from omni_tasks.errors import HoldExpiredError
from omni_tasks.integration.held import (
    CIRCUIT_HEADER,
    DUE,
    HELD_SINCE_HEADER,
    HOLDS_HEADER,
    REPLAYED,
    TICKET_HEADER,
    whole,
)
from omni_tasks.integration.install import integration_of
from omni_tasks.integration.lot import Lot

if TYPE_CHECKING:
    from omni_tasks.integration.request import CircuitRequest

__all__ = ["ends_on_return", "longest_hold"]


def longest_hold(request: Request) -> float:
    """
    Seconds a task may be held; 0 for ever.
    """
    own = getattr(request.task, "max_hold", None)
    return float(integration_of(request.app).settings.max_hold if own is None else own)


def ends_on_return(request: CircuitRequest) -> bool:
    """
    End a task that has been held and must not run any more.

    Returns:
        Whether it was ended, and acknowledged.

    Raises:
        ParkingError: Whether it was revoked cannot be told now, or nobody can be told how it ended.
    """
    headers = request.request_dict
    if HOLDS_HEADER not in headers:
        return False
    if any(integration_of(request.app).revoked.among([headers])):
        state.revoked.add(request.id)
        return bool(request.revoked())
    ticket = headers.get(TICKET_HEADER)
    if ticket == REPLAYED:
        # An operator wants it to run: its time begins anew, here and where it is held again.
        headers.pop(HELD_SINCE_HEADER, None)
        request.message.headers.pop(HELD_SINCE_HEADER, None)
    if ticket != DUE and not _overstays(request):
        return False
    return _end(request)


def _overstays(request: CircuitRequest) -> bool:
    # Only the lot beside the queues has a clock of its own; elsewhere this worker's must do.
    if isinstance(integration_of(request.app).lot, Lot):
        return False
    held_since, longest = whole(request.request_dict.get(HELD_SINCE_HEADER)) / 1000, longest_hold(request)
    return bool(held_since and longest and time.time() > held_since + longest)


def _end(request: CircuitRequest) -> bool:
    held_since = whole(request.request_dict.get(HELD_SINCE_HEADER)) / 1000
    longest = longest_hold(request)
    expires = request.expires.timestamp() if request.expires else 0.0
    if expires and (not longest or expires <= held_since + longest):
        _expire(request)
    elif longest:
        error = HoldExpiredError(str(request.request_dict.get(CIRCUIT_HEADER)), time.time() - held_since)
        integration_of(request.app).states.ensure_can_end(request)
        end = _bury if _how(request) == "dead_letter" else _fail
        end(request, error)
    else:
        # The bound it was held under has been taken away meanwhile.
        return False
    return True


def _how(request: CircuitRequest) -> str:
    return getattr(request.task, "on_hold_expired", None) or integration_of(request.app).settings.on_hold_expired


def _expire(request: CircuitRequest) -> None:
    # Celery's own check goes by this worker's clock, which may be behind.
    state.revoked.add(request.id)
    request._announce_revoked("expired", False, None, True)  # noqa: FBT003, SLF001 - as Request.revoked() calls it


def _fail(request: CircuitRequest, error: HoldExpiredError) -> None:
    try:
        raise error
    except HoldExpiredError:
        info: Any = ExceptionInfo()
    # As Celery fails a task whose process was lost: its chord and its link_error hear of it.
    Request.on_failure(request, info)
    request.acknowledge()


def _bury(request: CircuitRequest, error: HoldExpiredError) -> None:
    integration = integration_of(request.app)
    integration.states.rejected(request, error)
    integration.dead_letters.park(error.circuit, request.message, 0.0)
    request.acknowledge()
    state.task_ready(request)
    request.send_event("task-rejected", requeue=False)
