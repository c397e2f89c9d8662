"""
Where the programs are that check ops/.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tools() -> Path:
    """
    The folder that ``make ops-check`` fills; without it the tests are skipped on a laptop and fail in CI.
    """
    folder = Path(sys.prefix) / "ops" / "usr" / "bin"
    if not (folder / "promtool").exists():
        message = f"no {folder}/promtool: make ops-check gets it"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder
