"""
A process whose quiet calls do not depend on how fast the machine is.
"""

from __future__ import annotations

import pytest


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The process is busy however slow it is, and tells a circuit of its calls only when somebody says so.
    """
    monkeypatch.setattr("omni_tasks.store.quiet._SOON_S", 60.0)
    monkeypatch.setattr("omni_tasks.store.quiet.LONGEST_WAIT", 60.0)
