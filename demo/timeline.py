"""
The past in columns of one second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from demo.calls import Call

__all__ = ["Second", "Timeline"]


@dataclass(frozen=True, slots=True)
class Second:
    """
    One second of the story.

    Attributes:
        answered: Calls that reached the provider while it was well.  >= 0.

        dead: Calls that reached it while it was down.  >= 0.

        provider_down: Whether it was down in more than half of the looks at it.

        circuit: The state that the circuit was last seen in; None when nobody could see it.
    """

    answered: int = 0
    dead: int = 0
    provider_down: bool = False
    circuit: str | None = None


class Timeline:
    """
    Collects looks, counts calls.
    """

    def __init__(self) -> None:
        """
        Begin with no past.
        """
        self._down: dict[int, list[bool]] = {}
        self._circuit: dict[int, str | None] = {}

    def look(self, elapsed: float, *, provider_down: bool, circuit: str | None) -> None:
        """
        Remember what was seen *elapsed* seconds after the start.
        """
        self._down.setdefault(int(elapsed), []).append(provider_down)
        # Half-open lasts as long as one call: it would hardly be seen if a later look in that second won.
        if self._circuit.get(int(elapsed)) != "half_open":
            self._circuit[int(elapsed)] = circuit

    def seconds(self, calls: Sequence[Call], started: float, elapsed: float) -> tuple[Second, ...]:
        """
        Lay out the past.

        Args:
            calls: Every call so far.

            started: When the story began, on the monotonic clock, in seconds.

            elapsed: Seconds since then.

        Returns:
            One entry per second, the unfinished last one included.
        """
        answered, dead = [[0] * (int(elapsed) + 1) for _ in range(2)]
        for call in calls:
            second = int(call.at_monotonic - started)
            if 0 <= second < len(dead):
                (dead if call.dead else answered)[second] += 1
        return tuple(
            Second(answered[s], dead[s], _mostly(self._down.get(s, [])), self._circuit.get(s)) for s in range(len(dead))
        )


def _mostly(looks: list[bool]) -> bool:
    return 2 * sum(looks) > len(looks)
