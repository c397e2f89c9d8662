"""
The picture of an outage shows what was logged, and nothing else.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from bench.outage_picture import Story, draw


def _log(folder: Path, name: str, events: list[tuple[float, int, str]]) -> Path:
    path = folder / f"{name}.json"
    changes = [(100.0, "dead"), (120.0, "ok")]
    path.write_text(json.dumps({"variant": name, "changes": changes, "events": events}))
    return path


def test_seconds_count_from_the_moment_it_is_well(tmp_path: Path) -> None:
    """A call just before is in second -1, one just after in second 0; a task that was served twice is one task."""
    events = [(119.99, 1, "dead"), (120.0, 2, "over"), (120.99, 1, "ok"), (121.0, 1, "ok")]
    story = Story.read(_log(tmp_path, "some", events))
    assert story.arrived == {("dead", -1): 1, ("over", 0): 1, ("ok", 0): 1, ("ok", 1): 1}
    assert str(story) == "some: 1 tasks served, 1 calls to the dead dependency, 1 refused"


def test_every_bar_is_as_tall_as_its_calls(tmp_path: Path) -> None:
    """All panels have one scale, and the calls of one second stand on each other."""
    few = [(119.5, 0, "dead")] * 3
    many = [(125.5, number, "ok") for number in range(6)] + [(125.5, 9, "over")] * 6
    stories = [Story.read(_log(tmp_path, name, log)) for name, log in (("few", few), ("many", many))]
    bars = [box for box in draw(stories).iter("rect") if box.get("fill") in {"#1a7f37", "#bf8700", "#cf222e"}]
    heights = Counter(float(str(box.get("height"))) for box in bars)
    # The legend's three, then 3 of 12 calls, and twice 6 of 12, of 130 pixels.
    assert heights == {12.0: 3, 32.5: 1, 65.0: 2}


def test_a_log_without_an_end_of_the_outage_is_refused(tmp_path: Path) -> None:
    """The message names the file and what is missing."""
    path = tmp_path / "dead.json"
    path.write_text(json.dumps({"variant": "dead", "changes": [[1.0, "dead"]], "events": []}))
    with pytest.raises(ValueError, match=r"dead\.json: no change to ok"):
        Story.read(path)
