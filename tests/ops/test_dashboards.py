"""
The dashboards' files, and the metrics that ops/ names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import promql_parser
import pytest
import yaml
from celery import Celery
from grafana_foundation_sdk.models.dashboard import Dashboard

from omni_tasks import get_lot, init_app
from omni_tasks.embedded import EmbeddedServer
from omni_tasks.integration.install import integration_of
from omni_tasks.observe.metrics import CircuitCollector
from omni_tasks.observe.monitor import Monitor
from ops.grafana.dashboards import DASHBOARDS, FOLDER, encode
from tests.support.panels import questions
from tests.support.watchtower import OPS

#: Made by Prometheus itself.
OWN = {"ALERTS", "up"}

#: What a counter or a histogram is called in an expression, by the name of its family.
SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_what_its_script_makes(name: str) -> None:
    """
    The committed file is the script's output, and Grafana's own model of it says the same.
    """
    text = (FOLDER / name).read_text()
    assert text == encode(DASHBOARDS[name]()), "write it anew: python ops/grafana/dashboards.py"
    assert encode(Dashboard.from_json(json.loads(text))) == text


def test_no_dashboard_is_without_a_script() -> None:
    """
    Every committed dashboard is made by the script.
    """
    assert {path.name for path in FOLDER.iterdir()} == DASHBOARDS.keys()


def rules() -> Iterator[dict[str, str]]:
    """
    Read every rule of Prometheus.
    """
    for path in OPS.glob("prometheus/rules/*.rules.yml"):
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def names(expression: str) -> set[str]:
    """
    Find the metrics that an expression names.
    """
    found: set[str] = set()

    def visit(part: promql_parser.Expr) -> None:
        if isinstance(part, promql_parser.VectorSelector) and part.name:
            found.add(part.name)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def exported(url: str, prefix: str) -> set[str]:
    """
    Ask the collector for the names of all that it exports.
    """
    with Celery("shown", broker=url, set_as_current=False) as app:
        init_app(app, key_prefix=prefix)
        manager = integration_of(app).manager
        # Some begin with the monitor's first tick.
        Monitor(manager).tick()
        families = list(CircuitCollector(manager, get_lot(app)).collect())
    return {family.name + suffix for family in families for suffix in SUFFIXES[family.type]}


def asked() -> list[tuple[str, str]]:
    """
    List every expression of ops/ with where it stands.
    """
    panels = [
        (f"{each.board}, {each.panel}", each.expression) for each in questions(component="x", __rate_interval="1m")
    ]
    return [*panels, *((rule.get("alert") or rule["record"], rule["expr"]) for rule in rules())]


def test_every_metric_named_exists(redis_server: EmbeddedServer, key_prefix: str) -> None:
    """
    What dashboards and rules read is exported by the collector, recorded by a rule, or Prometheus' own.
    """
    known = exported(redis_server.url, key_prefix) | OWN | {rule["record"] for rule in rules() if "record" in rule}
    unknown = [(where, name) for where, expression in asked() for name in names(expression) if name not in known]
    assert unknown == []
