"""
What the monitor keeps in the store: who looks when, the alerts that are going on, what is yet to be delivered.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis

from omni_tasks.observe.notification import Episode, Notification
from omni_tasks.observe.scripts import Call, Scripts
from omni_tasks.store.schema import alerts_key, monitor_key

__all__ = ["Claim", "MonitorState", "Status"]

#: Most notifications kept for a sink that does not take them.
MOST_KEPT = 1_000

#: How long notifications are kept that nobody delivers, ms.
KEEP_MS = 48 * 3_600_000

#: Last looks that are kept of circuits that are gone, beside as many as there are circuits.
_SEEN_ROOM = 100

#: Claimed beside the circuits: what only one tick does.  No circuit's key: those are printable.
MAIN = "\0main"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """
    What one tick may look at.

    Attributes:
        now_ms: The store's clock, Unix ms.

        last_ms: When :data:`MAIN` was claimed before, Unix ms; 0 for never.

        due: The circuits, and :data:`MAIN`, that this tick and no other looks at now.
    """

    now_ms: int
    last_ms: int
    due: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """
    How the monitor does, as anybody may read it.

    Attributes:
        now_ms: The store's clock, Unix ms, at that moment.

        last_tick_ms: When a tick finished last, Unix ms of the store's clock; 0 before the first.

        took_ms: How long it took.

        ticks: How many have finished.

        episodes: The alerts that are going on, by ``rule:circuit``.

        deliveries: ``kind:result`` -> how many.
    """

    now_ms: int
    last_tick_ms: int = 0
    took_ms: int = 0
    ticks: int = 0
    episodes: Mapping[str, Episode] = field(default_factory=dict)
    deliveries: Mapping[str, int] = field(default_factory=dict)


class MonitorState:
    """
    The monitor's keys under one prefix.  Every verb may be repeated.

    Raises:
        redis.RedisError: The store did not answer; so does every verb.
    """

    def __init__(self, client: redis.Redis, *, prefix: str) -> None:
        """
        Keep them under *prefix*; *client* is :func:`omni_tasks.observe.scripts.open_client`'s.
        """
        self._client = client
        self._prefix = prefix
        self._scripts = Scripts(client)

    def claim(self, interval: float, circuits: Mapping[str, float]) -> Claim:
        """
        Ask what this tick may look at.

        Args:
            interval: Seconds between two ticks.

            circuits: Key -> seconds between two looks at the circuit.
        """
        names = {MAIN: interval, **circuits}
        pairs = [word for name, every in names.items() for word in (name, round(every * 1000))]
        now_ms, last_ms, *due = self._scripts.one("claim", [self._key("seen")], ["", *pairs])
        return Claim(now_ms=now_ms, last_ms=last_ms, due=frozenset(name.decode() for name in due))

    def finish(self, *, now_ms: int, took_ms: int, circuits: int) -> None:
        """
        Note that a tick has done all it had to do.

        Args:
            now_ms: The store's clock.

            took_ms: How long it took.

            circuits: How many there are.
        """
        if self._client.hlen(self._key("seen")) > 2 * circuits + _SEEN_ROOM:
            # Most of them are gone.  Without their last looks all circuits are due at once, once.
            self._client.delete(self._key("seen"))
        with self._mending("tick") as key, self._client.pipeline(transaction=True) as pipe:
            pipe.hset(key, mapping={"last_ms": now_ms, "took_ms": took_ms})
            pipe.hincrby(key, "ticks")
            pipe.execute()

    def status(self) -> Status:
        """
        Read how the monitor does, in one round trip.
        """
        with self._client.pipeline(transaction=False) as pipe:
            pipe.hgetall(self._key("tick"))
            pipe.hgetall(alerts_key(self._prefix))
            pipe.hgetall(self._key("delivered"))
            pipe.time()
            *hashes, (seconds, micros) = pipe.execute(raise_on_error=False)
        tick, alerts, delivered = map(_hash, hashes)
        return Status(
            now_ms=seconds * 1000 + micros // 1000,
            last_tick_ms=_count(tick.get(b"last_ms")),
            took_ms=_count(tick.get(b"took_ms")),
            ticks=_count(tick.get(b"ticks")),
            episodes=_episodes(alerts),
            deliveries={name.decode(errors="replace"): _count(count) for name, count in delivered.items()},
        )

    def episodes(self) -> dict[str, Episode]:
        """
        The alerts that are going on, by ``rule:circuit``; what cannot be read is left out.
        """
        return dict(self.status().episodes)

    def fire(self, changes: Sequence[tuple[Notification, Sequence[str] | None]], *, now_ms: int) -> list[bool]:
        """
        Begin or refresh episodes.

        Args:
            changes: What each alert has to say, and the names of the sinks that are told if it begins;
                ``None`` where another alert tells of it.

            now_ms: The store's clock.

        Returns:
            For each, whether its episode began with this call.
        """
        calls: list[Call] = [
            (
                [alerts_key(self._prefix), *self._boxes(sinks or ())],
                [
                    now_ms,
                    note.field,
                    Episode.begun_by(note, told=sinks is not None).to_json(),
                    json.dumps(note.details),
                    note.id,
                    note.to_json(),
                    MOST_KEPT,
                    KEEP_MS,
                ],
            )
            for note, sinks in changes
        ]
        return [bool(began) for (began,) in self._scripts.many("fire", calls)]

    def resolve(self, changes: Sequence[tuple[Episode, Notification, Sequence[str]]], *, now_ms: int) -> list[bool]:
        """
        End episodes.

        Args:
            changes: Each episode as it was read, what there is to say about its end, and to which sinks.

            now_ms: The store's clock.

        Returns:
            For each, whether it ended with this call.
        """
        calls: list[Call] = [
            (
                [
                    alerts_key(self._prefix),
                    *self._boxes([sink for sink in sinks if self._key(f"outbox:{sink}") not in episode.missed]),
                ],
                [now_ms, note.field, episode.raw, note.id, note.to_json(), KEEP_MS],
            )
            for episode, note, sinks in changes
        ]
        return [bool(ended) for (ended,) in self._scripts.many("resolve", calls)]

    def take(self, sink: str, *, lease: float, most: int) -> list[Notification]:
        """
        Take notifications to deliver to *sink*; nobody else gets them for *lease* seconds.
        """
        outbox, due = self._boxes([sink])
        flat = self._scripts.one("take", [outbox, due], ["", round(lease * 1000), most])
        taken = []
        for name, text in zip(flat[::2], flat[1::2], strict=True):
            try:
                taken.append(Notification.from_json(text))
            except ValueError:
                # Damaged: it can never be delivered, and must not stand in front of the others.
                self._client.hdel(outbox, name)
        return taken

    def done(self, sink: str, notification: Notification, *, kind: str, result: str) -> None:
        """
        Forget a notification, and count how its delivery ended.
        """
        outbox, due = self._boxes([sink])
        with self._client.pipeline(transaction=True) as pipe:
            pipe.hdel(outbox, notification.id)
            pipe.zrem(due, notification.id)
            pipe.execute()
        self.count(kind, result)

    def again(self, sink: str, notifications: Sequence[Notification], *, kind: str) -> None:
        """
        Leave notifications to the next tick: the first could not be delivered.
        """
        _, due = self._boxes([sink])
        if notifications:
            self._client.zadd(due, dict.fromkeys((note.id for note in notifications), 0), xx=True)
        self.count(kind, "failed")

    def count(self, kind: str, result: str) -> None:
        """
        Count a delivery to a sink of that kind.
        """
        with self._mending("delivered") as key:
            self._client.hincrby(key, f"{kind}:{result}", 1)

    @contextmanager
    def _mending(self, name: str) -> Iterator[str]:
        key = self._key(name)
        try:
            yield key
        except redis.ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            # Written by somebody else: what it held is lost, and it begins anew.
            self._client.delete(key)

    def _boxes(self, sinks: Sequence[str]) -> list[str]:
        return [self._key(f"{box}:{sink}") for sink in sinks for box in ("outbox", "due")]

    def _key(self, name: str) -> str:
        return monitor_key(self._prefix, name)


def _hash(reply: object) -> Mapping[bytes, bytes]:
    """
    A hash as it was read; a key of another type reads as empty.

    Raises:
        redis.RedisError: It could not be read for another reason.
    """
    if isinstance(reply, Exception) and "WRONGTYPE" not in str(reply):
        raise reply
    return reply if isinstance(reply, dict) else {}


def _episodes(stored: Mapping[bytes, bytes]) -> dict[str, Episode]:
    found = {name.decode(errors="replace"): Episode.from_json(text) for name, text in stored.items()}
    return {name: episode for name, episode in found.items() if episode is not None}


def _count(raw: Any) -> int:
    return int(raw) if raw is not None and raw.isdigit() else 0
