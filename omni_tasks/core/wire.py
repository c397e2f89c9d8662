"""
A configuration as the rules take it and the wire carries it: whole numbers only.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Policy"]


class Policy(NamedTuple):
    """
    The numbers of a :class:`omni_tasks.core.policy.CircuitBreakerConfig`, by the names they have there.

    As text it is one argument of every script, and one field of a circuit whose configuration has a version.

    Twin: ``store/lua/_prelude.lua``, parse().
    """

    version: int
    failure_limit: int
    recovery_ms: int
    longest_open_ms: int
    backoff_permille: int
    jitter_permille: int
    stable_ms: int
    half_open_max_calls: int
    success_threshold: int
    probe_lease_ms: int
    longest_lease_ms: int
    ramp_initial_mps: int
    failure_rate_ppm: int
    slow_rate_ppm: int
    slow_ms: int
    minimum_calls: int
    window_calls: int
    window_ms: int

    @property
    def text(self) -> str:
        """
        The numbers in order, with commas between them.
        """
        return ",".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Policy | None:
        """
        Read :attr:`text`; ``None`` for anything else.
        """
        if len(text) >= 15 * len(cls._fields) or not _WRITTEN.fullmatch(text):
            return None
        return cls(*map(int, text.split(",")))

    def or_newer(self, stored: str) -> Policy:
        """
        The policy whose text is *stored*, where its version is higher; else this one.
        """
        other = Policy.parse(stored) if stored else None
        return other if other and other.version > self.version else self


_WRITTEN = re.compile(rf"[0-9]+(?:,[0-9]+){{{len(Policy._fields) - 1}}}")
