"""
How long calls take: one count for each of fourteen ranges, as one short text.

Twin: ``store/lua/settle.lua``, took().
"""

from __future__ import annotations

import re
from bisect import bisect_left

__all__ = ["BOUNDS_MS", "counts", "record"]

#: Upper ends of the ranges, included; the fourteenth has none.
BOUNDS_MS = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000)

_WRITTEN = re.compile(rf"[0-9]+(?:,[0-9]+){{{len(BOUNDS_MS)}}}")


def counts(text: str) -> tuple[int, ...]:
    """
    Read the counts, shortest range first, not cumulative; what was not written by us reads as zeros.
    """
    ranges = len(BOUNDS_MS) + 1
    if len(text) >= 15 * ranges or not _WRITTEN.fullmatch(text):
        return (0,) * ranges
    return tuple(map(int, text.split(",")))


def record(text: str, duration_ms: int) -> str:
    """
    Count one call.
    """
    found = [*counts(text)]
    found[bisect_left(BOUNDS_MS, duration_ms)] += 1
    return ",".join(map(str, found))
