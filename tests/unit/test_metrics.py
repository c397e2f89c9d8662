"""
A circuit's numbers, as Python reads them and as Prometheus does.
"""

from __future__ import annotations

import contextlib
import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from omni_tasks import (
    CircuitBreakerConfig,
    CircuitBreakerManager,
    CircuitBreakerMetrics,
    CircuitOpenError,
    CircuitState,
    ResilienceConfiguration,
)
from omni_tasks.core.model import FOREVER_MS, Circuit, Override
from omni_tasks.observe.families import Look, circuit_families
from omni_tasks.observe.metrics import CircuitCollector
from omni_tasks.store.base import Reading
from omni_tasks.store.memory import MemoryStore
from tests.support.clock import START_MS, Clock

CONFIG = CircuitBreakerConfig(name="dep_cb", failure_threshold=2, recovery_timeout=30.0)


def _metrics(degraded: bool = False, **fields: Any) -> CircuitBreakerMetrics:  # noqa: FBT001, FBT002 - named below
    reading = Reading(circuit=Circuit(gen="g", **fields), now_ms=START_MS, calls=2, probes=1, degraded=degraded)
    return CircuitBreakerMetrics.from_reading(CONFIG, reading)


def test_a_circuit_nobody_has_used() -> None:
    """
    Before the first call everything is zero, nothing has a time, and the failure rate is no division by zero.
    """
    metrics = CircuitBreakerMetrics.from_reading(CONFIG, Reading(circuit=Circuit(), now_ms=START_MS))
    assert (metrics.name, metrics.state, metrics.total_requests, metrics.failure_rate) == ("dep_cb", "closed", 0, 0.0)
    assert metrics.last_failure_time is metrics.last_success_time is metrics.last_state_change is None
    assert (metrics.time_in_current_state, metrics.retry_after, metrics.degraded) == (0.0, 0.0, False)


def test_requests_are_calls_that_ran() -> None:
    """
    Succeeded, failed and ignored calls add up to the total; refused, outstanding and lost ones are counted apart.
    """
    metrics = _metrics(admitted=20, succeeded=5, failed=3, ignored=2, expired=7, rejected=11)
    assert (metrics.total_requests, metrics.successful_requests, metrics.failed_requests) == (10, 5, 3)
    assert metrics.failure_rate == 0.3
    assert (metrics.rejected_requests, metrics.outstanding_requests) == (11, 3)


def test_counts_and_states() -> None:
    """
    Runs of results, openings and the state are taken over as they are stored.
    """
    metrics = _metrics(state=CircuitState.HALF_OPEN, failures=4, successes_in_a_row=0, opened=3, half_opened=2)
    assert (metrics.state, metrics.consecutive_failures, metrics.consecutive_successes) == ("half_open", 4, 0)
    assert (metrics.circuit_open_count, metrics.circuit_half_open_count) == (3, 2)
    assert _metrics(successes_in_a_row=6).consecutive_successes == 6


def test_times_are_utc() -> None:
    """
    Moments are aware datetimes in UTC; the time in the current state is in seconds and never negative.
    """
    now = datetime.fromtimestamp(START_MS / 1000, UTC)
    metrics = _metrics(
        last_failure_ms=START_MS - 1_500, last_success_ms=START_MS - 2_500, changed_at_ms=START_MS - 60_000
    )
    assert metrics.last_failure_time == now - timedelta(seconds=1.5)
    assert metrics.last_success_time == now - timedelta(seconds=2.5)
    assert metrics.last_state_change == now - timedelta(seconds=60)
    assert metrics.time_in_current_state == 60.0
    assert _metrics(changed_at_ms=START_MS + 60_000).time_in_current_state == 0.0


def test_an_outage_is_timed_from_its_trip() -> None:
    """
    The time since the trip is in seconds, never negative, and 0 while there is no outage.
    """
    assert _metrics(tripped_at_ms=START_MS - 90_500).time_since_trip == 90.5
    assert _metrics(tripped_at_ms=START_MS + 90_500).time_since_trip == 0.0
    assert _metrics().time_since_trip == 0.0


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({"state": CircuitState.CLOSED}, 0.0),
        ({"state": CircuitState.OPEN, "open_until_ms": START_MS + 12_500}, 12.5),
        ({"state": CircuitState.OPEN, "open_until_ms": START_MS}, 0.0),
        ({"state": CircuitState.HALF_OPEN, "open_until_ms": START_MS + 12_500}, 0.0),
        ({"override": Override.FORCED_OPEN, "override_until_ms": START_MS + 5_000}, 5.0),
        ({"override": Override.FORCED_OPEN, "override_until_ms": START_MS}, 0.0),
        ({"override": Override.FORCED_OPEN, "override_until_ms": FOREVER_MS}, 30.0),
        (
            {
                "state": CircuitState.OPEN,
                "open_until_ms": START_MS + 12_500,
                "override": Override.FORCED_CLOSED,
                "override_until_ms": FOREVER_MS,
            },
            0.0,
        ),
    ],
)
def test_retry_after(fields: dict[str, Any], seconds: float) -> None:
    """
    While calls are refused it is the wait that a refusal names, else 0.
    """
    assert _metrics(**fields).retry_after == seconds


