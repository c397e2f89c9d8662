"""
How long something took, without what the machine's other work has added.
"""

from __future__ import annotations

import os
import resource
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

__all__ = ["Stopwatch", "used_by_others", "waited"]


class Stopwatch:
    """
    Measures a block.

    Attributes:
        wall: Seconds that it took.

        seconds: Of these, without those that this process's threads stood ready to run while no processor was free.
    """

    wall = seconds = 0.0

    def __enter__(self) -> Self:
        """
        Start.
        """
        self._began, self._waited = time.monotonic(), waited()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """
        Stop.
        """
        self.wall = time.monotonic() - self._began
        self.seconds = self.wall - max(waited() - self._waited, 0.0)


def waited(threads: str = "/proc/self/task/*") -> float:
    """
    Read for how many seconds *threads* have stood ready to run; 0.0 where the kernel does not tell.

    Source: ``run_delay`` in Linux's ``Documentation/scheduler/sched-stats.rst``.
    """
    total = 0
    for path in Path("/").glob(f"{threads[1:]}/schedstat"):
        with suppress(OSError):  # it has just ended
            total += int(path.read_text().split()[1])
    return total / 1e9


def used_by_others() -> float:
    """
    Read how many seconds of each processor all but this process's children have used, those that have ended.
    """
    times, mine = psutil.cpu_times(), resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
    return float(busy - mine.ru_utime - mine.ru_stime) / (os.cpu_count() or 1)
