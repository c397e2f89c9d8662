"""
The circuits as Prometheus metrics, read from the shared store at scrape time.

One process exports them, not every worker: they are the cluster's numbers, and
``sum()`` over workers would multiply them.  While the store is away the series
are left out, because "closed" must never be read out of silence.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from omni_tasks.breaker import CircuitBreakerMetrics
from omni_tasks.core.model import CircuitState
from omni_tasks.manager import CircuitBreakerManager

__all__ = ["STATE_VALUES", "CircuitCollector"]

#: The value of ``circuit_breaker_state``.
STATE_VALUES = {CircuitState.CLOSED: 0, CircuitState.OPEN: 1, CircuitState.HALF_OPEN: 2}


class CircuitCollector(Collector):
    """
    Register it with a ``prometheus_client`` registry: ``REGISTRY.register(CircuitCollector(manager))``.
    """

    def __init__(self, manager: CircuitBreakerManager) -> None:
        """
        Export the circuits of *manager*.
        """
        self._manager = manager

    def collect(self) -> Iterator[Metric]:
        """
        Read every circuit in one round trip.
        """
        up = GaugeMetricFamily("circuit_breaker_store_up", "Whether the shared store answered this scrape: 1 or 0.")
        circuits = self._manager.get_all_metrics()
        degraded = any(metrics.degraded for metrics in circuits.values())
        up.add_metric([], 0 if degraded else 1)
        yield up
        if not degraded and self._manager.settings.enable_resilience_metrics:
            yield from _families(circuits)


def _families(circuits: dict[str, CircuitBreakerMetrics]) -> Iterator[Metric]:
    label = ["component"]
    requests = CounterMetricFamily("circuit_breaker_requests", "Calls that ran and have reported.", labels=label)
    failures = CounterMetricFamily("circuit_breaker_failures", "Calls that ran and failed.", labels=label)
    rejected = CounterMetricFamily("circuit_breaker_rejected", "Calls refused, held tasks included.", labels=label)
    opened = CounterMetricFamily("circuit_breaker_opened", "Times the circuit opened.", labels=label)
    rate = GaugeMetricFamily("circuit_breaker_failure_rate", "Failed calls / calls that ran, 0.0-1.0.", labels=label)
    state = GaugeMetricFamily("circuit_breaker_state", "0 closed, 1 open, 2 half open.", labels=label)
    for component, metrics in circuits.items():
        requests.add_metric([component], metrics.total_requests)
        failures.add_metric([component], metrics.failed_requests)
        rejected.add_metric([component], metrics.rejected_requests)
        opened.add_metric([component], metrics.circuit_open_count)
        rate.add_metric([component], metrics.failure_rate)
        state.add_metric([component], STATE_VALUES[metrics.state])
    yield from (requests, failures, rejected, opened, rate, state)
