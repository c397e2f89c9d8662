"""
The sliding window: the recent calls, as far as the rate rules look back.

It is one short text, so that it is stored, read and lost as a whole.  Over a
number of calls it is one digit a call, newest last; over a time it is ten
slices of that time, each ``number:calls:failed:slow``.

Twin: ``store/lua/settle.lua``, the functions of the same names.
"""

from __future__ import annotations

from dataclasses import dataclass

from omni_tasks.core.wire import Policy

__all__ = ["SLICES", "Counts", "count", "record"]

#: Slices a time window is cut into: it moves on by a tenth of its length.
SLICES = 10

_FAILED, _SLOW = 1, 2


@dataclass(frozen=True, slots=True)
class Counts:
    """
    What the window holds.
    """

    calls: int
    failed: int
    slow: int


def record(window: str, policy: Policy, *, failed: bool, slow: bool, now_ms: int) -> str:
    """
    Add one call.

    Returns:
        The window without what has slid out of it.
    """
    if not policy.window_ms:
        return (window + str(_FAILED * failed + _SLOW * slow))[-policy.window_calls :]
    now = _slice(policy, now_ms)
    slices = _slices(window, now)
    calls, failures, slows = slices.get(now, (0, 0, 0))
    slices[now] = (calls + 1, failures + failed, slows + slow)
    return " ".join(f"{number}:{c}:{f}:{s}" for number, (c, f, s) in sorted(slices.items()))


def count(window: str, policy: Policy, *, now_ms: int) -> Counts:
    """
    Count what is in the window now.
    """
    if not policy.window_ms:
        marks = window[-policy.window_calls :]
        return Counts(len(marks), marks.count("1") + marks.count("3"), marks.count("2") + marks.count("3"))
    slices = _slices(window, _slice(policy, now_ms)).values()
    return Counts(sum(c for c, _, _ in slices), sum(f for _, f, _ in slices), sum(s for _, _, s in slices))


def _slice(policy: Policy, now_ms: int) -> int:
    return now_ms // -(-policy.window_ms // SLICES)


def _slices(window: str, now: int) -> dict[int, tuple[int, int, int]]:
    found = {}
    for text in window.split():
        parts = text.split(":")
        if len(parts) != 4 or not all(part.isdecimal() for part in parts):  # noqa: PLR2004 - as written above
            # Another kind of window, from before the configuration changed.
            continue
        number, calls, failed, slow = map(int, parts)
        if now - SLICES < number <= now:
            found[number] = (calls, failed, slow)
    return found
