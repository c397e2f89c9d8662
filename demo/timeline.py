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

        circuit: The state that the circuit was seen in; None when nobody could see it.
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
        self._looks: dict[int, list[tuple[bool, str | None]]] = {}

    def look(self, elapsed: float, *, provider_down: bool, circuit: str | None) -> None:
        """
        Remember what was seen *elapsed* seconds after the start.
        """
        self._looks.setdefault(int(elapsed), []).append((provider_down, circuit))

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
        past = []
        last: tuple[bool, str | None] = (False, None)
        for second in range(len(dead)):
            looks = self._looks.get(second, [last])
            last = looks[-1]
            past.append(Second(answered[second], dead[second], *_summed_up(looks)))
        return tuple(past)


def _summed_up(looks: Sequence[tuple[bool, str | None]]) -> tuple[bool, str | None]:
    circuits = [circuit for _, circuit in looks]
    # Half-open lasts as long as one call: it would hardly be seen if a later look in that second won.
    circuit = "half_open" if "half_open" in circuits else circuits[-1]
    return 2 * sum(down for down, _ in looks) > len(looks), circuit
