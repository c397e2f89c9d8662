"""
A process's manager with one circuit, for the tests of a breaker's faces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from omni_tasks import CircuitBreaker, CircuitBreakerConfig, CircuitBreakerManager, ResilienceConfiguration
from omni_tasks.manager import use_manager

CONFIG = CircuitBreakerConfig(name="dep_cb", failure_threshold=2, recovery_timeout=30.0)


@pytest.fixture
def make() -> Iterator[Callable[..., CircuitBreakerManager]]:
    """
    Make the process's manager from settings; the circuit ``dep`` is configured.
    """

    def make_one(**settings: Any) -> CircuitBreakerManager:
        manager = CircuitBreakerManager(ResilienceConfiguration(circuits={"dep": CONFIG}, **settings))
        use_manager(lambda: manager)
        return manager

    yield make_one
    use_manager(None)


@pytest.fixture
def breaker(make: Callable[..., CircuitBreakerManager]) -> CircuitBreaker:
    """
    The process's breaker ``dep``.
    """
    return make().get("dep")
