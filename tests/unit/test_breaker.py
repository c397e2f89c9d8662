"""
A breaker in one process: calls, nested calls, the operator's words, and who is told.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import replace
from datetime import UTC, datetime
from signal import alarm
from typing import Any

import pytest

from omni_tasks import CircuitBreaker, CircuitBreakerConfig, CircuitOpenError, CircuitState, signals
from omni_tasks.store.memory import MemoryStore
from tests.support.clock import Clock
from tests.support.log import events

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN
CONFIG = CircuitBreakerConfig(name="dep_cb", failure_threshold=2, recovery_timeout=30.0)


class DownError(Exception):
    """
    The dependency is down.
    """


class WrongError(Exception):
    """
    The dependency works; the request was wrong.
    """

    circuit_outcome = "ignored"


@pytest.fixture
def clock() -> Clock:
    """
    The store's clock.
    """
    return Clock()


@pytest.fixture
def breaker(clock: Clock, caplog: pytest.LogCaptureFixture) -> CircuitBreaker:
    """
    A breaker that two failures open for 30 s; everything it logs is kept.
    """
    caplog.set_level(logging.DEBUG, "omni_tasks")
    return CircuitBreaker(CONFIG, store=MemoryStore(clock), key="dep")


def _raise(error: BaseException) -> None:
    raise error


def _fail(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(DownError):
            breaker.call(_raise, DownError("down"))


def _seen(breaker: CircuitBreaker) -> tuple[int, int, int]:
    """
    Successes, failures, and all that ran.
    """
    metrics = breaker.get_metrics()
    return metrics.successful_requests, metrics.failed_requests, metrics.total_requests


# Calls


def test_a_call_returns_its_own_result(breaker: CircuitBreaker) -> None:
    """
    Arguments are passed through, whatever their names, and the result comes back.
    """

    def echo(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return args, kwargs

    result = breaker.call(echo, 1, fn=2, self=3, name=4)
    assert result == ((1,), {"fn": 2, "self": 3, "name": 4})
    assert _seen(breaker) == (1, 0, 1)


def test_a_call_raises_its_own_error_also_when_it_trips(breaker: CircuitBreaker) -> None:
    """
    The caller of a failed call gets the very exception, also from the call that opens the circuit.
    """
    for state in (CLOSED, OPEN):
        error = DownError("down")
        with pytest.raises(DownError) as caught:
            breaker.call(_raise, error)
        assert caught.value is error
        assert breaker.state is state


def test_a_classify_that_raises_changes_no_call(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """
    The call has its own result or error, the other rules count it, its permit is back, and the log tells.
    """

    def classify(_error: BaseException | None, _result: object) -> str:
        raise LookupError("not in the table")

    breaker = CircuitBreaker(replace(CONFIG, classify=classify), store=MemoryStore(clock), key="dep")
    assert breaker.call(int) == 0
    _fail(breaker)
    assert _seen(breaker) == (1, 1, 2)
    assert breaker.get_metrics().outstanding_requests == 0
    lines = events(caplog, "circuit_classify_failed")
    assert [line["reason"] for line in lines] == ["LookupError: not in the table"] * 2


def test_a_refusal_means_that_nothing_ran(breaker: CircuitBreaker, clock: Clock) -> None:
    """
    A refused function is not called; the error names circuit, state and wait.
    """
    _fail(breaker, 2)
    clock.advance(10_000)
    ran: list[int] = []
    with pytest.raises(CircuitOpenError) as caught:
        breaker.call(ran.append, 1)
    assert (caught.value.circuit, caught.value.state, caught.value.retry_after) == ("dep_cb", "open", 20.0)
    assert ran == []
    assert breaker.get_metrics().rejected_requests == 1


def test_an_exception_may_be_neutral(breaker: CircuitBreaker) -> None:
    """
    An exception with ``circuit_outcome = "ignored"`` reaches its caller and counts neither way.
    """
    _fail(breaker)
    with pytest.raises(WrongError):
        breaker.call(_raise, WrongError())
    assert _seen(breaker) == (0, 1, 2)
    assert breaker.get_metrics().consecutive_failures == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupted_call_is_neutral(kind: type[BaseException], breaker: CircuitBreaker) -> None:
    """
    Whoever ends the process says nothing about the dependency; the permit is given back.
    """
    with pytest.raises(kind):
        breaker.call(_raise, kind())
    assert _seen(breaker) == (0, 0, 1)
    assert breaker.get_metrics().outstanding_requests == 0


def test_a_block_is_a_call(breaker: CircuitBreaker) -> None:
    """
    ``with breaker:`` runs its block on a permit and yields the breaker.
    """
    with breaker as inside:
        assert inside is breaker
        assert breaker.get_metrics().outstanding_requests == 1
    with pytest.raises(DownError), breaker:
        raise DownError
    assert _seen(breaker) == (1, 1, 2)


# Calls within calls


def test_a_call_within_a_call_of_the_same_circuit_is_one_call(breaker: CircuitBreaker, clock: Clock) -> None:
    """
    The inner call runs on the outer's permit: a probe does not refuse itself, and its success counts once.
    """
    _fail(breaker, 2)
    clock.advance(30_000)
    assert breaker.call(lambda: breaker.call(lambda: breaker.call(int, "7"))) == 7
    assert breaker.state is CLOSED
    assert _seen(breaker) == (1, 2, 3)


def test_an_inner_failure_that_is_caught_is_no_failure(breaker: CircuitBreaker) -> None:
    """
    The outermost call reports for all: what it survives is a success.
    """
    with breaker:
        _fail(breaker, 5)
    assert _seen(breaker) == (1, 0, 1)


def test_permits_are_asked_for_again_after_the_outer_call(breaker: CircuitBreaker) -> None:
    """
    A call that follows a nested one has a permit of its own.
    """
    breaker.call(breaker.call, int)
    with breaker.holding():
        breaker.call(int)
    breaker.call(int)
    assert _seen(breaker) == (2, 0, 2)


def test_another_circuits_refusal_is_neutral(breaker: CircuitBreaker, clock: Clock) -> None:
    """
    An outer call that fails because an inner circuit refuses does not count against its own dependency.
    """
    inner = CircuitBreaker(CircuitBreakerConfig(name="inner", failure_threshold=1), store=MemoryStore(clock))
    _fail(inner)
    for _ in range(5):
        with pytest.raises(CircuitOpenError, match="'inner'"):
            breaker.call(inner.call, int)
    assert breaker.state is CLOSED
    assert _seen(breaker) == (0, 0, 5)


# The operator's words


def test_force_open_and_close(breaker: CircuitBreaker) -> None:
    """
    The operator's word decides about the next call, until it is taken back.
    """
    breaker.force_open()
    with pytest.raises(CircuitOpenError):
        breaker.call(int)
    breaker.force_close()
    _fail(breaker, 5)
    assert breaker.call(int) == 0
    breaker.release_force()
    with pytest.raises(CircuitOpenError):
        breaker.call(int)


def test_a_word_may_end_by_itself(breaker: CircuitBreaker, clock: Clock) -> None:
    """
    *ttl* is in seconds.
    """
    breaker.force_open(ttl=2.5)
    assert breaker.get_metrics().retry_after == 2.5
    clock.advance(2_500)
    assert breaker.call(int) == 0


def test_a_word_for_less_than_a_millisecond_ends(breaker: CircuitBreaker, clock: Clock) -> None:
    """
    However short, it is not taken for one without an end.
    """
    breaker.force_open(ttl=0.0004)
    clock.advance(1)
    assert breaker.call(int) == 0


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), 1e9])
def test_a_wrong_ttl_is_refused(ttl: float, breaker: CircuitBreaker) -> None:
    """
    A time to live is above 0 s and at most 30 days; a wrong one changes nothing.
    """
    for force in (breaker.force_open, breaker.force_close):
        with pytest.raises(ValueError, match=r"ttl must be .* s, or None, got "):
            force(ttl=ttl)
    assert breaker.state is CLOSED


def test_reset_starts_anew(breaker: CircuitBreaker) -> None:
    """
    A reset closes the circuit and clears its counts.
    """
    _fail(breaker, 2)
    breaker.reset()
    assert breaker.state is CLOSED
    assert _seen(breaker) == (0, 0, 0)


@pytest.mark.parametrize("word", ["force_open", "force_close", "release_force", "reset"])
def test_every_word_leaves_one_record(word: str, breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture) -> None:
    """
    Who said it and why is logged once, whether or not the state changed.
    """
    getattr(breaker, word)(actor="ada", reason="drill")
    signed = [event for event in events(caplog) if event.get("actor") == "ada"]
    assert [(event["component"], event["reason"]) for event in signed] == [("dep", "drill")]


# Who is told


def _cycle(breaker: CircuitBreaker, clock: Clock) -> None:
    """
    Trip, fail a probe, pass a probe.
    """
    _fail(breaker, 2)
    clock.advance(30_000)
    _fail(breaker)
    clock.advance(30_000)
    breaker.call(int)


def test_transitions_are_logged_once_with_the_promised_fields(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """
    Each change is one JSON line with component, previous state, failures, threshold and a time in UTC.
    """
    caplog.set_level(logging.DEBUG, "omni_tasks")
    breaker = CircuitBreaker(CONFIG, store=MemoryStore(clock), key="dep")
    _cycle(breaker, clock)
    breaker.reset()
    lines = events(caplog)
    assert [(line["event"], line.get("previous_state"), line.get("failure_count")) for line in lines] == [
        ("circuit_breaker_init", None, None),
        ("circuit_breaker_open", "closed", 2),
        ("circuit_breaker_half_open", "open", 2),
        ("circuit_breaker_open", "half_open", 3),
        ("circuit_breaker_half_open", "open", 3),
        ("circuit_breaker_closed", "half_open", 0),
        ("circuit_breaker_reset", None, None),
    ]
    for line in lines:
        assert line["component"] == "dep"
        moment = datetime.fromisoformat(line["timestamp"])
        assert moment.tzinfo == UTC
        assert abs((datetime.now(UTC) - moment).total_seconds()) < 60
    assert {line["failure_threshold"] for line in lines[:-1]} == {2}


def test_only_who_caused_a_transition_tells(
    breaker: CircuitBreaker, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Of two breakers on one store, each reports its own doing and neither the other's.
    """
    other = CircuitBreaker(CONFIG, store=breaker._store, key="other")
    _fail(breaker)
    _fail(other)
    clock.advance(30_000)
    breaker.call(int)
    told = [(line["event"], line["component"]) for line in events(caplog)]
    assert told[1:] == [
        ("circuit_breaker_open", "other"),
        ("circuit_breaker_half_open", "dep"),
        ("circuit_breaker_closed", "dep"),
    ]


