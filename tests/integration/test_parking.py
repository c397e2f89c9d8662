"""
A held message is the message that was sent, on every broker; nothing on the way loses or doubles it.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import amqp
import pytest
import redis
from celery import chain, chord, group
from celery.canvas import Signature
from kombu.entity import Exchange, Queue
from kombu.message import Message

from omni_tasks import init_app
from omni_tasks.embedded import EmbeddedServer
from omni_tasks.errors import ParkingError
from omni_tasks.integration import store_lot
from omni_tasks.integration.amqp import AmqpCarrier
from omni_tasks.integration.eta import ETA_HEADER, EtaQueue
from omni_tasks.integration.held import DUE, SUCCEEDS_HEADER, TICKET_HEADER, Limits, Parking
from omni_tasks.integration.holding import DEADLINE_HEADER, QUORUM, HoldingQueues
from omni_tasks.integration.install import integration_of
from omni_tasks.integration.ledger import Arrival, Ledger
from omni_tasks.integration.lot import Lot
from omni_tasks.integration.mover import move_held_tasks
from omni_tasks.integration.store_lot import StoreLot
from omni_tasks.integration.virtual import StampStep
from tests.support.eventually import eventually
from tests.support.rabbitmq import AMQP_URL, require_rabbitmq
from tests.support.yard import Yard

MakeYard = Callable[..., Yard]


@pytest.fixture
def make_yard(redis_server: EmbeddedServer, key_prefix: str, tmp_path: Path) -> Iterator[MakeYard]:
    """
    Make a yard on the broker of that name; its tasks wait where it says.
    """
    yards: list[Yard] = []

    def make(kind: str, **options: Any) -> Yard:
        broker, _, parking = kind.partition("-")
        url = {"rabbitmq": AMQP_URL, "redis": redis_server.url, "filesystem": "filesystem://"}[broker]
        if broker == "rabbitmq":
            require_rabbitmq()
        if broker == "filesystem":
            folder = tmp_path / "queues"
            folder.mkdir(exist_ok=True)
            # One folder is both ends, and no two tests share it.
            places = dict.fromkeys(("data_folder_in", "data_folder_out", "control_folder"), str(folder))
            options["broker_transport_options"] = {**places, **options.get("broker_transport_options", {})}
        if parking:
            options["omni_parking"] = parking
        yards.append(Yard(url, redis_server.url, prefix=key_prefix, **options))
        return yards[-1]

    yield make
    for yard in yards:
        yard.close()


EVERYWHERE = {
    "redis": Lot,
    "rabbitmq": HoldingQueues,
    "rabbitmq-store": StoreLot,
    "filesystem": EtaQueue,
    "filesystem-store": StoreLot,
}


def _park(yard: Yard, message: Message, **options: Any) -> None:
    yard.place.park("dep", message, 1.0, **options)
    message.ack()


def _put_back(message: Message) -> None:
    message.reject(requeue=True)


# What is sent.


def _send_one_of_each(yard: Yard) -> None:
    @yard.app.task(name="work", shared=False)
    def work(*_args: Any) -> None:
        """
        Do nothing.
        """

    def one(*args: Any) -> Signature:
        return work.s(*args).set(queue=yard.name)

    one(b"\xff\x00").apply_async(serializer="pickle")
    one("é" * 500).apply_async(compression="zlib")
    one(1).apply_async(argsrepr="<hidden>", kwargsrepr="<hidden>")
    one(1).stamp(customer="c1").apply_async()
    one(1).apply_async(priority=7)
    one(1).apply_async(expires=3600)
    one(1).apply_async(time_limit=30, soft_time_limit=20, shadow="other", ignore_result=True)
    one(1).apply_async(link=one(2), link_error=one(3), headers={"custom": {"deep": [1, None, True]}})
    one(1).apply_async(reply_to="somebody", delivery_mode=1, retries=2)
    one(1).apply_async(
        serializer="pickle", compression="bzip2", argsrepr="<hidden>", priority=3, expires=3600, time_limit=9
    )
    chain(one(1), one(2), one(3)).apply_async()
    group(one(1), one(2)).apply_async()
    chord([one(1), one(2)], one(3)).apply_async()


@pytest.mark.parametrize("kind", EVERYWHERE)
@pytest.mark.parametrize("times", [1, 5, pytest.param(50, marks=pytest.mark.soak)])
def test_a_held_message_is_the_message_that_was_sent(make_yard: MakeYard, kind: str, times: int) -> None:
    """After any number of parkings body, headers and properties are what they were, but for omni_* headers."""
    yard = make_yard(kind)
    assert isinstance(yard.place, EVERYWHERE[kind])
    _send_one_of_each(yard)
    messages = yard.receive(15)
    sent = {message.headers["id"]: message.raw for message in messages}
    assert len(sent) == 15
    for _ in range(times):
        for message in messages:
            _park(yard, message)
        yard.place.unpark("dep", len(sent), "gen:1")
        messages = yard.receive(15)
        assert len(messages) == 15
    for message in messages:
        before, after = sent[message.headers["id"]], message.raw
        ours = {name: after["headers"].pop(name) for name in list(after["headers"]) if name.startswith("omni_")}
        assert int(ours["omni_holds"]) == times
        if kind == "filesystem":
            # The wait itself; what was there is kept beside it.
            assert after["headers"].pop("eta") > ""
            assert ours[ETA_HEADER] == (before["headers"].pop("eta") or "")
        assert after == before


# Where it goes back to.


@pytest.mark.parametrize("kind", ["redis", "rabbitmq", "rabbitmq-store", "filesystem-store"])
def test_a_message_in_two_queues_goes_back_to_its_own(make_yard: MakeYard, kind: str) -> None:
    """A topic exchange has put one message into two queues: after three parkings each still has one."""
    yard = make_yard(kind)
    exchange = Exchange(f"{yard.name}-topic", type="topic")
    queues = [Queue(f"{yard.name}-{i}", exchange, routing_key="a.#") for i in range(2)]
    for queue in queues:
        queue(yard.channel).declare()
    StampStep(None).start(SimpleNamespace(connection=yard.connection))
    try:
        yard.app.send_task("work", exchange=exchange, routing_key="a.b", declare=[exchange])
        for _ in range(3):
            assert yard.consume(*queues, expect=2, then=functools.partial(_park, yard)) == 2
            assert yard.place.unpark("dep", 5, "gen:1") == 2
        assert [yard.consume(queue, expect=1, then=Message.ack) for queue in queues] == [1, 1]
    finally:
        for queue in queues:
            queue(yard.channel).delete()
        exchange(yard.channel).delete()


@pytest.mark.parametrize("kind", ["redis", "rabbitmq", "rabbitmq-store", "filesystem"])
def test_a_message_of_an_unknown_queue_is_not_parked(make_yard: MakeYard, kind: str) -> None:
    """Where the queue cannot be told the parking is refused, with the reason; the message stays unacknowledged."""
    yard = make_yard(kind)
    yard.app.send_task("work")
    [message] = yard.receive(1)
    message.delivery_info.update(exchange="nowhere", routing_key="x", consumer_tag="gone")
    with pytest.raises(ParkingError, match="cannot tell which queue the message came from"):
        yard.place.park("dep", message, 1.0)
    assert not message.acknowledged
    assert sum(yard.place.counts(["dep"]).values()) == 0


# What may go wrong.


def test_a_damaged_lot_is_said_and_loses_nothing(
    make_yard: MakeYard, redis_client: redis.Redis, key_prefix: str
) -> None:
    """With a key of the lot of another type nothing is parked, and no copy counts as parked."""
    yard = make_yard("redis")
    yard.app.send_task("work")
    [message] = yard.receive(1)
    redis_client.set(f"{key_prefix}:lot:dep:order", "not a sorted set")
    with pytest.raises(ParkingError, match="WRONGTYPE"):
        yard.place.park("dep", message, 1.0)
    assert not yard.place.is_superseded(message)
    redis_client.delete(f"{key_prefix}:lot:dep:order")
    _park(yard, message)
    assert yard.place.counts(["dep"]) == {"dep": 1}
    # And on the way back: the broker's list.
    redis_client.set(yard.name, "not a list")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        yard.place.unpark("dep", 1, "gen:1")
    redis_client.delete(yard.name)
    assert yard.place.unpark("dep", 1, "gen:1") == 1


@pytest.mark.parametrize("kind", ["rabbitmq", "rabbitmq-store", "redis"])
def test_movers_divide_the_work(make_yard: MakeYard, kind: str, redis_server: EmbeddedServer, key_prefix: str) -> None:
    """Four movers at one circuit move each task once."""
    yard = make_yard(kind)
    for _ in range(60):
        yard.app.send_task("work")
    for message in yard.receive(60):
        _park(yard, message)
    app, options = yard.app, {"omni_parking": kind.partition("-")[2] or "broker"}
    others = [Yard(app.conf.broker_url, redis_server.url, prefix=key_prefix, **options) for _ in range(4)]
    moved: list[int] = []

    def move(place: Parking) -> None:
        while place.counts(["dep"])["dep"]:
            moved.append(place.unpark("dep", 7, "gen:1"))

    threads = [threading.Thread(target=move, args=(other.place,)) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    for other in others:
        other.connection.release()
        other.app.close()
    assert sum(moved) == 60
    assert set(Counter(message.headers["id"] for message in yard.receive(60)).values()) == {1}
    assert yard.place.counts(["dep"]) == {"dep": 0}


@pytest.mark.parametrize("kind", ["redis", "rabbitmq", "rabbitmq-store", "filesystem-store"])
def test_a_parking_whose_answer_was_lost_is_one_task(make_yard: MakeYard, kind: str) -> None:
    """The broker or the store had it already when it was parked again: it returns once."""
    yard = make_yard(kind)
    yard.app.send_task("work")
    [message] = yard.receive(1)
    yard.place.park("dep", message, 1.0)
    _park(yard, message)
    assert yard.place.unpark("dep", 5, "gen:1") == 1
    assert yard.place.counts(["dep"]) == {"dep": 0}
    assert len(yard.receive(1)) == 1


@pytest.mark.parametrize("kind", ["redis", "rabbitmq", "rabbitmq-store"])
def test_a_circuit_is_listed_while_it_holds_tasks(make_yard: MakeYard, kind: str) -> None:
    """Movers look only at the circuits that are listed: from the first task held to the last that has left."""
    yard = make_yard(kind)
    assert yard.place.holding() == []
    for _ in range(2):
        yard.app.send_task("work")
    for message in yard.receive(2):
        _park(yard, message)
    for left in (1, 0):
        assert yard.place.holding() == ["dep"]
        assert yard.place.unpark("dep", 1, "gen:1") == 1
        assert yard.place.counts(["dep"]) == {"dep": left}
    assert yard.place.holding() == []


def _held_yard(make_yard: MakeYard, kind: str) -> Yard:
    yard = make_yard(kind)
    yard.app.send_task("work")
    [message] = yard.receive(1)
    _park(yard, message)
    return yard


def test_a_mover_that_died_after_publishing_doubles_nothing(
    make_yard: MakeYard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On RabbitMQ: published and noted, but not acknowledged; the copy that comes again is dropped."""
    yard = _held_yard(make_yard, "rabbitmq")
    with monkeypatch.context() as patch:
        patch.setattr("amqp.Channel.basic_ack", _broken)
        with pytest.raises(ParkingError, match="ConnectionResetError"):
            yard.place.unpark("dep", 1, "gen:1")
    assert yard.place.unpark("dep", 1, "gen:1") == 0
    assert len(yard.receive(1)) == 1
    assert yard.place.counts(["dep"]) == {"dep": 0}


