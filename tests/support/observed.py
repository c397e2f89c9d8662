"""
A monitor with circuits of its own, and a sink that keeps what it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import redis

from omni_tasks import CircuitBreakerManager, ResilienceConfiguration
from omni_tasks.observe.monitor import Monitor
from omni_tasks.observe.notification import Notification
from omni_tasks.store.schema import circuit_keys, monitor_key

__all__ = [
    "DEP",
    "Held",
    "Kept",
    "forget_looks",
    "make_manager",
    "open_circuit",
    "stored",
    "take",
    "taken",
    "tick_again",
]

#: A circuit that stays open for long once it is.
DEP = {"failure_threshold": 2, "recovery_timeout": 900.0}


class Kept:
    """
    A sink: a function that keeps its notifications, and fails while *broken* is set.
    """

    def __init__(self) -> None:
        """
        Begin with nothing.
        """
        self.notes: list[Notification] = []
        self.broken: BaseException | None = None

    def __call__(self, note: Notification) -> None:
        """
        Take one.
        """
        if self.broken is not None:
            raise self.broken
        self.notes.append(note)

    def told(self) -> list[tuple[str, str, str]]:
        """
        What was told: status, alert, component.
        """
        return [(note.status, note.alert, note.component) for note in self.notes]


class Held:
    """
    A place where one task waits for each circuit, for two seconds.
    """

    def counts(self, circuits: Iterable[str]) -> dict[str, int]:
        """
        One each.
        """
        return dict.fromkeys(circuits, 1)

    def oldest(self, circuits: Iterable[str]) -> dict[str, float]:
        """
        Two seconds each.
        """
        return dict.fromkeys(circuits, 2.0)


#: What :func:`take` was told.
taken: list[Notification] = []


def take(note: Notification) -> None:
    """
    A sink that settings can name.
    """
    taken.append(note)


def make_manager(
    url: str | None, prefix: str, circuits: Mapping[str, Any] | None = None, **settings: Any
) -> CircuitBreakerManager:
    """
    Circuits in the store at *url*; settings by their names in Celery's configuration, without ``omni_``.
    """
    conf = {
        "omni_circuits": {"dep": DEP} if circuits is None else circuits,
        "omni_redis_url": url,
        "omni_key_prefix": prefix,
        **{f"omni_{name}": value for name, value in settings.items()},
    }
    return CircuitBreakerManager(ResilienceConfiguration.load(conf, environ={}))


def _fail() -> None:
    raise OSError("down")


def open_circuit(manager: CircuitBreakerManager, key: str = "dep", *, times: int = 2) -> None:
    """
    Fail so often.
    """
    for _ in range(times):
        with pytest.raises(OSError, match="down"):
            manager.call(key, _fail)


def forget_looks(client: redis.Redis, prefix: str) -> None:
    """
    Let the next tick come as if every interval had passed.
    """
    client.delete(monitor_key(prefix, "seen"))


def tick_again(client: redis.Redis, prefix: str, monitor: Monitor) -> dict[str, str]:
    """
    The next tick, as if every interval had passed.
    """
    forget_looks(client, prefix)
    return monitor.tick()


def stored(client: redis.Redis, prefix: str, name: str = "dep") -> Callable[..., None]:
    """
    Set fields of a circuit's hash, as its history would have left them.
    """

    def set_fields(**fields: Any) -> None:
        values: Any = fields
        client.hset(circuit_keys(prefix, name)[0], mapping=values)

    return set_fields


def check() -> None:
    """
    A health check that settings can name.
    """
