"""
Settings: Celery configuration and environment in, frozen typed values out.

Precedence, strongest first: a task's attribute, a circuit's entry, the
environment, Celery configuration, the default.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from kombu.utils.imports import symbol_by_name

from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.errors import ConfigurationError

__all__ = ["READY_CIRCUITS", "ResilienceConfiguration", "redacted"]

#: The circuits that exist out of the box.  Seconds.
READY_CIRCUITS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "ai_providers": {
            "name": "ai_providers_cb",
            "failure_threshold": 5,
            "recovery_timeout": 180.0,
            "monitor_interval": 20.0,
        },
        "external_api": {
            "name": "external_api_cb",
            "failure_threshold": 3,
            "recovery_timeout": 120.0,
            "monitor_interval": 15.0,
        },
        "database": {
            "name": "database_cb",
            "failure_threshold": 3,
            "recovery_timeout": 60.0,
            "monitor_interval": 10.0,
        },
        "cache": {"name": "cache_cb", "failure_threshold": 2, "recovery_timeout": 30.0, "monitor_interval": 5.0},
    }
)

#: Environment variables that carry no ``OMNI_`` in front.
_PLAIN_ENVIRONMENT = frozenset(
    {
        "enable_resilience",
        "default_failure_threshold",
        "default_recovery_timeout",
        "default_max_retries",
        "default_timeout",
        "enable_resilience_metrics",
        "enable_resilience_logging",
        "resilience_monitoring_interval",
        "resilience_alert_threshold",
    }
)

#: Longest key prefix in characters.
LONGEST_PREFIX = 64

_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ResilienceConfiguration:
    """
    Every setting.  Times are in seconds.

    Attributes:
        enable_resilience: ``False`` makes decorator, context manager and task pass straight through.

        default_failure_threshold: For circuits whose entry names none.  1-1,000,000.

        default_recovery_timeout: For circuits whose entry names none.  > 0.

        default_max_retries: A protected task's own retries where it names none.  >= 0.

        default_timeout: A gateway call's time limit where its configuration names none.  > 0.

        enable_resilience_metrics: Whether circuits are exported to Prometheus.

        enable_resilience_logging: Whether circuit events are logged.

        resilience_monitoring_interval: Time between two ticks of the monitor.  > 0.

        resilience_alert_threshold: Failure rate that raises an alert.  0.0-1.0.

        redis_url: The shared store.  In a Celery application it defaults to a Redis broker's own URL.

        key_prefix: First part of every key, so that applications can share a server.

        circuits: Key -> configuration: the ready ones and those of ``omni_circuits``.

        store_timeout: Longest wait for one answer of the store.  > 0.

        store_retry_interval: How long a store that did not answer is left alone.  > 0.

        mover_interval: Time between two looks of a worker at the held tasks.  > 0.
    """

    enable_resilience: bool = True
    default_failure_threshold: int = 5
    default_recovery_timeout: float = 60.0
    default_max_retries: int = 3
    default_timeout: float = 30.0
    enable_resilience_metrics: bool = True
    enable_resilience_logging: bool = True
    resilience_monitoring_interval: float = 10.0
    resilience_alert_threshold: float = 0.8
    redis_url: str | None = field(default=None, repr=False)
    key_prefix: str = "omni"
    circuits: Mapping[str, CircuitBreakerConfig] = field(default_factory=dict)
    store_timeout: float = 0.25
    store_retry_interval: float = 1.0
    mover_interval: float = 0.2

    @classmethod
    def load(
        cls, conf: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
    ) -> ResilienceConfiguration:
        """
        Read every setting.

        Args:
            conf: Celery's configuration; our keys start with ``omni_``.

            environ: The environment; ``os.environ`` when left out.

        Raises:
            ConfigurationError: A value is wrong; the message names the option it came from.
        """
        source = _Source(conf or {}, os.environ if environ is None else environ)
        values = {option: source.read(option, parse) for option, parse in _PARSERS.items() if source.has(option)}
        circuits = _circuits(source, values)
        return cls(circuits=MappingProxyType(circuits), **values)

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """
        Every option: what ``init_app`` takes, and ``omni_*`` keys without their prefix.
        """
        return tuple(f.name for f in fields(cls))


class _Source:
    """
    Where a raw value comes from, and what that place calls the option.
    """

    def __init__(self, conf: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self._conf = conf
        self._environ = environ

    def has(self, option: str) -> bool:
        return self.raw(option) is not None

    def raw(self, option: str) -> tuple[str, Any] | None:
        variable = option.upper() if option in _PLAIN_ENVIRONMENT else f"OMNI_{option.upper()}"
        if self._environ.get(variable, "") != "":
            return variable, self._environ[variable]
        key = f"omni_{option}"
        value = self._conf.get(key)
        return None if value is None else (key, value)

    def read(self, option: str, parse: Callable[[str, Any], Any]) -> Any:
        found = self.raw(option)
        if found is None:
            raise ConfigurationError(option, None, "set")
        return parse(*found)


def _boolean(option: str, value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in _TRUE | _FALSE:
        raise ConfigurationError(option, value, "true or false")
    return text in _TRUE


def _whole(least: int, most: int) -> Callable[[str, Any], int]:
    def parse(option: str, value: Any) -> int:
        try:
            number = int(str(value))
        except ValueError:
            number = least - 1
        if not least <= number <= most or isinstance(value, bool):
            raise ConfigurationError(option, value, f"a whole number from {least} to {most}")
        return number

    return parse


def _number(least: float, most: float, unit: str) -> Callable[[str, Any], float]:
    def parse(option: str, value: Any) -> float:
        try:
            number = float(str(value))
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise ConfigurationError(option, value, f"a number from {least:g} to {most:g} {unit}".rstrip())
        return number

    return parse


def _url(option: str, value: Any) -> str:
    text = str(value)
    try:
        # Read for its errors: a port that is no number, an address without its closing bracket.
        _ = urlsplit(text).port
        scheme, separator, _ = text.partition("://")
    except ValueError:
        scheme = separator = ""
    if not separator or scheme not in {"redis", "rediss", "unix"}:
        raise ConfigurationError(option, redacted(text), "a redis://, rediss:// or unix:// URL")
    return text


def _prefix(option: str, value: Any) -> str:
    text = str(value)
    if not 0 < len(text) <= LONGEST_PREFIX or not text.isprintable() or set(text) & set("{} "):
        raise ConfigurationError(option, value, f"1-{LONGEST_PREFIX} printable characters without braces or spaces")
    return text


_SECONDS = _number(0.001, 86_400.0, "s")

_PARSERS: Mapping[str, Callable[[str, Any], Any]] = {
    "enable_resilience": _boolean,
    "default_failure_threshold": _whole(1, 1_000_000),
    "default_recovery_timeout": _number(0.001, 30 * 86_400.0, "s"),
    "default_max_retries": _whole(0, 1_000_000),
    "default_timeout": _SECONDS,
    "enable_resilience_metrics": _boolean,
    "enable_resilience_logging": _boolean,
    "resilience_monitoring_interval": _SECONDS,
    "resilience_alert_threshold": _number(0.0, 1.0, ""),
    "redis_url": _url,
    "key_prefix": _prefix,
    "store_timeout": _number(0.001, 60.0, "s"),
    "store_retry_interval": _SECONDS,
    "mover_interval": _number(0.01, 60.0, "s"),
}


def _circuits(source: _Source, values: Mapping[str, Any]) -> dict[str, CircuitBreakerConfig]:
    entries: dict[str, dict[str, Any]] = {key: dict(entry) for key, entry in READY_CIRCUITS.items()}
    origin, given = source.raw("circuits") or ("omni_circuits", {})
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            raise ConfigurationError(origin, given, 'JSON like {"my_api": {"recovery_timeout": 30}}') from None
    if not isinstance(given, Mapping) or not all(isinstance(entry, Mapping) for entry in given.values()):
        raise ConfigurationError(origin, given, "a mapping of circuit key to a mapping of options")
    defaults = {
        option: values[f"default_{option}"]
        for option in ("failure_threshold", "recovery_timeout")
        if f"default_{option}" in values
    }
    for key, entry in given.items():
        entries[key] = {**entries.get(key, {"name": key, **defaults}), **entry}
    return {key: _config(f"{origin}[{key!r}]", entry) for key, entry in entries.items()}


def _config(origin: str, entry: Mapping[str, Any]) -> CircuitBreakerConfig:
    allowed = CircuitBreakerConfig.option_names()
    for option in entry:
        if option not in allowed:
            raise ConfigurationError(f"{origin}: option", option, "one of " + ", ".join(allowed))
    try:
        options: dict[str, Any] = {option: _resolved(option, value) for option, value in entry.items()}
        return CircuitBreakerConfig(**options)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(origin, dict(entry), f"made of names that can be imported ({error})") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{origin}[{error.option!r}]", error.value, error.allowed) from None


def _resolved(option: str, value: object) -> object:
    """
    Import what JSON can only name: ``"requests.exceptions:Timeout"``, or with a dot.
    """
    if option == "classify" and isinstance(value, str):
        return symbol_by_name(value)
    if option in {"ignored_exceptions", "counted_exceptions"} and isinstance(value, (list, tuple)):
        return tuple(symbol_by_name(kind) if isinstance(kind, str) else kind for kind in value)
    return value


def redacted(url: str) -> str:
    """
    The URL as it may be shown: without user, password and query.

    Not parsed: a URL that is misspelt holds its password in the wrong place.
    """
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    place, mark, query = rest.partition("?")
    if "@" in query:
        # Either may be part of the password: where that ends cannot be told.
        return f"{scheme}{separator}***"
    _, at, place = place.rpartition("@")
    return scheme + separator + at.replace("@", "***@") + place + mark.replace("?", "?***")
