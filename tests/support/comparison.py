"""
An application that knows nothing of circuits, made with whatever task class its environment names.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, Task, chain, chord, group
from celery.exceptions import Ignore, Reject

__all__ = ["make_app", "script"]


def make_app(url: str, task_cls: str | None) -> Celery:
    """
    Make the application; *task_cls* is what ``Celery(task_cls=...)`` is given.
    """
    made = Celery("comparison", broker=url, backend=url, task_cls=task_cls, set_as_current=False)
    made.conf.update(result_extended=True, task_track_started=True, worker_send_task_events=True)

    @made.task(shared=False, name="add")
    def add(x: int, y: int) -> int:
        """
        Add.
        """
        return x + y

    @made.task(shared=False, name="total")
    def total(numbers: list[int]) -> int:
        """
        Add up.
        """
        return sum(numbers)

    _add_ends(made)

    @made.task(shared=False, name="replaced", bind=True)
    def replaced(self: Task) -> Any:
        """
        Be another task.
        """
        return self.replace(add.s(20, 3))

    return made


def _add_ends(made: Celery) -> None:
    @made.task(shared=False, name="fail")
    def fail(why: str) -> None:
        """
        Fail.
        """
        raise ValueError(why)

    @made.task(shared=False, name="retrying", bind=True, max_retries=2, default_retry_delay=0)
    def retrying(self: Task) -> int:
        """
        Succeed at the third attempt.
        """
        if self.request.retries < 2:
            raise self.retry(exc=KeyError("again"))
        return int(self.request.retries)

    @made.task(
        shared=False, name="autoretrying", bind=True, autoretry_for=(KeyError,), max_retries=1, retry_backoff=False
    )
    def autoretrying(self: Task) -> None:
        """
        Use up the retries.
        """
        raise KeyError(self.request.retries)

    autoretrying.default_retry_delay = 0

    @made.task(shared=False, name="ignored", bind=True)
    def ignored(self: Task) -> None:
        """
        Store a state of its own.
        """
        self.update_state(state="MINE", meta={"by": self.name})
        raise Ignore

    @made.task(shared=False, name="rejected")
    def rejected() -> None:
        """
        Reject the message.
        """
        raise Reject("no", requeue=False)

    @made.task(shared=False, name="described", bind=True, acks_late=True, rate_limit="50/s", time_limit=30)
    def described(self: Task) -> dict[str, Any]:
        """
        Tell what a task sees of itself.
        """
        request = self.request
        names = ["name", "max_retries", "acks_late", "rate_limit", "time_limit", "ignore_result", "serializer"]
        return {
            **{name: getattr(self, name) for name in names},
            "headers": request.headers,
            "retries": request.retries,
            "called_directly": request.called_directly,
        }


def script(app: Celery) -> dict[str, Any]:
    """
    Use the application every way there is.

    Returns:
        Everything that can be seen of it, without what is new each time.
    """
    tasks = app.tasks
    add, total, fail = tasks["add"], tasks["total"], tasks["fail"]
    seen: dict[str, Any] = {
        "direct": add(1, 2),
        "applied": add.apply((1, 2)).get(),
        "applied, failing": repr(fail.apply(("x",)).result),
        "add": add.delay(1, 2).get(timeout=20),
        "chain": chain(add.s(1, 1), add.s(2)).delay().get(timeout=20),
        "group": group(add.s(n, n) for n in range(3)).delay().get(timeout=20),
        "chord": chord([add.s(n, n) for n in range(3)], total.s()).delay().get(timeout=20),
        "replaced": tasks["replaced"].delay().get(timeout=20),
        "described": tasks["described"].delay().get(timeout=20),
        "retrying": tasks["retrying"].delay().get(timeout=20),
        "registered": sorted(next(iter(app.control.inspect(timeout=5).registered().values()))),
    }
    for name in ("fail", "autoretrying"):
        result = tasks[name].apply_async(("why",) if name == "fail" else ())
        result.get(timeout=20, propagate=False)
        seen[name] = (result.state, repr(result.result), result.traceback)
    # Some versions of Celery never end these.
    unended = {name: tasks[name].delay() for name in ("ignored", "rejected")}
    for _ in range(4):
        add.delay(1, 1).get(timeout=20)
    seen |= {name: result.state for name, result in unended.items()}
    return seen


if "COMPARISON_URL" in os.environ:
    app = make_app(os.environ["COMPARISON_URL"], os.environ.get("COMPARISON_TASK_CLS") or None)
