"""
The circuits as Prometheus metrics, read from the shared store at scrape time.

One process exports them, not every worker: they are the cluster's numbers, and
``sum()`` over workers would multiply them.  While the store is away the series
are left out, because "closed" must never be read out of silence.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from functools import cached_property, partial

import redis
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from omni_tasks.errors import StoreError
from omni_tasks.manager import CircuitBreakerManager
from omni_tasks.observe.backlog import Waiting, read_backlogs
from omni_tasks.observe.families import STATE_VALUES, Look, circuit_families
from omni_tasks.observe.lane import SharedLane
from omni_tasks.observe.rules import RULES
from omni_tasks.observe.scripts import open_client
from omni_tasks.observe.state import MonitorState, Status

__all__ = ["STATE_VALUES", "CircuitCollector"]

#: Seconds the store, and then the lot, may take for a scrape; together below one second.
_STORE_WITHIN, _LOT_WITHIN = 0.55, 0.3

#: A tick is missing after so many intervals, and no sooner than after so many seconds.
_STALE_INTERVALS, _STALE_SECONDS = 3, 60.0


class CircuitCollector(Collector):
    """
    Register it with a ``prometheus_client`` registry: ``REGISTRY.register(CircuitCollector(manager))``.
    """

    def __init__(self, manager: CircuitBreakerManager, lot: Waiting | None = None) -> None:
        """
        Export the circuits of *manager*; with *lot*, also what waits there for them.
        """
        self._manager = manager
        self._lot = lot
        self._store_lane, self._lot_lane = SharedLane("omni-scrape-store"), SharedLane("omni-scrape-lot")
        self._errors = 0
        self._first_read_ms = 0

    def describe(self) -> list[Metric]:
        """
        Nothing beforehand: registering must not ask the store.
        """
        return []

    def collect(self) -> Iterator[Metric]:
        """
        Read every circuit in one round trip; a store that does not answer is waited for less than a second.
        """
        started = time.monotonic()
        try:
            looks, status = self._store_lane.run(self._read, within=_STORE_WITHIN)
            up = True
        except (StoreError, redis.RedisError, OSError):
            looks, status, up = [], None, False
            self._errors += 1
        settings = self._manager.settings
        yield _gauge("store_up", "Whether the shared store answered this scrape: 1 or 0.", int(up))
        yield _counter(
            "store_errors", "Scrapes that the store did not answer, since this process started.", self._errors
        )
        yield _gauge(
            "monitor_interval_seconds",
            "Configured: seconds between two ticks.",
            settings.resilience_monitoring_interval,
        )
        if settings.enable_resilience_metrics:
            yield from circuit_families(looks)
            yield from self._held([look.component for look in looks])
            if status is not None:
                yield from self._monitor(status)
        yield _gauge("scrape_duration_seconds", "Seconds this scrape took.", time.monotonic() - started)

    def _read(self) -> tuple[list[Look], Status | None]:
        circuits = self._manager.circuits()
        looks = [Look.of(*each) for each in self._manager.read(circuits)]
        if any(look.reading.degraded for look in looks):
            raise StoreError("the shared store is away")
        return looks, self._state.status() if self._state else None

    def _held(self, components: Collection[str]) -> Iterator[Metric]:
        if self._lot is None or not components:
            # Nothing is asked.
            return
        try:
            held = self._lot_lane.run(partial(read_backlogs, self._lot, components), within=_LOT_WITHIN)
            up = True
        except Exception:  # noqa: BLE001 - each transport has its own; whichever it is, the lot did not answer
            held, up = {}, False
        yield _gauge("lot_up", "Whether the broker answered this scrape's question for held tasks: 1 or 0.", int(up))
        tasks = GaugeMetricFamily("circuit_breaker_held_tasks", "Tasks held in the lot now.", labels=["component"])
        oldest = GaugeMetricFamily(
            "circuit_breaker_held_oldest_age_seconds",
            "Seconds since the oldest held task was first held; 0 without one.",
            labels=["component"],
        )
        for component, backlog in held.items():
            tasks.add_metric([component], backlog.count)
            if backlog.oldest_age is not None:
                oldest.add_metric([component], backlog.oldest_age)
        yield from (tasks, oldest)

    def _monitor(self, status: Status) -> Iterator[Metric]:
        yield _counter("monitor_ticks", "Ticks the monitor has finished.", status.ticks)
        yield _gauge("monitor_tick_duration_seconds", "Seconds the last tick took.", status.took_ms / 1000)
        if status.last_tick_ms:
            when = "When the last tick finished, Unix time of the store's clock; absent before the first."
            yield _gauge("monitor_last_tick_timestamp_seconds", when, status.last_tick_ms / 1000)
        firing = GaugeMetricFamily(
            "circuit_breaker_alerts_firing", "1 for every alert that is going on.", labels=["alert", "component"]
        )
        for episode in status.episodes.values():
            if episode.alert in RULES:
                firing.add_metric([episode.alert, episode.component], 1)
        if self._is_stale(status):
            firing.add_metric(["monitor_stale", ""], 1)
        yield firing
        deliveries = CounterMetricFamily(
            "circuit_breaker_alert_deliveries",
            "Deliveries of the monitor's alerts, by how they ended: delivered, failed or dropped.",
            labels=["sink", "result"],
        )
        for name, count in status.deliveries.items():
            kind, _, result = name.partition(":")
            deliveries.add_metric([kind, result], count)
        yield deliveries

    def _is_stale(self, status: Status) -> bool:
        # Without a tick ever, as long after the first look: beat may just be starting, too.
        self._first_read_ms = self._first_read_ms or status.now_ms
        longest = max(_STALE_INTERVALS * self._manager.settings.resilience_monitoring_interval, _STALE_SECONDS)
        return (status.now_ms - (status.last_tick_ms or self._first_read_ms)) / 1000 > longest

    @cached_property
    def _state(self) -> MonitorState | None:
        url, settings = self._manager.redis_url, self._manager.settings
        if url is None:
            return None
        return MonitorState(open_client(url, timeout=settings.store_timeout), prefix=settings.key_prefix)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"circuit_breaker_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"circuit_breaker_{name}", text, value=value)
