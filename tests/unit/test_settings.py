"""
Every setting: its name in each place, its default, what it may be and how a wrong one is refused.
"""

from __future__ import annotations

import dataclasses
import json
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from omni_tasks import CircuitBreakerConfig, ConfigurationError, ResilienceConfiguration
from omni_tasks.settings import READY_CIRCUITS, redacted


class Option(NamedTuple):
    """
    One setting: its environment variable, its default, a value from the environment as text and as read, wrong ones.
    """

    variable: str
    default: object
    text: str
    value: object
    wrong: tuple[str, ...]


NO_BOOLEAN = ("maybe", "2", "none")
NO_SECONDS = ("0", "-1", "86401", "nan", "inf", "ten", "1 s")

OPTIONS = {
    "enable_resilience": Option("ENABLE_RESILIENCE", default=True, text="false", value=False, wrong=NO_BOOLEAN),
    "default_failure_threshold": Option(
        "DEFAULT_FAILURE_THRESHOLD", 5, "7", 7, ("0", "-1", "1000001", "2.5", "five", "true")
    ),
    "default_recovery_timeout": Option(
        "DEFAULT_RECOVERY_TIMEOUT", 60.0, "90.5", 90.5, ("0", "-1", "2592001", "nan", "inf", "soon")
    ),
    "default_max_retries": Option("DEFAULT_MAX_RETRIES", 3, "0", 0, ("-1", "1000001", "1.5", "none")),
    "default_timeout": Option("DEFAULT_TIMEOUT", 30.0, "12", 12.0, NO_SECONDS),
    "enable_resilience_metrics": Option(
        "ENABLE_RESILIENCE_METRICS", default=True, text="off", value=False, wrong=NO_BOOLEAN
    ),
    "enable_resilience_logging": Option(
        "ENABLE_RESILIENCE_LOGGING", default=True, text="0", value=False, wrong=NO_BOOLEAN
    ),
    "resilience_monitoring_interval": Option("RESILIENCE_MONITORING_INTERVAL", 10.0, "2.5", 2.5, NO_SECONDS),
    "resilience_alert_threshold": Option("RESILIENCE_ALERT_THRESHOLD", 0.8, "1", 1.0, ("-0.1", "1.1", "nan", "80%")),
    "redis_url": Option(
        "OMNI_REDIS_URL",
        None,
        "rediss://cache:6380/3",
        "rediss://cache:6380/3",
        (
            *(
                "http://cache",
                "cache:6379",
                "redis:cache",
                " redis://cache",
                "redis://cache:port",
                "redis://[::1",
                "redis",
            ),
            *("redis+sentinel://cache:26379", "redis+sentinel://cache/", "redis+sentinel://a,,b/primary"),
            *("redis+sentinel://cache/primary/one", "rediss+sentinel://cache:port/primary", "redis+cluster://cache/3"),
            *("redis+cluster://", "rediss+cluster://a,[::1", "unix+cluster://cache"),
        ),
    ),
    "key_prefix": Option("OMNI_KEY_PREFIX", "omni", "shop:eu", "shop:eu", ("a b", "a{b", "a}b", "a\nb", "p" * 65)),
    "store_timeout": Option("OMNI_STORE_TIMEOUT", 0.2, "0.5", 0.5, ("0", "61", "nan", "x")),
    "store_retry_interval": Option("OMNI_STORE_RETRY_INTERVAL", 1.0, "0.5", 0.5, NO_SECONDS),
    "max_hold": Option("OMNI_MAX_HOLD", 604_800.0, "0", 0.0, ("-1", "31536001", "nan", "week")),
    "on_hold_expired": Option("OMNI_ON_HOLD_EXPIRED", "fail", "dead_letter", "dead_letter", ("FAIL", "drop")),
    "pause_queues": Option(
        "OMNI_PAUSE_QUEUES",
        {},
        '{"a": "database"}',
        MappingProxyType({"a": "database"}),
        ("a", "[]", '{"a": 1}', '{"": "b"}'),
    ),
    "store_policy": Option("OMNI_STORE_POLICY", "local", "Refuse", "refuse", ("open", "closed", "local,admit")),
    "mover_interval": Option("OMNI_MOVER_INTERVAL", 0.2, "0.05", 0.05, ("0.009", "61", "nan", "x")),
    "parking": Option("OMNI_PARKING", "broker", "store", "store", ("Broker", "lot", "true")),
    "alert_sinks": Option("OMNI_ALERT_SINKS", ("log",), "log, proj:page", ("log", "proj:page"), ()),
    "alert_held_age": Option("OMNI_ALERT_HELD_AGE", 3600.0, "60", 60.0, ("0", "2592001", "nan", "x")),
    "alert_private_addresses": Option(
        "OMNI_ALERT_PRIVATE_ADDRESSES", default=False, text="yes", value=True, wrong=NO_BOOLEAN
    ),
    "webhook_secret": Option("OMNI_WEBHOOK_SECRET", None, "old new", "old new", (" ",)),
    "pushgateway_url": Option(
        "OMNI_PUSHGATEWAY_URL",
        None,
        "http://push:9091",
        "http://push:9091",
        ("push:9091", "ftp://push", "http://", "http://["),
    ),
    "exporter_host": Option("OMNI_EXPORTER_HOST", "127.0.0.1", "::", "::", ("a b", "http://a", "u@a")),
    "exporter_port": Option("OMNI_EXPORTER_PORT", None, "9808", 9808, ("0", "65536", "x")),
    "log_format": Option("OMNI_LOG_FORMAT", "json", "console", "console", ("JSON", "text", "pretty")),
    "log_celery": Option("OMNI_LOG_CELERY", default=False, text="on", value=True, wrong=NO_BOOLEAN),
}

