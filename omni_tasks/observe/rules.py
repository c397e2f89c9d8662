"""
When there is something to tell: the alerts' rules, as pure functions of what was read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from omni_tasks.breaker import CircuitBreakerMetrics
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.observe.history import Recent
from omni_tasks.settings import ResilienceConfiguration

__all__ = ["RATE_WINDOW", "RULES", "TRIPS_WINDOW", "Facts", "Finding", "Rule", "judge"]

#: Seconds a circuit may be away from closed before an operator hears of it.
OPEN_TOO_LONG = 300.0

#: Seconds the failure rate looks back over, and the least calls that it says anything about.
RATE_WINDOW, LEAST_CALLS = 300.0, 20

#: Seconds in which so many trips are flapping.
TRIPS_WINDOW, FLAPPING_TRIPS = 600.0, 3


@dataclass(frozen=True, slots=True)
class Rule:
    """
    One kind of alert.

    Attributes:
        alertname: What it is called in Alertmanager, in ``ops/`` and in the runbook.

        severity: ``"warning"`` or ``"critical"``.
    """

    alertname: str
    severity: str


#: Every alert the monitor can tell.
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "open_too_long": Rule("CircuitOpenTooLong", "critical"),
        "failure_rate_high": Rule("CircuitFailureRateHigh", "warning"),
        "flapping": Rule("CircuitFlapping", "warning"),
        "held_too_old": Rule("HeldTasksTooOld", "warning"),
        "provider_blocked": Rule("CircuitProviderBlocked", "critical"),
        "store_degraded": Rule("CircuitStoreDegraded", "critical"),
        "monitor_stale": Rule("CircuitMonitorStale", "warning"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """
    What one look at a circuit found.

    Attributes:
        component: The circuit's key.

        recent: What it did lately.

        blocked: Why the provider refuses the account, or ``""``.

        rate_limited: Whether a provider that is well asks for fewer calls.

        held: Tasks held for it.

        held_age: Seconds since the oldest of them was first held; 0.0 without one.
    """

    component: str
    config: CircuitBreakerConfig
    metrics: CircuitBreakerMetrics
    recent: Recent
    blocked: str = ""
    rate_limited: bool = False
    held: int = 0
    held_age: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """
    An alert that should be going on.
    """

    alert: str
    component: str
    summary: str
    details: Mapping[str, Any]

    @property
    def field(self) -> str:
        """
        Its episode's place among all.
        """
        return f"{self.alert}:{self.component}"


def judge(facts: Facts, settings: ResilienceConfiguration) -> Iterator[Finding]:
    """
    Find what there is to tell about a circuit.
    """
    for alert, summary, details in _findings(facts, settings):
        yield Finding(
            alert=alert,
            component=facts.component,
            summary=f"Circuit {facts.component} {summary}",
            details={
                "previous_state": facts.metrics.state.value,
                "failure_count": facts.metrics.consecutive_failures,
                "failure_threshold": facts.config.failure_limit,
                **details,
            },
        )


def _findings(facts: Facts, settings: ResilienceConfiguration) -> Iterator[tuple[str, str, dict[str, Any]]]:
    metrics, recent = facts.metrics, facts.recent
    # A probe that fails does not end an outage, and neither does one that still runs.
    # A provider that asks for fewer calls is not down, however long it asks to wait.
    if metrics.time_since_trip > OPEN_TOO_LONG and not facts.rate_limited:
        minutes = metrics.time_since_trip / 60
        yield (
            "open_too_long",
            f"has been away from closed for {minutes:.0f} minutes",
            {"seconds_open": metrics.time_since_trip},
        )
    rate = recent.failed / recent.calls if recent.calls else 0.0
    if recent.calls >= LEAST_CALLS and rate > settings.resilience_alert_threshold:
        yield (
            "failure_rate_high",
            f"failed {rate:.0%} of {recent.calls} calls in the last {RATE_WINDOW / 60:.0f} minutes",
            {"failure_rate": round(rate, 4), "calls": recent.calls},
        )
    if recent.trips >= FLAPPING_TRIPS:
        yield (
            "flapping",
            f"opened {recent.trips} times in {TRIPS_WINDOW / 60:.0f} minutes",
            {"trips": recent.trips},
        )
    if facts.blocked:
        yield (
            "provider_blocked",
            f"is open because the provider refuses the account: {facts.blocked}",
            {"reason": facts.blocked},
        )
    if facts.held_age > settings.alert_held_age:
        yield (
            "held_too_old",
            f"holds {facts.held} tasks, the oldest for {facts.held_age / 60:.0f} minutes",
            {"held": facts.held, "oldest_seconds": round(facts.held_age, 1)},
        )
