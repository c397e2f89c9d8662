"""
How Prometheus and Alertmanager are found, on a machine with Debian's packages and on one without.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.watchtower import OPS

PROGRAMS = ["prometheus", "promtool", "alertmanager", "amtool"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """
    A PATH with what every machine has, and no package manager.
    """
    folder = tmp_path / "path"
    folder.mkdir()
    for name in ("cp", "ln", "mkdir", "rm", "sh", "tr"):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    return folder


def get(path: Path, into: Path) -> subprocess.CompletedProcess[str]:
    """
    Run tools.sh.
    """
    command = [path / "sh", OPS / "tools.sh", into]
    return subprocess.run(command, env={"PATH": str(path)}, capture_output=True, text=True, check=False)


def test_programs_of_the_path_are_taken(path: Path, tmp_path: Path) -> None:
    """
    What is installed is used, under whichever name Alertmanager has.
    """
    for name in PROGRAMS:
        (path / name).touch(mode=0o755)
    done = get(path, tmp_path / "tools")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tools/usr/bin/prometheus-alertmanager").resolve() == path / "alertmanager"


def test_one_line_says_what_is_missing(path: Path, tmp_path: Path) -> None:
    """
    Without a package manager the command fails, and names what is missing in one line.
    """
    (path / "promtool").touch(mode=0o755)
    done = get(path, tmp_path / "tools")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "missing prometheus prometheus-alertmanager amtool:" in line
