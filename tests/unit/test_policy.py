"""
What a circuit may be configured to do, and what is refused.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.core.wire import Policy
from omni_tasks.errors import ConfigurationError

#: option -> the least and the most it may be.
RANGES: dict[str, tuple[float, float]] = {
    "failure_threshold": (1, 1_000_000),
    "failure_rate_threshold": (0.001, 1.0),
    "slow_call_duration": (0.001, 2_592_000.0),
    "slow_call_rate_threshold": (0.001, 1.0),
    "minimum_calls": (1, 1_000),
    "window_calls": (1, 1_000),
    "window_seconds": (0.01, 2_592_000.0),
    "half_open_max_calls": (1, 1_000),
    "success_threshold": (1, 1_000_000),
    "recovery_timeout": (0.001, 2_592_000.0),
    "monitor_interval": (0.001, 2_592_000.0),
    "probe_lease": (0.001, 2_592_000.0),
    "call_lease": (0.001, 2_592_000.0),
    "max_recovery_timeout": (0.001, 2_592_000.0),
    "backoff_factor": (1.0, 10.0),
    "ramp_initial_rate": (1.0, 10_000.0),
    "jitter": (0.0, 1.0),
    "stable_seconds": (0.0, 2_592_000.0),
    "version": (0, 2**31),
    "max_keys": (1, 100_000),
}


#: Options that may be left out by name.
OPTIONAL = {
    "failure_threshold",
    "failure_rate_threshold",
    "slow_call_duration",
    "slow_call_rate_threshold",
    "window_seconds",
}

#: Options that are no numbers: option -> values that are refused.
CHOICES: dict[str, list[object]] = {
    "mode": ["", "enforcing", None, True],
    "ignored_exceptions": [None, ValueError, [ValueError], (int,), ("OSError",)],
    "counted_exceptions": [None, ValueError, [ValueError], (int,), ("OSError",)],
    "classify": ["failure", 7, True],
    "fallback_on": ["", "always", None, True],
    "health_check": ["omni_tasks:check", 7, True],
}

#: With these, every option alone may take every value of its range.
ROOM = {"failure_rate_threshold": 0.5, "slow_call_duration": 1.0, "window_seconds": 60.0}


def _config(**options: Any) -> CircuitBreakerConfig:
    return CircuitBreakerConfig(**{"name": "policy", **options})


def test_defaults() -> None:
    """
    A name is enough; the rest has the documented defaults.
    """
    assert dataclasses.asdict(_config()) == {
        "name": "policy",
        "failure_threshold": 5,
        "failure_rate_threshold": None,
        "slow_call_duration": None,
        "slow_call_rate_threshold": None,
        "minimum_calls": 20,
        "window_calls": 100,
        "window_seconds": None,
        "recovery_timeout": 60.0,
        "monitor_interval": 10.0,
        "mode": "enforce",
        "ignored_exceptions": (),
        "counted_exceptions": (),
        "classify": None,
        "health_check": None,
        "half_open_max_calls": 1,
        "success_threshold": 1,
        "probe_lease": 30.0,
        "call_lease": 3600.0,
        "backoff_factor": 1.0,
        "max_recovery_timeout": 3600.0,
        "ramp_initial_rate": 2.0,
        "jitter": 0.0,
        "stable_seconds": 60.0,
        "version": 0,
        "max_keys": 1000,
        "fallback": None,
        "fallback_on": "refused",
    }


def test_every_option_is_in_these_tests() -> None:
    """
    A new option cannot be added without its range being tested here.
    """
    # A fallback may be any value.
    assert {"name", "fallback", *RANGES, *CHOICES} == set(CircuitBreakerConfig.option_names())


@pytest.mark.parametrize("option", RANGES)
def test_both_ends_of_a_range_are_allowed(option: str) -> None:
    """
    The least and the most of each range can be configured.
    """
    for value in RANGES[option]:
        assert getattr(_config(**{**ROOM, option: value}), option) == value


@pytest.mark.parametrize("option", RANGES)
def test_what_is_out_of_range_is_refused(option: str) -> None:
    """
    Beyond either end, and with a value of another type, the message names option, value and range.
    """
    least, most = RANGES[option]
    wrong = [least - 1, most + 1, -least or -1, math.inf, math.nan, 10**400, str(least), True, [least]]
    for value in wrong if option in OPTIONAL else [*wrong, None]:
        with pytest.raises(ConfigurationError) as caught:
            _config(**{**ROOM, option: value})
        assert caught.value.option == option
        message = str(caught.value)
        assert message.startswith(f"{option} must be a ")
        assert f"from {least:g} to {most:g}" in message or f"from {least} to {most}" in message
        assert message.endswith(f", got {value!r}")


@pytest.mark.parametrize("option", ["failure_threshold", "half_open_max_calls", "minimum_calls", "window_calls"])
def test_a_count_is_whole(option: str) -> None:
    """
    Half a failure is no threshold.
    """
    with pytest.raises(ConfigurationError, match="a whole number"):
        _config(**{option: 1.5})


@pytest.mark.parametrize("name", ["a", "n" * 128, "{with} strange: characters", "n" * 128 + ":" + "k" * 200, "a:b:c"])
def test_names_that_are_allowed(name: str) -> None:
    """
    Any printable name of up to 128 characters will do; behind a colon, a key of up to 200.
    """
    assert _config(name=name).name == name


@pytest.mark.parametrize(
    "name", ["", "n" * 129, "two\nlines", "\x00", None, 7, "n" * 129 + ":k", "n:" + "k" * 201, "n:\n"]
)
def test_names_that_are_refused(name: object) -> None:
    """
    An empty, endless or unprintable name is refused.
    """
    with pytest.raises(ConfigurationError, match=r"^name must be 1-128 printable characters"):
        _config(name=name)


def test_times_cross_the_wire_as_milliseconds() -> None:
    """
    Seconds become whole milliseconds, factors and rates whole thousandths.
    """
    config = _config(recovery_timeout=0.0015, probe_lease=2.5, backoff_factor=1.25, ramp_initial_rate=2.5)
    assert (config.recovery_ms, config.probe_lease_ms) == (2, 2_500)
    assert (config.backoff_permille, config.ramp_initial_mps) == (1_250, 2_500)
    assert (_config(jitter=0.25).jitter_permille, _config(stable_seconds=1.5).stable_ms) == (250, 1_500)


def test_a_policy_is_read_as_it_was_written() -> None:
    """
    The numbers of a configuration come back from their text; nothing else is taken for a policy.
    """
    policy = _config(version=7).policy
    assert Policy.parse(policy.text) == policy
    for text in ("", "1", policy.text + ",1", policy.text.replace(",", " "), policy.text[:-1] + "x", "-" + policy.text):
        assert Policy.parse(text) is None
    assert Policy.parse("1" * 400 + policy.text) is None


def test_the_highest_version_decides() -> None:
    """
    Of two versions the higher one counts; an equal one, one that cannot be read and none leave a policy as it is.
    """
    older, newer = _config(version=1).policy, _config(version=2, failure_threshold=9).policy
    assert older.or_newer(newer.text) == newer
    for stored in (older.text, newer._replace(failure_limit=1).text, "garbage", ""):
        assert newer.or_newer(stored) is newer


def test_a_cap_below_the_value_it_caps_is_raised() -> None:
    """
    The longest wait is never shorter than the recovery timeout, the longest lease never shorter than a probe's.
    """
    config = _config(recovery_timeout=7200.0, probe_lease=90.0, call_lease=60.0)
    assert (config.longest_open_ms, config.longest_lease_ms) == (7_200_000, 90_000)


def test_a_configuration_is_frozen() -> None:
    """
    What a circuit was made with cannot be changed behind its back.
    """
    with pytest.raises(dataclasses.FrozenInstanceError):
        _config().failure_threshold = 1  # type: ignore[misc] # what is shown is that it raises


@pytest.mark.parametrize("option", CHOICES)
def test_what_is_no_choice_is_refused(option: str) -> None:
    """
    A mode that does not exist, classes that are no exceptions and a predicate that is no function are refused by name.
    """
    for value in CHOICES[option]:
        with pytest.raises(ConfigurationError, match=f"^{option} must be "):
            _config(**{option: value})
