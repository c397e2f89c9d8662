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
from celery import signals as celery_signals
from celery.exceptions import Ignore, Reject, Retry

from omni_tasks.breaker import CircuitBreaker
from omni_tasks.core.model import Permit
from omni_tasks.core.outcome import IGNORED, Outcome, Report, judge
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.errors import CircuitOpenError
from omni_tasks.events import span_event
from omni_tasks.fallback import Fallback
from omni_tasks.guarded import failed_probe_behind, watching_probes
from omni_tasks.integration.decision import Decision
from omni_tasks.integration.held import HOLDS_HEADER, OURS, whole
from omni_tasks.integration.install import init_app, integration_of
from omni_tasks.keyed import Key

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["CircuitBreakerTask", "HeldError", "is_guarded", "report_of_attempt"]

#: The circuit that the task body running here probes, while the task may still be held again.
_probing: ContextVar[CircuitBreakerConfig | None] = ContextVar("omni_tasks_probing", default=None)


#: The request whose body runs here under its circuit.
_guarding: ContextVar[object] = ContextVar("omni_tasks_guarding", default=None)


class HeldError(Ignore):
    """
    The body's message to its worker: set this task aside again.

    An ``Ignore``, because that is the one exception that Celery's own
    ``autoretry_for`` and tracer let through without recording an outcome; the
    worker's side of the request turns it into a hold.
    """

    def __init__(self, circuit: str, refusal: CircuitOpenError, failed: bool) -> None:  # noqa: FBT001 - pickled by position
        """
        Ask to be held for the circuit of that key.

        *refusal* is what is told about it: the circuit's state, and how long it stays so.  *failed*
        says whether the body met the dependency and found it down.
        """
        super().__init__(circuit, refusal, failed)
        self.circuit = circuit
        self.refusal = refusal
        self.failed = failed


class _MaxRetries:
    """
    ``max_retries`` of tasks whose classes name none: ``DEFAULT_MAX_RETRIES`` under a circuit, else Celery's own.

    Read when a task needs it, so that settings may come late; not a property, so that a task's can be set.
    """

    def __get__(self, task: CircuitBreakerTask | None, _kind: type | None = None) -> int | None:
        if task is None or task.circuit is None:
            default: int | None = Task.max_retries
            return default
        return integration_of(task.app).settings.default_max_retries


