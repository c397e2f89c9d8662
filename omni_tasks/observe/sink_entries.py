"""
The sinks that ``omni_alert_sinks`` names.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from urllib.parse import urlsplit

from kombu.utils.imports import symbol_by_name

from omni_tasks.errors import ConfigurationError
from omni_tasks.observe.mail import EmailSink
from omni_tasks.observe.notification import Notification
from omni_tasks.observe.sinks import (
    WITHIN,
    AlertmanagerSink,
    CallableSink,
    LogSink,
    Sink,
    SlackSink,
    WebhookSink,
)
from omni_tasks.settings import ResilienceConfiguration, redacted

__all__ = ["open_sinks"]

#: How a webhook's secret begins that is written in base64.
_ENCODED = "whsec_"


def open_sinks(settings: ResilienceConfiguration) -> list[Sink]:
    """
    The sinks of ``omni_alert_sinks``.

    Raises:
        ConfigurationError: An entry is none of those that are documented.
    """
    sinks = [_sink(entry, settings) for entry in settings.alert_sinks]
    names = [sink.name for sink in sinks]
    if len(set(names)) < len(names):
        # What waits for a sink waits under its name.
        raise ConfigurationError("omni_alert_sinks", names, "all different")
    return sinks


def _sink(entry: str | Callable[[Notification], object], settings: ResilienceConfiguration) -> Sink:
    if callable(entry):
        return CallableSink(entry)
    if entry == "log":
        return LogSink()
    if "://" not in entry:
        return CallableSink(_imported(entry))
    scheme = entry.partition("://")[0]
    kind, _, rest = entry.partition("+")
    sink: Sink
    if scheme in {"smtp", "smtps"}:
        sink = EmailSink.from_url(entry, within=WITHIN)
    elif scheme in {"http", "https"}:
        sink = _webhook(entry, settings)
    elif scheme in {"slack+http", "slack+https"}:
        sink = SlackSink(_http_url(entry, rest, settings), private=settings.alert_private_addresses)
    elif kind == "alertmanager" and urlsplit(rest).scheme in {"http", "https"}:
        sink = AlertmanagerSink(rest, every=settings.resilience_monitoring_interval)
    else:
        raise _wrong(entry)
    return sink


def _webhook(url: str, settings: ResilienceConfiguration) -> WebhookSink:
    if settings.webhook_secret is None:
        raise ConfigurationError("omni_webhook_secret", None, "set, because omni_alert_sinks has a webhook")
    secrets = tuple(_secret(word) for word in settings.webhook_secret.split())
    return WebhookSink(_http_url(url, url, settings), secrets=secrets, private=settings.alert_private_addresses)


def _secret(word: str) -> bytes:
    if not word.startswith(_ENCODED):
        return word.encode()
    try:
        return base64.b64decode(word.removeprefix(_ENCODED), validate=True)
    except binascii.Error:
        raise ConfigurationError("omni_webhook_secret", "***", f"base64 behind {_ENCODED}") from None


def _http_url(entry: str, url: str, settings: ResilienceConfiguration) -> str:
    parts = urlsplit(url)
    allowed = {"https", "http"} if settings.alert_private_addresses else {"https"}
    if parts.scheme not in allowed or not parts.hostname or parts.username is not None:
        raise _wrong(entry)
    return url


def _imported(name: str) -> Callable[[Notification], object]:
    try:
        found = symbol_by_name(name)
    except (ImportError, AttributeError, ValueError):
        raise _wrong(name) from None
    if not callable(found):
        raise _wrong(name)
    return found  # type: ignore[no-any-return] # any function of the application's


def _wrong(entry: str) -> ConfigurationError:
    shown = redacted(entry).partition("?")[0] if "://" in entry else entry
    place = urlsplit(shown)
    if place.netloc:
        # A path may be a secret, as Slack's is.
        shown = f"{place.scheme}://{place.netloc}/..."
    return ConfigurationError(
        "omni_alert_sinks entry",
        shown,
        "log, https://..., slack+https://..., alertmanager+http://..., smtp://... or a function's dotted name "
        "(http and private addresses only with omni_alert_private_addresses)",
    )
