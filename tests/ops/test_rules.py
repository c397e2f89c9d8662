"""
Prometheus' rules and Alertmanager's routes, as their own programs judge them, and the runbook.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from omni_tasks.observe.rules import RULES
from tests.support.watchtower import OPS

ALERTS = OPS / "prometheus" / "rules" / "alerts.rules.yml"
CASES = OPS / "prometheus" / "tests" / "alerts.test.yml"


def run(program: Path, *arguments: str | Path) -> str:
    """
    Run a program in ops/; its output, where it is content.
    """
    done = subprocess.run([program, *arguments], cwd=OPS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts() -> dict[str, dict[str, Any]]:
    """
    Read the alerting rules, by name.
    """
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_prometheus_takes_its_configuration(tools: Path) -> None:
    """
    The configuration and every rule pass promtool with all its lints.
    """
    run(tools / "promtool", "check", "config", "--lint=all", "--lint-fatal", "prometheus/prometheus.yml")
    run(tools / "promtool", "check", "rules", "--lint=all", "--lint-fatal", *OPS.glob("prometheus/rules/*.rules.yml"))


@pytest.mark.parametrize("cases", sorted(OPS.glob("prometheus/tests/*.test.yml")), ids=lambda path: path.name)
def test_rules_do_what_their_cases_say(tools: Path, cases: Path) -> None:
    """
    Promtool's unit tests of the rules pass.
    """
    run(tools / "promtool", "test", "rules", cases)


def test_every_alert_has_a_firing_and_a_silent_case() -> None:
    """
    An alert that never fires, or always does, would be noticed.
    """
    asked = [case for each in yaml.safe_load(CASES.read_text())["tests"] for case in each["alert_rule_test"]]
    assert {case["alertname"] for case in asked if case.get("exp_alerts")} == alerts().keys()
    assert {case["alertname"] for case in asked if not case.get("exp_alerts")} == alerts().keys()


def test_every_alert_has_its_heading_in_the_runbook() -> None:
    """
    The runbook's headings are the alerts, each alert leads to its own, and names its severity and what happened.
    """
    headings = re.findall(r"^## (.+)$", (OPS / "runbook.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(alerts())
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook_url"] == f"ops/runbook.md#{name.lower()}"
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]


def test_prometheus_and_the_monitor_tell_the_same_alerts() -> None:
    """
    What the monitor tells without Prometheus is told by a rule of the same name with the same severity.
    """
    assert {rule.alertname: rule.severity for rule in RULES.values()}.items() <= {
        name: rule["labels"]["severity"] for name, rule in alerts().items()
    }.items()


def test_alertmanager_takes_its_configuration(tools: Path) -> None:
    """
    The configuration passes amtool.
    """
    run(tools / "amtool", "check-config", "alertmanager/alertmanager.yml")


def test_routes_go_by_severity(tools: Path) -> None:
    """
    A critical alert wakes somebody, another one does not.
    """
    for name, rule in alerts().items():
        labels = [f"alertname={name}", f"severity={rule['labels']['severity']}"]
        found = run(
            tools / "amtool", "config", "routes", "test", "--config.file=alertmanager/alertmanager.yml", *labels
        )
        assert found.strip() == {"critical": "page", "warning": "ticket"}[rule["labels"]["severity"]]


def test_a_degraded_store_silences_all_that_is_said_about_circuits() -> None:
    """
    The inhibition names every alert but the two that say why nothing is known.
    """
    [rule, *_] = yaml.safe_load((OPS / "alertmanager" / "alertmanager.yml").read_text())["inhibit_rules"]
    [target] = rule["target_matchers"]
    named = set(target.partition("=~")[2].strip('"').split("|"))
    assert rule["source_matchers"] == ['alertname="CircuitStoreDegraded"']
    assert named == alerts().keys() - {"CircuitStoreDegraded", "CircuitExporterDown"}
