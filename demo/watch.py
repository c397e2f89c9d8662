"""
Looks at the running system from outside, a few times a second.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final, TypeVar

from demo.ledger import Ending
from demo.moment import Chapter, Moment
from demo.plan import CIRCUIT, Plan
from demo.timeline import Timeline
from omni_tasks import get_circuit_breaker_manager, get_lot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery import Celery

    from demo.calls import Call
    from demo.client import ProviderClient
    from omni_tasks import CircuitBreakerMetrics

__all__ = ["Watch"]

T = TypeVar("T")

_INTERVAL_S: Final = 0.25
_FINAL_STATES: Final = frozenset({"SUCCESS", "FAILURE", "REVOKED"})

log = logging.getLogger(__name__)


class Watch:
    """
    Keeps the latest look.

    It looks from a thread of its own: a server that does not answer must not freeze the screen.
    """

    def __init__(self, plan: Plan, app: Celery, provider: ProviderClient, sent: Mapping[str, str]) -> None:
        """
        Get ready to look.

        Args:
            plan: What is going on.

            app: The application whose tasks were sent.

            provider: The way to the provider's book.

            sent: Id of each task to the name of its article.
        """
        self.calls: list[Call] = []
        self.most_held = 0
        self._plan, self._app, self._provider, self._sent = plan, app, provider, sent
        self._endings: dict[str, Ending] = {}
        self._metrics: CircuitBreakerMetrics | None = None
        self._held = 0
        self._timeline = Timeline()
        self._started = time.monotonic()
        self._chapter = Chapter.WELL
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_until_ended, name="watch", daemon=True)

    def start(self) -> None:
        """
        Look once, then begin to do so all the time.
        """
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """
        Look once more, then no more.
        """
        self._ended.set()
        self._thread.join(timeout=5.0)
        self.look()

    def turn_to(self, chapter: Chapter) -> None:
        """
        Say where the story is now.
        """
        self._chapter = chapter

    @property
    def elapsed(self) -> float:
        """
        Seconds since the first task was sent.
        """
        return time.monotonic() - self._started

    def endings(self) -> dict[str, Ending]:
        """
        How each task ended so far: task id to ending; ``PENDING`` where none is known.
        """
        return {task_id: Ending("PENDING", slug) for task_id, slug in self._sent.items()} | self._endings

    def moment(self) -> Moment:
        """
        Put together what was last seen.
        """
        calls, metrics, endings = self.calls, self._metrics, list(self._endings.values())
        elapsed = self.elapsed
        done = sum(ending.state == "SUCCESS" for ending in endings)
        return Moment(
            chapter=self._chapter,
            elapsed=elapsed,
            circuit=str(metrics.state) if metrics else None,
            degraded=bool(metrics and metrics.degraded),
            failures=metrics.consecutive_failures if metrics else 0,
            failure_threshold=self._plan.failure_threshold,
            retry_after=metrics.retry_after or 0.0 if metrics else 0.0,
            total=len(self._sent),
            done=done,
            failed=len(endings) - done,
            running=sum(call.answered is None for call in calls),
            held=self._held,
            dead_calls=sum(call.dead for call in calls),
            seconds=self._timeline.seconds(calls, self._started, elapsed),
        )

    def _look_until_ended(self) -> None:
        while not self._ended.is_set():
            self.look()
            self._ended.wait(_INTERVAL_S)

    def look(self) -> None:
        """
        Look once at every source; one that does not answer keeps its last value.
        """
        self.calls = self._ask("the provider", self._provider.calls, self.calls)
        self._metrics = self._ask("the circuit", lambda: get_circuit_breaker_manager().get(CIRCUIT).get_metrics(), None)
        self._held = self._ask("the lot", lambda: get_lot(self._app).counts([CIRCUIT])[CIRCUIT], self._held)
        self.most_held = max(self.most_held, self._held)
        self._ask("the result backend", self._look_at_results, None)
        circuit = str(self._metrics.state) if self._metrics else None
        self._timeline.look(self.elapsed, provider_down=self._chapter is Chapter.OUTAGE, circuit=circuit)

    def _look_at_results(self) -> None:
        for task_id in self._sent.keys() - self._endings.keys():
            # An AsyncResult would subscribe to what it only has to look at.
            found = self._app.backend.get_task_meta(task_id)
            if found["status"] in _FINAL_STATES:
                holds = found["result"].get("holds", 0) if isinstance(found["result"], dict) else 0
                self._endings[task_id] = Ending(found["status"], self._sent[task_id], holds)

    def _ask(self, source: str, question: Callable[[], T], otherwise: T) -> T:
        try:
            return question()
        except Exception:  # whatever breaks a look must not break what is looked at
            log.warning("could not look at %s", source, exc_info=True)
            return otherwise
