"""
Every kind of sink takes an alert, on a real server of its kind; what fails is delivered again.
"""

from __future__ import annotations

import base64
import email
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message

from omni_tasks.embedded import EmbeddedServer
from omni_tasks.errors import ConfigurationError
from omni_tasks.observe import delivery as delivering
from omni_tasks.observe.delivery import Delivery
from omni_tasks.observe.notification import Episode, Notification
from omni_tasks.observe.scripts import open_client
from omni_tasks.observe.sink_entries import open_sinks
from omni_tasks.observe.sinks import WITHIN
from omni_tasks.observe.state import MonitorState
from omni_tasks.settings import ResilienceConfiguration
from omni_tasks.store.schema import monitor_key
from tests.support.http_server import HttpServer, Reply
from tests.support.log import events
from tests.support.observed import Kept, taken

NOW = 1_700_000_000_000


def notify(component: str = "dep", *, at_ms: int = NOW, summary: str = "Circuit dep is down") -> Notification:
    """
    News that an outage has begun.
    """
    return Notification.firing(
        "open_too_long", component, severity="critical", summary=summary, details={"seconds_open": 301.5}, now_ms=at_ms
    )


def sinks_of(*entries: object, **settings: object) -> Delivery:
    """
    Sinks as the settings name them.
    """
    conf = {"omni_alert_sinks": list(entries), **{f"omni_{name}": value for name, value in settings.items()}}
    return Delivery(open_sinks(ResilienceConfiguration.load(conf, environ={})))


@pytest.fixture
def state(redis_server: EmbeddedServer, key_prefix: str) -> MonitorState:
    """
    What the monitor keeps.
    """
    return MonitorState(open_client(redis_server.url, timeout=1.0), prefix=key_prefix)


@pytest.fixture
def receiver() -> Iterator[HttpServer]:
    """
    A receiver that takes everything.
    """
    with HttpServer() as server:
        server.reply = Reply(status=200)
        yield server


def fire(state: MonitorState, delivery: Delivery, *notes: Notification) -> list[bool]:
    """
    Begin episodes that all sinks are told of.
    """
    return state.fire([(note, delivery.names) for note in notes], now_ms=notes[0].at_ms)


def deliver(state: MonitorState, delivery: Delivery, now_ms: int = NOW) -> None:
    """
    One tick's deliveries.
    """
    delivery.deliver(state, now_ms=now_ms, patience=5.0)


# ---------------------------------------------------------------- what the sinks send


def test_a_webhook_is_signed(state: MonitorState, receiver: HttpServer) -> None:
    """The signature covers id, time and body, with every secret, as Standard Webhooks has it."""
    word = base64.b64encode(b"old secret").decode()
    delivery = sinks_of(receiver.url, webhook_secret=f"plain-secret whsec_{word}", alert_private_addresses=True)
    note = notify()
    fire(state, delivery, note)
    deliver(state, delivery)
    [request] = receiver.requests
    assert Notification.from_json(request.body) == note
    headers = request.headers
    assert headers["webhook-id"] == note.id
    signed = b".".join([note.id.encode(), headers["webhook-timestamp"].encode(), request.body])
    wanted = [
        "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
        for secret in (b"plain-secret", b"old secret")
    ]
    assert headers["webhook-signature"].split(" ") == wanted


