"""
How long calls take: one count for each of fourteen ranges, as one short text.

Twin: ``store/lua/settle.lua``, took(); ``store/lua/tally.lua``, add_durations().
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable

__all__ = ["BOUNDS_MS", "counts", "merged", "record", "written"]

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
    return merged(text, written([duration_ms]))


def written(durations_ms: Iterable[int]) -> str:
    """
    Count many calls.
    """
    found = [0] * (len(BOUNDS_MS) + 1)
    for duration_ms in durations_ms:
        found[bisect_left(BOUNDS_MS, duration_ms)] += 1
    return ",".join(map(str, found))


def merged(text: str, other: str) -> str:
    """
    Add up the counts of two texts.
    """
    return ",".join(str(one + more) for one, more in zip(counts(text), counts(other), strict=True))
