"""
Programs that end when the process that started them ends, however it ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    _Order = tuple[Callable[[], subprocess.Popen[bytes]], Future[subprocess.Popen[bytes]]]

__all__ = ["spawn_tied"]

# Runs in the new process before it becomes the real program, so that nothing happens between fork and exec
# in a parent that may have threads.  1 is PR_SET_PDEATHSIG.  The parent may have died before the call:
# then the signal never comes, hence the look at the parent's pid afterwards.
_TIE_SCRIPT: Final = """
import ctypes, os, sys
parent, death_signal = int(sys.argv[1]), int(sys.argv[2])
ctypes.CDLL(None).prctl(1, death_signal, 0, 0, 0)
if os.getppid() != parent:
    sys.exit(1)
os.execv(sys.argv[3], sys.argv[3:])
"""

_spawner_lock = threading.Lock()
_spawners: dict[int, SimpleQueue[_Order]] = {}


def spawn_tied(
    argv: Sequence[str],
    *,
    output: int | IO[bytes] = subprocess.DEVNULL,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """
    Start a program in a session of its own that gets a signal when this process ends, however it ends.

    The signal is a Linux facility; elsewhere the program is started without the tie.

    Args:
        argv: The program, as an absolute path, followed by its arguments.

        output: Where its standard output, with its standard error, goes.

        cwd: Its working directory; None for ours.

        env: Its whole environment; None for ours.

        death_signal: What it is sent when this process is gone.

    Returns:
        The process.  Its pid is that of the program itself, and of its process group.
    """
    command = list(argv)
    if sys.platform == "linux":
        tie = [sys.executable, "-I", "-S", "-c", _TIE_SCRIPT, str(os.getpid()), str(int(death_signal))]
        command = tie + command

    def spawn() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )

    answer: Future[subprocess.Popen[bytes]] = Future()
    _spawner().put((spawn, answer))
    return answer.result()


def _spawner() -> SimpleQueue[_Order]:
    # Linux sends the parent-death signal when the *thread* that forked ends.  So one thread does all the
    # forking, and as a daemon it ends with the process, not before.  A forked copy of this process has no
    # such thread and needs its own.
    with _spawner_lock:
        pid = os.getpid()
        if pid not in _spawners:
            _spawners.clear()
            _spawners[pid] = SimpleQueue()
            threading.Thread(target=_spawn_orders, args=(_spawners[pid],), name="omni-spawner", daemon=True).start()
        return _spawners[pid]


def _spawn_orders(orders: SimpleQueue[_Order]) -> None:
    while True:
        spawn, answer = orders.get()
        try:
            answer.set_result(spawn())
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller, who waits for it
            answer.set_exception(error)
