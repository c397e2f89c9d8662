"""
Where alerts go: the log, a signed webhook, Alertmanager, Slack, e-mail, a function of the application's own.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Protocol

from omni_tasks.events import log
from omni_tasks.observe.notification import Notification
from omni_tasks.observe.rules import RULES

__all__ = ["WITHIN", "AlertmanagerSink", "CallableSink", "LogSink", "Sink", "SlackSink", "WebhookSink"]

#: Seconds one delivery may take.
WITHIN = 5.0

#: How long Alertmanager takes an alert to be firing that is not posted again: so many ticks, and at least so long.
_ALERTMANAGER_TICKS, _ALERTMANAGER_HOLDS = 3, timedelta(minutes=5)

_JSON = {"Content-Type": "application/json"}


class Sink(Protocol):
    """
    A place that alerts are delivered to.

    Attributes:
        name: The same after every start; names the notifications that wait for it.

        kind: For metrics: a few fixed words.

        refreshed: Whether it wants to hear again and again of what goes on.
    """

    @property
    def name(self) -> str:
        """
        See above.
        """

    @property
    def kind(self) -> str:
        """
        See above.
        """

    @property
    def refreshed(self) -> bool:
        """
        See above.
        """

    def send(self, notifications: Sequence[Notification]) -> None:
        """
        Deliver them all; whatever it raises, they are delivered again.
        """


@dataclass(frozen=True, slots=True)
class LogSink:
    """
    The structured log.
    """

    name: str = "log"
    kind: str = "log"
    refreshed: bool = False

    def send(self, notifications: Sequence[Notification]) -> None:
        """
        Write one line each.
        """
        for note in notifications:
            details = {name: value for name, value in note.details.items() if name not in {"alert", "component"}}
            firing = note.status == "firing"
            tell, event = (log.error, "circuit_breaker_alert") if firing else (log.warning, "circuit_breaker_recovered")
            tell(
                event,
                component=note.component,
                alert=note.alert,
                severity=note.severity,
                summary=note.summary,
                alert_id=note.id,
                since=note.since.isoformat(),
                **details,
            )


@dataclass(frozen=True, slots=True)
class _HttpSink:
    """
    Where it is, and what it may be.

    Attributes:
        private: Whether the address may be one that is not public, and the scheme plain http.
    """

    url: str = field(repr=False)
    private: bool = False
    refreshed: bool = False

    kind: ClassVar[str]

    @property
    def name(self) -> str:
        """
        Its kind, and a fingerprint of the URL.
        """
        return f"{self.kind}-{hashlib.sha256(self.url.encode()).hexdigest()[:8]}"

    def _post(self, body: bytes, headers: Mapping[str, str] = _JSON, *, url: str = "") -> None:
        from omni_tasks.observe.post import post  # noqa: PLC0415 - an HTTP client: not for who imports omni_tasks

        post(url or self.url, body, headers, within=WITHIN, private=self.private)


@dataclass(frozen=True, slots=True)
class WebhookSink(_HttpSink):
    """
    A POST of the notification as JSON, signed as *Standard Webhooks* has it.

    Attributes:
        secrets: Keys of the signature; with two, the old one stays good while receivers change over.
    """

    secrets: tuple[bytes, ...] = field(repr=False, kw_only=True)
    kind = "webhook"

    def send(self, notifications: Sequence[Notification]) -> None:
        """
        Post one after the other.

        Raises:
            DeliveryError: One was not taken.
        """
        for note in notifications:
            body = note.to_json().encode()
            self._post(body, self.headers(note, body, int(time.time())))

    def headers(self, note: Notification, body: bytes, timestamp: int) -> dict[str, str]:
        """
        The signature and what it covers: id, timestamp (Unix s) and body.
        """
        signed = b".".join([note.id.encode(), str(timestamp).encode(), body])
        digests = [hmac.digest(secret, signed, hashlib.sha256) for secret in self.secrets]
        return {
            **_JSON,
            "User-Agent": "omni_tasks",
            "webhook-id": note.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests),
        }


@dataclass(frozen=True, slots=True)
class AlertmanagerSink(_HttpSink):
    """
    Prometheus' Alertmanager, by its API of version 2.

    Its address is one of the operator's own network, so it is not looked at.

    Attributes:
        every: Seconds between two ticks of the monitor.
    """

    private: bool = True
    refreshed: bool = True
    every: float = 0.0
    kind = "alertmanager"

    def send(self, notifications: Sequence[Notification]) -> None:
        """
        Post all at once.

        Raises:
            DeliveryError: They were not taken.
        """
        body = json.dumps([self._alert(note) for note in notifications]).encode()
        self._post(body, url=f"{self.url.rstrip('/')}/api/v2/alerts")

    def _alert(self, note: Notification) -> dict[str, Any]:
        holds = max(timedelta(seconds=self.every) * _ALERTMANAGER_TICKS, _ALERTMANAGER_HOLDS)
        ends = note.at if note.status == "resolved" else datetime.now(UTC) + holds
        name = RULES[note.alert].alertname
        labels = {"alertname": name, "severity": note.severity, "source": "omni_tasks"}
        if note.component:
            labels["component"] = note.component
        return {
            "labels": labels,
            "annotations": {"summary": note.summary, "runbook_url": f"ops/runbook.md#{name.lower()}"},
            "startsAt": note.since.isoformat(),
            "endsAt": ends.isoformat(),
        }


@dataclass(frozen=True, slots=True)
class SlackSink(_HttpSink):
    """
    An incoming webhook of Slack's, or of one that takes the same JSON.
    """

    kind = "slack"

    def send(self, notifications: Sequence[Notification]) -> None:
        """
        Post one message for all.

        Raises:
            DeliveryError: It was not taken.
        """
        text = "\n".join(_for_slack(note) for note in notifications)
        self._post(json.dumps({"text": text}).encode())


@dataclass(frozen=True, slots=True)
class CallableSink:
    """
    A function of the application's own, called with each notification.
    """

    function: Callable[[Notification], object]
    kind: str = "callable"
    refreshed: bool = False

    @property
    def name(self) -> str:
        """
        Its kind, and the function's name.
        """
        module, name = getattr(self.function, "__module__", ""), getattr(self.function, "__qualname__", "")
        return f"{self.kind}-{module}.{name or type(self.function).__qualname__}"

    def send(self, notifications: Sequence[Notification]) -> None:
        """
        Call it with one after the other.
        """
        for note in notifications:
            self.function(note)


def _for_slack(note: Notification) -> str:
    mark = {"firing": ":red_circle:", "resolved": ":large_green_circle:"}[note.status]
    text = f"{note.summary} ({note.severity}, since {note.since:%Y-%m-%d %H:%M:%S} UTC)"
    for plain, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(plain, escaped)
    return f"{mark} {note.status}: {text}"
