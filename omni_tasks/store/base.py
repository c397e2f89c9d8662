"""
What a store of circuits promises.

Every verb is one atomic step: no two callers, threads or processes, ever act
on the same before.  Memory and Redis pass one contract suite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from omni_tasks.core.model import (
    Admission,
    Circuit,
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

__all__ = ["CANDIDATES", "LOG_LENGTH", "Reading", "Store"]

#: How many of the least recently used keys are looked at when there is no room for another.
CANDIDATES = 20


#: Records that are kept of each circuit.  Twin: ``store/lua/_prelude.lua``.
LOG_LENGTH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """
    One circuit as the store saw it.

    Attributes:
        circuit: Its fields; *calls* and *probes* are left empty.

        now_ms: The store's clock, Unix ms, at that moment.

        calls: Ordinary calls outstanding.

        probes: Probes outstanding.

        first_lease_ms: When the first probe's lease ends, Unix ms; 0 without a probe.

        degraded: Whether the shared store was away and this is the process's own circuit.
    """

    circuit: Circuit
    now_ms: int
    calls: int = 0
    probes: int = 0
    first_lease_ms: int = 0
    degraded: bool = False


class Store(Protocol):
    """
    The verbs.  The rules behind them are those of :mod:`omni_tasks.core.machine`.

    Raises:
        StoreError: The store did not answer within its deadline.
    """

    def acquire(self, config: CircuitBreakerConfig, request: Request) -> Admission:
        """
        Decide whether one more call may run.

        Where the circuit is one of a key that is not listed and the list is full, the least recently
        used that are closed and idle are forgotten; where none is, the answer is "crowded".
        """

    def settle(self, config: CircuitBreakerConfig, permit: Permit, report: Report) -> Settlement:
        """
        Take a finished call's report.
        """

    def draw(self, config: CircuitBreakerConfig, wanted: int) -> Draw:
        """
        Pay for the return of up to *wanted* held tasks.
        """

    def force(
        self, config: CircuitBreakerConfig, override: Override, word: Word, *, ttl_ms: int = 0
    ) -> Transition | None:
        """
        Follow the operator's word until *ttl_ms* have passed; 0 means until the next one.
        """

    def reset(self, config: CircuitBreakerConfig, word: Word) -> Transition | None:
        """
        Close the circuit and clear what it has counted; its log goes on.
        """

    def read(self, configs: Sequence[CircuitBreakerConfig]) -> list[Reading]:
        """
        Read many circuits in one round trip; changes nothing.
        """

    def list_keys(self, configs: Sequence[CircuitBreakerConfig]) -> list[tuple[str, ...]]:
        """
        Read which keys of each circuit have a circuit of their own, least recently used first; changes nothing.
        """

    def log(self, config: CircuitBreakerConfig, *, since_ms: int = 0, limit: int = LOG_LENGTH) -> list[LogRecord]:
        """
        Read the log, oldest first: of what was written since *since_ms* the newest *limit* records.
        """
