"""
Setting a task aside: parked durably, then acknowledged, then told.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

from celery.worker import state
from kombu.utils.encoding import safe_repr

from omni_tasks import signals
from omni_tasks.errors import CircuitOpenError, ParkingError
from omni_tasks.integration.install import integration_of

if TYPE_CHECKING:
    from omni_tasks.breaker import CircuitBreaker
    from omni_tasks.integration.request import CircuitRequest

__all__ = ["ask_again_later", "hold", "hold_until_parked"]

logger = logging.getLogger(__name__)

#: Seconds before the first new attempt to park, and the longest between two.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


def hold(request: CircuitRequest, breaker: CircuitBreaker, retry_after: float, *, behind: bool = False) -> None:
    """
    Set a task aside until its circuit lets it go.

    The order is the promise.  The state RETRY comes first: once the task is in
    the lot another worker may already run it, and its outcome must stand.  When
    the message is acknowledged the task is in the lot; until then the broker
    still owns it.

    Args:
        request: Unacknowledged, and not running.

        breaker: The circuit it waits for.

        retry_after: Seconds the circuit expects to stay open: the countdown users see.

        behind: Whether it leaves after all that wait now, as a failed probe does.

    Raises:
        ParkingError: The lot did not take it; it is still unacknowledged.
    """
    try:
        _tell(request, breaker, retry_after)
    except Exception:
        # What counts is that the task is safe; only its visible state is behind.
        logger.exception("Could not publish that %s[%s] is held", request.name, request.id)
    integration_of(request._app).lot.park(breaker.key, request._message, behind=behind)  # noqa: SLF001 - Celery has no public name for these
    request.ack_at_end = False
    request.acknowledge()
    state.task_ready(request)
    logger.info("Task %s[%s] held for circuit %s", request.name, request.id, breaker.key)
    signals.task_held.send(sender=breaker.key, task_id=request.id, task_name=request.name, retry_after=retry_after)


def _tell(request: CircuitRequest, breaker: CircuitBreaker, retry_after: float) -> None:
    refusal = CircuitOpenError(breaker.config.name, "open", retry_after)
    if request.store_errors:
        request.task.backend.mark_as_retry(request.id, refusal, request=request._context)  # noqa: SLF001 - see above
    request.send_event("task-retried", exception=safe_repr(refusal), traceback="")


def hold_until_parked(
    request: CircuitRequest,
    breaker: CircuitBreaker,
    retry_after: float,
    pause: float = _FIRST_PAUSE,
    *,
    behind: bool = False,
) -> None:
    """
    Set a task aside that has already run; where the lot is away, try again until it takes it.
    """
    try:
        hold(request, breaker, retry_after, behind=behind)
    except ParkingError as error:
        logger.error("Task %s[%s] cannot be held: %s; trying again in %g s", request.name, request.id, error, pause)  # noqa: TRY400 - one line; the cause is in it
        again = functools.partial(hold_until_parked, behind=behind)
        arguments = (request, breaker, retry_after, min(pause * 2, _LONGEST_PAUSE))
        integration_of(request._app).call_later(pause, again, arguments)  # noqa: SLF001 - see above


def ask_again_later(request: CircuitRequest, error: ParkingError) -> None:
    """
    Leave a message unacknowledged and bring it to the gate again after a while.
    """
    pause = request.pause = min(request.pause * 2 or _FIRST_PAUSE, _LONGEST_PAUSE)
    logger.error("Task %s[%s] cannot be held: %s; asking again in %g s", request.name, request.id, error, pause)
    integration_of(request._app).call_later(pause, _ask_again, (request,))  # noqa: SLF001 - see above


def _ask_again(request: CircuitRequest) -> None:
    # After a lost connection the broker gives the message to somebody else.
    consumer = integration_of(request._app).consumer  # noqa: SLF001 - see above
    if consumer is not None and request in state.reserved_requests:
        consumer.on_task_request(request)
