"""
Who is told when a circuit's state changes: the log, the application's callbacks, the signals.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from omni_tasks import signals
from omni_tasks.core.model import CircuitState, Transition
from omni_tasks.events import log

if TYPE_CHECKING:
    from omni_tasks.breaker import CircuitBreaker

__all__ = ["Announcer", "Callback"]

Callback = Callable[["CircuitBreaker"], object]

_EVENTS = {
    CircuitState.OPEN: ("circuit_breaker_open", signals.circuit_opened),
    CircuitState.HALF_OPEN: ("circuit_breaker_half_open", signals.circuit_half_opened),
    CircuitState.CLOSED: ("circuit_breaker_closed", signals.circuit_closed),
}


class Announcer:
    """
    Tells of the changes that this process has caused.  Nothing is locked while a callback runs.

    Attributes:
        logging: Whether changes are logged.
    """

    def __init__(self, *, logging: bool, above: Announcer | None = None) -> None:
        """
        Tell nobody yet.

        Args:
            logging: Whether changes are logged.

            above: Whose callbacks are called too, before its own: those of the circuit a key belongs to.
        """
        self.logging = logging
        self._above = above
        self._callbacks: dict[CircuitState, list[Callback]] = {state: [] for state in CircuitState}
        self._lock = threading.Lock()

    def add(self, state: CircuitState, callback: Callback) -> None:
        """
        Call *callback* whenever this process brings the circuit into *state*.
        """
        with self._lock:
            self._callbacks[state] = [*self._callbacks[state], callback]

    def tell(self, breaker: CircuitBreaker, transition: Transition | None) -> None:
        """
        Tell of a change of *breaker*; a listener that raises is logged and changes nothing.
        """
        if transition is None:
            return
        event, signal = _EVENTS[transition.current]
        if self.logging:
            log.warning(
                event,
                component=breaker.key,
                previous_state=transition.previous.value,
                failure_count=transition.failures,
                failure_threshold=breaker.config.failure_threshold,
                epoch=transition.epoch,
                reason=transition.reason,
            )
        for callback in self._of(transition.current):
            try:
                callback(breaker)
            except Exception:  # noqa: BLE001 - the user's own code; logged, and the transition stands
                log.exception("circuit_breaker_callback_failed", component=breaker.key, callback=repr(callback))
        signal.send(sender=breaker.key, breaker=breaker, transition=transition)

    def _of(self, state: CircuitState) -> list[Callback]:
        above = self._above._of(state) if self._above else []  # noqa: SLF001 - one of its own kind
        return [*above, *self._callbacks[state]]
