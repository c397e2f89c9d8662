"""
docs/observability.md says what the code exports, tells and logs.
"""

from __future__ import annotations

import re

from prometheus_client.core import Metric

from omni_tasks import events
from omni_tasks.observe.history import MINUTES, QUARTERS
from omni_tasks.observe.metrics import CircuitCollector
from omni_tasks.observe.notification import Episode, Notification
from omni_tasks.observe.rules import RULES
from omni_tasks.observe.state import Status
from tests.support.observed import Held, make_manager
from tests.test_docs import DOCS, table

PAGE = DOCS / "observability.md"


class _Everything(CircuitCollector):
    """
    A collector that finds something to say about everything.
    """

    def collect(self) -> list[Metric]:  # type: ignore[override] # a list is as good
        """
        Add what the monitor has left in a shared store.
        """
        note = Notification.firing("flapping", "dep", severity="warning", summary="", details={}, now_ms=1)
        status = Status(
            now_ms=2,
            last_tick_ms=1,
            episodes={note.field: Episode.begun_by(note, told=True)},
            deliveries={"log:delivered": 1},
        )
        return [*super().collect(), *self._monitor(status)]


def _exported() -> dict[str, tuple[str, set[str]]]:
    manager = make_manager(None, "doc")
    manager.call("dep", int)
    collector = _Everything(manager, Held())
    found = {}
    for family in collector.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels: set[str] = set()
        for sample in family.samples:
            labels |= set(sample.labels)
        found[name] = (family.type, labels - {"le"})
    return found


def test_every_metric_is_in_the_table() -> None:
    """Names, types and labels of the table are those of the collector."""
    rows = table(PAGE, "Metric", "Type", "Labels", "Unit, range", "Needs", "Meaning")
    said = {row["Metric"]: (row["Type"], set(re.findall(r"\w+", row["Labels"]))) for row in rows}
    exported = _exported()
    # Nothing has failed yet, so there is no moment of it.
    exported["circuit_breaker_last_failure_timestamp_seconds"] = ("gauge", {"component"})
    assert said == exported


def test_every_metric_says_what_it_is() -> None:
    """Each has a HELP, of one sentence."""
    for family in _Everything(make_manager(None, "doc")).collect():
        assert re.fullmatch(r"[^\n]+\.", family.documentation), family.name


def test_every_alert_is_in_the_table() -> None:
    """Names and severities of the table are those of the rules."""
    rows = table(PAGE, "Alert", "In Alertmanager", "Severity", "Goes on while")
    assert {row["Alert"]: (row["In Alertmanager"], row["Severity"]) for row in rows} == {
        name: (rule.alertname, rule.severity) for name, rule in RULES.items()
    }


def test_every_event_is_in_the_table() -> None:
    """Events of the table are those of the module that writes them."""
    said = {row["Event"] for row in table(PAGE, "Event", "When")}
    assert said == set(re.findall(r"^``(\w+)``", str(events.__doc__), re.MULTILINE))


def test_the_history_reaches_as_far_as_it_says() -> None:
    """Six hours of minutes, seven days of quarters of an hour."""
    assert MINUTES == 6 * 60
    assert QUARTERS == 7 * 24 * 4
