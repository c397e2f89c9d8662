"""
A process whose reports do not depend on how fast the machine is.
"""

from __future__ import annotations

import pytest

from omni_tasks.store.reports import Reports


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Every success is left to the next question and waits for it, however long that takes.
    """
    monkeypatch.setattr("omni_tasks.store.reports._SOON_S", 60.0)
    monkeypatch.setattr(Reports, "_tick", lambda _reports: None)
