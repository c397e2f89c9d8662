"""
One circuit's numbers, as its users read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from omni_tasks.core import waits
from omni_tasks.core.model import CircuitState, Override
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.store.base import Reading

__all__ = ["CircuitBreakerMetrics"]


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


def _moment(unix_ms: int) -> datetime | None:
    return datetime.fromtimestamp(unix_ms / 1000, UTC) if unix_ms else None


def _retry_after_ms(config: CircuitBreakerConfig, reading: Reading) -> int:
    circuit, now_ms = reading.circuit, reading.now_ms
    until_ms = circuit.override_until_ms if circuit.override is Override.FORCED_OPEN else circuit.open_until_ms
    if circuit.effective_state is not CircuitState.OPEN or now_ms >= until_ms:
        return 0
    return waits.retry_after(circuit, config, now_ms=now_ms)
