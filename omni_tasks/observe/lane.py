"""
Work that must not keep anybody waiting: one thing at a time, waited for so long and no longer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["Lane", "SharedLane"]

T = TypeVar("T")


class Lane:
    """
    A place for one piece of work at a time.

    The work runs in a daemon thread: a process may end while it hangs, and what
    hangs for ever costs one thread, not one more at every try.
    """

    def __init__(self, name: str) -> None:
        """
        Call the lane, and its thread, *name*.
        """
        self._name = name
        self._lock = threading.Lock()
        self._current: Future[Any] | None = None

    @property
    def busy(self) -> bool:
        """
        Whether the last piece of work still runs.
        """
        current = self._current
        return current is not None and not current.done()

    def start(self, work: Callable[[], T]) -> Future[T]:
        """
        Begin *work*.

        Raises:
            TimeoutError: The work before it is not done yet.
        """
        with self._lock:
            if self.busy:
                raise TimeoutError(f"{self._name}: what was begun before has not ended yet")
            return self._begin(work)

    def run(self, work: Callable[[], T], *, within: float) -> T:
        """
        Do *work*, waiting at most *within* seconds for it.

        Raises:
            TimeoutError: It is not done in time, or the work before it is not; it goes on by itself.

            Exception: What the work raised.
        """
        return self.start(work).result(timeout=within)

    def _begin(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._current = future
        threading.Thread(target=_fulfil, args=(future, work), name=self._name, daemon=True).start()
        return future


class SharedLane(Lane):
    """
    A lane whose work is always the same question: who comes while it is being asked waits for the same answer.
    """

    def start(self, work: Callable[[], T]) -> Future[T]:
        """
        Begin *work*, or join what was begun.
        """
        with self._lock:
            return self._current if self._current is not None and self.busy else self._begin(work)


def _fulfil(future: Future[T], work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
        future.set_exception(error)
