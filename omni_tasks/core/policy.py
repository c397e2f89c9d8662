"""
What a circuit is configured to do.

Public fields are float seconds; the machine, the wire and the Lua scripts carry
integer milliseconds, read from the ``*_ms`` properties.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields

from omni_tasks.core.keys import key_text, split_key
from omni_tasks.core.wire import Policy
from omni_tasks.errors import ConfigurationError

__all__ = ["FALLBACK_ON", "CircuitBreakerConfig"]

#: Longest time any setting may name: 30 days.  Keeps Unix milliseconds plus a duration
#: far below 2**53, the largest integer that Lua holds exactly.
LONGEST_SECONDS = 30 * 86_400.0

#: What a circuit may do with its decisions.
MODES = ("enforce", "shadow", "off")

#: When a fallback answers: only for refused calls, or also for those that ran and failed.
FALLBACK_ON = ("refused", "failed")

#: Most calls a window over calls looks back.
LONGEST_WINDOW = 1_000

#: Longest circuit name in characters.
LONGEST_NAME = 128

#: Highest version of a configuration: large enough for a date with a time, or a commit's first seven digits.
HIGHEST_VERSION = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreakerConfig:
    """
    One circuit's frozen configuration.  All times are in seconds.

    Attributes:
        name: What logs, refusals and metrics call it.  1-128 printable characters; with a key, a colon and
            1-200 more.

        failure_threshold: Consecutive counted failures that trip the circuit; ``None`` for no such rule.  1-1,000,000.

        failure_rate_threshold:
            Share of failed calls in the window that trips the circuit; ``None`` for no such rule.  0.001-1.0.

        slow_call_duration: From how long on a call is slow; ``None`` where none is.  0.001 s - 30 days.

        slow_call_rate_threshold:
            Share of slow calls in the window that trips the circuit; ``None`` for no such rule.  With it a
            slow probe is no proof of health.  0.001-1.0.

        minimum_calls: Calls the window must hold before a rate counts.  1-1,000.

        window_calls: The window looks back over so many calls ...  1-1,000.

        window_seconds: ... or, when this is set, over so long, moving on by a tenth of it.  0.01 s - 30 days.

        recovery_timeout: Time the circuit stays open before a probe.  0.001 s - 30 days.

        monitor_interval: Time between two looks of the monitor at this circuit.  0.001 s - 30 days.

        mode:
            ``"enforce"``; ``"shadow"`` decides, counts and announces but refuses nothing; ``"off"`` is as if
            there were no circuit.

        ignored_exceptions: Exceptions that say nothing about the dependency.

        counted_exceptions: When not empty: only these count as failures, all others are ignored.

        classify:
            Asked first, with the exception or ``None`` and the result; answers ``"success"``,
            ``"failure"``, ``"ignored"``, ``"trip"`` (a failure that opens the circuit at once), or ``None`` to
            leave it to the other rules.

        health_check:
            Called without arguments to probe the dependency, instead of a user's task; raises when it is
            down.  ``None`` for no such check.

        half_open_max_calls: Probes in flight at once, over the whole cluster.  1-1,000.

        success_threshold: Successful probes that close the circuit.  1-1,000,000.

        probe_lease:
            How long a probe may stay silent before its permit is given to
            another.  A task's own hard time limit overrides it.  0.001 s - 30 days.

        call_lease:
            How long an ordinary call's report is waited for; also the longest
            lease a probe can have.  0.001 s - 30 days.

        backoff_factor:
            Each reopening multiplies the open time by this.  1.0 (never longer) - 10.0.

        max_recovery_timeout:
            Cap for the open time, however it was extended (back-off, a
            provider's Retry-After).  Raised to *recovery_timeout* if that is longer.

        ramp_initial_rate:
            Task starts per second right after the circuit closes, before any
            has succeeded.  Held and fresh tasks share it.  1.0 - 10,000.

        jitter:
            Lengthens each open time by up to this part of it, so that circuits that opened together do not
            probe together.  It never shortens: the open time is what the dependency was promised.  0.0 by
            default, for then a held task's countdown is the recovery timeout, as it says.  0.0 - 1.0.

        stable_seconds:
            A circuit that has stayed closed for less goes on backing off where it was when it trips again.
            0 forgets the back-off on closing.  0 - 30 days.

        version:
            Of this configuration.  Processes with a lower one decide by the highest that has used the circuit.
            0 - 2,147,483,648.

        max_keys: Most keys with a circuit of their own at once, in the whole cluster.  1-100,000.

        fallback:
            What a call gets that was refused: a value, or a function called with the call's own arguments and
            ``reason``, the exception.  ``None`` for none.  Tasks wait instead: they have a fallback of their own.

        fallback_on: ``"refused"``, or ``"failed"`` to also answer for calls that ran and counted as failures.
    """

    name: str
    failure_threshold: int | None = 5
    failure_rate_threshold: float | None = None
    slow_call_duration: float | None = None
    slow_call_rate_threshold: float | None = None
    minimum_calls: int = 20
    window_calls: int = 100
    window_seconds: float | None = None
    recovery_timeout: float = 60.0
    monitor_interval: float = 10.0
    mode: str = "enforce"
    ignored_exceptions: tuple[type[BaseException], ...] = ()
    counted_exceptions: tuple[type[BaseException], ...] = ()
    classify: Callable[[BaseException | None, object], str | None] | None = None
    health_check: Callable[[], object] | None = None
    half_open_max_calls: int = 1
    success_threshold: int = 1
    probe_lease: float = 30.0
    call_lease: float = 3600.0
    backoff_factor: float = 1.0
    max_recovery_timeout: float = 3600.0
    ramp_initial_rate: float = 2.0
    jitter: float = 0.0
    stable_seconds: float = 60.0
    version: int = 0
    max_keys: int = 1000
    fallback: object = field(default=None, hash=False)
    fallback_on: str = "refused"

    def __post_init__(self) -> None:
        """
        Refuse what cannot work, naming the field.

        Raises:
            ConfigurationError: A field is of the wrong type or out of its range.
        """
        # The annotations are promises of the caller's; the values come from configuration files.
        if not _is_name(self.name):
            raise ConfigurationError("name", self.name, f"1-{LONGEST_NAME} printable characters")
        for option, least, most in (
            ("failure_threshold", 1, 1_000_000),
            ("minimum_calls", 1, LONGEST_WINDOW),
            ("window_calls", 1, LONGEST_WINDOW),
            ("half_open_max_calls", 1, 1_000),
            ("success_threshold", 1, 1_000_000),
            ("version", 0, HIGHEST_VERSION),
            ("max_keys", 1, 100_000),
        ):
            value = getattr(self, option)
            if value is None and option == "failure_threshold":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ConfigurationError(option, value, f"a whole number from {least} to {most}")
        for option in ("recovery_timeout", "monitor_interval", "probe_lease", "call_lease", "max_recovery_timeout"):
            self._require_number(option, 0.001, LONGEST_SECONDS, "s")
        self._require_number("backoff_factor", 1.0, 10.0, "")
        self._require_number("jitter", 0.0, 1.0, "")
        self._require_number("stable_seconds", 0.0, LONGEST_SECONDS, "s")
        self._check_window()
        self._check_choices()
        self._check_code()
        self._require_number("ramp_initial_rate", 1.0, 10_000.0, "per second")

    def _check_code(self) -> None:
        for option in ("ignored_exceptions", "counted_exceptions"):
            kinds: object = getattr(self, option)
            if not isinstance(kinds, tuple) or not all(map(_is_exception_class, kinds)):
                raise ConfigurationError(option, kinds, "a tuple of exception classes")
        for option, what in (("classify", "of an exception and a result"), ("health_check", "without arguments")):
            function = getattr(self, option)
            if function is not None and not callable(function):
                raise ConfigurationError(option, function, f"a function {what}")

    def _check_choices(self) -> None:
        if self.mode not in MODES:
            raise ConfigurationError("mode", self.mode, "one of " + ", ".join(MODES))
        if self.fallback_on not in FALLBACK_ON:
            raise ConfigurationError("fallback_on", self.fallback_on, "one of " + ", ".join(FALLBACK_ON))

    def _check_window(self) -> None:
        for option, least, most, unit in (
            ("failure_rate_threshold", 0.001, 1.0, ""),
            ("slow_call_rate_threshold", 0.001, 1.0, ""),
            ("slow_call_duration", 0.001, LONGEST_SECONDS, "s"),
            ("window_seconds", 0.01, LONGEST_SECONDS, "s"),
        ):
            if getattr(self, option) is not None:
                self._require_number(option, least, most, unit)
        if self.slow_call_rate_threshold is not None and self.slow_call_duration is None:
            raise ConfigurationError("slow_call_duration", None, "set, because slow_call_rate_threshold is")
        if self.window_seconds is None and self.minimum_calls > self.window_calls:
            raise ConfigurationError("minimum_calls", self.minimum_calls, f"at most window_calls ({self.window_calls})")
        if self.failure_threshold is None and self.failure_rate_threshold is self.slow_call_rate_threshold is None:
            raise ConfigurationError("failure_threshold", None, "a number, because no rate trips the circuit either")

    def _require_number(self, option: str, least: float, most: float, unit: str) -> None:
        value = getattr(self, option)
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not good or not least <= value <= most:
            raise ConfigurationError(option, value, f"a number from {least:g} to {most:g} {unit}".rstrip())

    @property
    def policy(self) -> Policy:
        """
        The numbers the rules need.
        """
        return Policy(*(getattr(self, name) for name in Policy._fields))

    @property
    def recovery_ms(self) -> int:
        """
        The open time after a first trip, in ms.
        """
        return round(self.recovery_timeout * 1000)

    @property
    def longest_open_ms(self) -> int:
        """
        The longest the circuit may stay open without another failure, in ms.
        """
        return max(round(self.max_recovery_timeout * 1000), self.recovery_ms)

    @property
    def probe_lease_ms(self) -> int:
        """
        A probe's lease where its caller names none, in ms.
        """
        return round(self.probe_lease * 1000)

    @property
    def longest_lease_ms(self) -> int:
        """
        An ordinary call's lease, and the cap for a probe's, in ms.
        """
        return max(round(self.call_lease * 1000), self.probe_lease_ms)

    @property
    def backoff_permille(self) -> int:
        """
        The back-off factor in thousandths: integers only cross the wire.
        """
        return round(self.backoff_factor * 1000)

    @property
    def jitter_permille(self) -> int:
        """
        The most an open time is lengthened by, in thousandths of it.
        """
        return round(self.jitter * 1000)

    @property
    def stable_ms(self) -> int:
        """
        How long the circuit must stay closed until its back-off is forgotten, in ms.
        """
        return round(self.stable_seconds * 1000)

    @property
    def failure_limit(self) -> int:
        """
        Consecutive failures that trip; 0 for no such rule.
        """
        return self.failure_threshold or 0

    @property
    def failure_rate_ppm(self) -> int:
        """
        The failure rate that trips, in millionths; 0 for no such rule.
        """
        return round((self.failure_rate_threshold or 0) * 1_000_000)

    @property
    def slow_rate_ppm(self) -> int:
        """
        The rate of slow calls that trips, in millionths; 0 for no such rule.
        """
        return round((self.slow_call_rate_threshold or 0) * 1_000_000)

    @property
    def slow_ms(self) -> int:
        """
        From how many ms on a call is slow; 0 where none is.
        """
        return round((self.slow_call_duration or 0) * 1000)

    @property
    def window_ms(self) -> int:
        """
        The length of a window over time, in ms; 0 for one over calls.
        """
        return round((self.window_seconds or 0) * 1000)

    @property
    def ramp_initial_mps(self) -> int:
        """
        The ramp's first rate in thousandths of a call per second.
        """
        return round(self.ramp_initial_rate * 1000)

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """
        Every field's name: what a circuit's entry in the settings may hold.
        """
        return tuple(option.name for option in fields(cls))


def _is_name(name: object) -> bool:
    if not isinstance(name, str) or not name.isprintable():
        return False
    circuit, key = split_key(name)
    return 0 < len(circuit) <= LONGEST_NAME and (not key or key_text(key) is not None)


def _is_exception_class(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)
