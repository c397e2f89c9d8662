"""
After a run, in the worker's parent process: what the child asked for, and what it could not report.

A permit is settled once.  Where the task's trace ran to its end, the child has
done it, by the exception as it was raised, and the parent does nothing.  Where
it did not (a lost child, a hard time limit, a message that could not be decoded)
the child has not, and the parent does.  A permit that the parent's own circuit
gave while the store was away is always the parent's to settle.
"""

from __future__ import annotations

import logging
from typing import Any

import redis
from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.worker import state
from celery.worker.request import Request

from omni_tasks.breaker import CircuitBreaker
from omni_tasks.core.model import Permit, Settlement
from omni_tasks.core.outcome import IGNORED, SUCCESS, Outcome, Report
from omni_tasks.errors import CircuitOpenError, OmniTasksError, ParkingError
from omni_tasks.integration.coalescing import drop_if_equal_waits, stop_waiting
from omni_tasks.integration.held import CIRCUIT_HEADER
from omni_tasks.integration.install import Integration, integration_of
from omni_tasks.integration.mover import let_others_follow
from omni_tasks.integration.parking import hold_until_parked
from omni_tasks.integration.task import HeldError, report_of_attempt

__all__ = ["EndingRequest"]

logger = logging.getLogger(__name__)

_FAILURE = Report(Outcome.FAILURE)