def test_logging_can_be_switched_off(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """
    A breaker without logging is silent, and still calls back.
    """
    caplog.set_level(logging.DEBUG, "omni_tasks")
    breaker = CircuitBreaker(CONFIG, store=MemoryStore(clock), logging=False)
    called: list[CircuitBreaker] = []
    breaker.add_on_open_callback(called.append)
    _cycle(breaker, clock)
    breaker.force_open()
    breaker.reset()
    assert events(caplog) == []
    assert called == [breaker] * 3


def test_callbacks_get_the_breaker(breaker: CircuitBreaker, clock: Clock) -> None:
    """
    Each state has its callbacks; they are called with the breaker, in the order they were added.
    """
    told: list[tuple[str, str]] = []
    breaker.add_on_open_callback(lambda cb: told.append(("open", cb.config.name)))
    breaker.add_on_open_callback(lambda cb: told.append(("open, second", cb.config.name)))
    breaker.add_on_half_open_callback(lambda cb: told.append(("half open", cb.config.name)))
    breaker.add_on_close_callback(lambda cb: told.append(("closed", cb.config.name)))
    _cycle(breaker, clock)
    assert [what for what, _ in told] == [
        *("open", "open, second", "half open"),
        *("open", "open, second", "half open", "closed"),
    ]
    assert {name for _, name in told} == {"dep_cb"}


def test_a_callback_that_raises_changes_nothing(breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture) -> None:
    """
    Its exception is logged; the caller gets its own error and the other callbacks are called.
    """
    called: list[CircuitBreaker] = []
    breaker.add_on_open_callback(lambda _: 1 // 0)
    breaker.add_on_open_callback(called.append)
    _fail(breaker, 2)
    assert called == [breaker]
    [line] = events(caplog, "circuit_breaker_callback_failed")
    assert "ZeroDivisionError" in line["exception"]


def test_a_callback_may_use_the_breaker(breaker: CircuitBreaker) -> None:
    """
    No lock is held while a callback runs: it may read, add callbacks, and speak as the operator.
    """
    seen: list[CircuitState] = []

    def close_again(cb: CircuitBreaker) -> None:
        seen.append(cb.state)
        cb.add_on_open_callback(close_again)
        cb.reset()

    breaker.add_on_open_callback(close_again)
    _fail(breaker, 2)
    assert seen == [OPEN]
    assert breaker.state is CLOSED


def test_signals_are_sent_once_per_transition(breaker: CircuitBreaker, clock: Clock) -> None:
    """
    Receivers get the circuit's key as the sender, the breaker and the transition; one that raises changes nothing.
    """
    told: list[tuple[Any, ...]] = []

    def receive(sender: str, breaker: CircuitBreaker, transition: Any, **_kwargs: Any) -> None:
        told.append((sender, breaker.key, transition.previous, transition.current))
        raise DownError("receiver")

    for signal in (signals.circuit_opened, signals.circuit_half_opened, signals.circuit_closed):
        signal.connect(receive, sender="dep")
    _fail(breaker, 2)
    clock.advance(30_000)
    assert breaker.call(int) == 0
    assert told == [
        ("dep", "dep", CLOSED, OPEN),
        ("dep", "dep", OPEN, HALF_OPEN),
        ("dep", "dep", HALF_OPEN, CLOSED),
    ]


def test_a_draw_tells_too(breaker: CircuitBreaker, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """
    Whoever asks for held tasks and finds the operator's word ended announces what that changed.
    """
    breaker.force_open(ttl=1.0)
    clock.advance(1_000)
    assert breaker.draw(5).count == 1
    assert [line["previous_state"] for line in events(caplog, "circuit_breaker_closed")] == ["open"]


def test_a_fork_in_the_middle_of_a_decision() -> None:
    """
    A child goes on, although the thread that was deciding, with the lock, is in its parent.
    """
    deciding, may_go_on, parent = threading.Event(), threading.Event(), os.getpid()

    def now_ms() -> int:
        deciding.set()
        if os.getpid() == parent:
            may_go_on.wait(30)
        return 1_000_000

    breaker = CircuitBreaker(CONFIG, store=MemoryStore(now_ms))
    thread = threading.Thread(target=breaker.call, args=(int,))
    thread.start()
    assert deciding.wait(30)
    child = os.fork()
    if child == 0:
        alarm(10)
        os._exit(breaker.call(int))
    may_go_on.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_a_breaker_without_a_key_goes_by_its_name(clock: Clock) -> None:
    """
    The key defaults to the configuration's name, and ``repr()`` costs no question to the store.
    """
    breaker = CircuitBreaker(CONFIG, store=MemoryStore(clock))
    assert breaker.key == "dep_cb"
    assert repr(breaker) == "CircuitBreaker('dep_cb')"
