"""
Breakers of one name under one prefix are one breaker, however they were made.
"""

from __future__ import annotations

import pytest
import redis

from omni_tasks import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerManager,
    CircuitOpenError,
    ConfigurationError,
    ResilienceConfiguration,
)
from omni_tasks.embedded import EmbeddedServer
from omni_tasks.store.schema import circuit_keys

CONFIG = CircuitBreakerConfig(name="shared", failure_threshold=1)


def _fail(breaker: CircuitBreaker) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        breaker.call(int, "x")


def test_breakers_made_by_hand_and_by_a_manager_are_one(
    redis_server: EmbeddedServer, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A breaker takes store and prefix from the environment, as a manager does: what trips one refuses in the other.
    """
    monkeypatch.setenv("OMNI_REDIS_URL", redis_server.url)
    monkeypatch.setenv("OMNI_KEY_PREFIX", key_prefix)
    manager = CircuitBreakerManager()
    _fail(CircuitBreaker(CONFIG))
    with pytest.raises(CircuitOpenError):
        manager.register(CONFIG, key="another key").call(int)


def test_the_environment_gives_the_prefix_to_a_url_given_by_hand(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    ``CircuitBreaker(config, redis_url)`` writes under OMNI_KEY_PREFIX.
    """
    monkeypatch.setenv("OMNI_KEY_PREFIX", key_prefix)
    _fail(CircuitBreaker(CONFIG, redis_server.url))
    assert redis_client.exists(circuit_keys(key_prefix, CONFIG.name)[0])


def test_a_wrong_environment_is_refused_by_a_breaker_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A breaker made by hand does not run on a setting that is wrong.
    """
    monkeypatch.setenv("OMNI_REDIS_URL", "http://cache")
    with pytest.raises(ConfigurationError, match=r"^OMNI_REDIS_URL must be"):
        CircuitBreaker(CONFIG)


def test_another_prefix_is_another_breaker(redis_server: EmbeddedServer, key_prefix: str) -> None:
    """
    Applications that share a server do not share circuits.
    """
    ours, theirs = (
        CircuitBreakerManager(
            ResilienceConfiguration(
                redis_url=redis_server.url, key_prefix=f"{key_prefix}-{name}", circuits={"shared": CONFIG}
            )
        )
        for name in ("ours", "theirs")
    )
    _fail(ours.get("shared"))
    assert theirs.call("shared", int) == 0


def test_without_a_url_a_breaker_is_the_processs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Two breakers without a store know nothing of each other.
    """
    monkeypatch.delenv("OMNI_REDIS_URL", raising=False)
    _fail(CircuitBreaker(CONFIG))
    assert CircuitBreaker(CONFIG).call(int) == 0
