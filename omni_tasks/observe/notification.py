"""
What an alert says: its episode in the store, and the news about it that goes out.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

__all__ = ["Episode", "Notification"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """
    An alert that is going on.

    Attributes:
        id: The same in all that is said about the episode.

        since_ms: When it began, Unix ms of the store's clock.

        refreshed_ms: When it was last seen to go on.

        told: Whether its beginning was told by itself, not in a summary of many.

        details: What there is to know, by name.

        missed: Outboxes that were too full for its beginning; they do not get its end either.

        raw: As it was read.
    """

    id: str
    alert: str
    component: str
    severity: str
    since_ms: int
    refreshed_ms: int
    told: bool
    summary: str
    details: Mapping[str, Any]
    missed: Sequence[str] = ()
    raw: bytes = b""

    @property
    def field(self) -> str:
        """
        Its place among all.
        """
        return f"{self.alert}:{self.component}"

    @classmethod
    def begun_by(cls, note: Notification, *, told: bool) -> Episode:
        """
        The episode that *note* begins.
        """
        return cls(
            id=note.episode,
            alert=note.alert,
            component=note.component,
            severity=note.severity,
            since_ms=note.since_ms,
            refreshed_ms=note.at_ms,
            told=told,
            summary=note.summary,
            details=note.details,
        )

    @classmethod
    def from_json(cls, text: bytes) -> Episode | None:
        """
        Read one back; ``None`` for what is none.
        """
        try:
            fields = json.loads(text)
            return cls(raw=text, **fields)
        except (ValueError, TypeError):
            return None

    def to_json(self) -> str:
        """
        Write it down.
        """
        return json.dumps({name: getattr(self, name) for name in self.__slots__ if name not in {"missed", "raw"}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """
    News about an alert.  It may be delivered more than once, always with the same *id*.

    Attributes:
        id: Of this piece of news; sorts by time.

        episode: The same when the alert fires and when it is resolved.

        status: ``"firing"`` or ``"resolved"``.

        alert: The rule: ``"open_too_long"``.

        component: The circuit's key; ``""`` for an alert about no circuit.

        severity: ``"warning"`` or ``"critical"``.

        since_ms: When the episode began, Unix ms of the store's clock.

        at_ms: When this was found, Unix ms of the store's clock.

        summary: One line for people.

        details: What there is to know, by name; plain values.
    """

    id: str
    episode: str
    status: str
    alert: str
    component: str
    severity: str
    since_ms: int
    at_ms: int
    summary: str
    details: Mapping[str, Any]

    @classmethod
    def firing(  # noqa: PLR0913 - what there is to say, by name
        cls, alert: str, component: str, *, severity: str, summary: str, details: Mapping[str, Any], now_ms: int
    ) -> Notification:
        """
        News of an episode that begins now.
        """
        return cls(
            id=_new_id(now_ms),
            episode=uuid.uuid4().hex,
            status="firing",
            alert=alert,
            component=component,
            severity=severity,
            since_ms=now_ms,
            at_ms=now_ms,
            summary=summary,
            details=details,
        )

    @classmethod
    def about(cls, episode: Episode, *, status: str, now_ms: int) -> Notification:
        """
        News of an episode that is there: it goes on, or it ends.
        """
        return cls(
            id=_new_id(now_ms),
            episode=episode.id,
            status=status,
            alert=episode.alert,
            component=episode.component,
            severity=episode.severity,
            since_ms=episode.since_ms,
            at_ms=now_ms,
            summary=episode.summary,
            details=episode.details,
        )

    @property
    def field(self) -> str:
        """
        Its episode's place among all.
        """
        return f"{self.alert}:{self.component}"

    @property
    def since(self) -> datetime:
        """
        When the episode began, UTC.
        """
        return datetime.fromtimestamp(self.since_ms / 1000, UTC)

    @property
    def at(self) -> datetime:
        """
        When this was found, UTC.
        """
        return datetime.fromtimestamp(self.at_ms / 1000, UTC)

    @classmethod
    def from_json(cls, text: bytes | str) -> Notification:
        """
        Read one back.

        Raises:
            ValueError: It is none.
        """
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(f"not a notification: {error}") from None

    def to_json(self) -> str:
        """
        Write it down, as it also goes over the wire.
        """
        return json.dumps({name: getattr(self, name) for name in self.__slots__})


def _new_id(now_ms: int) -> str:
    return f"{now_ms:013d}-{uuid.uuid4().hex[:16]}"
