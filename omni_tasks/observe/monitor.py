"""
The monitor: a look at every circuit, triggered by beat.

Beats have no leader and workers die, so a tick must be harmless to repeat and
to lose.  What a tick may look at it claims first, in the store; what it writes
says the same when it is written twice; and an alert is what the store says is
going on, so a tick that found nothing out is made good by the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property

import redis
from prometheus_client import CollectorRegistry

from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.errors import StoreError
from omni_tasks.events import log
from omni_tasks.manager import CircuitBreakerManager
from omni_tasks.observe import alerts
from omni_tasks.observe.backlog import Backlog, Waiting, read_backlogs
from omni_tasks.observe.delivery import Delivery
from omni_tasks.observe.families import Look
from omni_tasks.observe.health import HealthChecks, is_due
from omni_tasks.observe.history import Recorder
from omni_tasks.observe.lane import Lane
from omni_tasks.observe.metrics import CircuitCollector
from omni_tasks.observe.notification import Episode, Notification
from omni_tasks.observe.rules import RATE_WINDOW, RULES, TRIPS_WINDOW, Facts, Finding, judge
from omni_tasks.observe.scripts import open_client
from omni_tasks.observe.sink_entries import open_sinks
from omni_tasks.observe.state import MAIN, Claim, MonitorState

__all__ = ["Monitor", "intervals"]

#: Seconds a tick waits for its sinks, its health checks, its Pushgateway: what is slower goes on by itself.
_SINKS_PATIENCE, _CHECKS_PATIENCE, _PUSH_PATIENCE = 5.0, 1.0, 2.0

#: Seconds over which every tick of this process has found the store away before that is told.
AWAY_FOR = 30.0

#: Ticks that may be missed before somebody should know.
_MISSED = 3


class Monitor:
    """
    The monitor of one application, in one process.
    """

    def __init__(
        self,
        manager: CircuitBreakerManager,
        *,
        lot: Waiting | None = None,
        move: Callable[[], object] | None = None,
    ) -> None:
        """
        Look at the circuits of *manager*.

        Args:
            manager: Whose circuits.

            lot: Where held tasks wait; nothing is said about them without it.

            move: Moves held tasks that may go: the fallback for workers that do not.

        Raises:
            ConfigurationError: An entry of ``omni_alert_sinks`` is none.
        """
        self._manager = manager
        self._lot = lot
        self._move = move
        self._delivery = Delivery(open_sinks(manager.settings))
        self._checks = HealthChecks()
        self._push_lane = Lane("omni-push")
        self._away: Episode | None = None
        self._away_since_monotonic: float | None = None

    def tick(self) -> dict[str, str]:
        """
        Look at what is due.

        Returns:
            Circuit key -> state, for whoever looks at the task's result; only what was due.
        """
        manager = self._manager
        if manager.redis_url is None:
            # Circuits of one process: nothing can be kept about them, and nobody else sees them.
            return {key: metrics.state.value for key, metrics in manager.get_all_metrics().items()}
        started = time.monotonic()
        try:
            return self._tick(started)
        except (StoreError, redis.RedisError, OSError) as error:
            log.error("circuit_monitor_failed", reason=f"{type(error).__name__}: {error}")
            self._store_is_away(str(error))
            return dict.fromkeys(manager.keys(), "degraded")

    def _tick(self, started: float) -> dict[str, str]:
        manager, state, settings = self._manager, self._state, self._manager.settings
        circuits = dict(manager.circuits())
        claim = state.claim(
            settings.resilience_monitoring_interval,
            {key: config.monitor_interval for key, config in circuits.items()},
        )
        looks = self._look([(key, config) for key, config in circuits.items() if key in claim.due])
        self._store_is_back(claim.now_ms)
        going_on = self._judge(looks, claim, circuits.keys())
        due = [(manager.get(look.component), look) for look in looks if is_due(look)]
        self._checks.run(due, patience=_CHECKS_PATIENCE)
        if MAIN in claim.due:
            self._note_missed(claim)
            self._move_held()
            self._publish()
        refreshed = [
            Notification.about(episode, status="firing", now_ms=claim.now_ms)
            for episode in going_on.values()
            if episode.told and MAIN in claim.due
        ]
        self._delivery.deliver(state, now_ms=claim.now_ms, going_on=refreshed, patience=_SINKS_PATIENCE)
        if MAIN in claim.due:
            took = time.monotonic() - started
            ended_ms = claim.now_ms + round(took * 1000)
            state.finish(now_ms=ended_ms, took_ms=round(took * 1000), circuits=len(circuits))
        return {look.component: look.metrics.state.value for look in looks}

    def _look(self, due: Sequence[tuple[str, CircuitBreakerConfig]]) -> list[Look]:
        looks = [Look.of(*each) for each in self._manager.read(due)]
        if any(look.reading.degraded for look in looks):
            raise StoreError("the circuits are this process's own")
        return looks

    def _judge(self, looks: Sequence[Look], claim: Claim, known: Collection[str]) -> Mapping[str, Episode]:
        recent = self._recorder.record(
            [look.config for look in looks], rate_window=RATE_WINDOW, trips_window=TRIPS_WINDOW
        )
        backlogs = self._held([look.component for look in looks])
        nothing, findings = Backlog(count=0, oldest_age=None), list[Finding]()
        for look, lately in zip(looks, recent, strict=True):
            held = backlogs.get(look.component, nothing)
            facts = Facts(
                component=look.component,
                config=look.config,
                metrics=look.metrics,
                recent=lately,
                blocked=look.blocked,
                rate_limited=look.rate_limited,
                held=held.count,
                held_age=held.oldest_age or 0.0,
            )
            findings += judge(facts, self._manager.settings)
        return alerts.update(
            self._state,
            findings,
            judged={look.component for look in looks},
            known=known,
            unknown=() if backlogs else ("held_too_old",),
            sinks=self._delivery.names,
            now_ms=claim.now_ms,
        )

    def _held(self, components: Collection[str]) -> Mapping[str, Backlog]:
        if self._lot is None:
            return {}
        try:
            return read_backlogs(self._lot, components)
        except Exception as error:  # noqa: BLE001 - each transport has its own
            # The broker is away, not the store: the circuits are judged all the same.
            log.error("circuit_monitor_failed", reason=f"held tasks: {type(error).__name__}: {error}")
            return {}

    def _move_held(self) -> None:
        if self._move is None:
            return
        try:
            self._move()
        except Exception as error:  # noqa: BLE001 - each transport has its own
            # As above: what there is to tell is told all the same.
            log.error("circuit_monitor_failed", reason=f"held tasks: {type(error).__name__}: {error}")

    def _note_missed(self, claim: Claim) -> None:
        interval_ms = self._manager.settings.resilience_monitoring_interval * 1000
        if claim.last_ms and claim.now_ms - claim.last_ms > _MISSED * interval_ms:
            log.warning(
                "circuit_monitor_late", seconds=(claim.now_ms - claim.last_ms) / 1000, interval=interval_ms / 1000
            )

    def _publish(self) -> None:
        url = self._manager.settings.pushgateway_url
        if url is None:
            return
        # Brings an HTTP client, as in sinks.py.
        from omni_tasks.observe.push import push  # noqa: PLC0415

        try:
            self._push_lane.run(lambda: push(url, self._registry), within=_PUSH_PATIENCE)
        except OSError as error:
            log.error("circuit_metrics_not_pushed", reason=f"{type(error).__name__}: {error}")

    # While the store is away nothing can be kept there: the process that found it so tells it itself.

    def _store_is_away(self, why: str) -> None:
        if self._away_since_monotonic is None:
            self._away_since_monotonic = time.monotonic()
        if self._away is not None or time.monotonic() - self._away_since_monotonic < AWAY_FOR:
            # Told already, or perhaps only slow this once.
            return
        now_ms = time.time_ns() // 1_000_000
        note = Notification.firing(
            "store_degraded",
            "",
            severity=RULES["store_degraded"].severity,
            summary="The shared store of the circuits does not answer: every process decides alone",
            details={"reason": why},
            now_ms=now_ms,
        )
        self._away = Episode.begun_by(note, told=True)
        self._delivery.tell(note, patience=_SINKS_PATIENCE)

    def _store_is_back(self, now_ms: int) -> None:
        self._away_since_monotonic = None
        episode, self._away = self._away, None
        if episode is not None:
            note = Notification.about(episode, status="resolved", now_ms=now_ms)
            self._delivery.tell(note, patience=_SINKS_PATIENCE)

    @cached_property
    def _state(self) -> MonitorState:
        return MonitorState(self._client, prefix=self._manager.settings.key_prefix)

    @cached_property
    def _recorder(self) -> Recorder:
        return Recorder(self._client, prefix=self._manager.settings.key_prefix)

    @cached_property
    def _client(self) -> redis.Redis:
        return open_client(str(self._manager.redis_url), timeout=self._manager.settings.store_timeout)

    @cached_property
    def _registry(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(CircuitCollector(self._manager, self._lot))
        return registry


def intervals(manager: CircuitBreakerManager) -> set[float]:
    """
    Every how many seconds ticks must come, so that the monitor and every circuit have theirs.
    """
    own = {config.monitor_interval for config in manager.settings.circuits.values()}
    return {manager.settings.resilience_monitoring_interval, *own}
