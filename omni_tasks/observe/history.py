"""
What has happened: time buckets of every circuit's calls, and its changes of state.

The monitor records the buckets, in the store, at a bounded size: one minute
each for the last hours, a quarter of an hour each for the last days.  Buckets
in which nothing was called are not kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import redis

from omni_tasks.core.durations import BOUNDS_MS
from omni_tasks.core.model import LogRecord
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.errors import StoreError
from omni_tasks.manager import CircuitBreakerManager, get_circuit_breaker_manager
from omni_tasks.observe.scripts import Scripts, open_client
from omni_tasks.store.schema import circuit_keys, history_keys

__all__ = ["BOUNDS", "COUNTERS", "Bucket", "History", "Recent", "Recorder", "get_history"]

#: What a bucket counts, in the order of ``record.lua``.
COUNTERS = ("calls", "failed", "slow", "rejected", "held", "trips", "took_ms")

#: Upper ends of the ranges of duration, in seconds; the last range has none.
BOUNDS = tuple(bound / 1000 for bound in BOUNDS_MS)

#: Most finished buckets kept of a minute, and of a quarter of an hour: six hours, and seven days.
MINUTES, QUARTERS = 360, 672

#: How long what is kept outlives the last call, ms: eight days, so that seven can be read.
KEEP_MS = 8 * 86_400_000

_MINUTE, _QUARTER = 60.0, 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """
    What one circuit did in one stretch of time.

    Attributes:
        begin: UTC, the store's clock.

        seconds: How long it is: 60 or 900.

        calls: Calls that reported in it.

        trips: Times the circuit left closed by itself.

        took: Seconds all its successful and failed calls took together.

        durations: Those calls by how long they took: one count for each of :data:`BOUNDS`, and for what is above.
    """

    begin: datetime
    seconds: float
    calls: int
    failed: int
    slow: int
    rejected: int
    held: int
    trips: int
    took: float
    durations: tuple[int, ...]

    @property
    def failure_rate(self) -> float:
        """
        Failed calls / calls, 0.0-1.0; 0.0 without a call.
        """
        return self.failed / self.calls if self.calls else 0.0

    def quantile(self, share: float) -> float | None:
        """
        The duration in seconds that *share* of the calls (0.0-1.0) did not exceed, by linear interpolation.

        ``None`` without a measured call; the last bound for what is above all of them.
        """
        rank, seen, low = share * sum(self.durations), 0, 0.0
        for count, high in zip(self.durations, BOUNDS, strict=False):
            if count and seen + count >= rank:
                return low + (high - low) * max(rank - seen, 0) / count
            seen, low = seen + count, high
        return BOUNDS[-1] if any(self.durations) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """
    What a circuit did lately.

    Attributes:
        calls: Calls that reported within the rate's window.

        failed: Those that failed.

        trips: Times it left closed by itself within the window for trips.
    """

    calls: int = 0
    failed: int = 0
    trips: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """
    What is known of a circuit's past.

    Attributes:
        component: The circuit's key.

        buckets: Its calls, the oldest first.

        log: Its changes of state and the operator's words, the oldest first.
    """

    component: str
    buckets: tuple[Bucket, ...]
    log: tuple[LogRecord, ...]


class Recorder:
    """
    Writes and reads the buckets under one prefix.

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

    def record(
        self,
        configs: Sequence[CircuitBreakerConfig],
        *,
        rate_window: float,
        trips_window: float,
        now_ms: int | None = None,
    ) -> list[Recent]:
        """
        Add what the circuits have counted since the last time, in one round trip.  Doing it twice adds nothing.

        Args:
            configs: The circuits.

            rate_window: Seconds that calls and failures are added up over, for the answer.

            trips_window: Seconds that trips are added up over.

            now_ms: Unix ms, in tests.  Production leaves it out and reads the server's clock.
        """
        now = "" if now_ms is None else now_ms
        arguments = [now, round(rate_window * 1000), round(trips_window * 1000), MINUTES, QUARTERS, KEEP_MS]
        calls = [(self._keys(config), arguments) for config in configs]
        return [
            Recent(calls=calls, failed=failed, trips=trips)
            for calls, failed, trips in self._scripts.many("record", calls)
        ]

    def read(self, config: CircuitBreakerConfig, *, since_ms: int) -> list[Bucket]:
        """
        The buckets that begin at *since_ms* (Unix ms) or later, the oldest first.

        They are of one minute where six hours are enough to reach back so far, else of a quarter of an hour.
        """
        _, buckets, minutes, quarters = self._keys(config)
        with self._client.pipeline(transaction=False) as pipe:
            pipe.hmget(buckets, "minute", "quarter")
            pipe.time()
            (minute, quarter), (now, _) = pipe.execute()
        fine = since_ms >= (now - MINUTES * _MINUTE) * 1000
        stream, open_bucket, seconds = (minutes, minute, _MINUTE) if fine else (quarters, quarter, _QUARTER)
        entries = cast("list[tuple[bytes, Mapping[bytes, bytes]]]", self._client.xrange(stream, min=max(since_ms, 0)))
        found = [
            _bucket(int(moment.split(b"-")[0]), _numbers(fields.get(b"n")), _numbers(fields.get(b"d")), seconds)
            for moment, fields in entries
        ]
        begin_ms, *counts = _numbers(open_bucket) or [0]
        if begin_ms >= since_ms and any(counts):
            found.append(_bucket(begin_ms, counts[: len(COUNTERS)], counts[len(COUNTERS) :], seconds))
        return found

    def _keys(self, config: CircuitBreakerConfig) -> list[str]:
        return [circuit_keys(self._prefix, config.name)[0], *history_keys(self._prefix, config.name)]


