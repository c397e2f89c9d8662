"""
A circuit's breakers by key, and how a call's key is found.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from omni_tasks.core.keys import LONGEST_KEY, key_text
from omni_tasks.events import log

if TYPE_CHECKING:
    from omni_tasks.breaker import CircuitBreaker

__all__ = ["Key", "Keyed", "breaker_for"]

#: A call's key, or a function that finds it in the call's arguments.
Key = Callable[..., object] | str | int | None

#: Most breakers of one circuit's keys that a process keeps; the circuits themselves are in the store.
_MOST_KEPT = 1_000


class Keyed:
    """
    The breakers of one circuit's keys that this process knows.  Thread-safe.
    """

    def __init__(self, most: int) -> None:
        """
        Keep at most *most* besides those that were added by name.
        """
        self._most = min(most, _MOST_KEPT)
        self._lock = threading.Lock()
        self._added: dict[str, CircuitBreaker] = {}
        self._recent: OrderedDict[str, CircuitBreaker] = OrderedDict()
        self._complaints: set[str] = set()

    def get(self, key: str, make: Callable[[], CircuitBreaker]) -> CircuitBreaker:
        """
        The breaker of *key*; made where this process does not know it.
        """
        with self._lock:
            if key in self._added:
                return self._added[key]
            breaker = self._recent.get(key) or make()
            self._recent[key] = breaker
            self._recent.move_to_end(key)
            if len(self._recent) > self._most:
                self._recent.popitem(last=False)
        return breaker

    def add(self, key: str, breaker: CircuitBreaker) -> None:
        """
        Keep *breaker* for good.
        """
        with self._lock:
            self._added = {**self._added, key: breaker}
            self._recent.pop(key, None)

    def added(self) -> Mapping[str, CircuitBreaker]:
        """
        The breakers that are kept for good, by key.
        """
        return self._added

    def complain(self, circuit: str, where: str, problem: str) -> None:
        """
        Log, once, that the key of *where* cannot be used.
        """
        with self._lock:
            told = where in self._complaints
            self._complaints.add(where)
        if not told:
            log.error(
                "circuit_key_unusable",
                component=circuit,
                where=where,
                reason=problem,
                effect="such calls share the circuit itself",
            )


def breaker_for(
    breaker: CircuitBreaker, key: Key, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, where: str
) -> CircuitBreaker:
    """
    The breaker of a call by its arguments; never raises for a key's sake.

    Args:
        breaker: The circuit's own.

        key: The call's key or how to find it; ``None`` for none.

        args: The call's arguments.

        kwargs: The call's arguments by name.

        where: What the log calls the place the key comes from.

    Returns:
        The key's breaker; the circuit's own where the key cannot be used, which is logged once.
    """
    if key is None:
        return breaker
    try:
        value = key(*args, **kwargs) if callable(key) else key
    except Exception as error:  # noqa: BLE001 - the user's own code; logged, and the call goes on
        breaker.known_keys.complain(breaker.key, where, f"the key function raised {type(error).__name__}: {error}")
        return breaker
    text = key_text(value)
    if text is not None and breaker.parent is None:
        return breaker.keyed(text)
    problem = f"a key is 1-{LONGEST_KEY} printable characters or a whole number, got {type(value).__name__}"
    if text is not None:
        problem = "the circuit is one of a key already"
    breaker.known_keys.complain(breaker.key, where, problem)
    return breaker
