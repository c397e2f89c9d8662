"""
What the dashboards of ops/ ask Prometheus for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tests.support.watchtower import OPS

__all__ = ["Question", "questions"]


@dataclass(frozen=True)
class Question:
    """
    One expression of one panel, its variables filled in.
    """

    board: str
    panel: str
    expression: str


def questions(**variables: str) -> list[Question]:
    """
    Read every expression of every dashboard; *variables* are what Grafana would fill in.
    """
    found = []
    for path in sorted(OPS.glob("grafana/dashboards/*.json")):
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel["targets"]:
                expression = target["expr"]
                for name, value in variables.items():
                    expression = expression.replace(f"${name}", value)
                found.append(Question(path.stem, panel["title"], expression))
    return found
