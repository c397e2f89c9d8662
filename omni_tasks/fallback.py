"""
What a caller gets instead of a refusal or a failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omni_tasks.core.outcome import Outcome, judge
from omni_tasks.core.policy import FALLBACK_ON, CircuitBreakerConfig
from omni_tasks.errors import ConfigurationError

__all__ = ["Fallback"]


@dataclass(frozen=True, slots=True)
class Fallback:
    """
    An answer, and when it is given.

    Attributes:
        answer: A value, or a function called with the call's own arguments and ``reason``, the exception.

        on: ``"refused"``, or ``"failed"`` for calls that ran and counted as failures too.
    """

    answer: object
    on: str = "refused"

    @classmethod
    def of(cls, answer: object, on: str | None, config: CircuitBreakerConfig | None = None) -> Fallback | None:
        """
        The fallback of one call.

        Args:
            answer: The call's own; ``None`` leaves it to *config*.

            on: The call's own; ``None`` leaves it to *config*.

            config: The circuit's rules.

        Raises:
            ConfigurationError: *on* is no such word.
        """
        if on is not None and on not in FALLBACK_ON:
            raise ConfigurationError("fallback_on", on, "one of " + ", ".join(FALLBACK_ON))
        if config is not None:
            answer = config.fallback if answer is None else answer
            on = on or config.fallback_on
        return None if answer is None else cls(answer, on or "refused")

    def covers(self, config: CircuitBreakerConfig, error: BaseException) -> bool:
        """
        Whether it answers for a call that ran and raised *error*.
        """
        return self.on == "failed" and isinstance(error, Exception) and judge(config, error).outcome is Outcome.FAILURE

    def give(self, reason: BaseException, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """
        Answer a call that had these arguments.

        Raises:
            Exception: What the fallback itself raised, with *reason* behind it.
        """
        return self.answer(*args, **{**kwargs, "reason": reason}) if callable(self.answer) else self.answer