WRONG = [(option, wrong) for option, row in OPTIONS.items() for wrong in row.wrong]


def _load(conf: dict[str, Any] | None = None, /, **environ: str) -> ResilienceConfiguration:
    return ResilienceConfiguration.load(conf or {}, environ)


def _refusal(conf: dict[str, Any] | None = None, /, **environ: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        _load(conf, **environ)
    assert "\n" not in str(caught.value)
    return caught.value


def test_every_option_is_in_these_tests() -> None:
    """
    A new setting cannot be added without being tested here.
    """
    assert {*OPTIONS, "circuits"} == set(ResilienceConfiguration.option_names())


def test_defaults() -> None:
    """
    With nothing set, every setting has its documented default.
    """
    settings = _load()
    assert {option: getattr(settings, option) for option in OPTIONS} == {
        option: row.default for option, row in OPTIONS.items()
    }


@pytest.mark.parametrize("option", OPTIONS)
def test_the_environment_sets_it(option: str) -> None:
    """
    A setting is read from its environment variable, and has the type that is documented.
    """
    row = OPTIONS[option]
    value = getattr(_load(**{row.variable: row.text}), option)
    assert value == row.value
    assert type(value) is type(row.value)


@pytest.mark.parametrize("option", OPTIONS)
def test_celery_configuration_sets_it(option: str) -> None:
    """
    ``omni_`` and the option's name is its key in Celery's configuration; a value of the right type is taken as it is.
    """
    row = OPTIONS[option]
    for given in (row.value, row.text):
        assert getattr(_load({f"omni_{option}": given}), option) == row.value


#: Another value of an option whose default cannot be written into the environment.
OTHERS = {
    "redis_url": "redis://other",
    "alert_sinks": "log",
    "webhook_secret": "another",
    "pushgateway_url": "http://other",
    "exporter_port": "9999",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_the_environment_is_stronger(option: str) -> None:
    """
    A variable wins over Celery's configuration; an empty variable counts as not set, and so does None.
    """
    row = OPTIONS[option]
    conf = {f"omni_{option}": row.value}
    other = OTHERS.get(option, str(row.default))
    assert getattr(_load(conf, **{row.variable: other}), option) == getattr(_load(**{row.variable: other}), option)
    assert getattr(_load(conf, **{row.variable: other}), option) != row.value
    assert getattr(_load(conf, **{row.variable: ""}), option) == row.value
    assert getattr(_load({f"omni_{option}": None}), option) == row.default


@pytest.mark.parametrize(("option", "wrong"), WRONG)
def test_a_wrong_value_is_refused(option: str, wrong: str) -> None:
    """
    The refusal names the variable or the key, the value, and what would be right.
    """
    variable = OPTIONS[option].variable
    from_environment = _refusal(**{variable: wrong})
    assert (from_environment.option, from_environment.value) == (variable, wrong)
    assert str(from_environment).startswith(f"{variable} must be ")
    assert str(from_environment).endswith(f", got {wrong!r}")
    assert _refusal({f"omni_{option}": wrong}).option == f"omni_{option}"


@pytest.mark.parametrize("text", ["true", "TRUE", " yes ", "on", "1"])
def test_words_for_true(text: str) -> None:
    """
    true, yes, on and 1 are the same, in any case.
    """
    assert _load({"omni_enable_resilience": False}, ENABLE_RESILIENCE=text).enable_resilience


@pytest.mark.parametrize("given", [True, False])
def test_a_truth_is_no_number(given: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """
    ``True`` is not taken for 1.
    """
    for option in ("default_failure_threshold", "default_timeout", "resilience_alert_threshold"):
        assert _refusal({f"omni_{option}": given}).value is given


def test_settings_are_frozen() -> None:
    """
    What was read at the start cannot be changed behind the application's back.
    """
    settings = _load()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.key_prefix = "x"  # type: ignore[misc] # what is shown is that it raises
    with pytest.raises(TypeError):
        settings.circuits["x"] = CircuitBreakerConfig(name="x")  # type: ignore[index] # likewise


# Circuits


def test_the_ready_circuits() -> None:
    """
    Four circuits are there out of the box, with exactly these names, thresholds and times.
    """
    assert {
        key: (config.name, config.failure_threshold, config.recovery_timeout, config.monitor_interval)
        for key, config in _load().circuits.items()
    } == {
        "ai_providers": ("ai_providers_cb", 5, 180.0, 20.0),
        "external_api": ("external_api_cb", 3, 120.0, 15.0),
        "database": ("database_cb", 3, 60.0, 10.0),
        "cache": ("cache_cb", 2, 30.0, 5.0),
    }


def test_ready_circuits_ignore_the_defaults_for_others() -> None:
    """
    DEFAULT_FAILURE_THRESHOLD and DEFAULT_RECOVERY_TIMEOUT are for circuits that name none; an entry is stronger.
    """
    entries = {"mine": {}, "theirs": {"failure_threshold": 2, "recovery_timeout": 3}}
    circuits = _load({"omni_circuits": entries}, DEFAULT_FAILURE_THRESHOLD="9", DEFAULT_RECOVERY_TIMEOUT="7.5").circuits
    seen = {key: (circuit.failure_threshold, circuit.recovery_timeout) for key, circuit in circuits.items()}
    assert seen["mine"] == (9, 7.5)
    assert seen["theirs"] == (2, 3)
    assert seen["cache"] == (2, 30.0)


def test_an_entry_changes_only_what_it_names() -> None:
    """
    An entry for a ready circuit keeps the rest of it; one for a new circuit is named after its key.
    """
    entries = {"ai_providers": {"recovery_timeout": 30}, "mine": {"half_open_max_calls": 2}}
    circuits = _load(OMNI_CIRCUITS=json.dumps(entries)).circuits
    assert list(circuits) == [*READY_CIRCUITS, "mine"]
    assert (circuits["ai_providers"].name, circuits["ai_providers"].recovery_timeout) == ("ai_providers_cb", 30)
    assert circuits["mine"] == CircuitBreakerConfig(name="mine", half_open_max_calls=2)


def test_circuits_of_the_environment_replace_those_of_celery() -> None:
    """
    OMNI_CIRCUITS is one setting: it is taken whole.
    """
    circuits = _load({"omni_circuits": {"a": {}}}, OMNI_CIRCUITS='{"b": {}}').circuits
    assert "a" not in circuits
    assert "b" in circuits


@pytest.mark.parametrize("given", ["{", "[]", "7", '{"a": 1}', '{"a": null}', "not JSON"])
def test_what_is_no_mapping_of_mappings_is_refused(given: str) -> None:
    """
    OMNI_CIRCUITS must be JSON of the documented shape.
    """
    assert _refusal(OMNI_CIRCUITS=given).option == "OMNI_CIRCUITS"


def test_an_unknown_option_of_a_circuit_is_refused() -> None:
    """
    A misspelt option is not ignored: the refusal names circuit and option, and lists those there are.
    """
    message = str(_refusal(OMNI_CIRCUITS='{"mine": {"recovery_time": 3}}'))
    assert message.startswith("OMNI_CIRCUITS['mine']: option must be one of name, failure_threshold, ")
    assert message.endswith("got 'recovery_time'")


def test_a_wrong_option_of_a_circuit_is_refused() -> None:
    """
    The refusal says where the option is, its value and its range.
    """
    message = str(_refusal({"omni_circuits": {"mine": {"recovery_timeout": -1}}}))
    assert message == "omni_circuits['mine']['recovery_timeout'] must be a number from 0.001 to 2.592e+06 s, got -1"


# Passwords

PASSWORD = "hunter2"  # noqa: S105 - an example

WITH_PASSWORD = [
    "http://user:hunter2@cache:6379/0",
    "user:hunter2@cache:6379/0",
    ":hunter2@cache",
    "redis:/:hunter2@cache/0",
    "redis://:hunter2@[::1",
    "redis://:hunter2@cache:port/0",
    "redis://:hunter2/with/slashes@cache:port/0",
    "redis://:with@sign:hunter2@cache:port/0",
    "redis://:with?mark:hunter2@cache:port/0",
    "http://cache?password=hunter2",
    "http://cache?password=with@hunter2",
]


@pytest.mark.parametrize("url", WITH_PASSWORD)
def test_no_message_tells_a_password(url: str) -> None:
    """
    However a URL is misspelt, its refusal does not show the password in it.
    """
    refusal = _refusal(OMNI_REDIS_URL=url)
    assert PASSWORD not in str(refusal)
    assert PASSWORD not in repr(refusal)


def test_settings_do_not_show_a_password() -> None:
    """
    Neither ``repr()`` nor the text of a good setting shows it.
    """
    settings = _load(OMNI_REDIS_URL="redis://:hunter2@cache/0")
    assert settings.redis_url == "redis://:hunter2@cache/0"
    assert PASSWORD not in f"{settings} {settings!r}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://cache:6379/0", "redis://cache:6379/0"),
        ("redis://user:hunter2@cache:6379/0", "redis://***@cache:6379/0"),
        ("unix://:hunter2@/run/redis.sock?db=1&password=hunter2", "unix://***@/run/redis.sock?***"),
        ("cache:6379", "cache:6379"),
    ],
)
def test_a_url_is_shown_by_its_place(url: str, shown: str) -> None:
    """
    Scheme, host, port and database remain to be seen; user, password and query do not.
    """
    assert redacted(url) == shown
