"""
Ctrl-C, taken note of and acted on only where the run can be ended in order.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Interruption", "InterruptionError"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STEP_S: Final = 0.05


class InterruptionError(Exception):
    """
    The run was told to end.
    """


class Interruption:
    """
    Listens to SIGINT, SIGTERM, SIGHUP from now on.

    An exception out of a signal handler could strike between the start of a process and the note of it.  Here the
    handler only remembers; ``pause`` is where the run ends.
    """

    def __init__(self) -> None:
        """
        Take the place of the default handlers.
        """
        self._requested = False
        for number in _SIGNALS:
            signal.signal(number, self._remember)

    def check(self) -> None:
        """
        End the run if that was asked for.

        Raises:
            InterruptionError: It was.
        """
        if self._requested:
            raise InterruptionError

    def pause(self, seconds: float) -> None:
        """
        Wait *seconds*, or end the run.

        Raises:
            InterruptionError: The run was told to end, before or while waiting.
        """
        deadline = time.monotonic() + seconds
        self.check()
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(_STEP_S, left))
            self.check()

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as handlers are called
        self._requested = True
