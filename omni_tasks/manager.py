"""
Names to breakers: one manager a process, one store behind all its breakers.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from omni_tasks.breaker import CircuitBreaker
from omni_tasks.core.keys import SEPARATOR, key_text, split_key
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.errors import ConfigurationError, UnknownCircuitError
from omni_tasks.settings import ResilienceConfiguration
from omni_tasks.snapshot import CircuitBreakerMetrics
from omni_tasks.store.base import Reading
from omni_tasks.store.failover import FailoverStore
from omni_tasks.stores import configured_store

__all__ = ["CircuitBreakerManager", "get_circuit_breaker_manager", "use_manager"]

P = ParamSpec("P")
R = TypeVar("R")


class CircuitBreakerManager:
    """
    The breakers of one application, by circuit key.  Thread-safe.
    """

    def __init__(self, settings: ResilienceConfiguration | None = None, redis_url: str | None = None) -> None:
        """
        Make every configured breaker; no connection is made yet.

        Args:
            settings: Read from the environment when left out.

            redis_url: The shared store; the settings' own when left out.

        Raises:
            ConfigurationError: A setting in the environment is wrong.
        """
        self.settings = settings or ResilienceConfiguration.load()
        self.redis_url = redis_url or self.settings.redis_url
        self._store = configured_store(self.settings, self.redis_url)
        self._lock = threading.Lock()
        self._breakers: dict[str, CircuitBreaker] = {}
        for key, config in self.settings.circuits.items():
            self.register(config, key)

    @property
    def enabled(self) -> bool:
        """
        Whether breakers decide at all (``ENABLE_RESILIENCE``).
        """
        return self.settings.enable_resilience

    @property
    def degraded(self) -> bool:
        """
        Whether the last question found the shared store away.
        """
        return isinstance(self._store, FailoverStore) and self._store.degraded

    def register(self, config: CircuitBreakerConfig, key: str | None = None) -> CircuitBreaker:
        """
        Add a circuit, or replace the one of that key.

        Args:
            config: What it does.

            key: What it is asked for by; the config's name when left out.  ``"circuit:key"`` configures one key
                of a circuit that is there already.

        Raises:
            ConfigurationError: It has a colon, and there is no circuit of what is before it, or the
                configuration's name is not that of the key's circuit.
        """
        key = key or config.name
        if SEPARATOR in key:
            return self._parent_of(key).add_key(split_key(key)[1], config)
        breaker = CircuitBreaker(
            config, store=self._store, key=key, logging=self.settings.enable_resilience_logging, active=self.enabled
        )
        with self._lock:
            self._breakers = {**self._breakers, breaker.key: breaker}
        return breaker

    def get(self, key: str) -> CircuitBreaker:
        """
        The breaker of that key.

        Raises:
            UnknownCircuitError: None is configured under it.
        """
        breaker = self.find(key)
        if breaker is None:
            raise UnknownCircuitError(key, self.configured())
        return breaker

    def find(self, name: str) -> CircuitBreaker | None:
        """
        The breaker of that key or of that circuit name, or ``None``; ``"circuit:key"`` is that of a circuit's key.
        """
        breakers = self._breakers
        circuit, key = split_key(name)
        found = breakers.get(circuit) or next((b for b in breakers.values() if b.config.name == circuit), None)
        if found is None or not key:
            return found
        return found.keyed(key) if key_text(key) == key else None

    def configured(self) -> tuple[str, ...]:
        """
        The keys of the configured circuits, in their order, without the keys these have.
        """
        return tuple(self._breakers)

    def keys(self) -> tuple[str, ...]:
        """
        The keys of all circuits, in the order they were configured, then those of their keys.  One round trip.
        """
        return tuple(breaker_key for breaker_key, _ in self.circuits())

    def call(self, name: str, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """
        Run *fn* under the circuit *name*.

        Raises:
            UnknownCircuitError: No such circuit.

            CircuitOpenError: Refused; *fn* did not run.
        """
        return self.get(name).call(fn, *args, **kwargs)

    def get_all_metrics(self) -> dict[str, CircuitBreakerMetrics]:
        """
        Read every circuit and that of every key; changes nothing.  Two round trips: what there is, then all of it.
        """
        return {
            key: CircuitBreakerMetrics.from_reading(config, reading)
            for key, config, reading in self.read(self.circuits())
        }

    def read(
        self, circuits: Sequence[tuple[str, CircuitBreakerConfig]]
    ) -> list[tuple[str, CircuitBreakerConfig, Reading]]:
        """
        Read what the store has about *circuits*, in one round trip; changes nothing.
        """
        readings = self._store.read([config for _, config in circuits])
        return [(key, config, reading) for (key, config), reading in zip(circuits, readings, strict=True)]

    def reset_all(self) -> None:
        """
        Close every circuit and that of every key, and clear what they have counted.

        Raises:
            StoreError: The shared store is away.
        """
        for breaker in self._breakers.values():
            breaker.reset(all_keys=True)

    def circuits(self) -> list[tuple[str, CircuitBreakerConfig]]:
        """
        Every circuit there is, and that of every key: what it is called, and its configuration.  One round trip.
        """
        # Without making a breaker of each: there may be more keys than this process should keep.
        breakers = tuple(self._breakers.values())
        listed = self._store.list_keys([breaker.config for breaker in breakers])
        found = [(breaker.key, breaker.config) for breaker in breakers]
        for breaker, keys in zip(breakers, listed, strict=True):
            found += breaker.key_circuits(keys)
        return found

    def _parent_of(self, key: str) -> CircuitBreaker:
        circuit, of_key = split_key(key)
        parent = self.find(circuit) if of_key else None
        if parent is None:
            allowed = f"a configured circuit, a colon and a key (configured: {', '.join(self._breakers)})"
            raise ConfigurationError("circuit", key, allowed)
        return parent


_provider: Callable[[], CircuitBreakerManager] | None = None
_provider_lock = threading.Lock()


def get_circuit_breaker_manager() -> CircuitBreakerManager:
    """
    The manager of this process.

    It is that of the application ``init_app`` was called for last, else one made from the environment.

    Raises:
        ConfigurationError: It is made now, and a setting is wrong.
    """
    global _provider  # noqa: PLW0603 - one manager a process is the meaning of these two functions
    with _provider_lock:
        if _provider is None:
            _provider = functools.partial(_same, CircuitBreakerManager())
        provider = _provider
    return provider()


def _same(manager: CircuitBreakerManager) -> CircuitBreakerManager:
    return manager


def use_manager(provider: Callable[[], CircuitBreakerManager] | None) -> None:
    """
    Make this process's manager what *provider* returns; ``None`` makes the next question build a new one.

    A function, because an application's settings are complete only when they are first needed.
    """
    global _provider  # noqa: PLW0603 - one manager a process is the meaning of these two functions
    with _provider_lock:
        _provider = provider
