"""
What `omni_tasks` offers, by name.
"""

from __future__ import annotations

import inspect
import pickle
from importlib import resources

import pytest

import omni_tasks
from omni_tasks import signals

#: Taught in the README, in this order.
FIXED = {
    "init_app",
    "CircuitBreakerTask",
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitBreakerMetrics",
    "CircuitState",
    "CircuitBreakerManager",
    "get_circuit_breaker_manager",
    "circuit_breaker",
    "circuit_breaker_context",
    "CircuitOpenError",
    "signals",
    "ResilienceConfiguration",
}

#: Errors to catch, and the held tasks.
ADDED = {
    "ConfigurationError",
    "HoldExpiredError",
    "OmniTasksError",
    "ParkingError",
    "StoreError",
    "UnknownCircuitError",
    "get_history",
    "get_lot",
}

EXCEPTIONS = [
    (omni_tasks.CircuitOpenError("dep", "open", 1.5), ("circuit", "state", "retry_after")),
    (omni_tasks.ConfigurationError("PORT", -1, "above 0"), ("option", "value", "allowed")),
    (omni_tasks.HoldExpiredError("dep", 60.0), ("circuit", "held_for")),
    (omni_tasks.OmniTasksError("x"), ()),
    (omni_tasks.ParkingError("x"), ()),
    (omni_tasks.StoreError("x"), ()),
    (omni_tasks.UnknownCircuitError("dep", ("database",)), ("circuit", "known")),
]


def test_the_names_are_these() -> None:
    """
    The public names are sorted, all there, and no more than these.
    """
    assert omni_tasks.__all__ == sorted(omni_tasks.__all__)
    assert set(omni_tasks.__all__) == FIXED | ADDED
    assert all(hasattr(omni_tasks, name) for name in omni_tasks.__all__)


def test_a_star_import_takes_just_these() -> None:
    """
    Nothing that the package itself needed slips out with a star.
    """
    namespace: dict[str, object] = {}
    exec("from omni_tasks import *", namespace)  # noqa: S102 - a star import is not allowed inside a function
    assert set(namespace) - {"__builtins__"} == set(omni_tasks.__all__)


@pytest.mark.parametrize("name", sorted((FIXED | ADDED) - {"signals"}))
def test_every_name_is_documented(name: str) -> None:
    """
    Each public name says what it is.
    """
    assert (inspect.getdoc(getattr(omni_tasks, name)) or "").strip()


def test_types_are_shipped() -> None:
    """
    The package says to type checkers that it is typed.
    """
    assert (resources.files("omni_tasks") / "py.typed").is_file()


def test_scripts_are_shipped() -> None:
    """
    The Lua scripts are found as the package's resources, not by a path in a checkout.
    """
    for part in ("store", "integration", "observe"):
        folder = resources.files(f"omni_tasks.{part}") / "lua"
        assert [file for file in folder.iterdir() if file.name.endswith(".lua")]


def test_every_exception_is_in_these_tests() -> None:
    """
    A new public exception cannot be added without being tested here.
    """
    public = {getattr(omni_tasks, name) for name in omni_tasks.__all__}
    raised = {kind for kind in public if inspect.isclass(kind) and issubclass(kind, BaseException)}
    assert raised == {type(error) for error, _ in EXCEPTIONS}


@pytest.mark.parametrize(("error", "fields"), EXCEPTIONS, ids=lambda value: type(value).__name__)
def test_exceptions_survive_pickling(error: Exception, fields: tuple[str, ...]) -> None:
    """
    Every public exception comes out of a pickle with all its fields.
    """
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - pickled on the line itself
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert set(vars(copy)) == set(fields)
    assert [getattr(copy, field) for field in fields] == [getattr(error, field) for field in fields]


def test_the_states_are_on_the_wire() -> None:
    """
    The three states have these values, and are strings.
    """
    assert {state.name: str(state) for state in omni_tasks.CircuitState} == {
        "CLOSED": "closed",
        "OPEN": "open",
        "HALF_OPEN": "half_open",
    }


def test_the_signals_are_these() -> None:
    """
    Five signals to connect to.
    """
    assert set(signals.__all__) == {
        "circuit_opened",
        "circuit_half_opened",
        "circuit_closed",
        "task_held",
        "task_released",
    }
    assert signals.__all__ == sorted(signals.__all__)


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (
            omni_tasks.CircuitBreaker,
            [
                "call",
                "get_metrics",
                "reset",
                "force_open",
                "force_close",
                "add_on_open_callback",
                "add_on_close_callback",
                "add_on_half_open_callback",
                "keyed",
                "keys",
                "call_with_fallback",
            ],
        ),
        (omni_tasks.CircuitBreakerManager, ["call", "get", "get_all_metrics", "keys", "register", "reset_all"]),
    ],
)
def test_methods_that_are_promised(owner: type, names: list[str]) -> None:
    """
    What can be asked of a breaker and of a manager.
    """
    assert [name for name in names if not callable(getattr(owner, name, None))] == []


def test_the_operators_words_take_ttl_actor_and_reason() -> None:
    """
    An override may end by itself; every word of the operator may be signed and explained.
    """
    for name in ("force_open", "force_close"):
        parameters = inspect.signature(getattr(omni_tasks.CircuitBreaker, name)).parameters
        assert {"ttl", "actor", "reason"} <= parameters.keys()
    assert {"actor", "reason"} <= inspect.signature(omni_tasks.CircuitBreaker.reset).parameters.keys()


def test_a_configuration_needs_only_a_name() -> None:
    """
    The promised arguments have the promised defaults.
    """
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(omni_tasks.CircuitBreakerConfig).parameters.items()
    }
    assert defaults.pop("name") is inspect.Parameter.empty
    assert {
        "failure_threshold": 5,
        "recovery_timeout": 60.0,
        "monitor_interval": 10.0,
        "half_open_max_calls": 1,
        "success_threshold": 1,
        "probe_lease": 30.0,
    }.items() <= defaults.items()
    assert inspect.Parameter.empty not in defaults.values()
