"""
What operators look at already: Flower, and ``celery inspect``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

from omni_tasks.embedded import _free_port
from omni_tasks.tied import spawn_tied
from tests.acceptance.conftest import Stage
from tests.support.eventually import eventually
from tests.support.worker import ROOT

pytestmark = pytest.mark.acceptance


@pytest.mark.soak
def test_flower_shows_a_held_task_and_why(stage: Callable[..., Stage]) -> None:
    """In a real Flower a held task is in state RETRY, its reason names the open circuit, and then it succeeds."""
    play = stage()
    port = _free_port()
    play.breaker.force_open()
    play.worker()
    with (play.folder / "flower.log").open("wb") as log:
        flower = spawn_tied(
            [
                sys.executable, "-m", "celery", "-A", "tests.support.app", "flower",
                f"--port={port}", "--address=127.0.0.1", "--logging=warning",
            ],
            output=log,
            cwd=ROOT,
            env={**os.environ, **play.environment(), "FLOWER_UNAUTHENTICATED_API": "true"},
        )  # fmt: skip
    try:
        eventually(lambda: _ask(port, "workers"), within=30, what=(play.folder / "flower.log").read_text())
        [result] = play.send("plain")
        shown = eventually(lambda: _task(port, result.id, "RETRY"), within=20, what="RETRY in Flower")
        assert shown["exception"].startswith("CircuitOpenError('dep', 'open', ")
        [circuits] = play.app.control.inspect(timeout=5)._request("circuits").values()
        assert (circuits["dep"]["state"], circuits["dep"]["held"]) == ("open", 1)
        play.breaker.release_force()
        eventually(lambda: _task(port, result.id, "SUCCESS"), within=20, what="SUCCESS in Flower")
    finally:
        flower.terminate()
        flower.wait(timeout=10)


def _ask(port: int, what: str) -> Any:
    try:
        with urlopen(f"http://127.0.0.1:{port}/api/{what}", timeout=5) as answer:
            return json.load(answer)
    except (HTTPError, URLError, OSError):
        return None


def _task(port: int, task_id: str, state: str) -> Any:
    shown = _ask(port, f"task/info/{task_id}")
    return shown if shown and shown["state"] == state else None
