"""
A circuit breaker for Celery: while a dependency is down, the tasks that need it wait instead of failing.
"""

from __future__ import annotations

from omni_tasks import signals
from omni_tasks.api import circuit_breaker, circuit_breaker_context
from omni_tasks.breaker import CircuitBreaker, CircuitBreakerMetrics
from omni_tasks.core.model import CircuitState
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.errors import (
    CircuitOpenError,
    ConfigurationError,
    HoldExpiredError,
    OmniTasksError,
    ParkingError,
    StoreError,
    UnknownCircuitError,
)
from omni_tasks.integration.install import get_lot, init_app
from omni_tasks.integration.task import CircuitBreakerTask
from omni_tasks.manager import CircuitBreakerManager, get_circuit_breaker_manager
from omni_tasks.observe.history import get_history
from omni_tasks.settings import ResilienceConfiguration

__all__ = [
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitBreakerManager",
    "CircuitBreakerMetrics",
    "CircuitBreakerTask",
    "CircuitOpenError",
    "CircuitState",
    "ConfigurationError",
    "HoldExpiredError",
    "OmniTasksError",
    "ParkingError",
    "ResilienceConfiguration",
    "StoreError",
    "UnknownCircuitError",
    "circuit_breaker",
    "circuit_breaker_context",
    "get_circuit_breaker_manager",
    "get_history",
    "get_lot",
    "init_app",
    "signals",
]
