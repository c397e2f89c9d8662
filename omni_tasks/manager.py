"""
Names to breakers: one manager a process, one store behind all its breakers.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from omni_tasks.breaker import CircuitBreaker, CircuitBreakerMetrics, open_store
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.errors import UnknownCircuitError
from omni_tasks.settings import ResilienceConfiguration
from omni_tasks.store.failover import FailoverStore

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
        self._store = open_store(
            redis_url or self.settings.redis_url,
            prefix=self.settings.key_prefix,
            timeout=self.settings.store_timeout,
            pause=self.settings.store_retry_interval,
        )
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

            key: What it is asked for by; the config's name when left out.
        """
        breaker = CircuitBreaker(config, store=self._store, key=key, logging=self.settings.enable_resilience_logging)
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
            raise UnknownCircuitError(key, tuple(self._breakers))
        return breaker

    def find(self, key: str) -> CircuitBreaker | None:
        """
        The breaker of that key or of that circuit name, or ``None``.
        """
        breakers = self._breakers
        return breakers.get(key) or next((b for b in breakers.values() if b.config.name == key), None)

    def keys(self) -> tuple[str, ...]:
        """
        The keys of all circuits, in the order they were configured.
        """
        return tuple(self._breakers)

    def call(self, name: str, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """
        Run *fn* under the circuit *name*.

        Raises:
            UnknownCircuitError: No such circuit.

            CircuitOpenError: Refused; *fn* did not run.
        """
        breaker = self.get(name)
        if not self.enabled:
            return fn(*args, **kwargs)
        return breaker.call(fn, *args, **kwargs)

    def get_all_metrics(self) -> dict[str, CircuitBreakerMetrics]:
        """
        Read every circuit, in one round trip; changes nothing.
        """
        breakers = self._breakers
        readings = self._store.read([breaker.config for breaker in breakers.values()])
        return {
            key: CircuitBreakerMetrics.from_reading(breaker.config, reading)
            for (key, breaker), reading in zip(breakers.items(), readings, strict=True)
        }

    def reset_all(self) -> None:
        """
        Close every circuit and clear what it has counted.

        Raises:
            StoreError: The shared store is away.
        """
        for breaker in self._breakers.values():
            breaker.reset()


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