def _die_before_it_is_noted(monkeypatch: pytest.MonkeyPatch, action: Callable[[], Any]) -> None:
    """
    RabbitMQ has the new copy; the ledger does not know it, and the old one is not acknowledged.
    """
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "add", _broken)
        with pytest.raises((ParkingError, ConnectionResetError)):
            action()


@pytest.mark.parametrize("first", ["redelivered copy", "held copy"])
def test_a_worker_that_died_after_publishing_what_it_parked_doubles_nothing(
    make_yard: MakeYard, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """On RabbitMQ: parked, but not noted; of the redelivered copy and the held one the first to be taken up stands."""
    yard = make_yard("rabbitmq")
    yard.app.send_task("work")
    [message] = yard.receive(1)
    _die_before_it_is_noted(monkeypatch, lambda: yard.place.park("dep", message, 1.0))
    _put_back(message)
    [again] = yard.receive(1)
    if first == "redelivered copy":
        assert not yard.place.is_superseded(again)
        assert yard.place.unpark("dep", 1, "gen:1") == 0
        # It may be killed again, and is still the only one.
        _put_back(again)
        [again] = yard.receive(1)
        assert not yard.place.is_superseded(again)
        _park(yard, again)
        assert yard.place.unpark("dep", 2, "gen:1") == 1
        [returned] = yard.receive(1)
        assert not yard.place.is_superseded(returned)
    else:
        assert yard.place.unpark("dep", 1, "gen:1") == 1
        assert yard.place.is_superseded(again)
        [returned] = yard.receive(1)
        assert not yard.place.is_superseded(returned)
    assert yard.place.counts(["dep"]) == {"dep": 0}


@pytest.mark.parametrize("first", ["published copy", "held copy"])
def test_a_mover_that_died_before_it_noted_what_it_published_doubles_nothing(
    make_yard: MakeYard, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """On RabbitMQ: published, but not noted; the gate lets one of the two copies pass, however often it comes."""
    yard = _held_yard(make_yard, "rabbitmq")
    _die_before_it_is_noted(monkeypatch, lambda: yard.place.unpark("dep", 1, "gen:1"))
    if first == "published copy":
        [published] = yard.receive(1)
        assert not yard.place.is_superseded(published)
        assert yard.place.unpark("dep", 1, "gen:1") == 0
        _put_back(published)
        [published] = yard.receive(1)
        assert not yard.place.is_superseded(published)
    else:
        assert yard.place.unpark("dep", 1, "gen:1") == 1
        copies = yard.receive(2)
        for _ in range(2):
            assert [yard.place.is_superseded(copy) for copy in copies] == [True, False]
    assert yard.place.counts(["dep"]) == {"dep": 0}


def test_a_parking_that_arrived_without_an_answer_is_void_when_the_task_runs(
    make_yard: MakeYard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ has it, but its confirmation came too late; the circuit is closed when the gate asks again."""
    yard = make_yard("rabbitmq")
    yard.app.send_task("work")
    [message] = yard.receive(1)
    publish = AmqpCarrier.publish

    def unanswered(self: AmqpCarrier, channel: Any, messages: Sequence[tuple[str, amqp.Message]]) -> set[str]:
        publish(self, channel, messages)
        raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(AmqpCarrier, "publish", unanswered)
        # For a while a broker that does not answer is not asked.
        patch.setattr("omni_tasks.integration.amqp._PAUSE", 0.0)
        with pytest.raises(ParkingError, match="TimeoutError"):
            yard.place.park("dep", message, 1.0)
    assert not yard.place.is_superseded(message)
    assert yard.place.counts(["dep"]) == {"dep": 1}
    assert yard.place.unpark("dep", 1, "gen:1") == 0
    assert yard.place.counts(["dep"]) == {"dep": 0}


def test_a_copy_that_another_worker_has_taken_up_meanwhile_is_not_lost(
    make_yard: MakeYard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On RabbitMQ: a successor that became void while it was published does not count, for the gate and the mover."""
    yard = make_yard("rabbitmq")
    yard.app.send_task("work")
    [message] = yard.receive(1)
    publish = AmqpCarrier.publish

    def overtaken(self: AmqpCarrier, channel: Any, messages: Sequence[tuple[str, amqp.Message]]) -> set[str]:
        missing = publish(self, channel, messages)
        copies = [published.headers[SUCCEEDS_HEADER].partition(".")[0] for _, published in messages]
        yard.place.__dict__["_ledger"].arrive([Arrival(succeeds="", copy=copy, again=True) for copy in copies])
        return missing

    with monkeypatch.context() as patch:
        patch.setattr(AmqpCarrier, "publish", overtaken)
        with pytest.raises(ParkingError, match="delivered it to another worker"):
            yard.place.park("dep", message, 1.0)
    _park(yard, message)
    with monkeypatch.context() as patch:
        patch.setattr(AmqpCarrier, "publish", overtaken)
        with pytest.raises(ParkingError, match="another mover has fetched"):
            yard.place.unpark("dep", 2, "gen:1")
    assert yard.place.unpark("dep", 2, "gen:1") == 1
    assert [yard.place.is_superseded(copy) for copy in yard.receive(2)] == [True, False]
    assert yard.place.counts(["dep"]) == {"dep": 0}


def test_counting_asks_rabbitmq_for_what_is_held(
    make_yard: MakeYard, redis_client: redis.Redis, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many circuits there are, a count asks for those that hold tasks and a few more; in turns for all."""
    yard = _held_yard(make_yard, "rabbitmq")
    asked: list[str] = []
    declare = amqp.Channel.queue_declare

    def counted(channel: Any, queue: str, **options: Any) -> Any:
        asked.append(queue)
        return declare(channel, queue, **options)

    monkeypatch.setattr("amqp.Channel.queue_declare", counted)
    circuits = [*(f"c{number}" for number in range(100)), "dep"]
    counts = yard.place.counts(circuits)
    assert counts == {**dict.fromkeys(circuits, 0), "dep": 1}
    assert len(asked) <= 25
    # As if its worker had died before he could list it.
    redis_client.delete(f"{key_prefix}:lots")
    found = [yard.place.counts(circuits)["dep"] for _ in range(6)]
    assert 1 in found


def test_a_claim_of_a_dead_mover_ends(make_yard: MakeYard, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the store: claimed and not published; when the claim is over another mover takes it, once."""
    yard = _held_yard(make_yard, "rabbitmq-store")
    monkeypatch.setattr(store_lot, "_CLAIM_MS", 1)
    with monkeypatch.context() as patch:
        patch.setattr("amqp.Channel.basic_publish", _broken)
        with pytest.raises(ParkingError, match="ConnectionResetError"):
            yard.place.unpark("dep", 1, "gen:1")
    assert yard.place.counts(["dep"]) == {"dep": 1}
    while not yard.place.unpark("dep", 1, "gen:1"):
        """The claim of one millisecond is still going on."""
    assert len(yard.receive(1)) == 1
    assert yard.place.counts(["dep"]) == {"dep": 0}


def _broken(*_args: Any, **_kwargs: Any) -> None:
    raise ConnectionResetError


def test_a_holding_queue_that_is_deleted_is_noticed(make_yard: MakeYard, caplog: pytest.LogCaptureFixture) -> None:
    """A parking into a holding queue that somebody has deleted is said, declared anew and done."""
    yard = _held_yard(make_yard, "rabbitmq")
    yard.channel.queue_delete(f"{yard.app.main}:held:dep")
    yard.app.send_task("work")
    [message] = yard.receive(1)
    _park(yard, message)
    assert "is gone, with what it held" in caplog.text
    assert yard.place.counts(["dep"]) == {"dep": 1}


def _hold_one_without_its_queue(yard: Yard) -> None:
    lost = Queue(f"{yard.name}-lost", routing_key=f"{yard.name}-lost")
    lost(yard.channel).declare()
    yard.app.send_task("work", queue=lost)
    assert yard.consume(lost, expect=1, then=functools.partial(_park, yard)) == 1
    lost(yard.channel).delete()


@pytest.mark.parametrize("kind", ["rabbitmq", "rabbitmq-store"])
def test_a_task_whose_queue_is_gone_keeps_nobody_waiting(make_yard: MakeYard, kind: str) -> None:
    """It is said and stays held; those behind it return."""
    yard = make_yard(kind)
    _hold_one_without_its_queue(yard)
    yard.app.send_task("work")
    [message] = yard.receive(1)
    _park(yard, message)
    with pytest.raises(ParkingError, match="-lost"):
        yard.place.unpark("dep", 1, "gen:1")
    assert yard.place.unpark("dep", 1, "gen:1") == 1
    assert len(yard.receive(1)) == 1
    assert yard.place.counts(["dep"]) == {"dep": 1}


def test_one_circuits_missing_queue_holds_up_no_other(make_yard: MakeYard) -> None:
    """A mover says what it cannot move, and sees to the circuits behind it in the same look."""
    yard = make_yard("rabbitmq")
    init_app(yard.app, circuits={"dep": {}, "later": {}})
    _hold_one_without_its_queue(yard)
    yard.app.send_task("work")
    [message] = yard.receive(1)
    yard.place.park("later", message, 1.0)
    try:
        with pytest.raises(ParkingError, match="-lost"):
            move_held_tasks(integration_of(yard.app))
        assert yard.place.counts(["dep", "later"]) == {"dep": 1, "later": 0}
        assert len(yard.receive(1)) == 1
    finally:
        yard.channel.queue_delete(f"{yard.app.main}:held:later")


def test_a_held_task_outlives_its_own_expiration(make_yard: MakeYard) -> None:
    """RabbitMQ drops a message when its expiration is over, without a word: not while it is held."""
    yard = make_yard("rabbitmq")
    yard.app.send_task("work", expires=1)
    [message] = yard.receive(1)
    _park(yard, message)
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        assert yard.place.counts(["dep"]) == {"dep": 1}
    yard.place.unpark("dep", 1, "gen:1")
    [returned] = yard.receive(1)
    assert returned.properties["expiration"] == message.properties["expiration"]


def test_held_tasks_leave_by_priority_then_age(make_yard: MakeYard) -> None:
    """A holding queue lets the higher priority go first, and of equal ones the one that was held first."""
    yard = make_yard("rabbitmq")
    sent = [yard.app.send_task("work", priority=priority).id for priority in (0, 5, 0, 9)]
    for message in yard.receive(4):
        _park(yard, message)
    assert [task.task_id for task in yard.place.list("dep")] == [sent[3], sent[1], sent[0], sent[2]]
    eventually(lambda: yard.place.counts(["dep"]) == {"dep": 4}, within=5, what="all are back from the list")
    yard.place.unpark("dep", 4, "gen:1")
    assert [message.headers["id"] for message in yard.receive(4)] == [sent[3], sent[1], sent[0], sent[2]]


@pytest.mark.parametrize(("first", "order"), [(True, [0, 1, 2]), (False, [1, 2, 0])], ids=["first", "behind"])
def test_a_held_task_goes_before_or_behind_what_waits(make_yard: MakeYard, *, first: bool, order: list[int]) -> None:
    """A probe is served before new tasks; one that returns along the ramp queues up behind them."""
    yard = make_yard("redis")
    sent = [yard.app.send_task("work").id]
    _park(yard, yard.receive(1)[0])
    sent += [yard.app.send_task("work").id for _ in range(2)]
    yard.place.unpark("dep", 1, "gen:1", first=first)
    assert [message.headers["id"] for message in yard.receive(3)] == [sent[at] for at in order]


@pytest.mark.parametrize("place", ["broker", "store"])
def test_a_broker_that_has_gone_is_said(make_yard: MakeYard, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """With the connection lost a parking or a move is refused; the next makes a new connection."""
    yard = _held_yard(make_yard, f"rabbitmq-{place}")
    carrier: Any = yard.place.__dict__["_carrier"]
    with carrier.channel():
        carrier._connection.connection.transport.sock.close()
    with pytest.raises(ParkingError, match="RabbitMQ: "):
        yard.place.unpark("dep", 1, "gen:1")
    monkeypatch.setattr(store_lot, "_CLAIM_MS", 1)
    assert yard.place.counts(["dep"]) == {"dep": 1}


def test_an_eta_stays_below_the_visibility_timeout(make_yard: MakeYard) -> None:
    """However long the circuit is open, a worker keeps a message for a third of that time at most."""
    yard = make_yard("filesystem", broker_transport_options={"visibility_timeout": 30})
    yard.app.send_task("work")
    [message] = yard.receive(1)
    before = time.time()
    yard.place.park("dep", message, 3600.0)
    [returned] = yard.receive(1)
    eta = datetime.fromisoformat(returned.headers["eta"])
    assert 0 < eta.timestamp() - before <= 10.5


def test_quorum_queues_hold_in_a_quorum_queue(make_yard: MakeYard) -> None:
    """Where the application's queues are replicated, so is the one its tasks wait in."""
    yard = make_yard("rabbitmq", task_default_queue_type="quorum")
    yard.app.send_task("work")
    [message] = yard.receive(1)
    _park(yard, message)
    yard.channel.queue_declare(f"{yard.app.main}:held:dep", durable=True, auto_delete=False, arguments=dict(QUORUM))
    assert yard.place.unpark("dep", 1, "gen:1") == 1


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_looking_at_held_tasks_leaves_them_where_they_are(make_yard: MakeYard, kind: str) -> None:
    """However often they are listed, they leave in the order they were held; so do those behind one that is picked."""
    yard = make_yard("rabbitmq", task_default_queue_type=kind)
    place = yard.place
    assert isinstance(place, HoldingQueues)
    sent = [yard.app.send_task("work").id for _ in range(6)]
    for message in yard.receive(6):
        _park(yard, message)
    for limit in (1, 3, 6) * 10:
        # RabbitMQ 4 drops what it has delivered twenty times, unless the queue says otherwise.
        assert [task.task_id for task in place.list("dep", limit)] == sent[:limit]
    assert place.unpark_if("dep", lambda tasks: [task["id"] == sent[2] for task in tasks], among=4) == 1
    assert [task.task_id for task in place.list("dep")] == [*sent[:2], *sent[3:]]
    eventually(lambda: place.counts(["dep"]) == {"dep": 5}, within=5, what="all are back from the list")
    place.unpark("dep", 5, "gen:1")
    assert [message.headers["id"] for message in yard.receive(6)] == [sent[2], *sent[:2], *sent[3:]]


def test_what_nobody_waits_for_leaves_a_holding_queue_unpaid(make_yard: MakeYard) -> None:
    """Due and revoked tasks go back with a ticket that says so; the others stay, in their order, and are not asked."""
    yard = make_yard("rabbitmq")
    place = yard.place
    assert isinstance(place, HoldingQueues)
    sent = [yard.app.send_task("work").id for _ in range(5)]
    past, future = time.time() - 1, time.time() + 3600
    limits = [Limits(), Limits(expires=past), Limits(expires=future), Limits(), Limits(longest=0.001)]
    for message, limit in zip(yard.receive(5), limits, strict=True):
        _park(yard, message, limits=limit)

    def revoked(tasks: Sequence[Mapping[str, Any]]) -> list[bool]:
        return [task["id"] == sent[3] for task in tasks]

    assert place.unpark_unwanted("dep", revoked, soon=True) == 3
    left = yard.receive(3)
    assert {(message.headers["id"], message.headers[TICKET_HEADER]) for message in left} == {
        (sent[1], DUE),
        (sent[3], DUE),
        (sent[4], DUE),
    }
    assert not any(DEADLINE_HEADER in message.headers for message in left)
    assert [task.task_id for task in place.list("dep")] == [sent[0], sent[2]]
    assert place.holding() == ["dep"]
    # The next look finds none; the one after it is not made so soon, unless a probe is to be chosen.
    assert [place.unpark_unwanted("dep", _all, soon=False) for _ in range(2)] == [2, 0]


def _all(tasks: Sequence[Mapping[str, Any]]) -> list[bool]:
    return [True] * len(tasks)
