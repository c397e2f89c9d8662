"""
The acts: all is well, the provider dies, it heals, every article gets written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from demo.moment import Chapter, Moment

if TYPE_CHECKING:
    from demo.client import ProviderClient
    from demo.interruption import Interruption
    from demo.ledger import Ledger
    from demo.plan import Plan
    from demo.processes import Processes
    from demo.watch import Watch

__all__ = ["Story", "View"]

_STEP_S: Final = 0.25


class View(Protocol):
    """
    Where the story is told.
    """

    def note(self, text: str) -> None:
        """
        Say something outside the story.
        """

    def show(self, moment: Moment) -> None:
        """
        Show one moment.
        """

    def close(self) -> None:
        """
        Show no more moments.
        """

    def account(self, ledger: Ledger) -> None:
        """
        Show the ledger.
        """


class Story:
    """
    One outage, from the first article to the last.

    Attributes:
        died_at: When the provider died, in seconds since the first task was sent; None before.

        healed_at: When it healed; None before.

        ended_at: When the last article was written, or the deadline; None before.
    """

    def __init__(self, plan: Plan, provider: ProviderClient, watch: Watch) -> None:
        """
        Get ready to tell it.
        """
        self.died_at: float | None = None
        self.healed_at: float | None = None
        self.ended_at: float | None = None
        self._plan, self._provider, self._watch = plan, provider, watch
        self._misfortune: dict[str, object] | None = None

    @property
    def outage(self) -> float:
        """
        Seconds that the provider was down.
        """
        return 0.0 if self.died_at is None or self.healed_at is None else self.healed_at - self.died_at

    @property
    def drain(self) -> float:
        """
        Seconds from its healing to the end.
        """
        return 0.0 if self.healed_at is None or self.ended_at is None else self.ended_at - self.healed_at

    def tell(self, view: View, processes: Processes, interruption: Interruption) -> None:
        """
        Go through all of it.

        Raises:
            ProcessEndedError: A process that is needed has ended.

            InterruptionError: Somebody wants it to end.
        """
        while self.ended_at is None:
            processes.check()
            moment = self._watch.moment()
            self._go_on(moment)
            view.show(moment)
            interruption.pause(_STEP_S)
        view.show(self._watch.moment())

    def _go_on(self, moment: Moment) -> None:
        now = moment.elapsed
        if moment.done + moment.failed == moment.total or now > self._plan.deadline:
            self.ended_at = now
            self._watch.turn_to(Chapter.END)
        elif self.died_at is None:
            if moment.done >= self._plan.dies_after:
                self.died_at = now
                self._suffer(0.0)
                self._watch.turn_to(Chapter.OUTAGE)
        elif self.healed_at is None:
            if now - self.died_at < self._plan.outage:
                self._suffer(now - self.died_at)
            else:
                self._provider.switch(mode="ok")
                self.healed_at = now
                self._watch.turn_to(Chapter.RECOVERY)

    def _suffer(self, since: float) -> None:
        misfortune = self._plan.misfortune(since)
        if misfortune != self._misfortune:
            self._provider.switch(**misfortune)
            self._misfortune = misfortune