def test_a_lost_store_is_marked() -> None:
    """
    Numbers of one process alone say that they are.
    """
    assert _metrics(degraded=True).degraded


# Prometheus


def _manager(**settings: Any) -> CircuitBreakerManager:
    return CircuitBreakerManager(ResilienceConfiguration(circuits={"dep": CONFIG}, **settings))


def _fail() -> None:
    raise OSError("down")


def _exported(manager: CircuitBreakerManager) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(CircuitCollector(manager))
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
        for line in generate_latest(registry).decode().splitlines()
        if not line.startswith("#")
    }


def test_series_have_the_promised_names() -> None:
    """
    Every circuit is exported under its key as the label `component`, open as 1; the other series say nothing else.
    """
    manager = _manager()
    manager.call("dep", int)
    for _ in range(2):
        with pytest.raises(OSError, match="down"):
            manager.call("dep", _fail)
    with pytest.raises(CircuitOpenError):
        manager.call("dep", int)
    exported = _exported(manager)
    assert (
        exported
        | {
            "circuit_breaker_store_up": 1.0,
            'circuit_breaker_requests_total{component="dep"}': 3.0,
            'circuit_breaker_failures_total{component="dep"}': 2.0,
            'circuit_breaker_rejected_total{component="dep"}': 1.0,
            'circuit_breaker_opened_total{component="dep"}': 1.0,
            'circuit_breaker_failure_rate{component="dep"}': pytest.approx(2 / 3),
            'circuit_breaker_state{component="dep"}': 1.0,
            'circuit_breaker_transitions_total{component="dep",from="closed",to="open"}': 1.0,
            'circuit_breaker_transitions_total{component="dep",from="open",to="half_open"}': 0.0,
            'circuit_breaker_transitions_total{component="dep",from="half_open",to="open"}': 0.0,
            'circuit_breaker_transitions_total{component="dep",from="half_open",to="closed"}': 0.0,
            'circuit_breaker_info{component="dep",mode="enforce",name="dep_cb"}': 1.0,
            'circuit_breaker_failure_threshold{component="dep"}': 2.0,
            'circuit_breaker_recovery_timeout_seconds{component="dep"}': 30.0,
        }
        == exported
    )


def test_half_open_is_two() -> None:
    """
    The state's values are 0 closed, 1 open, 2 half open.
    """
    manager, clock = _manager(), Clock()
    manager._store = MemoryStore(clock)
    breaker = manager.register(dataclasses.replace(CONFIG, failure_threshold=1), "dep")
    states = [_exported(manager)['circuit_breaker_state{component="dep"}']]
    with pytest.raises(OSError, match="down"):
        breaker.call(_fail)
    states.append(_exported(manager)['circuit_breaker_state{component="dep"}'])
    clock.advance(30_000)
    assert breaker.acquire().permit is not None
    states.append(_exported(manager)['circuit_breaker_state{component="dep"}'])
    assert states == [0, 1, 2]


def test_metrics_can_be_switched_off() -> None:
    """
    With ENABLE_RESILIENCE_METRICS=false no circuit is exported.
    """
    exported = _exported(_manager(enable_resilience_metrics=False))
    assert exported.keys() == {
        "circuit_breaker_store_up",
        "circuit_breaker_store_errors_total",
        "circuit_breaker_monitor_interval_seconds",
        "circuit_breaker_scrape_duration_seconds",
    }


def test_transitions_are_counted_by_their_ends() -> None:
    """
    A circuit that tripped, reopened, closed and tripped again has each change where it belongs.
    """
    manager, clock = _manager(), Clock()
    manager._store = MemoryStore(clock)
    breaker = manager.register(dataclasses.replace(CONFIG, failure_threshold=1), "dep")

    def changes() -> list[float]:
        ends = [("closed", "open"), ("open", "half_open"), ("half_open", "open"), ("half_open", "closed")]
        name = 'circuit_breaker_transitions_total{{component="dep",from="{}",to="{}"}}'
        return [_exported(manager)[name.format(*each)] for each in ends]

    seen = []
    for fails in (True, True, False, True):
        clock.advance(31_000)
        with pytest.raises(OSError, match="down") if fails else contextlib.nullcontext():
            breaker.call(_fail if fails else int)
        seen.append(changes())
    assert seen == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 2, 1, 1], [2, 2, 1, 1]]


def test_durations_are_a_histogram() -> None:
    """
    Buckets are cumulative; sum and count are those of the calls that were measured.
    """
    circuit = Circuit(gen="g", succeeded=9, took_ms=1_500, durations="1,0,2,0,0,0,0,0,0,0,0,0,0,4")
    look = Look(CONFIG.name, CONFIG, Reading(circuit=circuit, now_ms=START_MS), _metrics())
    [family] = [each for each in circuit_families([look]) if each.type == "histogram"]
    values = {(sample.name.rsplit("_", 1)[1], sample.labels.get("le")): sample.value for sample in family.samples}
    assert values[("bucket", "0.005")] == values[("bucket", "0.01")] == 1
    assert values[("bucket", "0.025")] == values[("bucket", "60.0")] == 3
    assert values[("bucket", "+Inf")] == values[("count", None)] == 7
    assert values[("sum", None)] == 1.5