def test_alertmanager_gets_its_own_form(state: MonitorState, receiver: HttpServer) -> None:
    """Alertmanager gets labels, a beginning and an end; an alert that goes on is posted again, one that ended ends."""
    delivery = sinks_of(f"alertmanager+{receiver.url}")
    note = notify()
    fire(state, delivery, note)
    deliver(state, delivery)
    [alert] = json.loads(receiver.requests[0].body)
    assert receiver.requests[0].path == "/v1/api/v2/alerts"
    assert alert["labels"] == {
        "alertname": "CircuitOpenTooLong", "component": "dep", "severity": "critical", "source": "omni_tasks",
    }  # fmt: skip
    assert alert["annotations"] == {
        "summary": "Circuit dep is down", "runbook_url": "ops/runbook.md#circuitopentoolong",
    }  # fmt: skip
    assert datetime.fromisoformat(alert["endsAt"]) > datetime.fromisoformat(alert["startsAt"])

    [episode] = state.episodes().values()
    going_on = Notification.about(episode, status="firing", now_ms=NOW + 10_000)
    delivery.deliver(state, now_ms=NOW + 10_000, going_on=[going_on], patience=5.0)
    again = json.loads(receiver.requests[1].body)
    assert (again[0]["labels"], again[0]["startsAt"]) == (alert["labels"], alert["startsAt"])

    end = Notification.about(episode, status="resolved", now_ms=NOW + 20_000)
    assert state.resolve([(episode, end, delivery.names)], now_ms=NOW + 20_000) == [True]
    deliver(state, delivery, NOW + 20_000)
    [over] = json.loads(receiver.requests[2].body)
    assert datetime.fromisoformat(over["endsAt"]).timestamp() == (NOW + 20_000) / 1000


def test_alertmanager_waits_for_a_monitor_that_looks_seldom(receiver: HttpServer) -> None:
    """What goes on is firing until it was not posted again for three ticks, however far these are apart."""
    delivery = sinks_of(f"alertmanager+{receiver.url}", resilience_monitoring_interval=600.0)
    delivery.tell(notify(), patience=5.0)
    [alert] = json.loads(receiver.requests[0].body)
    assert datetime.fromisoformat(alert["endsAt"]) - datetime.now(UTC) > timedelta(minutes=29)


def test_slack_gets_a_text(state: MonitorState, receiver: HttpServer) -> None:
    """Slack's own signs are escaped: a summary cannot mention a channel or make a link."""
    delivery = sinks_of(f"slack+{receiver.url}", alert_private_addresses=True)
    fire(state, delivery, notify(summary="Circuit <!channel> & co"))
    deliver(state, delivery)
    text = receiver.requests[0].json()["text"]
    assert text == (":red_circle: firing: Circuit &lt;!channel&gt; &amp; co (critical, since 2023-11-14 22:13:20 UTC)")


class _Mails(Message):
    """
    Keeps every message.
    """

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[email.message.Message] = []

    def handle_message(self, message: email.message.Message) -> None:
        """
        Keep one.
        """
        self.messages.append(message)


class _MailServer(Controller):
    """
    Listens where the kernel lets it.
    """

    def _trigger_server(self) -> None:
        server: Any = self.server
        self.port = server.sockets[0].getsockname()[1]
        super()._trigger_server()  # type: ignore[no-untyped-call] # aiosmtpd left it untyped


@pytest.fixture
def mails() -> Iterator[tuple[str, _Mails]]:
    """
    A mail server: its address, and what it got.
    """
    handler = _Mails()
    controller = _MailServer(handler, hostname="127.0.0.1", port=0)
    controller.start()
    try:
        yield f"127.0.0.1:{controller.port}", handler
    finally:
        controller.stop()


def test_mail_is_sent(state: MonitorState, mails: tuple[str, _Mails]) -> None:
    """A message to all recipients; one that is sent again has the same Message-ID."""
    place, kept = mails
    delivery = sinks_of(f"smtp://{place}/?from=omni@example.org&to=ops@example.org&to=boss@example.org")
    note = notify()
    fire(state, delivery, note)
    deliver(state, delivery)
    delivery.sinks[0].send([note])
    first, again = kept.messages
    assert first["Subject"] == "[firing] Circuit dep is down"
    assert (first["From"], first["To"]) == ("omni@example.org", "ops@example.org, boss@example.org")
    assert first["Message-ID"] == again["Message-ID"] == f"<{note.id}@omni-tasks>"
    assert "seconds_open: 301.5" in str(first.get_payload())