def get_history(circuit: str, *, since: float = 3600.0, manager: CircuitBreakerManager | None = None) -> History:
    """
    What a circuit did lately, as the monitor has recorded it.

    Args:
        circuit: Its key.

        since: How far back, in seconds: up to six hours by the minute, up to seven days by the quarter of an hour.

        manager: Whose circuit; this process's own when left out.

    Returns:
        Its buckets and its log; no bucket where the circuit is in one process's memory only.

    Raises:
        UnknownCircuitError: No such circuit.

        StoreError: The shared store is away.
    """
    manager = manager or get_circuit_breaker_manager()
    breaker, url, settings = manager.get(circuit), manager.redis_url, manager.settings
    [(_, _, reading)] = manager.read([(breaker.key, breaker.config)])
    since_ms = reading.now_ms - round(since * 1000)
    log = tuple(breaker.read_log(since_ms=since_ms))
    if url is None:
        return History(component=breaker.key, buckets=(), log=log)
    client = open_client(url, timeout=settings.store_timeout)
    try:
        buckets = Recorder(client, prefix=settings.key_prefix).read(breaker.config, since_ms=since_ms)
    except (redis.RedisError, OSError) as error:
        raise StoreError(f"history of {circuit!r}: {type(error).__name__}: {error}") from error
    finally:
        client.close()
    return History(component=breaker.key, buckets=tuple(buckets), log=log)


def _bucket(begin_ms: int, counts: Sequence[int], durations: Sequence[int], seconds: float) -> Bucket:
    values: dict[str, Any] = dict(zip(COUNTERS, [*counts, *[0] * len(COUNTERS)], strict=False))
    took = values.pop("took_ms") / 1000
    spread = [*durations, *[0] * (len(BOUNDS) + 1)][: len(BOUNDS) + 1]
    begin = datetime.fromtimestamp(begin_ms / 1000, UTC)
    return Bucket(begin=begin, seconds=seconds, took=took, durations=tuple(spread), **values)


def _numbers(text: bytes | None) -> list[int]:
    return [int(word) if word.isdigit() else 0 for word in (text or b"").split(b",")]
