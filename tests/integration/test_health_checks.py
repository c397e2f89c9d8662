"""
Health checks: a circuit's own callable probes it, on a probe's permit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import redis

from omni_tasks import CircuitBreaker, CircuitBreakerConfig, CircuitBreakerManager, circuit_breaker
from omni_tasks.embedded import EmbeddedServer
from omni_tasks.errors import ConfigurationError
from omni_tasks.manager import use_manager
from omni_tasks.observe.families import Look
from omni_tasks.observe.health import is_due
from omni_tasks.observe.monitor import Monitor
from omni_tasks.settings import ResilienceConfiguration
from omni_tasks.store.schema import circuit_keys
from tests.support.eventually import eventually
from tests.support.log import events
from tests.support.observed import DEP, make_manager, open_circuit, tick_again


class Check:
    """
    A check that says what the test wants.
    """

    def __init__(self) -> None:
        """
        Begin with a dependency that is well.
        """
        self.calls = 0
        self.answer: BaseException | Callable[[], object] | None = None

    def __call__(self) -> None:
        """
        Ask.
        """
        self.calls += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        if self.answer is not None:
            self.answer()


class Scene:
    """
    An open circuit with a check, and its monitor.
    """

    def __init__(self, server: EmbeddedServer, client: redis.Redis, prefix: str, **options: object) -> None:
        """
        Open it.
        """
        self.client, self.prefix = client, prefix
        self.check = Check()
        self.manager: CircuitBreakerManager = make_manager(
            server.url, prefix, {"dep": {**DEP, "health_check": self.check, **options}}, alert_sinks=[]
        )
        self.monitor = Monitor(self.manager)
        open_circuit(self.manager)

    def due(self) -> None:
        """
        Let the circuit's open time end.
        """
        self.client.hset(circuit_keys(self.prefix, "dep")[0], "open_until_ms", 1)

    def looked(self) -> tuple[CircuitBreaker, Look]:
        """
        The circuit, as it is read now.
        """
        breaker = self.manager.get("dep")
        [(_, _, reading)] = self.manager.read([("dep", breaker.config)])
        return breaker, Look.of("dep", breaker.config, reading)

    def leave(self, seconds: float) -> None:
        """
        Leave the circuit so many seconds of its open time.
        """
        now, _ = self.client.time()
        self.client.hset(circuit_keys(self.prefix, "dep")[0], "open_until_ms", round((int(now) + seconds) * 1000))

    def tick(self) -> str:
        """
        Tick, and give the circuit's state then.
        """
        tick_again(self.client, self.prefix, self.monitor)
        return self.manager.get("dep").state.value


@pytest.fixture
def scene(redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str) -> Scene:
    """
    An open circuit that is not due yet.
    """
    return Scene(redis_server, redis_client, key_prefix)


def test_a_check_closes_a_circuit_that_is_due(scene: Scene) -> None:
    """A check that returns is a successful probe."""
    assert scene.tick() == "open"
    assert scene.check.calls == 0
    scene.due()
    assert scene.tick() == "closed"
    assert scene.check.calls == 1
    assert scene.tick() == "closed"
    assert scene.check.calls == 1
    metrics = scene.manager.get("dep").get_metrics()
    assert (metrics.total_requests, metrics.outstanding_requests) == (3, 0)


@pytest.mark.parametrize("error", [OSError("down"), ValueError("wrong"), SystemExit(1)])
def test_a_check_that_raises_reopens(scene: Scene, error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a check raises means that the dependency is down; the open time begins anew."""
    caplog.set_level("INFO", "omni_tasks")
    scene.check.answer = error
    scene.due()
    assert scene.tick() == "open"
    metrics = scene.manager.get("dep").get_metrics()
    assert (metrics.failed_requests, metrics.circuit_open_count) == (3, 2)
    assert metrics.retry_after > 800
    [told] = events(caplog, "circuit_health_check")
    assert (told["outcome"], told["state"]) == ("failure", "open")


def test_a_check_before_the_end_spares_a_task(scene: Scene) -> None:
    """A check that fails shortly before the open time ends makes it begin anew: no user's task is the next to fail."""
    scene.check.answer = OSError("down")
    scene.leave(10)
    assert scene.tick() == "open"
    metrics = scene.manager.get("dep").get_metrics()
    assert (metrics.circuit_open_count, metrics.circuit_half_open_count) == (1, 0)
    assert metrics.retry_after > 890


