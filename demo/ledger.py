"""
The account at the end, from sources outside the system.

What omni_tasks believes is not asked: the provider's own book says which calls were made, the folder which
articles exist, Celery's result backend how each task ended.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from demo.calls import Call
    from demo.plan import Plan

__all__ = ["Ending", "Ledger", "settle"]


@dataclass(frozen=True, slots=True)
class Ending:
    """
    How one task ended, as the result backend has it.

    Attributes:
        state: Celery's word for it.

        slug: The article's name.

        holds: How often the task was held.  >= 0.
    """

    state: str
    slug: str
    holds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """
    The account.  Every number is a whole one >= 0; times are in seconds.

    Attributes:
        sent: Tasks sent.

        succeeded: Tasks that ended SUCCESS and whose article is in the folder.

        failed: Tasks that ended otherwise.

        lost: Tasks that did neither within the deadline.

        duplicated: Articles that the provider wrote more than once.

        held: Tasks that were held at least once.

        most_held: Most tasks seen held at one time.

        calls: Calls that reached the provider.

        dead_calls: Those that reached it while it was down.

        dead_calls_allowed: What the circuit's configuration allows of them.

        windows: Recovery timeouts that fit into the outage.

        strangers: Calls that belong to none of the tasks.

        outage: How long the provider was down.

        drain: From its healing to the last article.

        whole: From the first task sent to the last article.
    """

    sent: int
    succeeded: int
    failed: int
    lost: int
    duplicated: int
    held: int
    most_held: int
    calls: int
    dead_calls: int
    dead_calls_allowed: int
    windows: int
    strangers: int
    outage: float
    drain: float
    whole: float

    def summary(self) -> str:
        """
        Put it into one line, the demo's last.
        """
        names = ("sent", "succeeded", "failed", "lost", "duplicated", "held", "dead_calls")
        return "demo: " + " ".join(f"{name}={getattr(self, name)}" for name in names)

    def objections(self) -> list[str]:
        """
        List what speaks against calling the run a success; empty when nothing does.
        """
        checks = {
            f"{self.sent - self.succeeded} of {self.sent} articles are missing": self.succeeded != self.sent,
            f"{self.failed} tasks failed": self.failed > 0,
            f"{self.lost} tasks were lost": self.lost > 0,
            f"{self.duplicated} articles were written twice": self.duplicated > 0,
            "no task was held, so nothing was shown": self.held == 0,
            f"{self.most_held} tasks were seen held at one time, but only {self.held} say so": self.most_held
            > self.held,
            f"{self.dead_calls} calls reached the dead provider, {self.dead_calls_allowed} may": (
                self.dead_calls > self.dead_calls_allowed
            ),
            f"{self.strangers} calls belong to no task": self.strangers > 0,
        }
        return [objection for objection, holds in checks.items() if holds]

    def rows(self) -> list[tuple[str, str, str]]:
        """
        Put it into a table: what, how much, how it was counted.
        """
        return [
            ("sent", str(self.sent), "tasks"),
            ("succeeded", str(self.succeeded), "ended SUCCESS, with their article in the folder"),
            ("failed", str(self.failed), "ended in any other way"),
            ("lost", str(self.lost), "neither, within the deadline"),
            ("duplicated", str(self.duplicated), "articles that the provider wrote more than once"),
            ("held", str(self.held), f"set aside at least once, {self.most_held} of them at one time"),
            ("calls", str(self.calls), "that reached the provider"),
            ("dead calls", str(self.dead_calls), f"of them while it was down; {self.dead_calls_allowed} are allowed"),
            ("recovery windows", str(self.windows), "that fit into the outage, one probe each"),
            ("outage", f"{self.outage:.1f} s", "the provider was down"),
            ("drain", f"{self.drain:.1f} s", "from its healing to the last article"),
            ("whole run", f"{self.whole:.1f} s", "from the first task to the last article"),
        ]


def settle(  # noqa: PLR0913 - one argument per source
    plan: Plan,
    *,
    endings: Mapping[str, Ending],
    calls: Sequence[Call],
    files: Collection[str],
    most_held: int,
    outage: float,
    drain: float,
    whole: float,
) -> Ledger:
    """
    Add everything up.

    Args:
        plan: What was to happen.

        endings: Task id to how it ended; every task that was sent.

        calls: The provider's book.

        files: Names of the articles in the folder that are not empty.

        most_held: Most tasks seen held at one time.

        outage: How long the provider was down, in seconds.

        drain: From healing to the last article, in seconds.

        whole: From the first task to the last article, in seconds.
    """
    succeeded = sum(ending.state == "SUCCESS" and ending.slug in files for ending in endings.values())
    failed = sum(ending.state in {"FAILURE", "REVOKED"} for ending in endings.values())
    completed = Counter(call.trace_id for call in calls if call.completed)
    return Ledger(
        sent=len(endings),
        succeeded=succeeded,
        failed=failed,
        lost=len(endings) - succeeded - failed,
        duplicated=sum(count > 1 for trace_id, count in completed.items() if trace_id in endings),
        held=sum(ending.holds > 0 for ending in endings.values()),
        most_held=most_held,
        calls=len(calls),
        dead_calls=sum(call.dead for call in calls),
        dead_calls_allowed=plan.allowed_dead_calls(outage),
        windows=plan.recovery_windows(outage),
        strangers=sum(call.trace_id not in endings for call in calls),
        outage=outage,
        drain=drain,
        whole=whole,
    )