class EndingRequest(Request):
    """
    One message in a worker, from the moment the pool has started its task.
    """

    #: The permit the message runs on, until the parent has settled it.
    permit: Permit | None = None
    #: Whether the message is acknowledged when its outcome is known, although its task acknowledges early.
    ack_at_end = False
    #: Whether the task was set aside after its run had begun.
    held = False
    _breaker: CircuitBreaker | None = None

    @property
    def breaker(self) -> CircuitBreaker | None:
        """
        The breaker in front of this message's task, or ``None``; by its arguments where it has a circuit per key.
        """
        if self._breaker is None:
            self._breaker = self._integration.breaker_of(self.task, self.args, self.kwargs)
        return self._breaker

    @property
    def is_guarded(self) -> bool:
        """
        Whether the task names a circuit; that it exists is not asked.
        """
        return getattr(self.task, "circuit", None) is not None

    @property
    def _integration(self) -> Integration:
        return integration_of(self._app)

    # While it runs.

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """
        Note that the pool has started the task.

        A probe stays unacknowledged until its outcome is known: one that finds
        the dependency down is set aside again, and with an early
        acknowledgement a crash between the two would lose it.  But no longer
        than the broker waits: then it would start a second time.
        """
        self.ack_at_end = self._may_be_held_again()
        if self.ack_at_end and not self.task.acks_late:
            self._integration.call_later(self._integration.longest_unacked, self.acknowledge_in_time, ())
        super().on_accepted(pid, time_accepted)

    def _may_be_held_again(self) -> bool:
        if self.permit is not None and self.permit.probe:
            return True
        # It waited for a circuit that its body met, and may be that circuit's probe now.
        waited_for = self._request_dict.get(CIRCUIT_HEADER)
        return waited_for is not None and waited_for != getattr(self.task, "circuit", None)

    def acknowledge(self) -> None:
        """
        Acknowledge the message, unless its outcome is waited for.
        """
        if not self.ack_at_end:
            super().acknowledge()

    def acknowledge_in_time(self) -> None:
        """
        Acknowledge a run that has taken so long that the broker would soon give it to another worker.
        """
        if self.ack_at_end and not self.held and not self._already_cancelled:
            self.ack_at_end = False
            self.acknowledge()

    # What ended it.

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:  # noqa: FBT001, FBT002 - Celery's own signature
        """
        Take what ended a run: a child's wish to be held, an exception, a lost child.
        """
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, HeldError):
            self._settle_local(_FAILURE if error.failed else IGNORED)
            self._hold_again(error.circuit, error.refusal, failed=error.failed)
            return
        if isinstance(error, TimeLimitExceeded) and not self._ended_by_hand() and self._hung_probe():
            return
        if return_ok:
            self._settle_local_attempt(error)
        else:
            self._settle(self._report_of_end(error))
        super().on_failure(exc_info, send_failed_event, return_ok)
        self.end_run()

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
            self.end_run()

    def _report_of_end(self, error: BaseException) -> Report:
        if isinstance(error, Terminated) or self._ended_by_hand():
            # That says nothing about the dependency.
            return IGNORED
        lost = isinstance(error, (TimeLimitExceeded, WorkerLostError, SystemExit))
        return _FAILURE if lost else IGNORED

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
        holds = self.task.probe_failure == "hold" and self.task.circuit_fallback is None
        if breaker is None or permit is None or not permit.probe or not holds:
            return False
        settlement = self._settle(_FAILURE)
        if settlement is None or not settlement.applied:
            # The body had ended and reported; what took too long came after it.
            return False
        open_for = settlement.retry_after_ms / 1000 or breaker.config.recovery_timeout
        refusal = CircuitOpenError(breaker.config.name, settlement.state.value, open_for)
        self._hold_again(breaker.key, refusal, failed=True)
        return True

    def _hold_again(self, circuit: str, refusal: CircuitOpenError, *, failed: bool) -> None:
        self.held = True
        if self._an_equal_waits():
            return
        # A circuit that only the child knows cannot be waited for here; the task's own will do.
        breaker = self._integration.manager.find(circuit) or self._integration.manager.get(str(self.task.circuit))
        hold_until_parked(self, breaker.key, refusal, behind=failed)

    def _an_equal_waits(self) -> bool:
        """
        End a task that need not be held again, because another of its ``hold_key`` was held while it ran.
        """
        waited_for, self.ack_at_end = self.ack_at_end, False
        try:
            if drop_if_equal_waits(self):
                return True
        except Exception as error:  # noqa: BLE001 - the application's own key function, too
            # One too many is the smaller evil.
            logger.warning("Whether another %s is held cannot be told: %r", self.name, error)
        self.ack_at_end = waited_for
        return False

    def end_run(self) -> None:
        """
        Acknowledge a message whose outcome was waited for.
        """
        if self.ack_at_end and not self._already_cancelled:
            self.ack_at_end = False
            self.acknowledge()

    def let_others_follow(self) -> None:
        """
        After a success: where the body did without the circuit that it had waited for, others may do so as well.
        """
        waited_for, own = self._request_dict.get(CIRCUIT_HEADER), self.breaker
        if own is None or waited_for is None or waited_for == own.key:
            return
        try:
            let_others_follow(self._integration, str(waited_for), self.name)
        except (redis.RedisError, OSError, OmniTasksError) as error:
            logger.warning("No held task follows %s[%s]: %s", self.name, self.id, error)

    def end_unheld(self) -> None:
        """
        End a task that has to be held, could not be, and is about to be gone with this worker.

        One that is not acknowledged is still the broker's.  The others were
        acknowledged at their start, as their task has it: they fail, and say why.
        """
        if not self.acknowledged:
            logger.warning("%s[%s] could not be held; the broker delivers it again", self.name, self.id)
            return
        stop_waiting(self)
        error = ParkingError("acknowledged at its start; its worker stopped while it could not be held")
        logger.critical("%s[%s] is lost: %s", self.name, self.id, error)
        self._integration.states.failed(self, error)

    # The permit.

    def give_back(self) -> None:
        """
        Return a permit whose call did not start.
        """
        self._settle(IGNORED)

    def settle_success(self, *, ran: bool) -> None:
        """
        Settle what the child has not: it has, unless the permit is this process's own or the body never ended.
        """
        if ran:
            self._settle_local(SUCCESS)
        else:
            self._settle(IGNORED)

    def _settle(self, report: Report) -> Settlement | None:
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