def test_a_check_before_the_end_may_end_it(scene: Scene) -> None:
    """A check that succeeds ends the wait; the next call shows that the dependency is back."""
    scene.leave(10)
    assert scene.tick() == "open"
    breaker = scene.manager.get("dep")
    assert breaker.get_metrics().retry_after == 0
    breaker.call(int)
    assert breaker.state == "closed"


def test_a_broken_check_does_not_hold_a_circuit_for_ever(scene: Scene) -> None:
    """An outage that has lasted for max_recovery_timeout is no longer prolonged by checks: a call probes in the end."""
    scene.check.answer = OSError("the check itself is broken")
    scene.leave(10)
    scene.client.hincrby(circuit_keys(scene.prefix, "dep")[0], "tripped_at_ms", -3_600_000)
    assert scene.tick() == "open"
    assert scene.check.calls == 1
    assert scene.manager.get("dep").get_metrics().retry_after <= 10


def test_rules_about_calls_do_not_silence_a_check(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str
) -> None:
    """An exception that is ignored in a call is no good news from a check."""
    scene = Scene(redis_server, redis_client, key_prefix, counted_exceptions=(OSError,))
    scene.check.answer = ValueError("wrong")
    scene.due()
    assert scene.tick() == "open"
    assert scene.manager.get("dep").get_metrics().failed_requests == 3


def test_a_check_that_hangs_fails_at_its_deadline(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str
) -> None:
    """A check has nine tenths of a probe's lease; then it counts as a failure, and the tick did not wait for it."""
    scene = Scene(redis_server, redis_client, key_prefix, probe_lease=0.5)
    release = threading.Event()
    scene.check.answer = lambda: release.wait(30)
    scene.due()
    scene.tick()
    breaker = scene.manager.get("dep")
    eventually(lambda: breaker.get_metrics().failed_requests == 3, within=5, what="the failure at the deadline")
    assert breaker.state == "open"
    release.set()


def test_a_check_may_be_guarded_itself(
    redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str
) -> None:
    """A check that calls what the circuit guards runs on the probe's permit instead of being refused by itself."""
    scene = Scene(redis_server, redis_client, key_prefix)
    use_manager(lambda: scene.manager)
    ran = []

    @circuit_breaker("dep")
    def guarded() -> None:
        ran.append(1)

    scene.check.answer = guarded
    scene.due()
    assert scene.tick() == "closed"
    assert ran == [1]


def test_two_monitors_make_one_check(scene: Scene) -> None:
    """Of monitors that look at the same time, one gets the probe's permit."""
    blocker = threading.Event()
    scene.check.answer = lambda: blocker.wait(30)
    other = Monitor(scene.manager)
    scene.due()
    threads = [
        threading.Thread(target=monitor._checks.run, args=([scene.looked()],), kwargs={"patience": 0.2})
        for monitor in (scene.monitor, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scene.check.calls == 1
    blocker.set()
    eventually(lambda: scene.manager.get("dep").state == "closed", within=5, what="closed by the check")


def test_an_operator_is_not_overruled(scene: Scene) -> None:
    """While an operator holds a circuit, nobody checks."""
    scene.manager.get("dep").force_open()
    scene.due()
    assert scene.tick() == "open"
    assert scene.check.calls == 0


def test_a_check_may_be_named() -> None:
    """Settings name a check as they name a classifier; what is no function is refused."""
    conf = {"omni_circuits": {"dep": {"health_check": "tests.support.observed:check"}}}
    assert callable(ResilienceConfiguration.load(conf, environ={}).circuits["dep"].health_check)
    with pytest.raises(ConfigurationError, match="health_check"):
        CircuitBreakerConfig(name="dep", health_check=3)  # type: ignore[arg-type] # what a configuration file may hold


def test_who_is_due(scene: Scene) -> None:
    """
    A check comes before the open time ends if the next look would be late; a blocked account is always asked.

    A rate limit is waited out: only the provider knows how long.
    """
    _, look = scene.looked()
    reading = look.reading

    def due(**fields: object) -> bool:
        circuit = replace(reading.circuit, **fields)  # type: ignore[arg-type] # named by each case
        return is_due(replace(look, reading=replace(reading, circuit=circuit)))

    assert not due()
    assert not due(open_until_ms=reading.now_ms + 15_001)
    assert due(open_until_ms=reading.now_ms + 15_000)
    assert due(open_until_ms=1)
    assert due(reason="billing")
    assert not due(reason="timeout")
    assert not due(reason="rate_limit", open_until_ms=1)
    assert not due(state="closed")
