"""
The slots of a pool that takes more tasks than it runs.

A message that waits in the pool has been decided about too early: the circuit
may open before its turn, and it has a permit all the while.  So no more guarded
messages are in such a pool than it can run; the others wait here, reserved and
unacknowledged as any prefetched message, and come to the gate when a slot is free.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from celery.worker import state

from omni_tasks.integration.compat import when_done

if TYPE_CHECKING:
    from omni_tasks.integration.request import CircuitRequest

__all__ = ["Slots"]


class Slots:
    """
    The slots of one worker.  Thread-safe: with threads, whoever has finished starts the next.
    """

    def __init__(self) -> None:
        """
        Begin with all slots free.
        """
        self._lock = threading.Lock()
        self._taken = 0
        self._waiting: deque[tuple[CircuitRequest, Any]] = deque()
        self._starting = False

    def take(self, request: CircuitRequest, pool: Any) -> bool:
        """
        Take a slot, or queue up for one.
        """
        with self._lock:
            if self._taken < pool.limit:
                self._taken += 1
                return True
            self._waiting.append((request, pool))
            return False

    def free(self) -> None:
        """
        Give a slot back that did not lead to a run, and let the next one come.
        """
        with self._lock:
            self._taken -= 1
        self._start_waiting()

    def free_when_done(self, pool: Any, result: Any) -> None:
        """
        Give a slot back when the pool is through with *result*.
        """
        when_done(pool, result, self.free)

    def _start_waiting(self) -> None:
        # A loop, and one at a time: a thousand refusals one after the other must not be a thousand calls deep.
        while True:
            with self._lock:
                if self._starting or not self._waiting or self._taken >= self._waiting[0][1].limit:
                    return
                self._starting = True
                request, pool = self._waiting.popleft()
            try:
                # After a lost connection the broker gives the message to somebody else.
                if request in state.reserved_requests and not state.should_stop:
                    request.enter(pool)
            finally:
                with self._lock:
                    self._starting = False
