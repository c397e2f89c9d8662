"""
Whether the shared store may be asked, and who finds out when it is back.

The calls that are on their way when the store falls silent pay the deadline, once, together.  From then on nobody
waits for it: a thread of its own asks whether it answers again, and then one call tries a decision.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from enum import Enum

from omni_tasks.errors import OmniTasksError

__all__ = ["Attempt", "Availability"]


class Attempt(Enum):
    """
    What a caller may do.
    """

    #: Ask the store.
    ASK = "ask"
    #: Ask the store, as the one caller whose answer brings it back.
    TRY = "try"
    #: Decide without the store.
    STAY = "stay"


class _State(Enum):
    THERE = "there"
    AWAY = "away"
    #: A thread asks whether it answers.
    ASKED = "asked"
    #: It answers again; the next decision tries it.
    ANSWERS = "answers"
    #: One decision tries it.
    TRIED = "tried"


class Availability:
    """
    What one process knows about the shared store.  Thread-safe.

    Attributes:
        errors: Questions the store did not answer, since this process started.

        degraded: Whether decisions are made without the store.
    """

    def __init__(self, pause: float, on_change: Callable[[bool, str], None] | None) -> None:
        """
        Assume that the store is there.

        Args:
            pause: Seconds from one attempt to reach a store that is away to the next, > 0.

            on_change: Called with (degraded, why) when the store goes or comes back.
        """
        self.errors = 0
        self.degraded = False
        self._pause = pause
        self._on_change = on_change
        self._lock = threading.Lock()
        self._state = _State.THERE
        self._undecided = False
        self._ask_after_monotonic = 0.0
        _all.add(self)

    def attempt(self, answers: Callable[[], object], *, decides: bool) -> Attempt:
        """
        Say whether to ask the store.

        Args:
            answers: Raises unless the store answers; called by a thread, when it is time to find out.

            decides: Whether the question is for a decision, not a reading.  A read-only server answers readings.
        """
        if not self.degraded:
            return Attempt.ASK
        with self._lock:
            if self._state is _State.THERE:
                return Attempt.ASK
            if self._state is _State.ANSWERS:
                if not decides:
                    return Attempt.ASK
                self._state = _State.TRIED
                return Attempt.TRY
            now = time.monotonic()
            if self._state is not _State.AWAY or now < self._ask_after_monotonic:
                return Attempt.STAY
            self._state = _State.ASKED
            self._ask_after_monotonic = now + self._pause
        # Not before a failure, so not before a worker has forked its children; and anew in each of them.
        thread = threading.Thread(target=self._find_out, args=(answers,), name="omni-store", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # The interpreter is ending.
            self._state = _State.AWAY
        return Attempt.STAY

    def answered(self, attempt: Attempt, *, decides: bool) -> None:
        """
        Hear that the store has answered.
        """
        if not self.degraded:
            return
        with self._lock:
            # An answer to a question from before the failure says nothing about now, and neither does a reading while
            # decisions fail.
            back = attempt is Attempt.TRY or (self._state is _State.ANSWERS and not self._undecided and not decides)
            if not back:
                return
            self._state = _State.THERE
            self._undecided = False
            self.degraded = False
        self._tell(degraded=False, why="")

    def failed(self, *, decides: bool, why: str) -> None:
        """
        Hear that the store has not answered.
        """
        with self._lock:
            self.errors += 1
            self._undecided |= decides
            # A question from before an attempt that is under way must not undo it.
            if self._state is not _State.ASKED:
                self._state = _State.AWAY
                self._ask_after_monotonic = time.monotonic() + self._pause
            changed, self.degraded = not self.degraded, True
        if changed:
            self._tell(degraded=True, why=why)

    def _find_out(self, answers: Callable[[], object]) -> None:
        state = _State.AWAY
        # Whatever else goes wrong here ends this thread, and the next one asks again.
        try:
            with suppress(OmniTasksError):
                answers()
                state = _State.ANSWERS
        finally:
            with self._lock:
                self.errors += state is _State.AWAY
                if self._state is _State.ASKED:
                    self._state = state

    def _tell(self, *, degraded: bool, why: str) -> None:
        # Outside the lock: the listener may log, and logging may block.
        if self._on_change:
            self._on_change(degraded, why)

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        if self._state is not _State.THERE:
            self._state = _State.AWAY


_all: weakref.WeakSet[Availability] = weakref.WeakSet()


def _after_fork() -> None:
    # The thread that was asking, or the one that held the lock, is in the parent.
    for availability in tuple(_all):
        availability._start_anew()  # noqa: SLF001 - of this module


os.register_at_fork(after_in_child=_after_fork)
