"""
A dependency outside the system under test: a switch and a ledger, both plain files.

Every call appends one line before it answers, so the account is right however
the caller dies.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Call", "Dependency", "DependencyDownError"]


class DependencyDownError(Exception):
    """
    The dependency did not answer.
    """


@dataclass(frozen=True)
class Call:
    """
    One call that reached the dependency.

    Attributes:
        at: ``time.monotonic()`` of the machine, in seconds.

        ok: Whether it was answered.

        phase: ``"start"`` when the call arrived, ``"end"`` when it was answered.
    """

    task_id: str
    at: float
    ok: bool
    phase: str
    pid: int


class Dependency:
    """
    The dependency whose state is the content of *folder*.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._switch = folder / "switch"
        self._ledger = folder / "ledger.jsonl"

    def set(self, *, up: bool, delay: float = 0.0) -> None:
        """
        Make it answer, or fail, each call after *delay* seconds.
        """
        fresh = self._switch.with_suffix(".new")
        fresh.write_text(json.dumps({"up": up, "delay": delay}))
        fresh.replace(self._switch)

    def call(self, task_id: str) -> None:
        """
        Call it, from a task's body.

        Raises:
            DependencyDownError: It is down.
        """
        state = json.loads(self._switch.read_text())
        self._write(task_id, ok=state["up"], phase="start")
        if state["delay"]:
            time.sleep(state["delay"])
        if not state["up"]:
            raise DependencyDownError(task_id)
        self._write(task_id, ok=True, phase="end")

    def calls(self, phase: str = "start") -> list[Call]:
        """
        Every call so far, in order.
        """
        if not self._ledger.exists():
            return []
        lines = self._ledger.read_text().splitlines()
        return [call for call in (Call(**json.loads(line)) for line in lines) if call.phase == phase]

    def _write(self, task_id: str, **fields: Any) -> None:
        line = json.dumps({"task_id": task_id, "at": time.monotonic(), "pid": os.getpid(), **fields}) + "\n"
        # One write of one line to a file opened for appending is never torn or mixed.
        descriptor = os.open(self._ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
