"""
The time buckets of a circuit, on a real server.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import pytest
import redis

from omni_tasks import CircuitBreakerConfig, StoreError, UnknownCircuitError, get_history
from omni_tasks.embedded import EmbeddedServer, start_server
from omni_tasks.manager import use_manager
from omni_tasks.observe import history as recorded
from omni_tasks.observe.history import MINUTES, Bucket, Recent, Recorder
from omni_tasks.observe.monitor import Monitor
from omni_tasks.store.schema import circuit_keys, history_keys
from tests.support.observed import make_manager, open_circuit, tick_again

CONFIG = CircuitBreakerConfig(name="dep")
#: The begin of a quarter of an hour in 2023, Unix ms.
START = 1_700_000_100_000


class Tape:
    """
    A recorder whose clock the test sets, and the counters it reads.
    """

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        """
        Record circuits of *prefix*; the first record says where the counters are.
        """
        self.client, self.prefix = client, prefix
        self.recorder = Recorder(client, prefix=prefix)
        self.now_ms = START
        self.record()

    def record(self, seconds: float = 0.0, **counters: object) -> Recent:
        """
        Let *seconds* pass, set the circuit's counters, and record.
        """
        self.now_ms += round(seconds * 1000)
        if counters:
            values: Any = {"gen": "g", **counters}
            self.client.hset(circuit_keys(self.prefix, "dep")[0], mapping=values)
        [recent] = self.recorder.record([CONFIG], rate_window=300, trips_window=600, now_ms=self.now_ms)
        return recent

    def minutes(self) -> list[Bucket]:
        """
        Every finished bucket of a minute.
        """
        return self._read(history_keys(self.prefix, "dep")[1])

    def quarters(self) -> list[Bucket]:
        """
        Every finished bucket of a quarter of an hour.
        """
        return self._read(history_keys(self.prefix, "dep")[2])

    def _read(self, stream: str) -> list[Bucket]:
        return [
            recorded._bucket(int(moment.split(b"-")[0]), recorded._numbers(f[b"n"]), recorded._numbers(f[b"d"]), 60.0)
            for moment, f in cast("list[Any]", self.client.xrange(stream))
        ]


@pytest.fixture
def tape(redis_client: redis.Redis, key_prefix: str) -> Tape:
    """
    A circuit nobody has called yet.
    """
    return Tape(redis_client, key_prefix)


def test_a_minute_holds_what_was_counted_in_it(tape: Tape) -> None:
    """Differences of the cumulative counters add up in the minute they were seen in; a finished minute is a bucket."""
    tape.record(
        10, succeeded=3, failed=1, slow=2, rejected=5, held=4, trips=1, took_ms=700, durations="0,4" + ",0" * 12
    )
    tape.record(10, succeeded=6, failed=2, ignored=1, durations="0,7" + ",0" * 11 + ",1")
    assert tape.minutes() == []
    tape.record(45)
    assert tape.minutes() == [
        Bucket(
            begin=datetime.fromtimestamp(START / 1000, UTC),
            seconds=60.0, calls=9, failed=2, slow=2, rejected=5, held=4, trips=1, took=0.7,
            durations=(0, 7, *[0] * 11, 1),
        )
    ]  # fmt: skip


def test_whoever_records_twice_adds_nothing(tape: Tape) -> None:
    """Two ticks at once, or one that is repeated, count every call once."""
    recents = [tape.record(1, succeeded=2, failed=3) for _ in range(3)]
    assert recents == [Recent(calls=5, failed=3)] * 3
    tape.record(60)
    assert [bucket.calls for bucket in tape.minutes()] == [5]


def test_what_was_before_the_first_record_is_in_no_bucket(redis_client: redis.Redis, key_prefix: str) -> None:
    """Calls that nobody knows the time of do not look like calls of the last minute."""
    redis_client.hset(circuit_keys(key_prefix, "dep")[0], mapping={"gen": "g", "failed": 100})
    tape = Tape(redis_client, key_prefix)
    assert tape.record(1) == Recent()
    assert tape.record(1, failed=101) == Recent(calls=1, failed=1)


def test_a_reset_counts_from_zero(tape: Tape) -> None:
    """After an operator's reset, and after the store lost its data, the counters' new beginning is counted."""
    tape.record(1, succeeded=50)
    assert tape.record(1, succeeded=3) == Recent(calls=53)
    assert tape.record(1, gen="another", succeeded=4) == Recent(calls=57)


def test_the_windows_look_back_so_far(tape: Tape) -> None:
    """Calls count for five minutes and trips for ten, in whole buckets."""
    tape.record(1, failed=4, trips=1)
    assert tape.record(240) == Recent(calls=4, failed=4, trips=1)
    assert tape.record(120) == Recent(trips=1)
    assert tape.record(300) == Recent()


def test_quarters_are_kept_when_minutes_are_gone(tape: Tape) -> None:
    """The long memory adds the minutes up."""
    for minute in range(45):
        tape.record(60, succeeded=minute + 1)
    assert [bucket.calls for bucket in tape.quarters()] == [14, 15, 15]


def test_empty_minutes_are_not_kept(tape: Tape, redis_client: redis.Redis, key_prefix: str) -> None:
    """A circuit nobody calls takes no room, however long it is watched."""
    for _ in range(100):
        tape.record(60)
    assert redis_client.exists(*history_keys(key_prefix, "dep")[1:]) == 0


def test_buckets_are_bounded(tape: Tape, redis_client: redis.Redis, key_prefix: str) -> None:
    """Of the minutes only the newest are kept: six hours, and at most a page of the stream more."""
    for minute in range(MINUTES + 250):
        tape.record(60, succeeded=minute + 1)
    assert MINUTES <= redis_client.xlen(history_keys(key_prefix, "dep")[1]) <= MINUTES + 100


def test_what_is_not_called_any_more_goes(tape: Tape, redis_client: redis.Redis, key_prefix: str) -> None:
    """Eight days after its last bucket a stream is gone, and eight days after its last record all of a circuit."""
    tape.record(1, succeeded=1)
    tape.record(1000)
    ends = [redis_client.pttl(key) for key in history_keys(key_prefix, "dep")]
    assert all(7.9 * 86_400_000 < end <= 8 * 86_400_000 for end in ends)


def test_a_clock_that_steps_back_loses_nothing(tape: Tape) -> None:
    """While the clock is behind what was recorded, calls go to the bucket that is open."""
    tape.record(70, succeeded=1)
    tape.record(-3600, succeeded=3)
    tape.record(3700, succeeded=4)
    assert sum(bucket.calls for bucket in tape.minutes()) == 3


@pytest.mark.parametrize("field", ["counted", "minute", "quarter", "gen"])
@pytest.mark.parametrize("damage", ["", "x", "-1", "9" * 40, "1,2,3", "nan,inf", "\0"])
def test_damage_passes(tape: Tape, redis_client: redis.Redis, key_prefix: str, field: str, damage: str) -> None:
    """Notes that cannot be read stop no record, and recording goes on from there."""
    tape.record(10, succeeded=5)
    redis_client.hset(history_keys(key_prefix, "dep")[0], field, damage)
    tape.record(10, succeeded=6)
    before = tape.record(10, succeeded=7)
    after = tape.record(10, succeeded=8)
    assert after.calls == before.calls + 1


def test_reading_takes_what_is_fine_enough(redis_client: redis.Redis, key_prefix: str) -> None:
    """Of the last hours one reads minutes, of the last days quarters of an hour; the open bucket is the last."""
    recorder = Recorder(redis_client, prefix=key_prefix)
    seconds, _ = redis_client.time()
    now_ms = int(seconds) * 1000
    for back in (7200, 7200 - 60, 60, 0):
        count = redis_client.hincrby(circuit_keys(key_prefix, "dep")[0], "failed", 2 if back < 7200 else 0)
        assert count >= 0
        recorder.record([CONFIG], rate_window=300, trips_window=600, now_ms=now_ms - back * 1000)
    fine = recorder.read(CONFIG, since_ms=now_ms - 3 * 3_600_000)
    assert [(bucket.seconds, bucket.calls, bucket.failure_rate) for bucket in fine][-1] == (60.0, 2, 1.0)
    assert sum(bucket.calls for bucket in fine) == 6
    coarse = recorder.read(CONFIG, since_ms=now_ms - 3 * 86_400_000)
    assert {bucket.seconds for bucket in coarse} == {900.0}
    assert sum(bucket.calls for bucket in coarse) == 6
    assert recorder.read(CONFIG, since_ms=now_ms + 120_000) == []


def test_quantiles_are_within_their_class() -> None:
    """A share of the calls is found in the class of durations it falls into, by linear interpolation."""
    empty = Bucket(
        begin=datetime.now(UTC), seconds=60, calls=0, failed=0, slow=0, rejected=0, held=0, trips=0, took=0.0,
        durations=(0,) * 14,
    )  # fmt: skip
    assert empty.quantile(0.5) is None
    assert empty.failure_rate == 0.0
    spread = Bucket(
        begin=datetime.now(UTC), seconds=60, calls=100, failed=0, slow=0, rejected=0, held=0, trips=0, took=1.0,
        durations=(50, 50, *[0] * 12),
    )  # fmt: skip
    assert spread.quantile(0.5) == pytest.approx(0.005)
    assert spread.quantile(0.75) == pytest.approx(0.0075)
    assert spread.quantile(1.0) == pytest.approx(0.01)
    beyond = Bucket(
        begin=datetime.now(UTC), seconds=60, calls=1, failed=0, slow=0, rejected=0, held=0, trips=0, took=90.0,
        durations=(*[0] * 13, 1),
    )  # fmt: skip
    assert beyond.quantile(0.99) == 60.0


def test_the_history_of_a_circuit(redis_server: EmbeddedServer, redis_client: redis.Redis, key_prefix: str) -> None:
    """One call gives what the circuit did and how its state changed, as far back as one asks."""
    manager = make_manager(redis_server.url, key_prefix, alert_sinks=[])
    monitor = Monitor(manager)
    tick_again(redis_client, key_prefix, monitor)
    manager.call("dep", int)
    open_circuit(manager)
    tick_again(redis_client, key_prefix, monitor)
    history = get_history("dep", manager=manager)
    assert history.component == "dep"
    assert [(bucket.calls, bucket.failed, bucket.trips) for bucket in history.buckets] == [(3, 2, 1)]
    assert [(record.kind, record.current) for record in history.log] == [("transition", "open")]
    use_manager(lambda: manager)
    assert get_history("dep", since=7 * 86_400).buckets[0].seconds == 900
    with pytest.raises(UnknownCircuitError):
        get_history("nothing")


def test_the_history_of_one_process(key_prefix: str) -> None:
    """A circuit in memory has a log and no buckets."""
    manager = make_manager(None, key_prefix)
    open_circuit(manager)
    history = get_history("dep", manager=manager)
    assert history.buckets == ()
    assert len(history.log) == 1


def test_a_lost_store_has_no_history(key_prefix: str) -> None:
    """While the store is away, that is said, not an empty past shown."""
    with start_server() as server:
        manager = make_manager(server.url, key_prefix)
        server.kill()
    with pytest.raises(StoreError, match="history of 'dep'"):
        get_history("dep", manager=manager)
