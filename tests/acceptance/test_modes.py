"""
A circuit that only watches, and one that is off, in a real worker.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.acceptance.conftest import Stage
from tests.support.eventually import eventually

pytestmark = pytest.mark.acceptance


def test_a_shadow_circuit_decides_and_refuses_nothing(stage: Callable[..., Stage]) -> None:
    """In shadow mode the circuit opens, counts what it would have held, and every task runs."""
    play = stage(mode="shadow", recovery_timeout=30.0)
    play.worker()
    play.dependency.set(up=False)
    results = play.send("plain", 10)
    eventually(lambda: {result.state for result in results} == {"FAILURE"}, within=20, what="all ran and failed")
    metrics = play.breaker.get_metrics()
    assert metrics.state == "open"
    assert metrics.rejected_requests == 10 - metrics.failed_requests
    assert len(play.dependency.calls()) == 10
    assert play.held() == 0


def test_a_circuit_that_is_off_is_not_there(stage: Callable[..., Stage]) -> None:
    """In mode off nothing is counted and every task runs."""
    play = stage(mode="off")
    play.worker()
    play.dependency.set(up=False)
    results = play.send("plain", 10)
    eventually(lambda: {result.state for result in results} == {"FAILURE"}, within=20, what="all ran and failed")
    assert play.breaker.get_metrics().total_requests == 0
