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

from omni_tasks.circuits import READY_CIRCUITS, read_circuits
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.errors import ConfigurationError
from omni_tasks.store.failover import POLICIES, StorePolicy
from omni_tasks.store.url import parse

__all__ = ["HOLD_ENDS", "READY_CIRCUITS", "ResilienceConfiguration", "redacted"]

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

#: What may become of a task that has been held for as long as it may be.
HOLD_ENDS = ("fail", "dead_letter")

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

        store_retry_interval: Time from one attempt to reach a store that is away to the next.  > 0.

        store_policy: What happens to calls while the store is away: ``"admit"`` lets all run, ``"refuse"`` none,
            ``"local"`` decides in each process for itself.

        mover_interval: Time between two looks of a worker at the held tasks; while a circuit ramps at most 0.05.  > 0.

        max_hold: Longest time a task may be held, where it names none itself.  0 for ever.

        on_hold_expired: What becomes of it then, where it names nothing itself: one of :data:`HOLD_ENDS`.

        pause_queues: Queue -> circuit: queues that workers leave alone while that circuit is open.

        parking: Where held tasks wait: in the ``"broker"``, or in the shared ``"store"``.

        alert_sinks: Where alerts go; :mod:`omni_tasks.observe.sink_entries` has what an entry may be.

        alert_held_age: From how long on the oldest held task is worth an alert.  > 0.

        alert_private_addresses: Whether webhooks may lead to addresses that are not public, and by plain http.

        webhook_secret: Signs webhooks; several, divided by blanks, while receivers change over.

        pushgateway_url: Where the monitor pushes the metrics to.

        exporter_host: Where a worker's own exporter listens.

        exporter_port: On which port; without one a worker exports nothing.  1-65,535.

        log_format: ``"json"``, or ``"console"`` for people.

        log_celery: Whether Celery's own lines are written in that format too.
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
    store_timeout: float = 0.2
    store_retry_interval: float = 1.0
    store_policy: StorePolicy = "local"
    mover_interval: float = 0.2
    max_hold: float = 604_800.0
    on_hold_expired: str = "fail"
    pause_queues: Mapping[str, str] = field(default_factory=dict)
    parking: str = "broker"
    alert_sinks: tuple[str | Callable[..., object], ...] = field(default=("log",), repr=False)
    alert_held_age: float = 3600.0
    alert_private_addresses: bool = False
    webhook_secret: str | None = field(default=None, repr=False)
    pushgateway_url: str | None = field(default=None, repr=False)
    exporter_host: str = "127.0.0.1"
    exporter_port: int | None = None
    log_format: str = "json"
    log_celery: bool = False

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
        defaults = {
            option: values[f"default_{option}"]
            for option in ("failure_threshold", "recovery_timeout")
            if f"default_{option}" in values
        }
        origin, given = source.raw("circuits") or ("omni_circuits", {})
        circuits = read_circuits(origin, given, defaults)
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
        parse(text)
    except ValueError as error:
        raise ConfigurationError(option, redacted(text), str(error)) from None
    return text


def _policy(option: str, value: Any) -> StorePolicy:
    for policy in POLICIES:
        if str(value).strip().lower() == policy:
            return policy
    raise ConfigurationError(option, value, f"one of {', '.join(POLICIES)}")


def _prefix(option: str, value: Any) -> str:
    text = str(value)
    if not 0 < len(text) <= LONGEST_PREFIX or not text.isprintable() or set(text) & set("{} "):
        raise ConfigurationError(option, value, f"1-{LONGEST_PREFIX} printable characters without braces or spaces")
    return text


def _http_url(option: str, value: Any) -> str:
    text = str(value)
    try:
        parts = urlsplit(text)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ConfigurationError(option, redacted(text), "an http:// or https:// URL")
    return text


def _one_of(*words: str) -> Callable[[str, Any], str]:
    def parse(option: str, value: Any) -> str:
        if value not in words:
            raise ConfigurationError(option, value, f"one of {', '.join(words)}")
        return str(value)

    return parse


def _queues(option: str, value: Any) -> Mapping[str, str]:
    try:
        given = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        given = None
    words = [word for pair in given.items() for word in pair] if isinstance(given, Mapping) else [None]
    if not all(isinstance(word, str) and word for word in words):
        raise ConfigurationError(option, value, 'a mapping of queue to circuit key, like {"articles": "ai_providers"}')
    return MappingProxyType(dict(given))


def _host(option: str, value: Any) -> str:
    text = str(value)
    if not text or not text.isprintable() or set(text) & set(" /@"):
        raise ConfigurationError(option, value, "a host name or an address")
    return text


def _secret(option: str, value: Any) -> str:
    text = str(value)
    if not text.split():
        raise ConfigurationError(option, value, "a secret, or several divided by blanks")
    return text


def _entries(option: str, value: Any) -> tuple[str | Callable[..., object], ...]:
    """
    A list of texts and functions; the environment has texts only, divided by commas.
    """
    found = [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)) or not all(isinstance(entry, str) or callable(entry) for entry in found):
        # Not shown: an entry may hold a password.
        raise ConfigurationError(option, type(value).__name__, "a list of texts and functions")
    return tuple(found)


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
    "store_policy": _policy,
    "mover_interval": _number(0.01, 60.0, "s"),
    "max_hold": _number(0.0, 365 * 86_400.0, "s"),
    "on_hold_expired": _one_of(*HOLD_ENDS),
    "pause_queues": _queues,
    "parking": _one_of("broker", "store"),
    "alert_sinks": _entries,
    "alert_held_age": _number(0.001, 30 * 86_400.0, "s"),
    "alert_private_addresses": _boolean,
    "webhook_secret": _secret,
    "pushgateway_url": _http_url,
    "exporter_host": _host,
    "exporter_port": _whole(1, 65_535),
    "log_format": _one_of("json", "console"),
    "log_celery": _boolean,
}


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
