"""
Remote control: ``celery -A app inspect circuits``.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

import redis
from celery.worker.control import inspect_command

from omni_tasks.integration.install import integration_of

__all__ = ["circuits"]


@inspect_command()
def circuits(state: Any) -> dict[str, dict[str, Any]]:
    """
    Every circuit: its state, its numbers, how many tasks it holds.
    """
    integration = integration_of(state.app)
    metrics = integration.manager.get_all_metrics()
    held: dict[str, int] = {}
    try:
        held = integration.lot.counts(metrics)
    except (redis.RedisError, OSError):
        # The circuits are worth showing without the lot; "held" is left out rather than called 0.
        held = {}
    return {
        circuit: {
            **{name: _plain(value) for name, value in asdict(metric).items()},
            **({"held": held[circuit]} if circuit in held else {}),
        }
        for circuit, metric in metrics.items()
    }


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value