class CircuitBreakerTask(Task):
    """
    Base class of tasks that need a dependency.

    Attributes:
        circuit: Key of the circuit that guards the task; ``None`` makes it a plain task.

        circuit_key:
            Which of the circuit's keys a task belongs to: text, a whole number, or a function of the task's
            arguments, without ``self``.  Where it cannot be used the task belongs to the circuit itself.

        circuit_fallback:
            What the task answers where it would be held: a value, or a function called with the task's arguments
            and ``reason``, the exception.  ``None``: it is held.

        circuit_fallback_on: ``"failed"`` to also answer where the body ran and failed, instead of its retries.

        probe_failure:
            What becomes of a task that was let through as a probe and found the
            dependency still down: ``"hold"`` it again, or ``"raise"`` and leave
            it to the task's own retries.

        max_hold: Seconds it may be held; 0 for ever, ``None`` for the application's ``omni_max_hold``.

        on_hold_expired:
            What becomes of it then: ``"fail"`` it with a ``HoldExpiredError``, or keep it as a
            ``"dead_letter"`` that an operator can replay; ``None`` for ``omni_on_hold_expired``.

        hold_key:
            A text, or a function of the task's arguments that gives one: of held tasks with an equal
            one the first waits, and the next are dropped (``REVOKED``).

        good_probe: Whether it is cheap and tells the dependency's health well: such a task probes first.
    """

    abstract = True
    Request = "omni_tasks.integration.request:CircuitRequest"

    circuit: ClassVar[str | None] = None
    circuit_key: ClassVar[Key] = None
    circuit_fallback: ClassVar[object] = None
    circuit_fallback_on: ClassVar[str] = "refused"
    probe_failure: ClassVar[str] = "hold"
    max_hold: ClassVar[float | None] = None
    on_hold_expired: ClassVar[str | None] = None
    hold_key: ClassVar[str | Callable[..., object] | None] = None
    good_probe: ClassVar[bool] = False
    max_retries = _MaxRetries()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """
        Put the guard around ``run``, inside whatever Celery puts around it later (autoretry).
        """
        super().__init_subclass__(**kwargs)
        for name in ("circuit_key", "circuit_fallback", "hold_key"):
            # They are called with the task's arguments; read off an instance, a function would become a method.
            if inspect.isfunction(cls.__dict__.get(name)):
                setattr(cls, name, staticmethod(cls.__dict__[name]))
        run = inspect.getattr_static(cls, "run")
        if cls.circuit is not None and not hasattr(_function(run), "_omni_guarded"):
            cls.run = _guarded(run)
            cls.retry = _held_or_retried(cls.retry)

    def signature_from_request(self, request: Any = None, *args: Any, **kwargs: Any) -> Any:
        """
        The task again, as a retry sends it: Celery sends the headers of this run along, but the retry was never held.
        """
        again = super().signature_from_request(request, *args, **kwargs)
        headers = again.options.get("headers")
        if headers:
            again.options["headers"] = {key: value for key, value in headers.items() if not key.startswith(OURS)}
        return again

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """
        Install the integration where the application has not done so itself.
        """
        super().on_bound(app)
        init_app(app)


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
        request = self.request
        # The same request again: a run() that calls super().run(), and the guard has done its work already.
        if self.circuit is None or _guarding.get() is request or not integration_of(self.app).manager.enabled:
            return call(*args, **kwargs)
        run = functools.partial(_run_guarded, self, functools.partial(call, *args, **kwargs), args, kwargs)
        fallback = Fallback.of(self.circuit_fallback, self.circuit_fallback_on)
        token = _guarding.set(request)
        try:
            return run() if fallback is None else _with_fallback(self, fallback, run, args, kwargs)
        finally:
            _guarding.reset(token)

    around._omni_guarded = True  # type: ignore[attr-defined] # noqa: SLF001 - a mark of our own
    return around


def _held_or_retried(retry: Callable[..., Any]) -> Callable[..., Any]:
    """
    Retry as Celery does, except in a probe that found the dependency down: that is held.

    ``Task.retry`` publishes before it raises, so the guard would come too late;
    the body's own exception goes on to it instead.
    """

    @functools.wraps(retry)
    def around(self: CircuitBreakerTask, *args: Any, **kwargs: Any) -> Any:
        cause = kwargs.get("exc") or sys.exc_info()[1]
        if isinstance(cause, Exception):
            probed = _probing.get()
            if probed and judge(probed, cause).outcome is Outcome.FAILURE:
                raise cause
            if self.probe_failure == "hold" and failed_probe_behind(cause):
                raise cause
        return retry(self, *args, **kwargs)

    return around


