"""
The processes of a run: started into sessions of their own, none left behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from omni_tasks.tied import spawn_tied

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["ProcessEndedError", "Processes"]

_PATIENCE_S: Final = 5.0
_POLL_S: Final = 0.05


class ProcessEndedError(RuntimeError):
    """
    A process ended although it was needed; the message names it, its exit status, its log.
    """


@dataclass(frozen=True, slots=True)
class _Started:
    name: str
    process: subprocess.Popen[bytes]
    log: Path


class Processes:
    """
    What was started, in order.
    """

    def __init__(self, folder: Path, logs: Path) -> None:
        """
        Begin with none.

        Args:
            folder: Working directory of all of them.

            logs: Folder that gets ``<name>.log`` of each.
        """
        self._folder = folder
        self._logs = logs
        self._started: list[_Started] = []

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> Path:
        """
        Start one.

        Returns:
            Its log: everything that it writes.
        """
        log = self._logs / f"{name}.log"
        with log.open("wb") as output:
            # SIGQUIT is what makes a Celery worker end its pool at once; the others just end.
            process = spawn_tied(argv, output=output, cwd=self._folder, env=env, death_signal=signal.SIGQUIT)
        self._started.append(_Started(name, process, log))
        return log

    def check(self) -> None:
        """
        Make sure that all of them run.

        Raises:
            ProcessEndedError: One does not.
        """
        for started in self._started:
            status = started.process.poll()
            if status is not None:
                raise ProcessEndedError(
                    f"the {started.name} ended with status {status}: {_last_line(started.log)} (all of it: {started.log})"
                )

    def stop(self) -> None:
        """
        End all of them, the last one first; returns when none is left.
        """
        while self._started:
            started = self._started.pop()
            _signal_group(started.process, signal.SIGTERM)
            deadline = time.monotonic() + _PATIENCE_S
            while _group_exists(started.process) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            _signal_group(started.process, signal.SIGKILL)
            started.process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _group_exists(process: subprocess.Popen[bytes]) -> bool:
    # Collects the leader when it has ended, so that only its children keep the group alive.
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"
