"""
The processes of a run: started into sessions of their own, none left behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from omni_tasks.tied import spawn_tied

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ProcessEndedError", "Processes"]

_GUARD: Final = Path(__file__).with_name("guard.py")

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
        self._guard = _Guard()

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> Path:
        """
        Start one.

        Returns:
            Its log: everything that it writes.
        """
        log = self._logs / f"{name}.log"
        with log.open("wb") as output:
            process = spawn_tied(argv, output=output, cwd=self._folder, env=env)
        self._started.append(_Started(name, process, log))
        self._guard.tell(process.pid)
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
                words = f"{_last_line(started.log)} (all of it: {started.log})"
                raise ProcessEndedError(f"the {started.name} ended with status {status}: {words}")

    def stop(self) -> None:
        """
        End all of them, by force where a request is not enough; none is left afterwards.
        """
        # Leaders only: a worker ends its own pool when told to, and reports children that end by themselves.
        for started in self._started:
            started.process.terminate()
        deadline = time.monotonic() + _PATIENCE_S
        while any(_group_exists(started.process) for started in self._started) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        for started in self._started:
            _kill_group(started.process)
        self._started.clear()
        self._guard.dismiss()


class _Guard:
    """
    The process that ends the others when this one was killed.
    """

    def __init__(self) -> None:
        # A session of its own, so that what ends this process by its group does not end the guard as well.
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_GUARD)], stdin=subprocess.PIPE, text=True, start_new_session=True
        )

    def tell(self, group: int) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(f"{group}\n")
            self._process.stdin.flush()

    def dismiss(self) -> None:
        # Killed before the pipe ends: there is nothing left for it to do.
        self._process.kill()
        self._process.communicate()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # macOS answers EPERM for a group that has only uncollected members left.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


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