def _run_guarded(
    task: CircuitBreakerTask, body: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    integration, request = integration_of(task.app), task.request
    here = request.called_directly or request.is_eager
    decision = None if here else Decision.take(request)
    if decision is not None:
        breaker: CircuitBreaker | None = integration.manager.get(decision.circuit)
    else:
        breaker = integration.breaker_of(task, args, kwargs)
    if breaker is None or (decision is None and breaker.is_held):
        return body()
    if here:
        return _run_here(breaker, body)
    if decision is not None and decision.refusal is not None:
        raise HeldError(breaker.key, decision.refusal, failed=False) from decision.refusal
    if decision is None:
        # The gate could not decide; it let the message through rather than stop the worker.
        breaker, admission = breaker.ask()
        if admission.refused:
            refusal = breaker.refusal(admission)
            raise HeldError(breaker.key, refusal, failed=False) from refusal
        return _run_in_worker(task, breaker, admission.permit, body)
    # The gate has asked, before this task had a span.
    probe = decision.permit is not None and decision.permit.probe
    holds = whole(getattr(task.request, HOLDS_HEADER, 0))
    span_event("circuit.admitted", circuit=breaker.key, probe=probe, holds=holds)
    return _run_in_worker(task, breaker, decision.permit, body)


def _with_fallback(
    task: CircuitBreakerTask,
    fallback: Fallback,
    run: Callable[[], Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    try:
        return run()
    except HeldError as held:
        reason = held.__cause__ or held
        return fallback.give(reason, args, kwargs)
    except CircuitOpenError as refusal:
        return fallback.give(refusal, args, kwargs)
    except Exception as error:
        breaker = integration_of(task.app).breaker_of(task, args, kwargs)
        # Celery's own: a retry is on its way already, the others are the body's word.
        its_own = isinstance(error, (Retry, Ignore, Reject))
        if breaker is None or its_own or not fallback.covers(breaker.config, error):
            raise
        return fallback.give(error, args, kwargs)


def _run_here(breaker: CircuitBreaker, body: Callable[[], Any]) -> Any:
    # A direct or eager call: nobody is there to hold it, so a refusal is its caller's CircuitOpenError.
    breaker, admission = breaker.ask()
    if admission.refused:
        raise breaker.refusal(admission)
    permit = admission.permit
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
    task: CircuitBreakerTask, breaker: CircuitBreaker, permit: Permit | None, body: Callable[[], Any]
) -> Any:
    hold_probe = permit is not None and permit.probe and task.probe_failure == "hold"
    token = _probing.set(breaker.config if hold_probe else None)
    started = time.monotonic()
    try:
        with breaker.holding(), watching_probes():
            try:
                result = body()
            except Exception as error:
                elsewhere = _hold_elsewhere(task, error)
                if elsewhere is None:
                    raise
                # What ended it came from another dependency, so it says nothing about this one.
                _settle(breaker, permit, IGNORED)
                span_event("circuit.held", circuit=elsewhere.circuit)
                raise elsewhere from error
    except HeldError:
        raise
    except BaseException as error:
        report = report_of_attempt(breaker.config, error, started=started)
        open_for = _settle(breaker, permit, report) if report else 0.0
        if hold_probe and report and report.outcome is Outcome.FAILURE:
            span_event("circuit.held", circuit=breaker.key)
            raise HeldError(breaker.key, _still_down(breaker, open_for), failed=True) from error
        raise
    finally:
        _probing.reset(token)
    _settle(breaker, permit, judge(breaker.config, None, result, duration=time.monotonic() - started))
    return result


def _hold_elsewhere(task: CircuitBreakerTask, error: Exception) -> HeldError | None:
    """
    Hold a task whose body has met another circuit: one that refused it, or that took it as its probe.
    """
    manager = integration_of(task.app).manager
    if isinstance(error, CircuitOpenError):
        other = manager.find(error.circuit)
        # Made anew: a class of the application's own might not survive the way to the parent.
        refusal = CircuitOpenError(error.circuit, error.state, error.retry_after)
        return HeldError(other.key, refusal, failed=False) if other else None
    failed = failed_probe_behind(error) if task.probe_failure == "hold" else None
    if failed is None or manager.find(failed.breaker.key) is None:
        return None
    return HeldError(failed.breaker.key, _still_down(failed.breaker, failed.open_for), failed=True)


def _still_down(breaker: CircuitBreaker, open_for: float) -> CircuitOpenError:
    return CircuitOpenError(breaker.config.name, "open", open_for or breaker.config.recovery_timeout)


@celery_signals.task_postrun.connect(weak=False)
def _settle_unused(task: Task, **_kwargs: Any) -> None:
    # A run that ended before its body, in before_start() or with wrong arguments: the guard has not seen it.
    if isinstance(task, CircuitBreakerTask) and task.circuit is not None:
        decision = Decision.take(task.request)
        if decision is not None:
            _settle(integration_of(task.app).manager.get(decision.circuit), decision.permit, IGNORED)


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
