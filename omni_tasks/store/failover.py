"""
What happens while the shared store is away: the process goes on with its own circuits.

The first call that gets no answer pays the deadline; then the store is left
alone for a while and every decision is local.  A lost store is never read as
"healthy": the local circuits run the same machine, and what they say is marked
as degraded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from omni_tasks.core.model import Admission, Draw, Override, Permit, Request, Settlement, Transition
from omni_tasks.core.outcome import Report
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.errors import StoreError
from omni_tasks.store.base import Reading, Store
from omni_tasks.store.memory import MemoryStore

__all__ = ["FailoverStore"]

T = TypeVar("T")


class FailoverStore:
    """
    Implements :class:`omni_tasks.store.base.Store` over a shared store and a local one.

    Attributes:
        errors: Calls the shared store did not answer, since this process started.
    """

    def __init__(
        self,
        shared: Store,
        *,
        pause: float = 1.0,
        on_change: Callable[[bool, str], None] | None = None,
    ) -> None:
        """
        Put a local store behind *shared*.

        Args:
            shared: The store all processes share.

            pause: Seconds to leave the shared store alone after it did not answer, > 0.

            on_change: Called with (degraded, why) when the store goes or comes back.
        """
        self.errors = 0
        self._shared = shared
        self._local = MemoryStore()
        self._pause = pause
        self._on_change = on_change
        self._lock = threading.Lock()
        self._away_until_monotonic = 0.0
        self._degraded = False
        self._undecided = False

    @property
    def degraded(self) -> bool:
        """
        Whether the last call found the shared store away.
        """
        return self._degraded

    def acquire(self, config: CircuitBreakerConfig, request: Request) -> Admission:
        """
        Decide whether one more call may run; a local permit says that it is local.
        """
        answer = self._try(lambda: self._shared.acquire(config, request))
        if answer is not None:
            return answer
        answer = self._local.acquire(config, request)
        return replace(answer, permit=answer.permit and replace(answer.permit, local=True))

    def settle(self, config: CircuitBreakerConfig, permit: Permit, report: Report) -> Settlement:
        """
        Take a finished call's report, where its permit was given.
        """
        if not permit.local:
            answer = self._try(lambda: self._shared.settle(config, permit, report))
            if answer is not None:
                return answer
        # A shared permit is unknown here and its report is dropped: its lease takes the permit back.
        return self._local.settle(config, permit, report)

    def draw(self, config: CircuitBreakerConfig, wanted: int) -> Draw:
        """
        Pay for the return of up to *wanted* held tasks.
        """
        return self._try(lambda: self._shared.draw(config, wanted)) or self._local.draw(config, wanted)

    def force(self, config: CircuitBreakerConfig, override: Override, *, ttl_ms: int, op_id: str) -> Transition | None:
        """
        Follow the operator's word, everywhere or not at all.

        Raises:
            StoreError: The shared store is away; a word that only one process hears would mislead.
        """
        return self._shared.force(config, override, ttl_ms=ttl_ms, op_id=op_id)

    def reset(self, config: CircuitBreakerConfig, *, op_id: str) -> Transition | None:
        """
        Close the circuit and clear what it has counted, everywhere or not at all.

        Raises:
            StoreError: The shared store is away.
        """
        return self._shared.reset(config, op_id=op_id)

    def read(self, configs: Sequence[CircuitBreakerConfig]) -> list[Reading]:
        """
        Read many circuits; readings are marked as degraded while decisions are local.
        """
        readings = self._try(lambda: self._shared.read(configs), decides=False)
        if readings is not None and not self._degraded:
            return readings
        return [replace(reading, degraded=True) for reading in readings or self._local.read(configs)]

    def _try(self, ask: Callable[[], T], *, decides: bool = True) -> T | None:
        with self._lock:
            if time.monotonic() < self._away_until_monotonic:
                return None
            if self._degraded:
                # One caller asks again; until it has its answer the others stay local.
                self._away_until_monotonic = time.monotonic() + self._pause
        try:
            answer = ask()
        except StoreError as error:
            self._note(away=True, decides=decides, why=str(error))
            return None
        self._note(away=False, decides=decides, why="")
        return answer

    def _note(self, *, away: bool, decides: bool, why: str) -> None:
        with self._lock:
            # A read-only server answers readings: that does not bring the decisions back.
            self._undecided = away if decides else self._undecided
            degraded = away or self._undecided
            changed = degraded is not self._degraded
            self._degraded = degraded
            self._away_until_monotonic = time.monotonic() + self._pause if away else 0.0
            self.errors += away
        # Outside the lock: the listener may log, and logging may block.
        if changed and self._on_change:
            self._on_change(degraded, why)
