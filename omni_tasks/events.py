"""
The structured log: one line an event, through the standard library's logger ``omni_tasks``.

===================================  ==================================================
event                                when
===================================  ==================================================
``circuit_breaker_init``             a process got to know a circuit (debug)
``circuit_breaker_open``             a circuit tripped or reopened
``circuit_breaker_half_open``        a circuit let its first probe through
``circuit_breaker_closed``           a circuit closed
``circuit_breaker_override``         an operator forced a circuit, or let it decide again
``circuit_breaker_reset``            an operator cleared a circuit
``circuit_breaker_alert``            the monitor found a circuit in trouble, once an episode
``circuit_breaker_recovered``        the trouble is over
``circuit_breaker_callback_failed``  a callback of the application's raised
``circuit_classify_failed``          a circuit's classify raised; the other rules decided
``circuit_key_unusable``             a key function raised, or gave what is no key; once a task
``circuit_alert_delivery_failed``    a sink did not take an alert; it is tried again
``circuit_alert_undelivered``        a sink has not taken an alert for a day; it is dropped
``circuit_exporter_not_started``     a worker's exporter found its port taken
``circuit_health_check``             a circuit's own check has probed it
``circuit_metrics_not_pushed``       the Pushgateway did not take the metrics
``circuit_monitor_failed``           a tick of the monitor found the store away
``circuit_monitor_late``             ticks of the monitor are missing
``circuit_store_degraded``           a process lost the shared store and goes on alone
``circuit_store_recovered``          the shared store answers again
``omni_redis_url_unreachable``       a worker started while the shared store was away
``provider_failed``                  a gateway's provider failed; another may be asked
``provider_refused``                 the circuit of a gateway's provider let no call through
``provider_served``                  a gateway's provider delivered
===================================  ==================================================

Where OpenTelemetry is installed, what happens to a task is also told to its span.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import structlog

__all__ = ["LOGGER", "STEPS", "log", "redact", "render", "span_event", "use_format"]

#: The standard library's logger that the events go through.
LOGGER = "omni_tasks"

_SECRET_NAME = re.compile(r"api_?key|token|secret|passw|authorization|credential|cookie", re.IGNORECASE)

#: What gives a secret away within a text, and what is left of it.
_SECRET_TEXT = (
    # user:password@ of a URL; a password may hold a slash or an @.
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s'\"<>]*@", re.IGNORECASE), r"\1***@"),
    (re.compile(r"([?&;][^=&\s]*(?:key|token|secret|passw|sig)[^=&\s]*=)[^&\s'\"]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"\b((?:bearer|basic)\s+)[\w.~+/=-]{6,}", re.IGNORECASE), r"\1***"),
    (re.compile(r"\b(sk|whsec|xox[a-z])([-_])[\w+/=-]{6,}"), r"\1\2***"),
    (re.compile(r"(hooks\.slack\.com/services/)[^\s'\"]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"((?:api_?key|token|secret|password)['\"]?\s*[=:]\s*['\"]?)[^\s'\",;&]+", re.IGNORECASE), r"\1***"),
)

#: How deep into lists and mappings a line is looked through; what is deeper is written as text.
_DEEPEST = 4


def redact(value: object, depth: int = 0) -> Any:
    """
    The value as it may be written down: without what looks like a secret.
    """
    if isinstance(value, str):
        for pattern, rest in _SECRET_TEXT:
            value = pattern.sub(rest, value)
        return value
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {name: _named(str(name), each, depth + 1) for name, each in value.items()}
    if depth < _DEEPEST and isinstance(value, (list, tuple, set, frozenset)):
        return [redact(each, depth + 1) for each in value]
    return redact(str(value))


def _named(name: str, value: object, depth: int) -> Any:
    # A number is no secret: tokens are counted, too.
    hidden = value and not isinstance(value, (bool, int, float)) and _SECRET_NAME.search(name)
    return "***" if hidden else redact(value, depth)


def _redacted(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: _named(name, value, 0) for name, value in event.items() if not name.startswith("_")} | {
        name: value for name, value in event.items() if name.startswith("_")
    }


def _console(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    # One line, whatever is in it: an exception's own lines too.
    flat = {name: value.replace("\n", "\\n") if isinstance(value, str) else value for name, value in event.items()}
    exception = flat.pop("exception", None)
    if exception is not None:
        flat["error"] = exception
    return str(_PLAIN(logger, method, flat))


_PLAIN = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
_RENDERERS: Mapping[str, Callable[..., Any]] = {
    "json": structlog.processors.JSONRenderer(default=str),
    "console": _console,
}
_format = "json"


def use_format(name: str) -> None:
    """
    Write this process's events as ``"json"`` or for the ``"console"``.
    """
    global _format  # noqa: PLW0603 - a process writes one log
    _format = name


def render(logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
    """
    The line of an event, in the format that is in use.
    """
    return _RENDERERS[_format](logger, method, event)


#: From what was said to what is written, before it is rendered.
STEPS = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
    _redacted,
)


def _make() -> Any:
    # Bound to our own chain: a library must not depend on, or change, the
    # application's structlog configuration.
    return structlog.wrap_logger(
        logging.getLogger(LOGGER),
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=False,
        processors=[structlog.stdlib.filter_by_level, *STEPS, render],
    )


log = _make()


def span_event(name: str, **attributes: str | bool | float) -> None:
    """
    Tell the current span what happened, where OpenTelemetry is installed and one is being recorded.

    Args:
        name: What happened: ``"circuit.admitted"``.

        attributes: What there is to know; the span gets them too, as ``omni.*``.
    """
    if not _TRACED:
        return
    from opentelemetry import trace  # noqa: PLC0415 - an optional package; looked up once by Python itself

    span = trace.get_current_span()
    if span.is_recording():
        named = {f"omni.{key}": value for key, value in attributes.items()}
        span.set_attributes(named)
        span.add_event(name, named)


_TRACED = importlib.util.find_spec("opentelemetry") is not None and (
    importlib.util.find_spec("opentelemetry.trace") is not None
)
