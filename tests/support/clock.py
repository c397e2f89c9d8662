"""
Time as the tests want it.
"""

from __future__ import annotations

__all__ = ["START_MS", "Clock"]

#: Some moment of November 2023, Unix ms.
START_MS = 1_700_000_000_000


class Clock:
    """
    A clock that only the test moves; a store calls it for its own time.
    """

    def __init__(self) -> None:
        """
        Begin at ``START_MS``.
        """
        self.now_ms = START_MS

    def __call__(self) -> int:
        """
        Give Unix ms.
        """
        return self.now_ms

    def advance(self, milliseconds: int) -> None:
        """
        Step forward, or back when negative.
        """
        self.now_ms += milliseconds
