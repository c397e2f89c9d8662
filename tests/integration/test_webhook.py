"""
What a webhook's receiver may try, on real servers; nothing of it gets through.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme

from omni_tasks.embedded import EmbeddedServer
from omni_tasks.observe import post as posting
from omni_tasks.observe import sinks
from omni_tasks.observe.monitor import Monitor
from omni_tasks.observe.post import DeliveryError, is_public, post
from omni_tasks.store.schema import circuit_keys
from tests.support.http_server import HttpServer, Reply
from tests.support.log import events
from tests.support.observed import Kept, make_manager, open_circuit, tick_again
from tests.support.stopwatch import Stopwatch

HUSH = "hush-hush"
BODY, HEADERS = b"{}", {"Content-Type": "application/json"}


@pytest.fixture
def receiver() -> Iterator[HttpServer]:
    """
    A receiver that takes everything.
    """
    with HttpServer() as server:
        server.reply = Reply(status=204)
        yield server


def _send(url: str, *, within: float = 5.0, private: bool = True) -> None:
    post(url, BODY, HEADERS, within=within, private=private)


def test_a_good_receiver_gets_it(receiver: HttpServer) -> None:
    """The request arrives as it was given."""
    _send(f"{receiver.url}/hook?x=1")
    [request] = receiver.requests
    assert (request.path, request.body) == ("/v1/hook?x=1", BODY)
    assert request.headers["content-type"] == "application/json"


def test_a_redirect_is_not_followed(receiver: HttpServer) -> None:
    """An answer that points elsewhere is a refusal; nobody asks there."""
    with HttpServer() as trap:
        receiver.reply = Reply(status=307, headers={"Location": f"{trap.url}/inside"})
        with pytest.raises(DeliveryError, match="the answer was 307"):
            _send(receiver.url)
        assert trap.requests == []


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_a_refusal_is_no_delivery(receiver: HttpServer, status: int) -> None:
    """Only 200-299 means that it was taken."""
    receiver.reply = Reply(status=status)
    with pytest.raises(DeliveryError, match=f"the answer was {status}"):
        _send(receiver.url)


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_a_slow_receiver_has_its_time_and_no_more(receiver: HttpServer, fault: str) -> None:
    """Neither silence nor a byte now and then holds the sender beyond its deadline."""
    receiver.reply = Reply(fault=fault, drip=0.02)
    with Stopwatch() as watch, pytest.raises(DeliveryError, match=r"no answer within 0\.3 s"):
        _send(receiver.url, within=0.3)
    assert watch.seconds < 2


@contextmanager
def _raw(answer: bytes, *, every: float = 0.0) -> Iterator[str]:
    """
    A server that sends *answer* again and again, whatever it is asked.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    stopping = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            try:
                while not stopping.wait(every):
                    connection.sendall(answer)
            except OSError:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        stopping.set()
        listener.close()
        thread.join(timeout=5)


def test_headers_that_drip_are_no_answer() -> None:
    """The deadline also holds before the first header is complete."""
    with _raw(b"H", every=0.02) as url:
        with Stopwatch() as watch, pytest.raises(DeliveryError):
            _send(url, within=0.3)
        assert watch.seconds < 2


def test_a_huge_answer_is_not_read(receiver: HttpServer) -> None:
    """An answer of more than 64 KiB is cut off, however it is sent."""
    receiver.reply = Reply(body=b"x" * 10_000_000)
    with pytest.raises(DeliveryError, match="longer than 65536 bytes"):
        _send(receiver.url)
    with _raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 65_000) as url, pytest.raises(DeliveryError):
        _send(url)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "10.1.2.3", "169.254.169.254", "[fe80::1]", "[::ffff:127.0.0.1]"],  # noqa: S104 - an address to be refused
)
def test_private_addresses_are_refused(receiver: HttpServer, host: str) -> None:
    """An address that is not public is not even connected to."""
    port = receiver.url.rsplit(":", 1)[1].partition("/")[0]
    with pytest.raises(DeliveryError, match=r"omni_alert_private_addresses|Name or service|Address family"):
        _send(f"http://{host}:{port}/", private=False)
    assert receiver.requests == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),  # noqa: S104 - an address to be refused
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
        ("64:ff9b:1::a00:1", False),
        ("::10.0.0.1", False),
        ("::ffff:0:10.0.0.1", False),
        ("fec0::1", False),
    ],
)
def test_what_is_public(address: str, public: bool) -> None:  # noqa: FBT001 - the expected answer
    """Loopback, private, shared, link-local, reserved and multicast addresses are not, however they are wrapped."""
    assert is_public(address) is public


