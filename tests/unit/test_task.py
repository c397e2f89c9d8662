"""
Tasks called directly or eagerly, where nobody can hold them: circuits per key, fallbacks, retries of their own.
"""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from omni_tasks import CircuitBreaker, CircuitBreakerTask, CircuitOpenError, init_app
from omni_tasks.integration.install import integration_of
from tests.support.log import events


class DownError(Exception):
    """
    The dependency is down.
    """


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Celery:
    """
    An application without a server, whose circuit ``dep`` opens with the second failure.
    """
    for variable in ("OMNI_REDIS_URL", "DEFAULT_MAX_RETRIES", "ENABLE_RESILIENCE"):
        monkeypatch.delenv(variable, raising=False)
    app = Celery("tasks", broker="memory://", backend="cache+memory://", set_as_current=False)
    init_app(app, circuits={"dep": {"failure_threshold": 2}})
    return app


def _breaker(app: Celery, key: str = "dep") -> CircuitBreaker:
    return integration_of(app).manager.get(key)


def _task(app: Celery, **options: Any) -> Any:
    @app.task(base=CircuitBreakerTask, shared=False, **{"circuit": "dep", **options})
    def fetch(model: str, fail: bool = False) -> str:  # noqa: FBT001, FBT002 - an argument of a task
        if fail:
            raise DownError
        return model

    return fetch


# Circuits per key


def test_a_tasks_arguments_choose_its_circuit(app: Celery) -> None:
    """
    Directly called or applied, by position or by name: the function gets what the task gets, without self.
    """
    fetch = _task(app, circuit_key=lambda model, **_: model)
    for _ in range(2):
        with pytest.raises(DownError):
            fetch("a", fail=True)
    assert fetch.apply(args=["b"]).get() == "b"
    assert fetch.apply(kwargs={"model": "b"}).get() == "b"
    with pytest.raises(CircuitOpenError, match="'dep:a' is open"):
        fetch("a")
    assert _breaker(app, "dep:b").get_metrics().successful_requests == 2
    assert _breaker(app).get_metrics().total_requests == 0


@pytest.mark.parametrize("how", ["a function", "a static method", "text"])
def test_a_class_may_say_the_key(how: str, app: Celery) -> None:
    """
    In a class, too, it is a function of the task's arguments alone.
    """
    keys: dict[str, Any] = {
        "a function": lambda model: model,
        "a static method": staticmethod(lambda model: model),
        "text": "a",
    }

    class Fetch(CircuitBreakerTask):
        circuit = "dep"
        circuit_key = keys[how]
        name = "fetch"

        def run(self, model: str) -> str:
            return model

    class Again(Fetch):
        name = "again"

        def run(self, model: str) -> str:
            return super().run(f"not {model}")

    task = app.register_task(Again())
    assert task("a") == "not a"
    assert _breaker(app).keys() == ("a",)
    assert _breaker(app, "dep:a").get_metrics().total_requests == 1


def test_a_key_function_that_raises_costs_the_task_nothing(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    """
    The task runs under the circuit itself; the log says so once.
    """
    fetch = _task(app, circuit_key=lambda model: {}[model], name="broken")
    assert [fetch("a"), fetch("b")] == ["a", "b"]
    assert _breaker(app).get_metrics().successful_requests == 2
    [said] = events(caplog, "circuit_key_unusable")
    assert (said["component"], said["where"]) == ("dep", "task broken")


def test_a_task_may_name_a_keys_circuit(app: Celery) -> None:
    """
    ``circuit="dep:a"`` is a fixed key.
    """
    assert _task(app, circuit="dep:a")("b") == "b"
    assert _breaker(app).keys() == ("a",)


# Fallbacks


def _remember(*args: Any, reason: BaseException, **kwargs: Any) -> tuple[Any, ...]:
    return type(reason), args, kwargs


def test_a_refused_task_answers_with_its_fallback(app: Celery) -> None:
    """
    A value, or a function of the task's arguments that is told why.
    """
    told, value = _task(app, circuit_fallback=_remember), _task(app, circuit_fallback="cached", name="value")
    assert told("a") == "a"
    with pytest.raises(DownError):
        told("a", fail=True)
    _breaker(app).force_open()
    assert told("a", fail=True) == (CircuitOpenError, ("a",), {"fail": True})
    assert value.apply(args=["a"]).get() == "cached"


def test_a_failed_task_answers_when_told_so(app: Celery) -> None:
    """
    With ``circuit_fallback_on="failed"`` its failures are answered as well, and count.
    """
    fetch = _task(app, circuit_fallback=_remember, circuit_fallback_on="failed", autoretry_for=(DownError,))
    assert fetch("a", fail=True) == (DownError, ("a",), {"fail": True})
    assert fetch.apply(args=["a", True]).get() == (DownError, ("a", True), {})
    assert fetch("a")[0] is CircuitOpenError
    assert _breaker(app).get_metrics().failed_requests == 2


# Retries


def test_retries_by_default(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A protected task that names none has DEFAULT_MAX_RETRIES; a plain task and one that names its own have theirs.
    """
    protected, plain, own = _task(app), _task(app, circuit=None, name="plain"), _task(app, max_retries=7, name="own")
    unlimited = _task(app, max_retries=None, name="unlimited")
    assert [task.max_retries for task in (protected, plain, own, unlimited)] == [3, 3, 7, None]
    monkeypatch.setenv("DEFAULT_MAX_RETRIES", "5")
    init_app(app, mover_interval=1.0)
    assert [task.max_retries for task in (protected, plain, own, unlimited)] == [5, 3, 7, None]
    protected.max_retries = 1
    assert protected.max_retries == 1


@pytest.mark.parametrize(("retries", "runs"), [(0, 1), (2, 3)])
def test_retries_by_default_are_made(retries: int, runs: int, app: Celery) -> None:
    """
    So often an attempt is repeated, not more.
    """
    init_app(app, default_max_retries=retries, circuits={"dep": {}})
    ran: list[int] = []

    @app.task(base=CircuitBreakerTask, circuit="dep", bind=True, shared=False)
    def fetch(self: Any) -> None:
        ran.append(1)
        raise self.retry(exc=DownError(), countdown=0)

    assert isinstance(fetch.apply().result, DownError)
    assert len(ran) == runs


# Resilience switched off


def test_switched_off_a_task_is_plain(app: Celery) -> None:
    """
    With ENABLE_RESILIENCE=false no key is computed, nothing is refused, and no fallback answers.
    """
    init_app(app, enable_resilience=False)
    asked: list[Any] = []
    fetch = _task(app, circuit_key=asked.append, circuit_fallback=1, circuit_fallback_on="failed")
    _breaker(app).force_open()
    assert fetch("a") == "a"
    with pytest.raises(DownError):
        fetch("a", fail=True)
    assert asked == []
    assert _breaker(app).get_metrics().total_requests == 0
