"""
What a worker has taken off a Redis list leaves a trace in the same step, and is otherwise what kombu would have taken.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Producer, Queue  # type: ignore[attr-defined] # they are lazy

from omni_tasks.embedded import EmbeddedServer
from omni_tasks.integration.fetch import REST
from tests.support.eventually import eventually

OURS = "omni_tasks.integration.fetch:Transport"
KOMBUS = "redis"


class Line:
    """
    Two queues of a test's own, somebody who sends, and somebody who receives and acknowledges nothing.
    """

    def __init__(self, url: str, transport: str, prefix: str, **options: Any) -> None:
        """
        Connect; every key begins with *prefix*, and *options* are kombu's.
        """
        self.server = redis.Redis.from_url(url, decode_responses=True)
        self.prefix = prefix
        options["global_keyprefix"] = prefix
        self.sender = Connection(url, transport_options=options).default_channel
        self.connection = Connection(url, transport=transport, transport_options=options)
        self.channel: Any = self.connection.default_channel
        self.received: list[Any] = []

    def send(self, body: object, queue: str = "one", **options: Any) -> None:
        """
        Put a message into a queue, as kombu does.
        """
        Producer(self.sender).publish(body, routing_key=queue, serializer="json", **options)

    def consume(self, *names: str, no_ack: bool = False) -> Consumer:
        """
        Begin to consume these queues; both, where none is named.
        """
        queues = [Queue(name) for name in names or ("one", "two")]
        consumer = Consumer(self.channel, queues, on_message=self.received.append, no_ack=no_ack)
        consumer.consume()
        return consumer

    def ask(self) -> None:
        """
        Ask for a message, and let nobody read the answer.
        """
        self.connection.transport.cycle._register_BRPOP(self.channel)  # what kombu's event loop calls

    def receive(self, count: int) -> list[Any]:
        """
        Receive until there have been so many in all.
        """
        ends = time.monotonic() + 10
        while len(self.received) < count:
            assert time.monotonic() < ends, f"{len(self.received)} of {count}"
            try:
                self.connection.drain_events(timeout=1)
            except socket.timeout:  # noqa: UP041 - kombu's word for it
                continue
        return [message.payload for message in self.received]

    def listed(self, name: str = "one") -> list[str]:
        """
        What is in a list of the broker.
        """
        return [str(text) for text in self.server.lrange(f"{self.prefix}{name}", 0, -1)]

    def noted(self) -> set[str]:
        """
        Delivery tags that somebody is known to have.
        """
        tags = {str(tag) for tag in self.server.hkeys(f"{self.prefix}unacked")}
        assert tags == {str(tag) for tag in self.server.zrange(f"{self.prefix}unacked_index", 0, -1)}
        return tags

    def close(self) -> None:
        """
        Part from the server.
        """
        self.connection.release()
        self.sender.connection.client.release()
        self.server.close()


MakeLine = Callable[..., Line]


@pytest.fixture
def make_line(redis_server: EmbeddedServer, key_prefix: str) -> Iterator[MakeLine]:
    """
    Make a line that receives by that transport.
    """
    lines: list[Line] = []

    def make(transport: str = OURS, **options: Any) -> Line:
        lines.append(Line(redis_server.url, transport, f"{key_prefix}{len(lines)}:", **options))
        return lines[-1]

    yield make
    for line in lines:
        line.close()


@pytest.mark.parametrize(("transport", "traces"), [(OURS, 1), (KOMBUS, 0)])
def test_what_nobody_has_read_yet_is_noted(make_line: MakeLine, transport: str, traces: int) -> None:
    """
    A message is off its list before its taker has read a byte: only a note of the same step can save it.

    kombu's own transport makes none.  Where that changes, ours has no more reason to be.
    """
    line = make_line(transport)
    line.consume()
    line.send("a")
    line.ask()
    eventually(lambda: line.listed() == [], within=5, what="taken")
    assert len(line.noted()) == traces
    assert line.received == []
    assert line.receive(1) == ["a"]


def test_kombu_puts_back_what_was_noted(make_line: MakeLine) -> None:
    """
    A message whose taker is gone comes back as it was, marked as kombu marks it, and once.
    """
    line = make_line()
    line.consume()
    line.send({"deep": [1, 2.5, None, {}, []]}, priority=5, headers={"empty": {}, "none": []}, expiration=600)
    [sent] = line.listed("one\x06\x163")
    line.ask()
    [tag] = eventually(line.noted, within=5, what="taken")
    assert json.loads(sent)["properties"]["delivery_tag"] == tag
    line.sender.qos.restore_by_tag(tag)
    [back] = line.listed("one\x06\x163")
    marked = json.loads(sent)
    marked["headers"]["redelivered"] = marked["properties"]["delivery_info"]["redelivered"] = True
    assert json.loads(back) == marked
    assert line.noted() == set()


@pytest.mark.parametrize("transport", [OURS, KOMBUS])
def test_the_order_is_kombus(make_line: MakeLine, transport: str) -> None:
    """
    By priority, then by the queues in turn, then by age; what is acknowledged leaves no note.
    """
    line = make_line(transport)
    for number in range(3):
        line.send(f"late {number}", priority=9)
        line.send(f"first {number}", priority=0)
        line.send(f"other {number}", "two", priority=0)
    line.consume()
    got = line.receive(9)
    assert sorted(got[:6]) == [f"{name} {number}" for name in ("first", "other") for number in range(3)]
    assert [text[-1] for text in got[:6]] == ["0", "0", "1", "1", "2", "2"]
    assert got[6:] == ["late 0", "late 1", "late 2"]
    for message in line.received:
        message.ack()
    assert line.noted() == set()


@pytest.mark.parametrize("place", [("one", 0), ("two", 0), ("one", 9)], ids=["first list", "other queue", "other list"])
@pytest.mark.parametrize("options", [{}, {"polling_interval": 0}], ids=["", "polling_interval"])
def test_a_resting_worker_hears_of_any_list(
    make_line: MakeLine, options: dict[str, Any], place: tuple[str, int]
) -> None:
    """
    However long nothing came, what comes is taken when the rest is over.
    """
    line = make_line(**options)
    line.consume()
    line.send("first")
    line.receive(1)
    for _ in range(3):
        with pytest.raises(socket.timeout):
            line.connection.drain_events(timeout=REST)
    queue, priority = place
    began = time.monotonic()
    line.send("second", queue, priority=priority)
    assert line.receive(2) == ["first", "second"]
    assert time.monotonic() - began < 1


def test_a_rest_takes_nothing(make_line: MakeLine) -> None:
    """
    What comes during a rest stays where it is, until a step that notes it.
    """
    line = make_line()
    line.consume()
    cycle = line.connection.transport.cycle
    line.ask()
    [asked] = cycle.fds
    # Nothing is there; the next question is to rest.
    eventually(lambda: cycle.poller.poll(1), within=5, what="answered")
    with pytest.raises(Empty):
        cycle.on_readable(asked)
    line.ask()
    line.send("a")
    eventually(lambda: cycle.poller.poll(1), within=5, what="answered")
    assert len(line.listed()) == 1
    assert line.noted() == set()
    assert line.receive(1) == ["a"]


def test_what_is_never_acknowledged_is_not_noted(make_line: MakeLine) -> None:
    """
    A consumer without acknowledgements, as every worker has for a moment at its start, would leave its notes for ever.

    While there is one, all is fetched in kombu's way; then in ours again.
    """
    line = make_line()
    for_a_moment = line.consume("two", no_ack=True)
    line.consume("one")
    line.send("a", "two")
    assert line.receive(1) == ["a"]
    assert line.noted() == set()
    for_a_moment.cancel()
    line.send("b")
    line.ask()
    eventually(lambda: line.listed() == [], within=5, what="taken")
    assert len(line.noted()) == 1


def test_where_kombu_notes_nothing_nothing_is_noted(make_line: MakeLine) -> None:
    """
    Without ``ack_emulation`` nobody would ever take a note away.
    """
    line = make_line(ack_emulation=False)
    line.consume()
    line.send("a")
    assert line.receive(1) == ["a"]
    assert line.noted() == set()


def test_what_is_overdue_comes_again_to_an_idle_worker(make_line: MakeLine) -> None:
    """
    A worker that waits without an event loop, as one of greenlets, puts back what a dead one had.
    """
    line = make_line(visibility_timeout=0, unacked_restore_throttle=1)
    line.consume()
    line.send("a")
    line.ask()
    eventually(line.noted, within=5, what="taken")
    # The one that has asked is gone, and so is its answer.
    line.channel.client.connection.disconnect()
    line.channel._in_poll = None
    ends = time.monotonic() + 10
    while not line.received and time.monotonic() < ends:
        with suppress(socket.timeout):
            line.connection.drain_events(timeout=1)
    assert line.received[0].payload == "a"
    assert line.received[0].headers["redelivered"] is True


#: A message but for what is missing or wrong in it.
SOUND = {"body": "YQ==", "headers": {}}
PLACED = {
    "properties": {
        "delivery_tag": "t",
        "body_encoding": "base64",
        "delivery_info": {"exchange": "", "routing_key": "one"},
    }
}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        json.dumps({**SOUND, "body": "abcde", **PLACED}),
        json.dumps({**SOUND, "body": 3, **PLACED}),
        json.dumps({**SOUND, "properties": {"delivery_info": 3}}),
        json.dumps({**SOUND, "properties": {"delivery_tag": "t", "delivery_info": {"routing_key": "one"}}}),
        json.dumps({**SOUND, "properties": {"delivery_tag": "t", "delivery_info": {"exchange": ""}}}),
        json.dumps(
            {
                **SOUND,
                "properties": {
                    "delivery_tag": "t",
                    "body_encoding": "zlib",
                    "delivery_info": {"exchange": "", "routing_key": "one"},
                },
            }
        ),
    ],
    ids=[
        "cut off",
        "list",
        "empty",
        "bad body",
        "no text",
        "no information",
        "no exchange",
        "no routing key",
        "encoding",
    ],
)
def test_what_is_no_message_ends_as_with_kombu(make_line: MakeLine, text: str) -> None:
    """
    It is taken off, fails in the same way, and stops nothing behind it.
    """
    ends = []
    for transport in (OURS, KOMBUS):
        line = make_line(transport)
        line.consume()
        line.server.lpush(f"{line.prefix}one", text)
        with pytest.raises(Exception) as failed:  # noqa: PT011 - whatever kombu raises
            line.receive(1)
        ends.append((failed.type, line.listed(), line.noted()))
        line.send("a")
        assert line.receive(1) == ["a"]
    assert ends[0] == ends[1]
    assert ends[0][1:] == ([], set())


def test_a_server_that_is_full_gives_nothing_away(make_line: MakeLine) -> None:
    """
    Where a note cannot be written, the message stays on its list.
    """
    line = make_line()
    line.consume()
    line.send("a")
    line.server.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.ResponseError, match="memory"):
            line.receive(1)
    finally:
        line.server.config_set("maxmemory", 0)
    assert len(line.listed()) == 1
    assert line.receive(1) == ["a"]


def test_a_server_that_is_full_stops_no_idle_worker(make_line: MakeLine) -> None:
    """
    Where nothing waits, nothing has to be written.
    """
    line = make_line()
    line.consume()
    line.server.config_set("maxmemory", 1)
    try:
        for _ in range(3):
            with pytest.raises(socket.timeout):
                line.connection.drain_events(timeout=2 * REST)
    finally:
        line.server.config_set("maxmemory", 0)
    line.send("a")
    assert line.receive(1) == ["a"]
