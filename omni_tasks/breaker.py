"""
One breaker: the life of a permit, and who is told when the state changes.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import ParamSpec, Self, TypeVar

from omni_tasks import signals
from omni_tasks.core import machine
from omni_tasks.core.model import Admission, CircuitState, Draw, Override, Permit, Request, Settlement, Transition
from omni_tasks.core.outcome import IGNORED, Report, judge
from omni_tasks.core.policy import LONGEST_SECONDS, CircuitBreakerConfig
from omni_tasks.errors import CircuitOpenError, ConfigurationError
from omni_tasks.events import log
from omni_tasks.settings import ResilienceConfiguration
from omni_tasks.store.base import Reading, Store
from omni_tasks.store.failover import FailoverStore
from omni_tasks.store.memory import MemoryStore
from omni_tasks.store.redis import RedisStore, connect

__all__ = ["CircuitBreaker", "CircuitBreakerMetrics", "open_store"]

P = ParamSpec("P")
R = TypeVar("R")
Callback = Callable[["CircuitBreaker"], object]

#: Names of the circuits whose permit the current call already holds.
_held: ContextVar[frozenset[str]] = ContextVar("omni_tasks_held", default=frozenset())

#: The ``with`` blocks the current call is inside of, outermost first: permit, how to undo *_held*, and when
#: the block began by ``time.monotonic()``.
_entered: ContextVar[tuple[tuple[Permit | None, Token[frozenset[str]], float], ...]] = ContextVar(
    "omni_tasks_entered", default=()
)

_EVENTS = {
    CircuitState.OPEN: ("circuit_breaker_open", signals.circuit_opened),
    CircuitState.HALF_OPEN: ("circuit_breaker_half_open", signals.circuit_half_opened),
    CircuitState.CLOSED: ("circuit_breaker_closed", signals.circuit_closed),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreakerMetrics:
    """
    One circuit as the whole cluster sees it, read from the shared store.

    Attributes:
        total_requests: Calls that ran and have reported.  Refused and held ones are not among them.

        failure_rate: failed / total, 0.0-1.0; 0.0 before the first call.

        rejected_requests: Calls refused, whether their caller got an error or was held.

        last_failure_time: When the last failure was reported, or ``None``.  UTC, the store's clock.

        time_in_current_state: Seconds since the last change of state.  >= 0.

        time_since_trip: Seconds since the circuit left closed by itself, through all its probes; 0.0 while closed.

        retry_after: Seconds until the circuit lets a call through; 0.0 when it does so now.

        degraded: Whether the shared store is away and these are this process's own numbers.
    """

    name: str
    state: CircuitState
    total_requests: int
    successful_requests: int
    failed_requests: int
    failure_rate: float
    consecutive_failures: int
    consecutive_successes: int
    rejected_requests: int
    outstanding_requests: int
    circuit_open_count: int
    circuit_half_open_count: int
    last_failure_time: datetime | None
    last_success_time: datetime | None
    last_state_change: datetime | None
    time_in_current_state: float
    time_since_trip: float
    retry_after: float
    degraded: bool

    @classmethod
    def from_reading(cls, config: CircuitBreakerConfig, reading: Reading) -> CircuitBreakerMetrics:
        """
        Read the metrics off what the store answered.
        """
        circuit = reading.circuit
        total = circuit.succeeded + circuit.failed + circuit.ignored
        changed_ms = circuit.changed_at_ms or reading.now_ms
        return cls(
            name=config.name,
            state=circuit.effective_state,
            total_requests=total,
            successful_requests=circuit.succeeded,
            failed_requests=circuit.failed,
            failure_rate=circuit.failed / total if total else 0.0,
            consecutive_failures=circuit.failures,
            consecutive_successes=circuit.successes_in_a_row,
            rejected_requests=circuit.rejected,
            outstanding_requests=reading.calls + reading.probes,
            circuit_open_count=circuit.opened,
            circuit_half_open_count=circuit.half_opened,
            last_failure_time=_moment(circuit.last_failure_ms),
            last_success_time=_moment(circuit.last_success_ms),
            last_state_change=_moment(circuit.changed_at_ms),
            time_in_current_state=max(reading.now_ms - changed_ms, 0) / 1000,
            time_since_trip=max(reading.now_ms - circuit.tripped_at_ms, 0) / 1000 if circuit.tripped_at_ms else 0.0,
            retry_after=_retry_after_ms(config, reading) / 1000,
            degraded=reading.degraded,
        )


class CircuitBreaker:
    """
    A circuit breaker.  Thread-safe; nothing is locked while a call runs.
    """

    def __init__(
        self,
        config: CircuitBreakerConfig,
        redis_url: str | None = None,
        *,
        store: Store | None = None,
        key: str | None = None,
        logging: bool = True,
    ) -> None:
        """
        Make a breaker.

        Args:
            config: What it does.

            redis_url: The shared store; ``OMNI_REDIS_URL`` when left out.  Without either the
                breaker lives in this process's memory.  How keys begin and how long an answer is
                waited for is read from the environment, as for a manager's breakers.

            store: A store that is already open; a manager's breakers share one.

            key: What the manager calls this circuit; the config's name when left out.

            logging: Whether transitions are logged.

        Raises:
            ConfigurationError: Without *store*: a setting in the environment is wrong.
        """
        self.config = config
        self.key = key or config.name
        self._store = store or _configured_store(redis_url)
        self._logging = logging
        self._callbacks: dict[CircuitState, list[Callback]] = {state: [] for state in CircuitState}
        self._callbacks_lock = threading.Lock()
        if logging:
            log.debug("circuit_breaker_init", component=self.key, failure_threshold=config.failure_threshold)

    def __repr__(self) -> str:
        """
        Name the circuit; its state would cost a round trip.
        """
        return f"CircuitBreaker({self.config.name!r})"

    # The life of a permit.

    def acquire(
        self, *, permit_id: str | None = None, lease: float = 0.0, paced: bool = False, ticket: str = ""
    ) -> Admission:
        """
        Ask for a permit; whoever gets one must settle it.

        Args:
            permit_id: Unique for this attempt; made here when left out.

            lease: The call's own hard time limit in seconds; 0 for the circuit's lease.

            paced: Whether the call can wait for its turn after a recovery, as tasks can.

            ticket: From the :meth:`draw` that already paid for this start.

        Returns:
            The answer.  Only a granted one carries a permit.
        """
        request = Request(
            permit_id=permit_id or uuid.uuid4().hex, lease_ms=round(lease * 1000), paced=paced, ticket=ticket
        )
        admission = self._store.acquire(self.config, request)
        self._announce(admission.transition)
        if admission.permit is None and self.config.mode == "shadow":
            return replace(admission, watched=True)
        return admission

    def settle(self, permit: Permit, report: Report) -> Settlement:
        """
        Report how a permit's call ended.  A second report of one permit changes nothing.
        """
        settlement = self._store.settle(self.config, permit, report)
        self._announce(settlement.transition)
        return settlement

    def draw(self, wanted: int) -> Draw:
        """
        Ask how many of *wanted* held tasks may return to their queues now.
        """
        answer = self._store.draw(self.config, wanted)
        self._announce(answer.transition)
        return answer

    def call(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """
        Run *fn* if the circuit lets it.

        Returns:
            What *fn* returned.

        Raises:
            CircuitOpenError: Refused; *fn* did not run.

            Exception: What *fn* raised, also when that failure tripped the circuit.
        """
        permit, started = self.admit(), time.monotonic()
        try:
            with self.holding():
                result = fn(*args, **kwargs)
        except BaseException as error:
            self.report(permit, error, duration=time.monotonic() - started)
            raise
        self.report(permit, None, result, duration=time.monotonic() - started)
        return result

    def __enter__(self) -> Self:
        """
        Take a permit for the block.

        Raises:
            CircuitOpenError: Refused; the block does not run.
        """
        permit = self.admit()
        token = _held.set(_held.get() | {self.config.name})
        _entered.set((*_entered.get(), (permit, token, time.monotonic())))
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """
        Settle the block's permit by how the block ended.
        """
        *outer, (permit, token, started) = _entered.get()
        _entered.set(tuple(outer))
        _held.reset(token)
        self.report(permit, error, duration=time.monotonic() - started)

    def admit(self) -> Permit | None:
        """
        Take a permit.

        Returns:
            ``None`` where the call runs without one: it already runs on one of this circuit, or the
            circuit only watches, or is off.

        Raises:
            CircuitOpenError: Refused.
        """
        if not self.enabled or self.is_held:
            # An outer call will report for both: asking again would make a probe refuse itself.
            return None
        admission = self.acquire()
        if admission.refused:
            raise self.refusal(admission)
        return admission.permit

    def report(
        self, permit: Permit | None, error: BaseException | None, result: object = None, *, duration: float = 0.0
    ) -> None:
        """
        Settle what :meth:`admit` gave by how the call ended.

        Args:
            permit: Nothing is reported without one.

            error: The exception that ended the call, or ``None`` when it returned.

            result: What it returned.

            duration: How long it took, in seconds.
        """
        if permit is None:
            return
        if error is None or isinstance(error, Exception):
            self.settle(permit, judge(self.config, error, result, duration=duration))
        else:
            # Cancelled or interrupted: that says nothing about the dependency.
            self.settle(permit, IGNORED)

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """
        Let calls of this circuit inside the block run on a permit the caller already holds.
        """
        token = _held.set(_held.get() | {self.config.name})
        try:
            yield
        finally:
            _held.reset(token)

    @property
    def enabled(self) -> bool:
        """
        Whether the circuit is there at all: its mode is not ``"off"``.
        """
        return self.config.mode != "off"

    @property
    def is_held(self) -> bool:
        """
        Whether the current call already runs on a permit of this circuit.
        """
        return self.config.name in _held.get()

    def refusal(self, admission: Admission) -> CircuitOpenError:
        """
        The error for a refused admission.
        """
        return CircuitOpenError(self.config.name, admission.state.value, admission.retry_after_ms / 1000)

    # Reading and the operator's word.

    def get_metrics(self) -> CircuitBreakerMetrics:
        """
        Read the cluster's numbers; changes nothing.
        """
        return CircuitBreakerMetrics.from_reading(self.config, self._store.read([self.config])[0])

    @property
    def state(self) -> CircuitState:
        """
        The state as callers meet it now.  One round trip.
        """
        return self.get_metrics().state

    def reset(self, *, actor: str | None = None, reason: str | None = None) -> None:
        """
        Close the circuit and clear everything it has counted, in the whole cluster.

        Raises:
            StoreError: The shared store is away; nothing was changed.
        """
        transition = self._store.reset(self.config, op_id=uuid.uuid4().hex)
        if self._logging:
            log.warning("circuit_breaker_reset", component=self.key, actor=actor, reason=reason)
        self._announce(transition)

    def force_open(self, *, ttl: float | None = None, actor: str | None = None, reason: str | None = None) -> None:
        """
        Refuse every call in the whole cluster, for *ttl* seconds or until the next word.
        """
        self._force(Override.FORCED_OPEN, ttl, actor, reason)

    def force_close(self, *, ttl: float | None = None, actor: str | None = None, reason: str | None = None) -> None:
        """
        Let every call in the whole cluster through, for *ttl* seconds or until the next word.
        """
        self._force(Override.FORCED_CLOSED, ttl, actor, reason)

    def release_force(self, *, actor: str | None = None, reason: str | None = None) -> None:
        """
        Let the circuit decide for itself again.
        """
        self._force(Override.AUTO, None, actor, reason)

    def _force(self, override: Override, ttl: float | None, actor: str | None, reason: str | None) -> None:
        if ttl is not None and not 0 < ttl <= LONGEST_SECONDS:
            raise ConfigurationError("ttl", ttl, f"above 0 and at most {LONGEST_SECONDS:.0f} s, or None")
        transition = self._store.force(self.config, override, ttl_ms=round((ttl or 0) * 1000), op_id=uuid.uuid4().hex)
        if self._logging:
            log.warning(
                "circuit_breaker_override",
                component=self.key,
                override=override.value,
                ttl=ttl,
                actor=actor,
                reason=reason,
            )
        self._announce(transition)

    # Who is told.

    def add_on_open_callback(self, callback: Callback) -> None:
        """
        Call *callback* with this breaker whenever this process opens the circuit.
        """
        self._add(CircuitState.OPEN, callback)

    def add_on_close_callback(self, callback: Callback) -> None:
        """
        Call *callback* with this breaker whenever this process closes the circuit.
        """
        self._add(CircuitState.CLOSED, callback)

    def add_on_half_open_callback(self, callback: Callback) -> None:
        """
        Call *callback* with this breaker whenever this process half-opens the circuit.
        """
        self._add(CircuitState.HALF_OPEN, callback)

    def _add(self, state: CircuitState, callback: Callback) -> None:
        with self._callbacks_lock:
            self._callbacks[state] = [*self._callbacks[state], callback]

    def _announce(self, transition: Transition | None) -> None:
        if transition is None:
            return
        event, signal = _EVENTS[transition.current]
        if self._logging:
            log.warning(
                event,
                component=self.key,
                previous_state=transition.previous.value,
                failure_count=transition.failures,
                failure_threshold=self.config.failure_threshold,
                epoch=transition.epoch,
            )
        for callback in self._callbacks[transition.current]:
            try:
                callback(self)
            except Exception:  # noqa: BLE001 - the user's own code; logged, and the transition stands
                log.exception("circuit_breaker_callback_failed", component=self.key, callback=repr(callback))
        signal.send(sender=self.key, breaker=self, transition=transition)


def _configured_store(redis_url: str | None) -> Store:
    settings = ResilienceConfiguration.load()
    return open_store(
        redis_url or settings.redis_url,
        prefix=settings.key_prefix,
        timeout=settings.store_timeout,
        pause=settings.store_retry_interval,
    )


def open_store(redis_url: str | None, *, prefix: str = "omni", timeout: float = 0.25, pause: float = 1.0) -> Store:
    """
    The store for *redis_url*, with the process's own memory behind it; memory alone without a URL.

    No connection is made before the first question.
    """
    if redis_url is None:
        return MemoryStore()
    shared = RedisStore(connect(redis_url, timeout=timeout), prefix=prefix)
    return FailoverStore(shared, pause=pause, on_change=_say_degraded)


def _say_degraded(degraded: bool, why: str) -> None:  # noqa: FBT001 - the store's callback signature
    if degraded:
        log.error("circuit_store_degraded", reason=why, effect="this process decides alone until the store answers")
    else:
        log.warning("circuit_store_recovered")


def _moment(unix_ms: int) -> datetime | None:
    return datetime.fromtimestamp(unix_ms / 1000, UTC) if unix_ms else None


def _retry_after_ms(config: CircuitBreakerConfig, reading: Reading) -> int:
    circuit, now_ms = reading.circuit, reading.now_ms
    until_ms = circuit.override_until_ms if circuit.override is Override.FORCED_OPEN else circuit.open_until_ms
    if circuit.effective_state is not CircuitState.OPEN or now_ms >= until_ms:
        return 0
    return machine.retry_after(circuit, config, now_ms=now_ms)
