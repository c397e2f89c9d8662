"""
Every metric of a circuit: its name, what it means, and how it is read off what the store answered.

docs/observability.md has the same table; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from omni_tasks.breaker import CircuitBreakerMetrics
from omni_tasks.core import durations
from omni_tasks.core.model import CircuitState, Override
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.observe.history import BOUNDS
from omni_tasks.store.base import Reading

__all__ = ["STATE_VALUES", "Look", "circuit_families"]

#: The value of ``circuit_breaker_state``.
STATE_VALUES = {CircuitState.CLOSED: 0, CircuitState.OPEN: 1, CircuitState.HALF_OPEN: 2}

#: Reasons of a circuit that opened because the provider refuses the account.
BLOCKED = frozenset({"auth", "billing"})

#: The reason of a circuit that opened because the provider, which is well, asks for fewer calls.
RATE_LIMIT = "rate_limit"

_OVERRIDE_VALUES = {Override.AUTO: 0, Override.FORCED_OPEN: 1, Override.FORCED_CLOSED: 2}


@dataclass(frozen=True, slots=True)
class Look:
    """
    One circuit as it was read.
    """

    component: str
    config: CircuitBreakerConfig
    reading: Reading
    metrics: CircuitBreakerMetrics

    @property
    def blocked(self) -> str:
        """
        Why the provider refuses the account: ``"auth"``, ``"billing"``, or ``""`` where it does not.
        """
        circuit = self.reading.circuit
        return circuit.reason if circuit.state is not CircuitState.CLOSED and circuit.reason in BLOCKED else ""

    @property
    def rate_limited(self) -> bool:
        """
        Whether it waits because a provider that is well asks for fewer calls.
        """
        circuit = self.reading.circuit
        return circuit.state is not CircuitState.CLOSED and circuit.reason == RATE_LIMIT

    @classmethod
    def of(cls, component: str, config: CircuitBreakerConfig, reading: Reading) -> Look:
        """
        What *reading* says about the circuit *component*.
        """
        return cls(component, config, reading, CircuitBreakerMetrics.from_reading(config, reading))


@dataclass(frozen=True, slots=True)
class _Family:
    """
    A metric with one value a circuit; ``None`` leaves the circuit out.
    """

    name: str
    help: str
    value: Callable[[Look], float | None]


_COUNTERS = (
    _Family(
        "requests", "Calls that ran and have reported; refused and held ones are not among them.",
        lambda look: look.metrics.total_requests,
    ),
    _Family("failures", "Calls that ran and failed.", lambda look: look.reading.circuit.failed),
    _Family("successes", "Calls that ran and succeeded.", lambda look: look.reading.circuit.succeeded),
    _Family(
        "ignored", "Calls that ran and said nothing about the dependency.", lambda look: look.reading.circuit.ignored
    ),
    _Family("rejected", "Calls refused, held tasks included.", lambda look: look.reading.circuit.rejected),
    _Family(
        "held", "Refusals of tasks, which are held instead of failing; a part of rejected.",
        lambda look: look.reading.circuit.held,
    ),
    _Family("slow", "Calls that took at least slow_call_duration.", lambda look: look.reading.circuit.slow),
    _Family("expired", "Permits whose lease ended without a report.", lambda look: look.reading.circuit.expired),
    _Family("opened", "Times the circuit opened.", lambda look: look.reading.circuit.opened),
)  # fmt: skip

_GAUGES = (
    _Family(
        "failure_rate", "Failed calls / calls that ran, since the last reset, 0.0-1.0.",
        lambda look: look.metrics.failure_rate,
    ),
    _Family("state", "0 closed, 1 open, 2 half open.", lambda look: STATE_VALUES[look.metrics.state]),
    _Family("calls_outstanding", "Ordinary calls that hold a permit now.", lambda look: look.reading.calls),
    _Family("probes_outstanding", "Probes that hold a permit now.", lambda look: look.reading.probes),
    _Family(
        "probe_age_seconds", "Longest the oldest outstanding probe can have run, in seconds; 0 without a probe.",
        lambda look: look.metrics.time_in_current_state if look.reading.probes else 0,
    ),
    _Family(
        "consecutive_failures", "Counted failures in a row.", lambda look: look.metrics.consecutive_failures
    ),
    _Family(
        "time_in_state_seconds", "Seconds since the last change of state.",
        lambda look: look.metrics.time_in_current_state,
    ),
    _Family(
        "outage_seconds", "Seconds since the circuit left closed by itself, through all its probes; 0 while closed.",
        lambda look: look.metrics.time_since_trip,
    ),
    _Family(
        "retry_after_seconds", "Seconds until the circuit lets a call through; 0 when it does so now.",
        lambda look: look.metrics.retry_after,
    ),
    _Family(
        "last_failure_timestamp_seconds", "When the last failure was reported, Unix time; absent before the first.",
        lambda look: _seconds(look.reading.circuit.last_failure_ms),
    ),
    _Family(
        "last_success_timestamp_seconds", "When the last success was reported, Unix time; absent before the first.",
        lambda look: _seconds(look.reading.circuit.last_success_ms),
    ),
    _Family(
        "override", "The operator's word: 0 none, 1 forced open, 2 forced closed.",
        lambda look: _OVERRIDE_VALUES[look.reading.circuit.override],
    ),
    _Family(
        "ramp_starts_per_second", "Task starts per second the recovery ramp allows; 0 without a ramp.",
        lambda look: look.reading.circuit.ramp_rate_mps / 1000,
    ),
    _Family(
        "blocked", "1 while the circuit is open because the provider refuses the account, else 0.",
        lambda look: bool(look.blocked),
    ),
    _Family(
        "rate_limited", "1 while the circuit is open because the provider asks for fewer calls, else 0.",
        lambda look: look.rate_limited,
    ),
    _Family(
        "failure_threshold", "Configured: failures in a row that open it; absent where none do.",
        lambda look: look.config.failure_threshold,
    ),
    _Family(
        "recovery_timeout_seconds", "Configured: seconds it stays open before a probe.",
        lambda look: look.config.recovery_timeout,
    ),
)  # fmt: skip


def circuit_families(looks: Iterable[Look]) -> Iterator[Metric]:
    """
    Everything there is to export about the circuits.
    """
    looks = list(looks)
    for family in _COUNTERS:
        counter = CounterMetricFamily(f"circuit_breaker_{family.name}", family.help, labels=["component"])
        yield _filled(counter, family, looks)
    for family in _GAUGES:
        gauge = GaugeMetricFamily(f"circuit_breaker_{family.name}", family.help, labels=["component"])
        yield _filled(gauge, family, looks)
    yield _transitions(looks)
    yield _durations(looks)
    info = GaugeMetricFamily(
        "circuit_breaker_info", "Always 1; what the circuit is.", labels=["component", "name", "mode"]
    )
    for look in looks:
        info.add_metric([look.component, look.config.name, look.config.mode], 1)
    yield info


def _filled(metric: CounterMetricFamily | GaugeMetricFamily, family: _Family, looks: Iterable[Look]) -> Metric:
    for look in looks:
        value = family.value(look)
        if value is not None:
            metric.add_metric([look.component], value)
    return metric


def _transitions(looks: Iterable[Look]) -> Metric:
    metric = CounterMetricFamily(
        "circuit_breaker_transitions", "Changes of the circuit's own state.", labels=["component", "from", "to"]
    )
    for look in looks:
        circuit = look.reading.circuit
        # Whoever has tripped is back at closed, but for the trip that is still going on.
        closed = circuit.trips - (circuit.state is not CircuitState.CLOSED)
        for before, after, count in (
            ("closed", "open", circuit.trips),
            ("open", "half_open", circuit.half_opened),
            ("half_open", "open", circuit.opened - circuit.trips),
            ("half_open", "closed", closed),
        ):
            # A field that was damaged must not make a counter that Prometheus refuses.
            metric.add_metric([look.component, before, after], max(count, 0))
    return metric


def _durations(looks: Iterable[Look]) -> Metric:
    metric = HistogramMetricFamily(
        "circuit_breaker_call_duration_seconds",
        "How long the calls took that succeeded or failed, in seconds.",
        labels=["component"],
    )
    ends = [*map(str, BOUNDS), "+Inf"]
    for look in looks:
        counts = durations.counts(look.reading.circuit.durations)
        buckets = [(end, float(sum(counts[: index + 1]))) for index, end in enumerate(ends)]
        metric.add_metric([look.component], buckets, look.reading.circuit.took_ms / 1000)
    return metric


def _seconds(unix_ms: int) -> float | None:
    return unix_ms / 1000 if unix_ms else None
