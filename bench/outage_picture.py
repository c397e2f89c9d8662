"""
The picture of an outage: what arrived at the dependency, second by second, under each way to retry.

Reads what the dependency of ``celerybench`` has logged, one JSON file for each way:
``variant``, a text; ``changes``, pairs of a moment and ``dead`` or ``ok``;
``events``, triples of a moment, a task's number, and ``dead``, ``over`` or ``ok``.
Moments are seconds of one monotonic clock.  Writes SVG::

    python -m bench.outage_picture docs/img/outage.svg omni_tasks.json autoretry3.json pybreaker_retry.json
"""

from __future__ import annotations

import argparse
import json
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Story", "draw"]

#: What is drawn from the bottom up: the outcome as it is logged, its colour, its name in the legend.
_OUTCOMES = (
    ("ok", "#1a7f37", "served"),
    ("over", "#bf8700", "refused: too many at once"),
    ("dead", "#cf222e", "to the dead dependency"),
)

#: What one second serves, at most.
_CAPACITY = 50

#: Pixels: of the picture, of a panel, and of what is around them.
_WIDTH, _PANEL, _GAP, _LEFT, _RIGHT, _TOP, _BOTTOM = 960, 130, 58, 60, 24, 74, 44

_FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"


@dataclass(frozen=True, slots=True)
class Story:
    """
    One way to retry, and what the dependency saw of it.

    Attributes:
        name: Of the way.

        arrived: Calls by outcome and second; second 0 begins when the dependency is well again.

        tasks: How many were served.
    """

    name: str
    arrived: Mapping[tuple[str, int], int]
    tasks: int

    @classmethod
    def read(cls, path: Path) -> Story:
        """
        Read one file.

        Raises:
            ValueError: The dependency was never well again.
        """
        log = json.loads(path.read_text())
        healed = next((moment for moment, state in log["changes"] if state == "ok"), None)
        if healed is None:
            raise ValueError(f"{path}: no change to ok among {log['changes']}; the log of a whole outage is needed")
        events = [(int((moment - healed) // 1), task, outcome) for moment, task, outcome in log["events"]]
        served = {task for _, task, outcome in events if outcome == "ok"}
        return cls(log["variant"], Counter((outcome, second) for second, _, outcome in events), len(served))

    def total(self, outcome: str) -> int:
        """
        All calls of one outcome.
        """
        return sum(count for (each, _), count in self.arrived.items() if each == outcome)

    def __str__(self) -> str:
        """
        One line, for those who read.
        """
        return (
            f"{self.name}: {self.tasks} tasks served, {self.total('dead')} calls to the dead dependency, "
            f"{self.total('over')} refused"
        )


def draw(stories: Sequence[Story]) -> ET.Element:
    """
    Draw the stories below each other, on the same axes.

    Args:
        stories: At least one.
    """
    seconds = [second for story in stories for _, second in story.arrived]
    first, last = min(seconds), max(seconds) + 1
    most = max(
        sum(story.arrived.get((outcome, second), 0) for outcome, _, _ in _OUTCOMES)
        for story in stories
        for second in range(first, last)
    )
    height = _TOP + len(stories) * (_PANEL + _GAP) - _GAP + _BOTTOM
    step = (_WIDTH - _LEFT - _RIGHT) / (last - first)
    svg = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {_WIDTH} {height}",
            "width": str(_WIDTH),
            "height": str(height),
            "role": "img",
            "aria-labelledby": "title desc",
            "font-family": _FONT,
            "font-size": "13",
        },
    )
    ET.SubElement(svg, "title", id="title").text = "An outage, as the dependency saw it"
    ET.SubElement(svg, "desc", id="desc").text = f"Calls a second. {'; '.join(map(str, stories))}."
    # A card of its own colour: the text is readable whatever the page's background is.
    card = {"rx": "14", "fill": "#ffffff", "stroke": "#d0d7de"}
    _box(svg, 1, 1, _WIDTH - 2, height - 2, **card)
    for (_, colour, name), left in zip(_OUTCOMES, (0, 90, 330), strict=True):
        _box(svg, _LEFT + left, 26, 12, 12, fill=colour)
        _text(svg, _LEFT + left + 18, 37, name)
    _text(svg, _WIDTH - _RIGHT, 37, f"calls a second; it is well from 0 s on, and serves {_CAPACITY}", anchor="end")
    for number, story in enumerate(stories):
        bottom = _TOP + number * (_PANEL + _GAP) + _PANEL
        _text(svg, _LEFT, bottom - _PANEL - 8, str(story), weight="600")
        for second in range(first, last):
            base = float(bottom)
            for outcome, colour, _ in _OUTCOMES:
                if count := story.arrived.get((outcome, second), 0):
                    tall = count * _PANEL / most
                    base -= tall
                    _box(svg, _LEFT + (second - first) * step, base, step * 0.9, tall, fill=colour)
        level = bottom - _CAPACITY * _PANEL / most
        _line(svg, _LEFT, level, _WIDTH - _RIGHT, level, dash="4 4")
        _text(svg, _LEFT - 8, level + 4, str(_CAPACITY), anchor="end")
        _text(svg, _LEFT - 8, bottom + 4, "0", anchor="end")
        _line(svg, _LEFT, bottom, _WIDTH - _RIGHT, bottom)
        healed = _LEFT - first * step
        _line(svg, healed, bottom - _PANEL, healed, bottom)
    for second in range(first - first % -20, last, 20):
        _text(svg, _LEFT + (second - first) * step, height - _BOTTOM + 18, f"{second} s", anchor="middle")
    return svg


def _box(svg: ET.Element, x: float, y: float, width: float, height: float, **look: str) -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{width:.1f}", "height": f"{height:.1f}"}
    ET.SubElement(svg, "rect", {**place, **look})


def _line(svg: ET.Element, x1: float, y1: float, x2: float, y2: float, *, dash: str = "none") -> None:  # noqa: PLR0913 - two points
    place = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    ET.SubElement(svg, "line", {**place, "stroke": "#57606a", "stroke-dasharray": dash})


def _text(svg: ET.Element, x: float, y: float, words: str, *, anchor: str = "start", weight: str = "400") -> None:  # noqa: PLR0913 - a place and a look
    look = {"fill": "#1f2328", "text-anchor": anchor, "font-weight": weight}
    ET.SubElement(svg, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", **look}).text = words


def main() -> None:
    """
    Draw what the command line names.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.outage_picture", description=__doc__)
    parser.add_argument("picture", type=Path, help="the SVG to write")
    parser.add_argument("logs", type=Path, nargs="+", help="one JSON file for each way, in the order of the picture")
    asked = parser.parse_args()
    try:
        stories = [Story.read(path) for path in asked.logs]
    except (OSError, KeyError, TypeError, ValueError) as error:
        sys.exit(f"{parser.prog}: {error}")
    tree = ET.ElementTree(draw(stories))
    ET.indent(tree)
    tree.write(asked.picture, encoding="unicode")


if __name__ == "__main__":
    main()
