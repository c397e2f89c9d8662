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

Source:
    Celery 5.7: ``celery.worker.request.create_request_cls``,
    ``celery.worker.worker.WorkController._process_task``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import TaskRevokedError, Terminated, TimeLimitExceeded, WorkerLostError
from celery.worker import state
from celery.worker.request import Request

from omni_tasks.breaker import CircuitBreaker
from omni_tasks.core.model import Permit, Settlement
from omni_tasks.core.outcome import IGNORED, SUCCESS, Outcome, Report
from omni_tasks.errors import ParkingError
from omni_tasks.integration.broker import was_redelivered
from omni_tasks.integration.install import integration_of
from omni_tasks.integration.lot import TICKET_HEADER, Lot
from omni_tasks.integration.parking import ask_again_later, hold, hold_until_parked
from omni_tasks.integration.task import PERMIT_KEY, HeldError, report_of_attempt

__all__ = ["CircuitRequest"]

logger = logging.getLogger(__name__)

#: How long after a task's hard time limit its permit may still be reported, in seconds: what
#: the parent needs to see that the child is gone.
_LEASE_MARGIN = 1.0

_FAILURE = Report(Outcome.FAILURE)


class CircuitRequest(Request):
    """
    One message in a worker, with the circuit of its task in front.
    """

    #: The permit the message runs on, until the parent has settled it.
    permit: Permit | None = None
    #: Whether a probe runs on the message: it is acknowledged when its outcome is known.
    ack_at_end = False
    #: Whether the task was set aside after its run had begun.
    held = False
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

    @property
    def breaker(self) -> CircuitBreaker | None:
        """
        The breaker in front of this message's task, or ``None``.
        """
        return integration_of(self._app).breaker_of(self.task)

    # Before the run.

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
            if self._may_be_parked() and self._lot.is_superseded(self._message):
                # Parked already: its worker died before the acknowledgement, or did not hear the lot's answer.
                self.acknowledge()
                state.task_ready(self)
                return False
            admission = breaker.acquire(
                lease=self._lease(), paced=True, ticket=str(self._request_dict.get(TICKET_HEADER, ""))
            )
            if not admission.refused:
                self._carry(admission.permit)
                return True
            hold(self, breaker, admission.retry_after_ms / 1000)
        except ParkingError as error:
            ask_again_later(self, error)
        return False

    def _may_be_parked(self) -> bool:
        return self.pause > 0 or was_redelivered(self._message)

    def give_back(self) -> None:
        """
        Return a permit whose call did not start.
        """
        self._settle(IGNORED)

    def _carry(self, permit: Permit | None) -> None:
        self.permit = permit
        # An empty list says that the gate has decided and the circuit only watches.
        fields = [permit.id, permit.gen, permit.epoch, permit.probe, permit.local] if permit else []
        self._request_dict[PERMIT_KEY] = fields

    def _lease(self) -> float:
        limit = self.time_limits[0] or self.task.time_limit or self._app.conf.task_time_limit
        return limit + _LEASE_MARGIN if limit else 0.0

    @property
    def _lot(self) -> Lot:
        return integration_of(self._app).lot

    # After the run, in the parent: what the child could not report, and what it asked for.

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """
        Note that the pool has started the task.

        A probe stays unacknowledged until its outcome is known: one that finds
        the dependency down is set aside again, and with an early
        acknowledgement a crash between the two would lose it.
        """
        self.ack_at_end = self.permit is not None and self.permit.probe
        super().on_accepted(pid, time_accepted)

    def acknowledge(self) -> None:
        """
        Acknowledge the message, unless a probe still runs on it.
        """
        if not self.ack_at_end:
            super().acknowledge()

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - Celery's own signature
        """
        Take what ended a run: a child's wish to be held, an exception, a lost child.
        """
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, HeldError):
            self._settle_local(_FAILURE if error.failed else IGNORED)
            self._hold_again(error.circuit, error.retry_after, failed=error.failed)
            return
        if isinstance(error, TimeLimitExceeded) and not self._ended_by_hand() and self._hung_probe():
            return
        if isinstance(error, Terminated) or self._ended_by_hand():
            # That says nothing about the dependency.
            self._settle(IGNORED)
        elif isinstance(error, (TimeLimitExceeded, WorkerLostError, SystemExit)):
            self._settle(_FAILURE)
        else:
            self._settle_local_attempt(error)
        super().on_failure(exc_info, send_failed_event, return_ok)
        self._end_run()

    def on_timeout(self, soft: bool, timeout: float) -> None:  # noqa: FBT001 - Celery's own signature
        """
        Take the news of a time limit.  The hard one also arrives at :meth:`on_failure`.
        """
        if not soft:
            if self._hung_probe():
                return
            self._settle(_FAILURE)
        super().on_timeout(soft, timeout)
        if not soft:
            self._end_run()

    def _ended_by_hand(self) -> bool:
        """
        Whether the task was revoked or cancelled while it ran, or the worker is on its way out.
        """
        return bool(self._already_revoked or self._already_cancelled or state.should_terminate)

    def _hung_probe(self) -> bool:
        """
        Hold a probe again whose dependency did not answer before the hard time limit.
        """
        if self.held:
            return True
        breaker, permit = self.breaker, self.permit
        if breaker is None or permit is None or not permit.probe or self.task.probe_failure != "hold":
            return False
        settlement = self._settle(_FAILURE)
        if settlement is None or not settlement.applied:
            # The body had ended and reported; what took too long came after it.
            return False
        open_for = settlement.retry_after_ms / 1000
        self._hold_again(breaker.key, open_for or breaker.config.recovery_timeout, failed=True)
        return True

    def _hold_again(self, circuit: str, retry_after: float, *, failed: bool) -> None:
        self.held = True
        manager = integration_of(self._app).manager
        # A circuit that only the child knows cannot be waited for here; the task's own will do.
        breaker = manager.find(circuit) or manager.get(str(self.task.circuit))
        hold_until_parked(self, breaker, retry_after, behind=failed)

    def _end_run(self) -> None:
        # Where the task ended without its body (decoding, before_start), the child has not reported.
        self._settle(IGNORED)
        if self.ack_at_end and not self._already_cancelled:
            self.ack_at_end = False
            self.acknowledge()

    def _settle(self, report: Report) -> Settlement | None:
        """
        Settle the permit in the parent, once; the child's own report of it counts first.
        """
        permit, self.permit = self.permit, None
        breaker = self.breaker
        if permit is None or breaker is None:
            return None
        return breaker.settle(permit, report)

    def _settle_local_attempt(self, error: BaseException) -> None:
        breaker = self.breaker
        if breaker is not None:
            self._settle_local(report_of_attempt(breaker.config, error) or IGNORED)

    def _settle_local(self, report: Report) -> None:
        if self.permit is not None and self.permit.local:
            self._settle(report)


