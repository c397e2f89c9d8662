"""
Reports that wait for the next question to take them along.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.util import Finalize

__all__ = ["LONGEST_WAIT", "Reports", "send_all"]

#: Seconds after which a report that no question has taken along is sent by itself.
LONGEST_WAIT = 0.1

#: A report waits only where the one before was taken along within so many seconds: elsewhere nothing is gained.
_SOON_S = 0.02

#: Reports that wait at most.
_MOST = 100

#: Seconds without a report after which the thread that sends them ends.
_IDLE_S = 5.0


class Reports:
    """
    The reports of one process to one server.  Thread-safe.
    """

    def __init__(self, send: Callable[[], None]) -> None:
        """
        Let *send* take them and bring them to the server; it must not raise.
        """
        self._send = send
        self._waiting: deque[bytes] = deque()
        self._gap_s = math.inf
        self._left_monotonic = 0.0
        self._sent_by_itself = False
        self._sent_monotonic = 0.0
        self._thread: threading.Thread | None = None
        self._owner = os.getpid()

    def leave(self, report: bytes) -> bool:
        """
        Leave *report* to the next question.

        Returns:
            Whether it was left.  If not, no question is to be expected soon: it must be sent by itself.
        """
        left = self._gap_s < _SOON_S and len(self._waiting) < _MOST
        if left:
            self._waiting.append(report)
            if self._thread is None:
                self._start()
        self._left_monotonic, self._sent_by_itself = time.monotonic(), not left
        return left

    def take(self) -> list[bytes]:
        """
        Take along what waits, oldest first.
        """
        if self._sent_by_itself:
            # The report's own question says nothing about when the next one comes.
            self._sent_by_itself = False
        elif self._left_monotonic:
            self._gap_s, self._left_monotonic = time.monotonic() - self._left_monotonic, 0.0
        reports: list[bytes] = []
        with suppress(IndexError):
            while True:
                reports.append(self._waiting.popleft())
        return reports

    def send(self) -> None:
        """
        Send what waits in this process; after a fork, what waited is the parent's.
        """
        if self._waiting and self._owner == os.getpid():
            self._send()

    def send_often(self) -> bool:
        """
        One round of the thread.

        Returns:
            Whether another one is needed.
        """
        if self._waiting:
            self._sent_monotonic = time.monotonic()
            self.send()
            return True
        if time.monotonic() - max(self._sent_monotonic, self._left_monotonic) < _IDLE_S:
            return True
        self._thread = None
        # What was left while this round looked away.
        self.send()
        return False

    def _start(self) -> None:
        # The thread keeps what waits, also where nobody else needs this store any more.
        self._thread = threading.Thread(target=self._tick, name="omni-reports", daemon=True)
        _send_at_end()
        _all.add(self)
        try:
            self._thread.start()
        except RuntimeError:
            # The interpreter is ending: nothing that waits would be sent any more.
            self._thread = None
            self.send()

    def _tick(self) -> None:
        going = True
        while going:
            time.sleep(LONGEST_WAIT)
            going = self.send_often()


_all: weakref.WeakSet[Reports] = weakref.WeakSet()


def send_all() -> None:
    """
    Send everything that waits in this process; for one that ends in a way of its own.
    """
    for reports in tuple(_all):
        reports.send()


_end_seen_to_in: int | None = None


def _send_at_end() -> None:
    # When this process ends, also one that multiprocessing has started and that knows no atexit.  Once in each:
    # what is registered is kept for good.
    global _end_seen_to_in  # noqa: PLW0603 - of the process, as what it notes
    if _end_seen_to_in != os.getpid():
        _end_seen_to_in = os.getpid()
        Finalize(None, send_all, exitpriority=10)
