"""
Every exception a caller can catch: its place in the tree, its message, and how it crosses a process border.
"""

from __future__ import annotations

import pickle

import celery
import pytest
from celery.backends.base import Backend

from omni_tasks import errors
from omni_tasks.core.outcome import IGNORED, judge
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.embedded import EmbeddedServerError
from omni_tasks.errors import (
    CircuitOpenError,
    ConfigurationError,
    HoldExpiredError,
    OmniTasksError,
    ParkingError,
    StoreError,
    StoreReplyError,
    UnknownCircuitError,
)

#: One of each, with its message.
EXAMPLES: list[tuple[OmniTasksError, str]] = [
    (OmniTasksError("anything"), "anything"),
    (CircuitOpenError("dep", "open", 12.3456), "circuit 'dep' is open; try again in 12.3 s"),
    (CircuitOpenError("dep", "half_open", 0.001), "circuit 'dep' is half_open; try again in 0.001 s"),
    (ConfigurationError("PORT", -1, "above 0"), "PORT must be above 0, got -1"),
    (
        UnknownCircuitError("dap", ("dep", "cache")),
        "no circuit 'dap' is configured (configured: cache, dep); add it to omni_circuits",
    ),
    (
        UnknownCircuitError("dap", ()),
        "no circuit 'dap' is configured (configured: none); add it to omni_circuits",
    ),
    (StoreError("acquire 'dep': TimeoutError"), "acquire 'dep': TimeoutError"),
    (StoreReplyError("acquire 'dep': expected a list, got int"), "acquire 'dep': expected a list, got int"),
    (
        HoldExpiredError("dep", 604800.4),
        "held for circuit 'dep' for 604800 s, which is as long as it may be",
    ),
    (ParkingError("the lot is away"), "the lot is away"),
    (EmbeddedServerError("no server program"), "no server program"),
]

ERRORS = [error for error, _ in EXAMPLES]


def _ids(value: object) -> str | None:
    return type(value).__name__ + str(len(str(value))) if isinstance(value, OmniTasksError) else None


def test_every_error_is_in_these_tests() -> None:
    """
    A new error class cannot be added without being tested here.
    """
    assert {type(error).__name__ for error in ERRORS} == {*errors.__all__, "EmbeddedServerError"}
    assert errors.__all__ == sorted(errors.__all__)


@pytest.mark.parametrize(("error", "message"), EXAMPLES, ids=_ids)
def test_messages(error: OmniTasksError, message: str) -> None:
    """
    A message names what was wrong and what would be right, on one line.
    """
    assert str(error) == message


@pytest.mark.parametrize("error", ERRORS, ids=_ids)
def test_pickling_keeps_every_field(error: OmniTasksError) -> None:
    """
    An error crosses a process border whole, with every protocol of pickle.
    """
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        copy = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - pickled on the line itself
        assert type(copy) is type(error)
        assert (copy.args, vars(copy), str(copy)) == (error.args, vars(error), str(error))


def test_a_json_result_backend_keeps_a_refusal() -> None:
    """
    A refusal comes back from Celery's JSON results with its circuit, its state and its wait.
    """
    error = CircuitOpenError("dep", "open", 12.5)
    with celery.Celery(set_as_current=False) as app:
        backend = Backend(app=app, serializer="json")
        copy = backend.exception_to_python(backend.decode(backend.encode(backend.prepare_exception(error))))
    assert type(copy) is CircuitOpenError
    assert vars(copy) == {"circuit": "dep", "state": "open", "retry_after": 12.5}


@pytest.mark.parametrize("error", ERRORS, ids=_ids)
def test_one_root_catches_all(error: OmniTasksError) -> None:
    """
    Everything this package raises on purpose derives from one class.
    """
    assert isinstance(error, OmniTasksError)


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (ConfigurationError, ValueError),
        (UnknownCircuitError, LookupError),
        (StoreReplyError, StoreError),
        (EmbeddedServerError, RuntimeError),
    ],
)
def test_errors_are_also_what_python_calls_them(kind: type[Exception], base: type[Exception]) -> None:
    """
    A wrong value is a ValueError, a missing name a LookupError, an odd reply a store's error.
    """
    assert issubclass(kind, base)


def test_a_refusal_says_nothing_about_another_dependency() -> None:
    """
    A call that was refused by one circuit is neutral evidence in another.
    """
    assert judge(CircuitBreakerConfig(name="dep"), CircuitOpenError("dep", "open", 1.0)) == IGNORED
