"""
Telling the result backend that a task is held, without waiting for a backend that does not answer.

The state is written before the task is parked: from then on another worker may
run it, and its outcome must stand.  So the write happens in the gate, in the
worker's parent process, which has other things to do.  It goes over a connection
of its own with a short deadline, and a backend that was too slow is left alone
for a while.  Nothing is written late: Celery reads the stored state first, and a
read without an answer is not followed by a write.

RETRY may stay unwritten.  How a held task ended may not, for somebody may wait for
it: such a task ends when the backend answers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import redis
from celery import Celery, states
from redis.backoff import NoBackoff
from redis.retry import Retry

from omni_tasks.errors import CircuitOpenError, ParkingError

if TYPE_CHECKING:
    from omni_tasks.integration.ending import EndingRequest

__all__ = ["StateWriter"]

logger = logging.getLogger(__name__)

#: Longest wait for one answer of the result backend, in seconds, and how long one that was slower is left alone.
_DEADLINE, _PAUSE = 1.0, 30.0


class StateWriter:
    """
    Writes RETRY for one worker's held tasks, and knows whether it can be told how they ended.
    """

    def __init__(self, app: Celery) -> None:
        """
        Write to the backend of *app*; nothing is connected yet.
        """
        self._app = app
        self._impatient: Any = None
        self._away_until_monotonic = 0.0

    def held(self, request: EndingRequest, refusal: CircuitOpenError) -> None:
        """
        Show the task as RETRY, with the refusal as its reason.

        Failing at it is logged and nothing more: what counts is that the task is safe.
        """
        if request.store_errors:
            self._tell(request, lambda backend: backend.mark_as_retry(request.id, refusal, request=_context(request)))

    def rejected(self, request: EndingRequest, error: Exception) -> None:
        """
        Show the task as REJECTED: it is a dead letter, and may be replayed.
        """
        if request.store_errors:
            self._tell(
                request,
                lambda backend: backend.store_result(
                    request.id, str(error), states.REJECTED, request=_context(request)
                ),
            )

    def failed(self, request: EndingRequest, error: Exception) -> None:
        """
        Show the task as FAILURE; its chord and its ``link_error`` hear of it.
        """
        self._tell(
            request,
            lambda backend: backend.mark_as_failure(
                request.id, error, request=_context(request), store_result=request.store_errors
            ),
        )

    def answers(self) -> bool:
        """
        Whether the result backend answers now; one that we cannot hurry is not asked.
        """
        if time.monotonic() < self._away_until_monotonic:
            return False
        backend = self._hurried(self._app.backend)
        if backend is None:
            return True
        try:
            backend.client.ping()
        except (redis.RedisError, OSError) as error:
            # Whatever it says of itself, loading or out of memory: it would not take how a task ended either.
            self._leave_alone(type(error).__name__)
            return False
        return True

    def ensure_can_end(self, request: EndingRequest) -> None:
        """
        Ask before Celery writes how a task ended that has not run: it would keep the worker waiting for the backend.

        Raises:
            ParkingError: The backend does not answer; the task must stay unacknowledged.
        """
        writes = request.store_errors or _context(request).chord
        if writes and request.task.backend is self._app.backend and not self.answers():
            raise ParkingError("the result backend does not answer, and nobody would hear how the task ended")

    def ask_at_once(self) -> None:
        """
        Leave the backend alone no longer, however slow it was.
        """
        self._away_until_monotonic = 0.0

    def _tell(self, request: EndingRequest, write: Callable[[Any], object]) -> None:
        began = time.monotonic()
        if began < self._away_until_monotonic:
            return
        try:
            write(self._backend_of(request.task))
        except Exception as error:  # noqa: BLE001 - every backend has its own errors
            logger.error("Could not write the state of %s[%s]: %r", request.name, request.id, error)  # noqa: TRY400 - one line
        if time.monotonic() - began >= _DEADLINE:
            self._leave_alone("slow")

    def _leave_alone(self, why: str) -> None:
        self._away_until_monotonic = time.monotonic() + _PAUSE
        logger.warning("Result backend left alone for %g s (%s); tasks held meanwhile do not show it", _PAUSE, why)

    def _backend_of(self, task: Any) -> Any:
        # One that we cannot hurry: at most one write in _PAUSE seconds waits as long as the backend does.
        return self._hurried(task.backend) or task.backend

    def _hurried(self, backend: Any) -> Any:
        if backend is not self._app.backend or not hasattr(backend, "connparams"):
            return None
        if self._impatient is None:
            self._impatient = self._app._get_backend()  # noqa: SLF001 - how the application makes its own
            self._impatient.always_retry = False
            self._impatient.retry_policy = {"max_retries": 0}
            self._impatient.connparams.update(
                socket_timeout=_DEADLINE, socket_connect_timeout=_DEADLINE, retry=Retry(NoBackoff(), 0)
            )
        return self._impatient


def _context(request: EndingRequest) -> Any:
    return request._context  # noqa: SLF001 - Celery has no public name for it
