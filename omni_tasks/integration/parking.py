"""
Setting a task aside: parked durably, then acknowledged, then told.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from celery.worker import state
from kombu.utils.encoding import safe_repr

from omni_tasks import signals
from omni_tasks.errors import CircuitOpenError, ParkingError
from omni_tasks.integration.held import Limits
from omni_tasks.integration.install import integration_of
from omni_tasks.integration.returning import longest_hold

if TYPE_CHECKING:
    from omni_tasks.integration.install import Integration
    from omni_tasks.integration.request import CircuitRequest

__all__ = ["Unparked", "ask_again_later", "give_up_what_waits", "hold", "hold_until_parked", "park_what_waits"]

logger = logging.getLogger(__name__)

#: Seconds before the first new attempt to park, and the longest between two.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0

#: How long a worker that stops goes on trying to park what is only in its memory, in seconds; all of it together.  The
#: last try and the telling may take as long again, and its supervisor may not wait.
_LAST_SECONDS = 2.0


def hold(
    request: CircuitRequest, circuit: str, refusal: CircuitOpenError, *, behind: bool = False, tell: bool = True
) -> None:
    """
    Set a task aside until its circuit lets it go.

    The order is the promise.  State and event come first: once the task is in
    the lot another worker may already run it, and its outcome must stand.  When
    the message is acknowledged the task is in the lot; until then the broker
    still owns it.

    Args:
        request: Not running.

        circuit: Key of the circuit it waits for.

        refusal: What its owner is told: the circuit's state, and the countdown.

        behind: Whether it leaves after all that wait now, as a failed probe does.

        tell: Whether to say that it is held.  Not once more where an attempt got no answer: it may be in the
            lot since then, and may have run.

    Raises:
        ParkingError: The lot did not take it; it is not acknowledged here.
    """
    integration = integration_of(request.app)
    if tell:
        integration.states.held(request, refusal)
        _send_event(request, refusal)
    expires = request.expires.timestamp() if request.expires else 0.0
    limits = Limits(expires=expires, longest=longest_hold(request))
    integration.lot.park(circuit, request.message, refusal.retry_after, behind=behind, limits=limits)
    request.ack_at_end = False
    request.acknowledge()
    state.task_ready(request)
    logger.info("Task %s[%s] held for circuit %s", request.name, request.id, circuit)
    signals.task_held.send(sender=circuit, task_id=request.id, task_name=request.name, retry_after=refusal.retry_after)


def _send_event(request: CircuitRequest, refusal: CircuitOpenError) -> None:
    try:
        request.send_event("task-retried", exception=safe_repr(refusal), traceback="")
    except Exception:
        # What counts is that the task is safe.
        logger.exception("Could not tell that %s[%s] is held", request.name, request.id)


def hold_until_parked(
    request: CircuitRequest, circuit: str, refusal: CircuitOpenError, *, behind: bool = False
) -> None:
    """
    Set a task aside that has already run; where the lot is away, try again until it takes it.
    """
    waiting = Unparked(request, circuit, refusal, behind=behind)
    if not waiting.try_now():
        integration_of(request.app).unparked.append(waiting)


class Unparked:
    """
    A task that has run, has to be held, and is in this worker's memory until the lot takes it.
    """

    def __init__(self, request: CircuitRequest, circuit: str, refusal: CircuitOpenError, *, behind: bool) -> None:
        """
        Wait with *request* for the lot to take it.
        """
        self.request = request
        self._circuit = circuit
        self._refusal = refusal
        self._behind = behind
        self._pause = _FIRST_PAUSE
        self._next_monotonic = 0.0
        self._told = False

    def try_when_due(self) -> bool:
        """
        Try again if the pause since the last attempt is over; whether the lot has it now.
        """
        return time.monotonic() >= self._next_monotonic and self.try_now()

    def try_now(self) -> bool:
        """
        Try again; whether the lot has it now.
        """
        request = self.request
        try:
            told, self._told = self._told, True
            hold(request, self._circuit, self._refusal, behind=self._behind, tell=not told)
        except ParkingError as error:
            logger.error(  # noqa: TRY400 - one line; the cause is in it
                "Task %s[%s] cannot be held: %s; trying again in %g s", request.name, request.id, error, self._pause
            )
            self._next_monotonic = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            return False
        return True


def park_what_waits(integration: Integration) -> None:
    """
    Try again to set aside what the lot did not take.
    """
    for _ in range(len(integration.unparked)):
        # Other threads add to it meanwhile.
        waiting = integration.unparked.popleft()
        if not waiting.try_when_due():
            integration.unparked.append(waiting)


def give_up_what_waits(integration: Integration) -> None:
    """
    Try for a last few seconds, then end what is only in this worker's memory.
    """
    deadline = time.monotonic() + _LAST_SECONDS
    while integration.unparked and time.monotonic() < deadline:
        waiting = integration.unparked.popleft()
        if not waiting.try_now():
            integration.unparked.append(waiting)
            time.sleep(_FIRST_PAUSE / len(integration.unparked))
    left = [waiting.request for waiting in integration.unparked]
    if not left:
        return
    fail = sum(request.acknowledged for request in left)
    logger.warning(
        "%d tasks could not be held: the broker delivers %d again, %d fail", len(left), len(left) - fail, fail
    )
    # What was too slow a moment ago is asked once more: there is no later.
    integration.states.ask_at_once()
    for request in left:
        request.end_unheld()


def ask_again_later(request: CircuitRequest, error: ParkingError) -> None:
    """
    Leave a message unacknowledged and bring it to the gate again after a while.
    """
    pause = request.pause = min(request.pause * 2 or _FIRST_PAUSE, _LONGEST_PAUSE)
    logger.error("Task %s[%s] stays unacknowledged: %s; asking again in %g s", request.name, request.id, error, pause)
    integration_of(request.app).call_later(pause, _ask_again, (request,))


def _ask_again(request: CircuitRequest) -> None:
    # After a lost connection the broker gives the message to somebody else.
    consumer = integration_of(request.app).consumer
    if consumer is not None and request in state.reserved_requests:
        consumer.on_task_request(request)