def _gated(execute_using_pool: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(execute_using_pool)
    def gated(self: CircuitRequest, pool: Any, **kwargs: Any) -> Any:
        if self._in_gate:
            # A Request class of the application's own that calls super(): asked already.
            return execute_using_pool(self, pool, **kwargs)
        self._in_gate = True
        try:
            if not _passes(self):
                raise TaskRevokedError(self.id)
            try:
                return execute_using_pool(self, pool, **kwargs)
            except BaseException:
                self.give_back()
                raise
        finally:
            self._in_gate = False

    return gated


def _passes(request: CircuitRequest) -> bool:
    try:
        return request.pass_gate()
    except Exception:
        # Anything that left the gate would stop this worker, and the next one that gets the
        # message.  The child asks the circuit again before it runs the body.
        logger.exception("The gate failed for %s[%s]; the task goes on without it", request.name, request.id)
        return True


def _recorded(on_success: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(on_success)
    def recorded(self: CircuitRequest, failed__retval__runtime: Any, **kwargs: Any) -> Any:
        failed = failed__retval__runtime[0]
        if not failed:
            self._settle_local(SUCCESS)
        result = on_success(self, failed__retval__runtime, **kwargs)
        if not failed and self.ack_at_end:
            # A failure came through on_failure, which has seen to this.
            self._end_run()
        return result

    return recorded
