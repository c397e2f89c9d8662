"""
Waiting for a fact in tests against real processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: How much longer a wait may take where other tests keep the machine busy: here it only has to end.  A test that says
#: how soon something happens measures it itself.
PATIENCE = 3


def eventually(fact: Callable[[], T], *, within: float, what: str = "") -> T:
    """
    Poll until *fact* returns something true.

    Args:
        fact: Asked about 20 times a second.

        within: Seconds that it takes at most on an idle machine; the test fails after :data:`PATIENCE` times as many.

        what: What was waited for, for the failure's message.

    Returns:
        What *fact* returned at last.
    """
    deadline = time.monotonic() + PATIENCE * within
    while True:
        found = fact()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE * within:g} s: {what or fact}; last seen: {found!r}")
        time.sleep(0.05)
