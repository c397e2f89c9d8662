"""
The gate: where a worker decides about a message before it runs, and before it is acknowledged.

Celery makes one request object a message and, when the pool has a free slot,
calls its ``execute_using_pool`` in the worker's parent process.  That moment is
the only one that is late enough (prefetched, ETA and rate-limited messages all
pass it) and early enough (nothing is acknowledged, no child is busy).

It cannot be overridden the ordinary way.  ``create_request_cls`` subclasses the
task's ``Request`` once per task and writes ``execute_using_pool`` and
``on_success`` anew, without calling ``super()``; an override in the base never
runs.  But the subclass is a subclass: ``__init_subclass__`` of the base is
called with it, and can wrap what Celery has just written.

What the gate may do is narrow.  A worker's slot is given back only when
``TaskRevokedError`` leaves ``execute_using_pool``; returning without running
leaks the slot, and any other exception is an "unrecoverable error" that stops
the worker, puts the message back and stops the next worker too.

What comes after a run is :mod:`omni_tasks.integration.ending`.

Source:
    Celery 5.7: ``celery.worker.request.create_request_cls``,
    ``celery.worker.worker.WorkController._process_task``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.exceptions import TaskRevokedError
from celery.worker import state

from omni_tasks.errors import ParkingError
from omni_tasks.integration.broker import was_redelivered
from omni_tasks.integration.coalescing import drop_if_equal_waits, stop_waiting
from omni_tasks.integration.compat import queues_in_pool
from omni_tasks.integration.decision import DECISION_KEY, Decision
from omni_tasks.integration.ending import EndingRequest
from omni_tasks.integration.held import SUCCEEDS_HEADER, TICKET_HEADER, Parking
from omni_tasks.integration.install import integration_of
from omni_tasks.integration.parking import ask_again_later, hold
from omni_tasks.integration.returning import ends_on_return

__all__ = ["CircuitRequest"]

logger = logging.getLogger(__name__)

#: How long after a task's hard time limit its permit may still be reported, in seconds: what
#: the parent needs to see that the child is gone.
_LEASE_MARGIN = 1.0


class CircuitRequest(EndingRequest):
    """
    One message in a worker, with the circuit of its task in front.
    """

    #: Seconds since the last attempt to hold it was made in vain; 0 before the first.
    pause = 0.0
    _in_gate = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """
        Wrap what ``create_request_cls`` has just written into *cls*.
        """
        super().__init_subclass__(**kwargs)
        written = cls.__dict__
        if "execute_using_pool" in written:
            cls.execute_using_pool = _gated(written["execute_using_pool"])
        if "on_success" in written:
            cls.on_success = _recorded(written["on_success"])

    def revoked(self) -> bool:
        """
        Whether it was revoked or has expired, and must not run: Celery asks here, too, before the gate and after it.

        It is acknowledged then, or will be as soon as somebody can be told.
        """
        try:
            ended = bool(super().revoked())
        except ParkingError as error:
            # Before the gate it is not yet among those that a lost connection takes away.
            state.task_reserved(self)
            ask_again_later(self, error)
            return True
        if ended:
            stop_waiting(self)
        return ended

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:  # noqa: FBT001 - Celery's own signature
        if self.is_guarded and not terminated:
            integration_of(self._app).states.ensure_can_end(self)
        super()._announce_revoked(reason, terminated, signum, expired)

    def enter(self, pool: Any) -> None:
        """
        Bring the message to the gate once more, as the worker does.
        """
        try:
            self.execute_using_pool(pool)
        except TaskRevokedError:
            logger.debug("%s[%s] did not pass the gate", self.name, self.id)

    def pass_gate(self) -> bool:
        """
        Decide whether the message may go to the pool now.

        Returns:
            ``False`` when it was dealt with here: revoked, dropped, held, or to be asked about again.
        """
        breaker = self.breaker
        if breaker is None:
            return True
        if self.revoked():
            # Expired and revoked come before held: nobody waits for these.
            return False
        try:
            if self._is_dealt_with():
                return False
            answers = self.task.circuit_fallback is not None
            ticket = str(self._request_dict.get(TICKET_HEADER, ""))
            # Who has a fallback does not wait for its turn either.
            breaker, admission = breaker.ask(lease=self._lease(), paced=not answers, ticket=ticket)
            self._breaker = breaker
            refusal = breaker.refusal(admission) if admission.refused else None
            if refusal is None or answers:
                self._carry(Decision(breaker.key, admission.permit, refusal))
                return True
            if drop_if_equal_waits(self):
                return False
            hold(self, breaker.key, refusal)
        except ParkingError as error:
            ask_again_later(self, error)
        return False

    def _is_dealt_with(self) -> bool:
        if self._may_have_a_twin() and self._lot.is_superseded(self._message):
            # Its worker died before the acknowledgement, or did not hear the lot's answer; or its mover died.
            self.acknowledge()
            state.task_ready(self)
            return True
        if ends_on_return(self):
            stop_waiting(self)
            return True
        return False

    def _may_have_a_twin(self) -> bool:
        return self.pause > 0 or was_redelivered(self._message) or SUCCEEDS_HEADER in self._request_dict

    def _carry(self, decision: Decision) -> None:
        self.permit = decision.permit
        decision.put(self._request_dict)

    def _lease(self) -> float:
        limit = self.time_limits[0] or self.task.time_limit or self._app.conf.task_time_limit
        return limit + _LEASE_MARGIN if limit else 0.0

    @property
    def _lot(self) -> Parking:
        return integration_of(self._app).lot


def _gated(execute_using_pool: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(execute_using_pool)
    def gated(self: CircuitRequest, pool: Any, **kwargs: Any) -> Any:
        if self._in_gate:
            # A Request class of the application's own that calls super(): asked already.
            return execute_using_pool(self, pool, **kwargs)
        self._in_gate = True
        # Before anything else: what a producer made up must not count as the gate's word.
        self._request_dict.pop(DECISION_KEY, None)
        try:
            if not queues_in_pool(pool):
                return _run(self, execute_using_pool, pool, kwargs)
            return _run_in_slot(self, execute_using_pool, pool, kwargs)
        finally:
            self._in_gate = False

    return gated


def _run(request: CircuitRequest, execute_using_pool: Callable[..., Any], pool: Any, kwargs: dict[str, Any]) -> Any:
    if not _passes(request):
        raise TaskRevokedError(request.id)
    try:
        return execute_using_pool(request, pool, **kwargs)
    except BaseException:
        request.give_back()
        raise


def _run_in_slot(
    request: CircuitRequest, execute_using_pool: Callable[..., Any], pool: Any, kwargs: dict[str, Any]
) -> Any:
    slots = integration_of(request.app).slots
    if not request.is_guarded:
        return execute_using_pool(request, pool, **kwargs)
    if not slots.take(request, pool):
        raise TaskRevokedError(request.id)
    try:
        result = _run(request, execute_using_pool, pool, kwargs)
    except BaseException:
        slots.free()
        raise
    slots.free_when_done(pool, result)
    return result


def _passes(request: CircuitRequest) -> bool:
    try:
        passes = request.pass_gate()
    except Exception:
        # Anything that left the gate would stop this worker, and the next one that gets the
        # message.  The child asks the circuit again before it runs the body.
        logger.exception("The gate failed for %s[%s]; the task goes on without it", request.name, request.id)
        passes = True
    if passes:
        # However it passed, with a permit or because nobody asks for one, held or not yet: it waits no longer.
        stop_waiting(request)
    return passes


def _recorded(on_success: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(on_success)
    def recorded(self: CircuitRequest, outcome: Any, **kwargs: Any) -> Any:
        if isinstance(outcome, ExceptionInfo):
            # Threads, greenlets and solo hand a SystemExit over like this, and Celery's own method cannot read it.
            return self.on_failure(outcome)
        failed, _, runtime = outcome
        if not failed:
            # Without a runtime: a killed greenlet, or a result that was there already.
            self.settle_success(ran=runtime is not None)
        result = on_success(self, outcome, **kwargs)
        if not failed:
            # A failure came through on_failure, which has seen to this.
            self.end_run()
            if runtime is not None:
                self.let_others_follow()
        return result

    return recorded
