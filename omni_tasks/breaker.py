"""
One breaker: asking for permits, reporting, and the operator's words.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import ParamSpec, TypeVar, cast

from omni_tasks.announcer import Announcer, Callback
from omni_tasks.core.keys import LONGEST_KEY, SEPARATOR, key_text, split_key
from omni_tasks.core.model import Admission, CircuitState, Draw, LogRecord, Override, Permit, Request, Settlement, Word
from omni_tasks.core.outcome import Report
from omni_tasks.core.policy import LONGEST_SECONDS, CircuitBreakerConfig
from omni_tasks.errors import CircuitOpenError, ConfigurationError
from omni_tasks.events import log, span_event
from omni_tasks.fallback import Fallback
from omni_tasks.guarded import GuardedBlocks, GuardedCall, holding, is_held
from omni_tasks.keyed import Keyed
from omni_tasks.settings import ResilienceConfiguration
from omni_tasks.snapshot import CircuitBreakerMetrics
from omni_tasks.store.base import Store
from omni_tasks.stores import configured_store, open_store

__all__ = ["CircuitBreaker", "CircuitBreakerMetrics", "open_store"]

P = ParamSpec("P")
R = TypeVar("R")

#: Characters that the log keeps of an operator's name or reason.
LONGEST_NOTE = 200

#: Seconds during which a circuit that had no room for another key is not asked for room again.
_FULL_FOR = 1.0


class CircuitBreaker(GuardedBlocks):
    """
    A circuit breaker.  Thread-safe; nothing is locked while a call runs.
    """

    def __init__(  # noqa: PLR0913 - an application gives the first two; the others are a manager's
        self,
        config: CircuitBreakerConfig,
        redis_url: str | None = None,
        *,
        store: Store | None = None,
        key: str | None = None,
        logging: bool = True,
        active: bool = True,
        parent: CircuitBreaker | None = None,
    ) -> None:
        """
        Make a breaker.

        Args:
            config: What it does.

            redis_url: The shared store; ``OMNI_REDIS_URL`` when left out.  Without either the
                breaker lives in this process's memory.  How keys begin, how long an answer is
                waited for, and whether resilience is on, is read from the environment, as for a manager's breakers.

            store: A store that is already open; a manager's breakers share one.

            key: What the manager calls this circuit; the config's name when left out.

            logging: Whether transitions are logged.

            active: ``False`` lets every call straight through (``ENABLE_RESILIENCE``).

            parent: The circuit that configures it, where this is one of a key: see :meth:`keyed`.

        Raises:
            ConfigurationError: Without *store*: a setting in the environment is wrong.  Or the name holds a
                colon, which is :meth:`keyed`'s.
        """
        if parent is None and SEPARATOR in config.name:
            raise ConfigurationError("name", config.name, "without a colon; for a circuit of a key use keyed()")
        if store is None:
            settings = ResilienceConfiguration.load()
            store, active = configured_store(settings, redis_url), active and settings.enable_resilience
        self.config = config
        self.key = key or config.name
        self.parent = parent
        self.known_keys: Keyed = parent.known_keys if parent else Keyed(config.max_keys)
        self._store = store
        self._active = active
        above = parent._announcer if parent else None  # noqa: SLF001 - one of its own kind
        self._announcer: Announcer = Announcer(logging=logging, above=above)
        # Of a key's circuit: whether the store has listed it.  Of another: until when it takes no more.
        self._listed = False
        self._full_until_monotonic = 0.0
        if logging:
            log.debug("circuit_breaker_init", component=self.key, failure_threshold=config.failure_threshold)

    def __repr__(self) -> str:
        """
        Name the circuit; its state would cost a round trip.
        """
        return f"CircuitBreaker({self.config.name!r})"

    # The life of a permit.

    def acquire(  # noqa: PLR0913 - what a call may say of itself; all of it can be left out
        self,
        *,
        permit_id: str | None = None,
        lease: float = 0.0,
        paced: bool = False,
        ticket: str = "",
        health: bool = False,
        here: bool = False,
    ) -> Admission:
        """
        Ask for a permit; whoever gets one must settle it.

        Args:
            permit_id: Unique for this attempt; made here when left out.

            lease: The call's own hard time limit in seconds; 0 for the circuit's lease.

            paced: Whether the call can wait for its turn after a recovery, as tasks can.

            ticket: From the :meth:`draw` that already paid for this start.

            health: Whether the call is a health check.  It may run as a probe while the circuit waits; its
                success ends the wait, and the next call probes.

            here: Whether this process itself settles the permit.

        Returns:
            The answer.  Only a granted one carries a permit.
        """
        request = Request(
            permit_id=permit_id or uuid.uuid4().hex,
            lease_ms=round(lease * 1000),
            paced=paced,
            ticket=ticket,
            health=health,
            here=here,
        )
        admission = self._store.acquire(self.config, request)
        self._announcer.tell(self, admission.transition)
        told = "circuit.refused" if admission.permit is None else "circuit.admitted"
        span_event(told, circuit=self.key, state=admission.state.value, retry_after=admission.retry_after_ms / 1000)
        self._listed = not admission.crowded
        if admission.permit is None and not admission.crowded and self.config.mode == "shadow":
            return replace(admission, watched=True)
        return admission

    def ask(
        self, *, lease: float = 0.0, paced: bool = False, ticket: str = "", here: bool = False
    ) -> tuple[CircuitBreaker, Admission]:
        """
        Ask for a permit, as :meth:`acquire`, here or, where there is no room for another key, of the parent.

        Returns:
            The breaker that has answered, which the permit must be settled with, and its answer.
        """
        parent = self.parent
        if parent is None:
            return self, self.acquire(lease=lease, paced=paced, ticket=ticket, here=here)
        if self._listed or time.monotonic() >= parent._full_until_monotonic:  # noqa: SLF001 - one of its own kind
            admission = self.acquire(lease=lease, paced=paced, ticket=ticket, here=here)
            if not admission.crowded:
                return self, admission
            parent._full_until_monotonic = time.monotonic() + _FULL_FOR  # noqa: SLF001 - see above
        if not parent.enabled:
            return parent, Admission(permit=None, state=CircuitState.CLOSED, watched=True)
        return parent, parent.acquire(lease=lease, paced=paced, ticket=ticket, here=here)

    def settle(self, permit: Permit, report: Report) -> Settlement:
        """
        Report how a permit's call ended.  A second report of one permit changes nothing.
        """
        if report.trouble:
            log.error("circuit_classify_failed", component=self.key, reason=report.trouble)
        settlement = self._store.settle(self.config, permit, report.of_probe() if permit.probe else report)
        self._announcer.tell(self, settlement.transition)
        span_event("circuit.settled", circuit=self.key, outcome=report.outcome.value, state=settlement.state.value)
        return settlement

    def draw(self, wanted: int) -> Draw:
        """
        Ask how many of *wanted* held tasks may return to their queues now.
        """
        answer = self._store.draw(self.config, wanted)
        self._announcer.tell(self, answer.transition)
        return answer

    # Calls.

    def call(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """
        Run *fn* if the circuit lets it.

        Returns:
            What *fn* returned, or the circuit's fallback's answer.

        Raises:
            CircuitOpenError: Refused; *fn* did not run.

            Exception: What *fn* raised, also when that failure tripped the circuit.
        """
        return self.call_with_fallback(fn, None, *args, **kwargs)

    def call_with_fallback(
        self, fn: Callable[P, R], fallback: Fallback | object, /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """
        Run *fn* if the circuit lets it, with a fallback of this call's own.

        Args:
            fn: What to run.

            fallback: What is returned when it is refused: a value, a function, or a :class:`Fallback`, which
                also says when it answers; ``None`` for the circuit's own.

            args: For *fn*, and for a fallback that is a function.

            kwargs: The same.
        """
        if not isinstance(fallback, Fallback):
            fallback = Fallback.of(fallback, None, self.config)
        call = GuardedCall(self)
        try:
            call.enter()
        except CircuitOpenError as refusal:
            if fallback is None:
                raise
            return cast("R", fallback.give(refusal, args, kwargs))
        try:
            result = fn(*args, **kwargs)
        except BaseException as error:
            call.leave(error)
            if fallback is None or not self.enabled or not fallback.covers(self.config, error):
                raise
            return cast("R", fallback.give(error, args, kwargs))
        call.leave(None, result)
        return result

    def holding(self) -> AbstractContextManager[None]:
        """
        Let calls of this circuit inside the block run on a permit the caller already holds.
        """
        return holding(self.config.name)

    @property
    def enabled(self) -> bool:
        """
        Whether the circuit is there at all: its mode is not ``"off"``, and resilience is on.
        """
        return self._active and self.config.mode != "off"

    @property
    def is_held(self) -> bool:
        """
        Whether the current call already runs on a permit of this circuit.
        """
        return is_held(self.config.name)

    def refusal(self, admission: Admission) -> CircuitOpenError:
        """
        The error for a refused admission.
        """
        return CircuitOpenError(self.config.name, admission.state.value, admission.retry_after_ms / 1000)

    # Keys.

    def keyed(self, key: str | int) -> CircuitBreaker:
        """
        The breaker of one key: a circuit of its own, configured as this one.

        Args:
            key: 1-200 printable characters, or a whole number.

        Raises:
            ConfigurationError: It is none of these, or this circuit is one of a key itself.
        """
        text = key_text(key)
        if text is None:
            raise ConfigurationError("key", key, f"1-{LONGEST_KEY} printable characters, or a whole number")
        if self.parent is not None:
            raise ConfigurationError("keyed", self.key, "asked of a circuit that is not one of a key itself")
        return self.known_keys.get(text, lambda: self._child(text, self.key_config(text)))

    def key_config(self, key: str) -> CircuitBreakerConfig:
        """
        The configuration of a key that has none of its own.
        """
        return replace(self.config, name=f"{self.config.name}{SEPARATOR}{key}")

    def add_key(self, key: str, config: CircuitBreakerConfig) -> CircuitBreaker:
        """
        Configure the circuit of one key apart.

        Raises:
            ConfigurationError: Its name, or how many keys there may be, is not as this circuit has it.
        """
        wanted = self.key_config(key)
        for option in ("name", "max_keys"):
            value, right = getattr(config, option), getattr(wanted, option)
            if value != right:
                raise ConfigurationError(f"{option} of {self.key}{SEPARATOR}{key}", value, repr(right))
        breaker = self._child(key, config)
        self.known_keys.add(key, breaker)
        return breaker

    def key_circuits(self, keys: Iterable[str]) -> list[tuple[str, CircuitBreakerConfig]]:
        """
        What the manager calls the circuits of *keys* and of those configured apart, and how each is configured.
        """
        apart = self.known_keys.added()
        configs = {key: self.key_config(key) for key in keys if key_text(key) == key}
        configs |= {key: breaker.config for key, breaker in apart.items()}
        return [(f"{self.key}{SEPARATOR}{key}", config) for key, config in configs.items()]

    def _child(self, key: str, config: CircuitBreakerConfig) -> CircuitBreaker:
        return CircuitBreaker(
            config,
            store=self._store,
            key=f"{self.key}{SEPARATOR}{key}",
            logging=self._announcer.logging,
            active=self._active,
            parent=self,
        )

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

    def read_log(self, *, since_ms: int = 0) -> list[LogRecord]:
        """
        Changes of state and the operator's words since *since_ms* (Unix ms, the store's clock), oldest first.
        """
        return self._store.log(self.config, since_ms=since_ms)

    def reset(self, *, all_keys: bool = False, actor: str | None = None, reason: str | None = None) -> None:
        """
        Close the circuit and clear everything it has counted, in the whole cluster.

        Args:
            all_keys: Whether the circuits of its keys are reset too, one after the other.

            actor: Who says so.

            reason: Why.

        Raises:
            StoreError: The shared store is away; from here on nothing was changed.
        """
        transition = self._store.reset(self.config, _word(actor, reason))
        if self._announcer.logging:
            log.warning("circuit_breaker_reset", component=self.key, actor=actor, reason=reason)
        self._announcer.tell(self, transition)
        for key in self.keys() if all_keys else ():
            self.keyed(key).reset(actor=actor, reason=reason)

    def keys(self) -> tuple[str, ...]:
        """
        The keys that have a circuit of their own now, least recently used first.  One round trip.
        """
        return tuple(key for key in self._store.list_keys([self.config])[0] if key_text(key) == key)

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
        # 0 would be without an end.
        ttl_ms = max(round(ttl * 1000), 1) if ttl is not None else 0
        transition = self._store.force(self.config, override, _word(actor, reason), ttl_ms=ttl_ms)
        if self._announcer.logging:
            log.warning(
                "circuit_breaker_override",
                component=self.key,
                override=override.value,
                ttl=ttl,
                actor=actor,
                reason=reason,
            )
        self._announcer.tell(self, transition)

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
        self._announcer.add(state, callback)
        if self.parent is not None:
            # A breaker that somebody listens to must not be forgotten by this process.
            self.known_keys.add(split_key(self.config.name)[1], self)


def _word(actor: str | None, reason: str | None) -> Word:
    return Word(op_id=uuid.uuid4().hex, actor=(actor or "")[:LONGEST_NOTE], reason=(reason or "")[:LONGEST_NOTE])
