"""
Waiting for a fact in tests against real processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(fact: Callable[[], T], *, within: float, what: str = "") -> T:
    """
    Poll until *fact* returns something true.

    Args:
        fact: Asked about 20 times a second.

        within: Seconds after which the test fails.

        what: What was waited for, for the failure's message.

    Returns:
        What *fact* returned at last.
    """
    deadline = time.monotonic() + within
    while True:
        found = fact()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s: {what or fact}; last seen: {found!r}")
        time.sleep(0.05)
