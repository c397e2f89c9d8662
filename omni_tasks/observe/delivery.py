"""
Delivery: every sink in a lane of its own, at least once, again at the next tick.

What is to be delivered waits in the store.  A sink that is slow or fails keeps
its own notifications waiting, and nobody else's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from functools import partial

from omni_tasks.events import log
from omni_tasks.observe.lane import Lane
from omni_tasks.observe.notification import Notification
from omni_tasks.observe.sinks import WITHIN, Sink
from omni_tasks.observe.state import MonitorState

__all__ = ["Delivery"]

#: Notifications a sink is given in one tick, and at once.
_MOST_PER_TICK, _AT_ONCE = 100, 10

#: Seconds that nobody else gets what is being delivered; longer than a sink may take for all it is given at once.
_LEASE = _AT_ONCE * WITHIN + 10.0

#: After so many ms nobody is helped by hearing of it.
_TOO_OLD_MS = 24 * 3_600_000


class Delivery:
    """
    The sinks of one process.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        """
        Deliver to *sinks*.
        """
        self.sinks = tuple(sinks)
        self._lanes = {sink.name: Lane(f"omni-sink-{sink.name}") for sink in sinks}

    @property
    def names(self) -> tuple[str, ...]:
        """
        The sinks' names.
        """
        return tuple(sink.name for sink in self.sinks)

    def deliver(
        self, state: MonitorState, *, now_ms: int, going_on: Sequence[Notification] = (), patience: float
    ) -> None:
        """
        Deliver what waits.

        Args:
            state: Where it waits.

            now_ms: The store's clock.

            going_on: Alerts that are going on, for the sinks that want to hear of them again.

            patience: Seconds this waits for the sinks; what is slower goes on by itself.
        """
        begun: list[Future[None]] = []
        for sink in self.sinks:
            try:
                refresh = going_on if sink.refreshed else ()
                begun.append(self._lanes[sink.name].start(_Round(sink, state, now_ms, refresh)))
            except TimeoutError:
                # Still at the round before; what waits, waits in the store.
                continue
        wait(begun, timeout=patience)

    def tell(self, notification: Notification, *, patience: float) -> None:
        """
        Tell all sinks at once, once, past the store: it is the store that is away.
        """
        begun: list[Future[bool]] = []
        for sink in self.sinks:
            try:
                begun.append(self._lanes[sink.name].start(partial(_try, sink, [notification])))
            except TimeoutError:
                continue
        wait(begun, timeout=patience)


class _Round:
    """
    One sink's part of one tick; runs in the sink's lane.
    """

    def __init__(self, sink: Sink, state: MonitorState, now_ms: int, going_on: Sequence[Notification]) -> None:
        self._sink, self._state, self._now_ms, self._going_on = sink, state, now_ms, going_on

    def __call__(self) -> None:
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - the store went away in between; the leases bring it all back
            log.error("circuit_monitor_failed", reason=f"{type(error).__name__}: {error}")

    def _run(self) -> None:
        sink, state = self._sink, self._state
        if self._going_on and not _try(sink, self._going_on):
            state.count(sink.kind, "failed")
            return
        for _ in range(_MOST_PER_TICK // _AT_ONCE):
            taken = state.take(sink.name, lease=_LEASE, most=_AT_ONCE)
            if not taken or not self._send(taken):
                return

    def _send(self, taken: Sequence[Notification]) -> bool:
        sink, state = self._sink, self._state
        for start, note in enumerate(taken):
            if self._now_ms - note.at_ms > _TOO_OLD_MS:
                log.error("circuit_alert_undelivered", sink=sink.name, alert=note.alert, component=note.component)
                state.done(sink.name, note, kind=sink.kind, result="dropped")
            elif _try(sink, [note]):
                state.done(sink.name, note, kind=sink.kind, result="delivered")
            else:
                state.again(sink.name, taken[start:], kind=sink.kind)
                return False
        return True


def _try(sink: Sink, notifications: Sequence[Notification]) -> bool:
    started = time.monotonic()
    try:
        sink.send(notifications)
    except Exception as error:  # noqa: BLE001 - whatever a sink does, the others and the monitor go on
        took = round(time.monotonic() - started, 3)
        log.error(
            "circuit_alert_delivery_failed", sink=sink.name, reason=f"{type(error).__name__}: {error}", seconds=took
        )
        return False
    return True
