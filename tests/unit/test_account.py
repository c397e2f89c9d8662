"""
The account of killed workers tells one cause from another: the soak's verdict is only as good as that.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.account import Feed, account
from tests.support.dependency import Call


def _calls(phase: str, *calls: tuple[str, int, float]) -> list[Call]:
    return [Call(task_id=task, pid=pid, at=at, ok=True, phase=phase) for task, pid, at in calls]


def test_each_run_again_has_its_cause() -> None:
    """What a kill found in a child's hand is told from what ran again although its child had gone on, or lived."""
    started = _calls(
        "start",
        ("ended", 1, 0.1), ("cut", 2, 0.2), ("gone on", 3, 0.1), ("next", 3, 0.5),
        ("ended", 4, 2.0), ("cut", 4, 2.1), ("gone on", 4, 2.2), ("twice", 4, 2.3), ("twice", 4, 2.4),
    )  # fmt: skip
    ended = [call for call in started if (call.task_id, call.pid) not in {("cut", 2), ("next", 3)}]
    found = account({"ended", "cut", "gone on", "next", "twice"}, started, ended, [1.0])
    assert found.lost == {"next"}
    assert (found.interrupted, found.unacknowledged) == (1, 1)
    assert (found.others, found.worst) == (2, 2)


def test_the_last_move_of_a_message_is_found(tmp_path: Path) -> None:
    """Of a server's commands only those count that put the message somewhere, also from within a script."""
    (tmp_path / "feed.log").write_text(
        '+1.0 [0 127.0.0.1:1] "LPUSH" "celery" "{id: 1111}"\n+1.1 [0 127.0.0.1:2] "HSET" "unacked" "t" "[{id: 1111}]"\n'
        '+1.2 [0 lua] "RPUSH" "celery" "{id: 2222}"\n+1.3 [0 127.0.0.1:2] "PUBLISH" "events" "{id: 2222}"\n'
    )
    assert Feed.last_moves(tmp_path, ["1111", "2222", "3333"]) == {
        "1111": ("HSET", "unacked"),
        "2222": ("RPUSH", "celery"),
    }
