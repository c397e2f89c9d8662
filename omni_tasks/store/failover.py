"""
What happens while the shared store is away: the process goes on by the policy it was given.

A lost store is never read as "healthy": what is said without it is marked as degraded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, TypeVar, get_args

from omni_tasks.core.model import (
    Admission,
    CircuitState,
    Draw,
    LogRecord,
    Override,
    Permit,
    Request,
    Settlement,
    Transition,
    Word,
)
from omni_tasks.core.outcome import Report
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.errors import StoreError
from omni_tasks.store.availability import Attempt, Availability
from omni_tasks.store.base import LOG_LENGTH, Reading, Store
from omni_tasks.store.memory import MemoryStore

__all__ = ["POLICIES", "FailoverStore", "StorePolicy"]

T = TypeVar("T")

#: What a process does with its calls while the store is away.
StorePolicy = Literal["admit", "refuse", "local"]

POLICIES: tuple[StorePolicy, ...] = get_args(StorePolicy)


class FailoverStore:
    """
    Implements :class:`omni_tasks.store.base.Store` over a shared store and the process's own.
    """

    def __init__(
        self,
        shared: Store,
        *,
        pause: float = 1.0,
        policy: StorePolicy = "local",
        on_change: Callable[[bool, str], None] | None = None,
    ) -> None:
        """
        Put a policy behind *shared*.

        Args:
            shared: The store all processes share.

            pause: Seconds from one attempt to reach a store that is away to the next, > 0.

            policy: While it is away: ``"admit"`` lets every call run, uncounted; ``"refuse"`` lets none run;
                ``"local"`` decides with circuits of the process's own, which start closed.

            on_change: Called with (degraded, why) when the store goes or comes back.
        """
        self._shared = shared
        self._local = MemoryStore()
        self._policy = policy
        self._pause_ms = max(round(pause * 1000), 1)
        self._availability = Availability(pause, on_change)

    @property
    def degraded(self) -> bool:
        """
        Whether decisions are made without the shared store.
        """
        return self._availability.degraded

    @property
    def errors(self) -> int:
        """
        Questions the shared store did not answer, since this process started.
        """
        return self._availability.errors

    def acquire(self, config: CircuitBreakerConfig, request: Request) -> Admission:
        """
        Decide whether one more call may run; a permit given without the shared store says that it is local.
        """
        answer = self._try([config], lambda: self._shared.acquire(config, request))
        if answer is not None:
            return answer
        if self._policy == "admit":
            permit = Permit(request.permit_id, gen="", epoch=0, probe=False, local=True)
            return Admission(permit=permit, state=CircuitState.CLOSED)
        if self._policy == "refuse":
            return Admission(permit=None, state=CircuitState.OPEN, retry_after_ms=self._pause_ms)
        answer = self._local.acquire(config, request)
        return replace(answer, permit=answer.permit and replace(answer.permit, local=True))

    def settle(self, config: CircuitBreakerConfig, permit: Permit, report: Report) -> Settlement:
        """
        Take a finished call's report, where its permit was given.
        """
        if not permit.local:
            answer = self._try([config], lambda: self._shared.settle(config, permit, report))
            if answer is not None:
                return answer
        # A shared permit is unknown here and its report is dropped: its lease takes the permit back.
        return self._local.settle(config, permit, report)

    def draw(self, config: CircuitBreakerConfig, wanted: int) -> Draw:
        """
        Pay for the return of up to *wanted* held tasks.
        """
        return self._try([config], lambda: self._shared.draw(config, wanted)) or self._local.draw(config, wanted)

    def force(
        self, config: CircuitBreakerConfig, override: Override, word: Word, *, ttl_ms: int = 0
    ) -> Transition | None:
        """
        Follow the operator's word, everywhere or not at all.

        Raises:
            StoreError: The shared store is away; a word that only one process hears would mislead.
        """
        return self._shared.force(config, override, word, ttl_ms=ttl_ms)

    def reset(self, config: CircuitBreakerConfig, word: Word) -> Transition | None:
        """
        Close the circuit and clear what it has counted, everywhere or not at all.

        Raises:
            StoreError: The shared store is away.
        """
        return self._shared.reset(config, word)

    def read(self, configs: Sequence[CircuitBreakerConfig]) -> list[Reading]:
        """
        Read many circuits; readings are marked as degraded while decisions are made without the shared store.
        """
        readings = self._try(configs, lambda: self._shared.read(configs), decides=False)
        if readings is None:
            readings = [self._without_store(reading) for reading in self._local.read(configs)]
        elif not self.degraded:
            return readings
        return [replace(reading, degraded=True) for reading in readings]

    def list_keys(self, configs: Sequence[CircuitBreakerConfig]) -> list[tuple[str, ...]]:
        """
        Read which keys of each circuit have a circuit of their own.
        """
        listed = self._try(configs, lambda: self._shared.list_keys(configs), decides=False)
        return self._local.list_keys(configs) if listed is None else listed

    def log(self, config: CircuitBreakerConfig, *, since_ms: int = 0, limit: int = LOG_LENGTH) -> list[LogRecord]:
        """
        Read the log; while the store is away, what this process's own circuit has written.
        """
        records = self._try([config], lambda: self._shared.log(config, since_ms=since_ms, limit=limit), decides=False)
        return self._local.log(config, since_ms=since_ms, limit=limit) if records is None else records

    def _without_store(self, reading: Reading) -> Reading:
        if self._policy != "refuse":
            return reading
        until_ms = reading.now_ms + self._pause_ms
        return replace(reading, circuit=replace(reading.circuit, state=CircuitState.OPEN, open_until_ms=until_ms))

    def _try(self, configs: Sequence[CircuitBreakerConfig], ask: Callable[[], T], *, decides: bool = True) -> T | None:
        # Where one server of many is silent, its own circuits tell when it is back.
        attempt = self._availability.attempt(lambda: self._shared.read(configs), decides=decides)
        if attempt is Attempt.STAY:
            return None
        try:
            answer = ask()
        except StoreError as error:
            self._availability.failed(decides=decides, why=str(error))
            return None
        except BaseException as error:
            if attempt is Attempt.TRY:
                # A time limit or a signal has ended it: somebody else must try, or nobody ever will.
                self._availability.failed(decides=decides, why=f"interrupted: {type(error).__name__}")
            raise
        self._availability.answered(attempt, decides=decides)
        return answer
