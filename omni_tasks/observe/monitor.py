"""
The monitor: one look at every circuit, triggered by beat.

Beats have no leader, so a tick must be harmless to repeat: an alert's episode
is a field in the shared store, and only the process that writes or deletes the
field tells about it.
"""

from __future__ import annotations

import redis

from omni_tasks.breaker import CircuitBreakerMetrics
from omni_tasks.events import log
from omni_tasks.manager import CircuitBreakerManager
from omni_tasks.store.redis import connect
from omni_tasks.store.schema import alerts_key

__all__ = ["OPEN_TOO_LONG", "tick"]

#: Seconds a circuit may be away from closed before an operator hears of it.
OPEN_TOO_LONG = 300.0


def tick(manager: CircuitBreakerManager) -> dict[str, str]:
    """
    Look at every circuit once; fire and resolve alerts.

    Returns:
        Circuit key -> state, for whoever looks at the task's result.
    """
    circuits = manager.get_all_metrics()
    url = manager.settings.redis_url
    if url is not None and not manager.degraded:
        client = connect(url, timeout=manager.settings.store_timeout)
        try:
            for circuit, metrics in circuits.items():
                _judge(client, manager.settings.key_prefix, circuit, metrics)
        except (redis.RedisError, OSError) as error:
            # The next tick judges again: an episode is only over when its field is gone.
            log.error("circuit_monitor_failed", reason=str(error))
        finally:
            client.close()
    return {circuit: "degraded" if metrics.degraded else metrics.state.value for circuit, metrics in circuits.items()}


def _judge(client: redis.Redis, prefix: str, circuit: str, metrics: CircuitBreakerMetrics) -> None:
    key, field = alerts_key(prefix), f"open_too_long:{circuit}"
    details = {
        "component": circuit,
        "alert": "open_too_long",
        "previous_state": metrics.state.value,
        "failure_count": metrics.consecutive_failures,
    }
    # A probe that fails does not end an outage, and neither does one that still runs.
    if metrics.time_since_trip > OPEN_TOO_LONG:
        if client.hsetnx(key, field, int(metrics.time_since_trip)):
            log.error("circuit_breaker_alert", seconds_open=metrics.time_since_trip, **details)
    elif metrics.time_since_trip == 0 and client.hdel(key, field):
        log.warning("circuit_breaker_recovered", **details)