def _resolver(*answers: list[str]) -> Any:
    """
    A name server that gives one answer after the other, and the last one for ever.
    """
    asked: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *arguments: Any, **options: Any) -> list[Any]:
        if host[0].isdigit():
            # An address is only written down in another way.
            return real(host, port, *arguments, **options)
        found = answers[min(len(asked), len(answers) - 1)]
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    getaddrinfo.asked = asked  # type: ignore[attr-defined] # read by the test
    return getaddrinfo


def test_a_name_is_looked_up_once(receiver: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads elsewhere at the second look is connected to where it led at the first."""
    port = int(receiver.url.rsplit(":", 1)[1].partition("/")[0])
    trap = socket.create_server(("127.0.0.2", port))
    resolver = _resolver(["127.0.0.1"], ["127.0.0.2"])
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    # For this test 127.0.0.1 is public and 127.0.0.2 is the inside.
    monkeypatch.setattr(posting, "is_public", lambda address: address == "127.0.0.1")
    with trap:
        _send(f"http://rebinding.example:{port}/", private=False)
        trap.settimeout(0)
        with pytest.raises(BlockingIOError):
            trap.accept()
    assert (len(receiver.requests), len(resolver.asked)) == (1, 1)
    assert receiver.requests[0].headers["host"] == f"rebinding.example:{port}"


def test_one_private_address_spoils_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with a public and a private address is refused before anything is connected to."""
    monkeypatch.setattr(socket, "getaddrinfo", _resolver(["93.184.216.34", "127.0.0.1"]))
    with pytest.raises(DeliveryError, match="not public"):
        _send("https://both.example/", private=False)


def test_the_next_address_is_tried(receiver: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a name's first address does not answer, the next one does."""
    port = int(receiver.url.rsplit(":", 1)[1].partition("/")[0])
    monkeypatch.setattr(socket, "getaddrinfo", _resolver(["127.0.0.3", "127.0.0.1"]))
    _send(f"http://two.example:{port}/")
    assert len(receiver.requests) == 1


@contextmanager
def _secure(certificate: trustme.LeafCert) -> Iterator[HttpServer]:
    with HttpServer() as server:
        server.reply = Reply(status=204)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
        yield server


@pytest.mark.parametrize(
    ("issuer", "name", "taken"), [(0, "localhost", True), (0, "other", False), (1, "localhost", False)]
)
def test_certificates_are_verified(
    issuer: int,
    name: str,
    taken: bool,  # noqa: FBT001 - the expected answer
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A certificate of an unknown issuer, or for another name, ends the connection before anything is sent."""
    authorities = [trustme.CA(), trustme.CA()]
    authorities[0].cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with _secure(authorities[issuer].issue_cert(name)) as server:
        url = server.url.replace("http://127.0.0.1", "https://localhost")
        if taken:
            _send(url)
        else:
            with pytest.raises(DeliveryError, match="CERTIFICATE_VERIFY_FAILED"):
                _send(url)
        assert len(server.requests) == taken


def test_bad_receivers_do_not_stop_the_monitor(  # noqa: PLR0913, PLR0917 - one fixture for each
    redis_server: EmbeddedServer,
    redis_client: redis.Redis,
    key_prefix: str,
    receiver: HttpServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With receivers that redirect, hang, drip and drown, the others hear of it, and the tick ends in its time."""
    monkeypatch.setattr(sinks, "WITHIN", 1.0)
    kept, bad = Kept(), []
    replies = [
        Reply(status=302, headers={"Location": "/"}),
        Reply(fault="hang"),
        Reply(fault="drip"),
        Reply(body=b"x" * 10**6),
    ]
    servers = [HttpServer() for _ in replies]
    for server, reply in zip(servers, replies, strict=True):
        server.__enter__()
        server.reply = reply
        bad.append(f"{server.url}/secret-path")
    manager = make_manager(
        redis_server.url, key_prefix, alert_sinks=[*bad, receiver.url, kept], webhook_secret=HUSH,
        alert_private_addresses=True,
    )  # fmt: skip
    monitor = Monitor(manager)
    open_circuit(manager)
    redis_client.hincrby(circuit_keys(key_prefix, "dep")[0], "tripped_at_ms", -360_000)
    with Stopwatch() as watch:
        assert tick_again(redis_client, key_prefix, monitor)["dep"] == "open"
    assert watch.seconds < 4
    assert kept.told() == [("firing", "open_too_long", "dep")]
    assert len(receiver.requests) == 1
    # What was not taken is tried again, and told to nobody twice.
    tick_again(redis_client, key_prefix, monitor)
    assert (len(kept.notes), len(receiver.requests)) == (1, 1)
    assert [len(server.requests) for server in servers] == [2] * 4
    assert len({server.requests[0].headers["webhook-id"] for server in [*servers, receiver]}) == 1
    assert len(events(caplog, "circuit_alert_delivery_failed")) == 8
    assert "secret-path" not in caplog.text
    assert HUSH not in caplog.text
    for server in servers:
        server.__exit__(None, None, None)
