"""
Real workers in processes of their own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from omni_tasks.tied import spawn_tied
from tests.support.eventually import eventually
from tests.support.stopwatch import waited

__all__ = ["Worker"]

ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """
    One ``celery worker``, started when made.
    """

    def __init__(  # noqa: PLR0913 - each is one of celery worker's own options
        self,
        environment: Mapping[str, str],
        folder: Path,
        *,
        app: str = "tests.support.app",
        pool: str = "prefork",
        concurrency: int = 4,
        arguments: tuple[str, ...] = (),
        mingles: bool = False,
    ) -> None:
        """
        Start and wait until it takes tasks.

        Args:
            environment: Added to this process's.

            folder: For its log.

            app: Module of the application.

            pool: Celery's name of the pool.

            concurrency: Children, threads or greenlets.

            arguments: More for the command line.

            mingles: Whether it asks other workers at its start, as it does by default.
        """
        number = len(list(folder.glob("worker*.log"))) + 1
        self.log_path = folder / f"worker{number}.log"
        self.name = f"w{number}-{os.getpid()}@test"
        with self.log_path.open("wb") as log:
            self.process = spawn_tied(
                [
                    sys.executable, "-m", "celery", "-A", app, "worker",
                    "--pool", pool, "--concurrency", str(concurrency),
                    "--hostname", self.name, "--loglevel", "INFO",
                    *([] if mingles else ["--without-mingle"]),
                    *arguments,
                ],
                output=log,
                cwd=ROOT,
                env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        eventually(self._is_ready, within=30, what=f"worker ready, see {self.log_path}")

    @property
    def log(self) -> str:
        """
        Everything it has logged so far.
        """
        return self.log_path.read_text(errors="replace")

    def children(self) -> list[psutil.Process]:
        """
        Its pool's processes.
        """
        return [child for child in psutil.Process(self.process.pid).children(recursive=True) if child.is_running()]

    def starved(self) -> float:
        """
        Seconds that its processes have stood ready to run while no processor was free, all together.
        """
        return sum(waited(f"/proc/{pid}/task/*") for pid in (self.process.pid, *(each.pid for each in self.children())))

    def kill(self) -> None:
        """
        SIGKILL the whole process group, as an out-of-memory killer or a lost node would.
        """
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=10)

    def stop(self) -> None:
        """
        Warm shutdown; where that does not end it within a minute, SIGKILL and an error.
        """
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    def _is_ready(self) -> bool:
        ended = self.process.poll()
        # One that is to be killed at its first task may have been ready for a moment only.
        if ended is not None and " ready." not in self.log:
            raise AssertionError(f"the worker ended with {ended}:\n{self.log}")
        return " ready." in self.log
