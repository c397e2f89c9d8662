"""
The task base class, and what happens around a body in the process that runs it.

The gate (:mod:`omni_tasks.integration.request`) has decided before the body is
called and has put its permit into the request.  Here, where the exception is
still the real object, the permit is settled; a body that could not reach its
dependency through no fault of its own is handed back to be held.
"""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

from celery import Task
from celery.exceptions import Ignore, Reject, Retry

from omni_tasks.breaker import CircuitBreaker
from omni_tasks.core.model import Permit
from omni_tasks.core.outcome import IGNORED, Outcome, Report, judge
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.errors import CircuitOpenError
from omni_tasks.integration.install import init_app, integration_of
from omni_tasks.integration.lot import TICKET_HEADER

if TYPE_CHECKING:
    from celery import Celery
    from celery.app.task import Context

__all__ = ["PERMIT_KEY", "CircuitBreakerTask", "HeldError", "is_guarded", "report_of_attempt"]

#: Where the gate puts the permit in the request's dictionary.
PERMIT_KEY = "omni_permit"

#: The circuit that the task body running here probes, while the task may still be held again.
_probing: ContextVar[CircuitBreakerConfig | None] = ContextVar("omni_tasks_probing", default=None)


class HeldError(Ignore):
    """
    The body's message to its worker: set this task aside again.

    An ``Ignore``, because that is the one exception that Celery's own
    ``autoretry_for`` and tracer let through without recording an outcome; the
    worker's side of the request turns it into a hold.
    """

    def __init__(self, circuit: str, retry_after: float, failed: bool) -> None:  # noqa: FBT001 - pickled by position
        """
        Ask to be held for the circuit of that key, for *retry_after* seconds.

        *failed* says whether the body met its dependency and found it down.
        """
        super().__init__(circuit, retry_after, failed)
        self.circuit = circuit
        self.retry_after = retry_after
        self.failed = failed


class CircuitBreakerTask(Task):
    """
    Base class of tasks that need a dependency.

    Attributes:
        circuit: Key of the circuit that guards the task; ``None`` makes it a plain task.

        probe_failure:
            What becomes of a task that was let through as a probe and found the
            dependency still down: ``"hold"`` it again, or ``"raise"`` and leave
            it to the task's own retries.
    """

    abstract = True
    Request = "omni_tasks.integration.request:CircuitRequest"

    circuit: ClassVar[str | None] = None
    probe_failure: ClassVar[str] = "hold"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """
        Put the guard around ``run``, inside whatever Celery puts around it later (autoretry).
        """
        super().__init_subclass__(**kwargs)
        run = inspect.getattr_static(cls, "run")
        if cls.circuit is not None and not hasattr(_function(run), "_omni_guarded"):
            cls.run = _guarded(run)

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """
        Install the integration where the application has not done so itself.
        """
        super().on_bound(app)
        init_app(app)

    def retry(self, *args: Any, **kwargs: Any) -> Any:
        """
        Retry as Celery does, except in a probe that found the dependency down: that is held.

        ``Task.retry`` publishes before it raises, so the guard would come too
        late; the body's own exception goes on to it instead.
        """
        cause = kwargs.get("exc") or sys.exc_info()[1]
        probed = _probing.get()
        if probed and isinstance(cause, Exception) and judge(probed, cause).outcome is Outcome.FAILURE:
            raise cause
        return super().retry(*args, **kwargs)


def is_guarded(task: Task) -> bool:
    """
    Whether the task's body runs under its circuit.
    """
    return hasattr(_function(inspect.getattr_static(type(task), "run")), "_omni_guarded")


def _function(run: Any) -> Any:
    return run.__func__ if isinstance(run, staticmethod) else run