def test_mail_in_the_clear_stays_on_this_machine(mails: tuple[str, _Mails], monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that offers no encryption gets neither message nor password, unless it is this machine."""
    place, kept = mails
    url = f"smtp://user:hush@{place}/?from=a@example.org&to=b@example.org"
    [sink] = sinks_of(url).sinks
    monkeypatch.setattr("omni_tasks.observe.mail._LOOPBACK", ())
    with pytest.raises(OSError, match="STARTTLS"):
        sink.send([notify()])
    assert kept.messages == []
    assert "hush" not in repr(sink)


def test_a_function_may_be_named(state: MonitorState) -> None:
    """Any function of the application's is a sink, given or named."""
    taken.clear()
    delivery = sinks_of("tests.support.observed:take", Kept())
    note = notify()
    fire(state, delivery, note)
    deliver(state, delivery)
    assert taken == [note]


def test_a_sink_is_named_once() -> None:
    """Two sinks that would share what waits for them are refused."""
    with pytest.raises(ConfigurationError, match="different"):
        sinks_of(Kept(), Kept())


@pytest.mark.parametrize(
    "entry",
    [
        "https://example.org/hook",  # without a secret
        "http://example.org/hook",
        "https://user:password@example.org/hook",
        "slack+http://example.org/T0/B0/secret",
        "slack+ftp://example.org",
        "alertmanager+ftp://example.org",
        "gopher://example.org",
        "smtp://mail.example.org/?from=a@example.org",
        "smtp:///?from=a@example.org&to=b@example.org",
        "no.such.module:function",
        "omni_tasks:__name__",
    ],
)
def test_a_wrong_entry_is_refused(entry: str) -> None:
    """What is no sink stops the start with one line, and without the secret in it."""
    with pytest.raises(ConfigurationError) as refused:
        sinks_of(entry)
    assert "\n" not in str(refused.value)
    assert not {"password", "secret", "hook"} & set(str(refused.value).replace("webhook", "").split("/"))


# ---------------------------------------------------------------- at least once


def test_what_failed_is_delivered_again(state: MonitorState, redis_client: redis.Redis, key_prefix: str) -> None:
    """A sink that fails gets everything at a later tick, in order, and nothing it has taken before."""
    kept = Kept()
    delivery = sinks_of(kept)
    [name] = delivery.names
    first, second = notify("a"), notify("b", at_ms=NOW + 1)
    fire(state, delivery, first, second)
    kept.broken = OSError("down")
    deliver(state, delivery)
    assert kept.notes == []
    kept.broken = None
    deliver(state, delivery)
    assert [note.id for note in kept.notes] == [first.id, second.id]
    deliver(state, delivery)
    assert len(kept.notes) == 2
    assert redis_client.exists(*[monitor_key(key_prefix, f"{box}:{name}") for box in ("outbox", "due")]) == 0
    assert state.status().deliveries == {"callable:failed": 1, "callable:delivered": 2}


def test_a_sink_that_hangs_holds_up_nobody(state: MonitorState) -> None:
    """While one sink hangs, the others are told, this round and the next; the one that hangs is asked no more."""
    release, calls, kept = threading.Event(), [], Kept()

    def hanging(note: Notification) -> None:
        calls.append(note)
        release.wait(30)

    delivery = sinks_of(hanging, kept)
    fire(state, delivery, notify("a"))
    delivery.deliver(state, now_ms=NOW, patience=0.1)
    fire(state, delivery, notify("b"))
    delivery.deliver(state, now_ms=NOW, patience=0.1)
    assert [note.component for note in kept.notes] == ["a", "b"]
    assert len(calls) == 1
    release.set()


def test_a_process_that_dies_leaves_it_to_the_next(
    state: MonitorState, redis_client: redis.Redis, key_prefix: str
) -> None:
    """What a process took and did not deliver is another's when the lease is over, and nobody's before."""
    kept = Kept()
    delivery = sinks_of(kept)
    [name] = delivery.names
    note = notify()
    fire(state, delivery, note)
    assert state.take(name, lease=60, most=10) == [note]
    deliver(state, delivery)
    assert kept.notes == []
    redis_client.zincrby(monitor_key(key_prefix, f"due:{name}"), -60_001, note.id)
    deliver(state, delivery)
    assert kept.notes == [note]


def test_old_news_is_dropped(state: MonitorState, caplog: pytest.LogCaptureFixture) -> None:
    """What nobody took for a day is given up, and that is logged."""
    kept = Kept()
    delivery = sinks_of(kept)
    fire(state, delivery, notify())
    deliver(state, delivery, NOW + 24 * 3_600_000 + 1)
    assert kept.notes == []
    assert state.status().deliveries == {"callable:dropped": 1}
    [lost] = events(caplog, "circuit_alert_undelivered")
    assert (lost["alert"], lost["component"]) == ("open_too_long", "dep")


def test_damaged_news_is_not_in_the_way(state: MonitorState, redis_client: redis.Redis, key_prefix: str) -> None:
    """News that cannot be read, or is gone, stops no delivery."""
    kept = Kept()
    delivery = sinks_of(kept)
    [name] = delivery.names
    redis_client.zadd(monitor_key(key_prefix, f"due:{name}"), {"0": 0, "1": 0})
    redis_client.hset(monitor_key(key_prefix, f"outbox:{name}"), "0", '{"id": 1}')
    fire(state, delivery, notify())
    for _ in range(2):
        deliver(state, delivery)
    assert len(kept.notes) == 1


def test_a_sink_nobody_reads_is_bounded(
    state: MonitorState, redis_client: redis.Redis, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """News for a sink that takes none is kept up to a number and for two days; the episodes go on all the same."""
    monkeypatch.setattr("omni_tasks.observe.state.MOST_KEPT", 3)
    delivery = sinks_of(Kept())
    [name] = delivery.names
    assert fire(state, delivery, *(notify(f"c{number}") for number in range(5))) == [True] * 5
    assert redis_client.zcard(monitor_key(key_prefix, f"due:{name}")) == 3
    assert 0 < redis_client.pttl(monitor_key(key_prefix, f"outbox:{name}")) <= 48 * 3_600_000
    assert len(state.episodes()) == 5


def test_ends_without_a_beginning_are_not_kept(
    state: MonitorState, redis_client: redis.Redis, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many alerts come and go, a sink that takes none is kept so many beginnings, and their ends, for."""
    monkeypatch.setattr("omni_tasks.observe.state.MOST_KEPT", 3)
    delivery = sinks_of(Kept())
    for number in range(20):
        fire(state, delivery, notify(f"c{number}"))
        [episode] = state.episodes().values()
        end = Notification.about(episode, status="resolved", now_ms=NOW)
        assert state.resolve([(episode, end, delivery.names)], now_ms=NOW) == [True]
    assert redis_client.zcard(monitor_key(key_prefix, f"due:{delivery.names[0]}")) <= 6


def test_an_episode_begins_and_ends_once(state: MonitorState) -> None:
    """Whoever fires or resolves second changes nothing; an end is for the episode it was read from."""
    delivery = sinks_of(Kept())
    assert fire(state, delivery, notify()) == [True]
    assert fire(state, delivery, notify()) == [False]
    [episode] = state.episodes().values()
    end = Notification.about(episode, status="resolved", now_ms=NOW)
    assert state.resolve([(episode, end, ())], now_ms=NOW) == [True]
    assert state.resolve([(episode, end, ())], now_ms=NOW) == [False]
    fire(state, delivery, notify())
    assert state.resolve([(episode, end, ())], now_ms=NOW) == [False]
    assert [each.told for each in state.episodes().values()] == [True]


def test_an_episode_survives_its_json() -> None:
    """What is written to the store is read back as it was."""
    note = notify()
    episode = Episode.begun_by(note, told=True)
    text = episode.to_json().encode()
    assert Episode.from_json(text) == replace(episode, raw=text)


def test_the_lease_is_longer_than_a_batch() -> None:
    """A sink that takes its whole time for each of a batch is done before the batch is given to another process."""
    assert delivering._AT_ONCE * WITHIN < delivering._LEASE
