"""
The structured log as a list of events.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

__all__ = ["events"]


def events(caplog: pytest.LogCaptureFixture, name: str = "") -> list[dict[str, Any]]:
    """
    Everything the package has logged so far, oldest first, or only events of that *name*.
    """
    lines: list[dict[str, Any]] = [
        json.loads(record.message)
        for record in caplog.records
        if record.name == "omni_tasks" and record.levelno >= logging.DEBUG
    ]
    return [line for line in lines if not name or line["event"] == name]
