"""
An outage, from a real worker's circuit over a real Prometheus and a real Alertmanager to a webhook.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest

from tests.support.eventually import eventually
from tests.support.panels import questions
from tests.support.rig import CIRCUIT, Rig, rig

pytestmark = pytest.mark.acceptance

# At least 20 calls, more than four of five failed: then the alert on the failure rate fires too.
WELL, FAILED, HELD = 5, 25, 10

# Seconds; long enough for a scrape each second to see every state.
OPEN, PROBE = 6.0, 3.0


@dataclass(frozen=True)
class Outage:
    """
    An outage that is over.

    Attributes:
        began: Unix time.

        ended: Unix time.

        silenced: Who told Alertmanager of the failure rate while it kept silent about it.
    """

    rig: Rig
    began: float
    ended: float
    silenced: set[str]


@pytest.fixture(scope="module")
def outage(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    """
    Let the dependency fail and come back under the worker.
    """
    with rig(tools, tmp_path_factory.mktemp("ops"), failure_threshold=FAILED, recovery_timeout=OPEN) as made:
        began = time.time()
        both = drive(made)
        yield Outage(made, began, time.time(), both)


def drive(made: Rig) -> set[str]:
    """
    Go through the outage, one step when Prometheus has seen the one before.

    Returns:
        Who told of the failure rate without being passed on.
    """
    made.dependency.set(up=True)
    made.send(WELL)
    eventually(made.done, within=20, what="tasks")
    made.dependency.set(up=False)
    made.send(FAILED)
    eventually(lambda: made.state() == 1, within=20, what="circuit open")
    # From now on the only call is the probe.
    made.dependency.set(up=True, delay=PROBE)
    made.send(HELD)
    eventually(lambda: made.tower.notices("CircuitOpenTooLong", "firing"), within=30, what="alert")
    both = eventually(lambda: silenced(made) if len(silenced(made)) > 1 else set(), within=20, what="two silenced")
    eventually(lambda: made.state() == 2, within=30, what="circuit half open")
    made.dependency.set(up=True)
    eventually(lambda: made.state() == 0, within=30, what="circuit closed")
    eventually(lambda: made.tower.notices("CircuitOpenTooLong", "resolved"), within=30, what="end of the alert")
    eventually(made.done, within=60, what="held tasks")
    # The last call is in the second scrape from now at the latest.
    time.sleep(2)
    return both


def silenced(made: Rig) -> set[str]:
    """
    Give those who tell of the failure rate while a worse alert silences it.
    """
    alerts = [each for each in made.tower.alerts() if each["labels"]["alertname"] == "CircuitFailureRateHigh"]
    return {
        "monitor" if "source" in each["labels"] else "Prometheus" for each in alerts if each["status"]["inhibitedBy"]
    }


def test_prometheus_counts_what_the_dependency_counted(outage: Outage) -> None:
    """
    Requests and failures in Prometheus are the calls in the dependency's own ledger, exactly.
    """
    calls = [call.ok for call in outage.rig.dependency.calls()]
    tower = outage.rig.tower
    assert len(calls) == WELL + FAILED + HELD
    assert tower.value(f'circuit_breaker_requests_total{{component="{CIRCUIT}"}}') == len(calls)
    assert tower.value(f'circuit_breaker_failures_total{{component="{CIRCUIT}"}}') == calls.count(False) == FAILED


def test_prometheus_sees_every_state(outage: Outage) -> None:
    """
    The scraped state goes closed, open, half open, closed.
    """
    [series] = outage.rig.tower.ask(f'circuit_breaker_state{{component="{CIRCUIT}"}}[10m]')
    assert [state for state, _ in groupby(int(value) for _, value in series["values"])] == [0, 1, 2, 0]


def test_the_alert_reaches_the_webhook_and_is_resolved(outage: Outage) -> None:
    """
    One alert fires to the receiver for critical ones, names circuit and runbook, and is resolved; no other is critical.
    """
    [*firing, resolved] = outage.rig.tower.notices("CircuitOpenTooLong")
    assert {notice.status for notice in firing} == {"firing"}
    assert resolved.status == "resolved"
    assert resolved.labels["component"] == CIRCUIT
    assert resolved.annotations["runbook_url"] == "ops/runbook.md#circuitopentoolong"
    assert {notice.name for notice in outage.rig.tower.notices() if notice.receiver == "page"} == {"CircuitOpenTooLong"}


def test_the_lesser_alert_is_silenced_whoever_tells_it(outage: Outage) -> None:
    """
    Prometheus and the built-in monitor both tell of the failure rate; neither is passed on beside the worse news.
    """
    assert outage.silenced == {"monitor", "Prometheus"}


def test_every_panel_shows_something(outage: Outage) -> None:
    """
    Every expression of every dashboard has had series during the outage.
    """
    asked = questions(component=CIRCUIT, __rate_interval="10s")
    empty = [each for each in asked if not outage.rig.tower.over(each.expression, outage.began, outage.ended)]
    assert empty == []


def test_a_frozen_store_is_told_and_never_read_as_closed(outage: Outage) -> None:
    """
    While the store is frozen the circuits' series are absent, one alert says why, and it is resolved afterwards.
    """
    tower, server = outage.rig.tower, outage.rig.server
    server.pause()
    try:
        eventually(lambda: tower.notices("CircuitStoreDegraded", "firing"), within=20, what="alert")
        assert outage.rig.state() is None
    finally:
        server.resume()
    eventually(lambda: tower.notices("CircuitStoreDegraded", "resolved"), within=20, what="end of the alert")
    assert outage.rig.state() == 0