def _guarded(run: Any) -> Callable[..., Any]:
    function = _function(run)
    takes_self = not isinstance(run, staticmethod)

    @functools.wraps(function)
    def around(self: CircuitBreakerTask, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(function, self) if takes_self else function
        if self.circuit is None:
            # A subclass that has taken its parent's circuit away.
            return call(*args, **kwargs)
        manager = integration_of(self.app).manager
        breaker = manager.get(self.circuit)
        if not manager.enabled or not breaker.enabled or breaker.is_held:
            # Held: a run() that calls super().run(), and the guard has done its work already.
            return call(*args, **kwargs)
        body = functools.partial(call, *args, **kwargs)
        request = self.request
        if request.called_directly or request.is_eager:
            return _run_here(breaker, body)
        return _run_in_worker(self, breaker, *take_permit(request), body)

    around._omni_guarded = True  # type: ignore[attr-defined] # noqa: SLF001 - a mark of our own
    return around


def take_permit(request: Context) -> tuple[bool, Permit | None]:
    """
    Take the gate's decision out of a request: whether there is one, and its permit.

    Celery gives a retry's message the headers of the run before: neither the
    permit nor the ticket that paid for this start may pay for the next.
    """
    fields = request.__dict__.pop(PERMIT_KEY, None)
    for key in (PERMIT_KEY, TICKET_HEADER):
        if isinstance(request.headers, dict):
            request.headers.pop(key, None)
    return fields is not None, Permit(*fields) if fields else None


def _run_here(breaker: CircuitBreaker, body: Callable[[], Any]) -> Any:
    # A direct or eager call: nobody is there to hold it, so a refusal is its caller's CircuitOpenError.
    permit = breaker.admit()
    started = time.monotonic()
    try:
        with breaker.holding():
            result = body()
    except BaseException as error:
        if permit is not None:
            breaker.settle(permit, report_of_attempt(breaker.config, error, started=started) or IGNORED)
        raise
    if permit is not None:
        breaker.settle(permit, judge(breaker.config, None, result, duration=time.monotonic() - started))
    return result


def _run_in_worker(
    task: CircuitBreakerTask,
    breaker: CircuitBreaker,
    decided: bool,  # noqa: FBT001 - goes with the permit, as take_permit() returns them
    permit: Permit | None,
    body: Callable[[], Any],
) -> Any:
    if not decided:
        # The gate could not decide; it let the message through rather than stop the worker.
        admission = breaker.acquire()
        if admission.refused:
            raise HeldError(breaker.key, admission.retry_after_ms / 1000, failed=False)
        permit = admission.permit
    hold_probe = permit is not None and permit.probe and task.probe_failure == "hold"
    token = _probing.set(breaker.config if hold_probe else None)
    started = time.monotonic()
    try:
        with breaker.holding():
            result = body()
    except BaseException as error:
        report = report_of_attempt(breaker.config, error, started=started)
        open_for = _settle(breaker, permit, report) if report else 0.0
        if hold_probe and report and report.outcome is Outcome.FAILURE:
            raise HeldError(breaker.key, open_for or breaker.config.recovery_timeout, failed=True) from error
        if isinstance(error, CircuitOpenError):
            # The body met another circuit that refuses: nothing ran there either.
            other = integration_of(task.app).manager.find(error.circuit)
            if other is not None:
                raise HeldError(other.key, error.retry_after, failed=False) from error
        raise
    finally:
        _probing.reset(token)
    _settle(breaker, permit, judge(breaker.config, None, result, duration=time.monotonic() - started))
    return result


def report_of_attempt(
    config: CircuitBreakerConfig, error: BaseException, *, started: float | None = None
) -> Report | None:
    """
    Classify what ended a body.

    Args:
        config: The circuit's rules.

        error: What the body raised, Celery's own exceptions included.

        started: ``time.monotonic()`` when the body began; ``None`` where that is not known.

    Returns:
        The report; ``None`` when the process is ending and its parent will report.
    """
    duration = time.monotonic() - started if started is not None else 0.0
    if isinstance(error, Retry):
        # Under autoretry_for, and in "raise self.retry()", the reason is behind the Retry.
        cause = error.exc or error.__context__
        return judge(config, cause, duration=duration) if isinstance(cause, Exception) else IGNORED
    if isinstance(error, (Ignore, Reject)):
        return IGNORED
    return judge(config, error, duration=duration) if isinstance(error, Exception) else None


def _settle(breaker: CircuitBreaker, permit: Permit | None, report: Report) -> float:
    """
    Report to the circuit.

    Returns:
        Seconds the circuit stays open from now; 0.0 unless it is open.
    """
    if permit is None or permit.local:
        # Only watched, or given by the parent's own circuit while the store was away: the parent settles it.
        return 0.0
    return breaker.settle(permit, report).retry_after_ms / 1000
