"""
A dependency outside the system under test: a switch and a ledger, both plain files.

Every call appends one line before it answers, so the account is right however
the caller dies.
"""

from __future__ import annotations

import fcntl
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

    def set(self, *, up: bool, delay: float = 0.0, capacity: float = 0.0) -> None:
        """
        Make it answer, or fail, each call after *delay* seconds.

        With a *capacity* it answers so many calls a second, and a fifth of that at once; it fails what exceeds that.
        """
        fresh = self._switch.with_suffix(".new")
        fresh.write_text(json.dumps({"up": up, "delay": delay, "capacity": capacity}))
        fresh.replace(self._switch)

    def call(self, task_id: str) -> None:
        """
        Call it, from a task's body.

        Raises:
            DependencyDownError: It is down.
        """
        state = json.loads(self._switch.read_text())
        answers = state["up"] and (not state["capacity"] or self._has_room(state["capacity"]))
        self._write(task_id, ok=answers, phase="start")
        if state["delay"]:
            time.sleep(state["delay"])
        if not answers:
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

    def _has_room(self, capacity: float) -> bool:
        """
        Take a token out of a bucket that all processes share.
        """
        with (self.folder / "bucket").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            tokens, filled = json.loads(file.read() or "[0, 0]")
            now = time.monotonic()
            tokens = min(tokens + (now - filled) * capacity, capacity / 5)
            room = tokens >= 1
            file.truncate(0)
            file.write(json.dumps([tokens - room, now]))
        return bool(room)

    def _write(self, task_id: str, **fields: Any) -> None:
        line = json.dumps({"task_id": task_id, "at": time.monotonic(), "pid": os.getpid(), **fields}) + "\n"
        # One write of one line to a file opened for appending is never torn or mixed.
        descriptor = os.open(self._ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
