"""
The configured circuits: the ready ones, and what ``omni_circuits`` says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from kombu.utils.imports import symbol_by_name

from omni_tasks.core.keys import SEPARATOR, key_text, split_key
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.errors import ConfigurationError

__all__ = ["READY_CIRCUITS", "read_circuits"]

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


def read_circuits(origin: str, given: object, defaults: Mapping[str, Any]) -> dict[str, CircuitBreakerConfig]:
    """
    Make every configuration; those of single keys come last.

    Args:
        origin: What the place *given* comes from is called.

        given: Circuit -> options, or JSON of that.  An entry changes what it names, of the circuit that is there
            already, or, for ``"circuit:key"``, of that key's circuit.

        defaults: Options of circuits that are not there yet.

    Raises:
        ConfigurationError: Something in *given* is wrong.
    """
    entries: dict[str, dict[str, Any]] = {key: dict(entry) for key, entry in READY_CIRCUITS.items()}
    read = _read_mapping(origin, given)
    for key, entry in read.items():
        if SEPARATOR not in key:
            entries[key] = {**entries.get(key, {"name": key, **defaults}), **entry}
    circuits = {key: _config(f"{origin}[{key!r}]", entry, CircuitBreakerConfig) for key, entry in entries.items()}
    for key, entry in read.items():
        if SEPARATOR in key:
            circuits[key] = _config_of_key(f"{origin}[{key!r}]", key, entry, circuits)
    return circuits


def _read_mapping(origin: str, given: object) -> Mapping[str, Mapping[str, Any]]:
    read = given
    if isinstance(given, str):
        try:
            read = json.loads(given)
        except ValueError:
            raise ConfigurationError(origin, given, 'JSON like {"my_api": {"recovery_timeout": 30}}') from None
    if not isinstance(read, Mapping) or not all(
        isinstance(key, str) and isinstance(entry, Mapping) for key, entry in read.items()
    ):
        raise ConfigurationError(origin, read, "a mapping of circuit key to a mapping of options")
    return read


def _config_of_key(
    origin: str, name: str, entry: Mapping[str, Any], circuits: Mapping[str, CircuitBreakerConfig]
) -> CircuitBreakerConfig:
    circuit, key = split_key(name)
    if circuit not in circuits or key_text(key) is None:
        known = ", ".join(name for name in circuits if SEPARATOR not in name)
        raise ConfigurationError(
            origin, dict(entry), f"of a configured circuit, a colon and a key (configured: {known})"
        )
    for option in ("name", "max_keys"):
        if option in entry:
            raise ConfigurationError(f"{origin}[{option!r}]", entry[option], f"left out: it is {circuit}'s")
    parent = circuits[circuit]
    named = replace(parent, name=f"{parent.name}{SEPARATOR}{key}")
    return _config(origin, entry, partial(replace, named))


def _config(origin: str, entry: Mapping[str, Any], make: Callable[..., CircuitBreakerConfig]) -> CircuitBreakerConfig:
    allowed = CircuitBreakerConfig.option_names()
    for option in entry:
        if option not in allowed:
            raise ConfigurationError(f"{origin}: option", option, "one of " + ", ".join(allowed))
    try:
        return make(**{option: _resolved(option, value) for option, value in entry.items()})
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(origin, dict(entry), f"made of names that can be imported ({error})") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{origin}[{error.option!r}]", error.value, error.allowed) from None


def _resolved(option: str, value: object) -> object:
    """
    Import what JSON can only name: ``"requests.exceptions:Timeout"``, or with a dot.
    """
    if option in {"classify", "fallback", "health_check"} and isinstance(value, str):
        return symbol_by_name(value)
    if option in {"ignored_exceptions", "counted_exceptions"} and isinstance(value, (list, tuple)):
        return tuple(symbol_by_name(kind) if isinstance(kind, str) else kind for kind in value)
    return value
