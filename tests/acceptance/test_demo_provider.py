"""
The demo's provider: what a client gets in each mode, what the ledger says about it.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest

from demo import faults
from demo.calls import Mode
from tests.support.eventually import eventually
from tests.support.provider import RunningProvider

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.acceptance

MESSAGES: list[Any] = [{"role": "user", "content": "Why the sea is salty"}]


class Client(RunningProvider):
    """
    A provider, and the SDK to ask it with.
    """

    def __init__(self) -> None:
        """
        Start it.
        """
        super().__init__()
        self.openai = openai.OpenAI(
            base_url=self.url,
            api_key="demo",
            max_retries=0,
            timeout=30,
            http_client=httpx2.Client(trust_env=False),
        )

    def ask(self, trace_id: str = "t", system: str | None = None, timeout: float = 30) -> str:
        """
        Ask for an article as a worker does, through the SDK; give up after *timeout* seconds.
        """
        messages: list[Any] = [{"role": "system", "content": system}] if system else []
        answer = self.openai.chat.completions.create(
            model="m", messages=[*messages, *MESSAGES], extra_headers={"X-Trace-Id": trace_id}, timeout=timeout
        )
        return answer.choices[0].message.content or ""

    def close(self) -> None:
        """
        End it.
        """
        self.openai.close()
        super().close()


@pytest.fixture
def provider() -> Iterator[Client]:
    """
    A healthy provider without latency.
    """
    with Client() as running:
        yield running


def test_a_healthy_provider_writes_an_article(provider: Client) -> None:
    """
    The openai SDK gets an article with the prompt as its title, the same one each time.
    """
    text = provider.ask()
    assert text.startswith("# Why the sea is salty\n")
    assert len(text.split()) > 60
    assert provider.ask() == text


def test_other_instructions_give_another_article(provider: Client) -> None:
    """
    The text depends on everything that the model is told, as a variation needs it.
    """
    assert provider.ask(system="one") == provider.ask(system="one") != provider.ask(system="two")


@pytest.fixture(scope="module")
def lasting() -> Iterator[Client]:
    """
    One provider for many short tests.
    """
    with Client() as running:
        yield running


@pytest.mark.parametrize("mode", [mode for mode in Mode if mode is not Mode.OK])
def test_every_mode_can_be_switched_on_and_off(lasting: Client, mode: Mode) -> None:
    """
    A call meets the mode that was switched on, and the next one after it a provider that is well.
    """
    provider, before = lasting, lasting.health()["calls"]
    provider.switch(mode=mode)
    question = {"model": "m", "messages": MESSAGES}
    # Only the beginning is read: some modes have no end, and one has no beginning.
    patience = 0.3 if mode is Mode.HANG else 30
    with (
        suppress(httpx2.TransportError),
        provider.http.stream("POST", "/v1/chat/completions", json=question, timeout=patience) as answer,
    ):
        next(answer.iter_raw(), b"")
    provider.switch(mode="ok")
    assert provider.ask()
    ill, well = provider.calls(since=before)
    assert (ill["mode"], well["mode"], well["answered"]) == (mode, "ok", 200)
    assert ill["answered"] == (faults.STATUS[mode][0] if mode in faults.STATUS else mode)


def test_a_health_check_meets_the_mode_and_is_no_call(provider: Client) -> None:
    """
    The list of models fails as calls do, and is counted apart.
    """
    assert "demo" in [model.id for model in provider.openai.models.list()]
    provider.switch(mode="error503")
    with pytest.raises(openai.InternalServerError):
        provider.openai.models.list()
    assert provider.calls() == []
    assert provider.health()["checks"] == 2


def test_the_ledger_has_every_call_with_its_trace(provider: Client) -> None:
    """
    Each call is in the ledger in order of arrival: trace id, mode, answer, two clocks.
    """
    before = time.monotonic(), time.time()
    for number in range(3):
        provider.ask(f"trace-{number}")
    calls = provider.calls()
    assert [call["trace_id"] for call in calls] == ["trace-0", "trace-1", "trace-2"]
    assert {(call["mode"], call["answered"]) for call in calls} == {("ok", 200)}
    assert before[0] <= calls[0]["at_monotonic"] <= calls[-1]["at_monotonic"] <= time.monotonic()
    assert before[1] <= calls[0]["at_unix"] <= time.time()
    assert [call["trace_id"] for call in provider.calls(since=2)] == ["trace-2"]


def test_error500(provider: Client) -> None:
    """
    In mode error500 the SDK raises InternalServerError.
    """
    provider.switch(mode="error500")
    with pytest.raises(openai.InternalServerError):
        provider.ask()
    assert provider.calls()[-1]["answered"] == 500


def test_rate_limit_announces_its_wait(provider: Client) -> None:
    """
    In mode rate_limit the answer is 429 with Retry-After in whole seconds, rounded up.
    """
    provider.switch(mode="rate_limit", retry_after=6.2)
    with pytest.raises(openai.RateLimitError) as caught:
        provider.ask()
    assert caught.value.response.headers["retry-after"] == "7"
    assert provider.calls()[-1]["answered"] == 429


def test_hang_answers_nothing(provider: Client) -> None:
    """
    In mode hang the client times out; the ledger has the call as it arrived.
    """
    provider.switch(mode="hang")
    with pytest.raises(openai.APITimeoutError):
        provider.ask("waits", timeout=0.5)
    assert provider.calls()[-1]["trace_id"] == "waits"
    assert provider.calls()[-1]["answered"] == "hang"


def test_reset_is_a_real_tcp_reset(provider: Client) -> None:
    """
    In mode reset the peer's kernel reports ECONNRESET, not an orderly end.
    """
    provider.switch(mode="reset")
    with socket.create_connection(("127.0.0.1", provider.port), timeout=5) as raw:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            raw.recv(1)
    with pytest.raises(openai.APIConnectionError):
        provider.ask()
    assert [call["answered"] for call in provider.calls()] == ["reset", "reset"]


def test_a_healed_provider_answers_again(provider: Client) -> None:
    """
    After any failure mode, switching back to ok makes the next call succeed.
    """
    for mode in ("error500", "rate_limit", "reset"):
        provider.switch(mode=mode)
        with pytest.raises(openai.APIError):
            provider.ask()
        provider.switch(mode="ok")
        assert provider.ask()


def test_the_mode_on_arrival_decides(provider: Client) -> None:
    """
    A call that arrived while the provider was well is answered, although it falls ill meanwhile.
    """
    provider.switch(latency=1.0)
    texts: list[str] = []
    caller = threading.Thread(target=lambda: texts.append(provider.ask()))
    caller.start()
    eventually(lambda: provider.http.get("/healthz").json()["running"] == 1, within=5)
    provider.switch(mode="error500")
    caller.join()
    assert texts


def test_a_caller_that_leaves_early_has_no_article(provider: Client) -> None:
    """
    A call whose caller gave up before the answer is not counted as completed.
    """
    provider.switch(latency=3.0)
    with pytest.raises(openai.APITimeoutError):
        provider.ask(timeout=0.3)
    eventually(lambda: provider.http.get("/healthz").json()["running"] == 0, within=5)
    assert provider.calls()[-1]["answered"] == "gone"


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ({"mode": "sulk"}, "mode='sulk' must be one of ok, error400"),
        ({"latency": -1}, "latency=-1 must be a number of seconds from 0 to 3600"),
        ({"retry_after": "soon"}, "retry_after='soon' must be a number of seconds"),
        ({"colour": "red"}, "must be an object with any of mode, latency, retry_after"),
    ],
)
def test_a_wrong_order_is_refused_by_name(provider: Client, wanted: dict[str, object], named: str) -> None:
    """
    A wrong /control request is answered 400 with the option, the value, what is allowed; nothing changes.
    """
    answer = provider.switch(**wanted)
    assert answer.status_code == 400
    assert named in answer.json()["error"]
    assert provider.http.get("/healthz").json()["mode"] == "ok"


def test_a_body_that_is_no_chat_is_the_callers_fault(provider: Client) -> None:
    """
    A request without messages is answered 400, as the real providers do.
    """
    assert provider.http.post("/v1/chat/completions", json={"model": "m"}).status_code == 400


def test_it_ends_when_told_although_callers_hang(provider: Client) -> None:
    """
    SIGTERM ends the process within a few seconds, also with a call that hangs.
    """
    provider.switch(mode="hang")
    with socket.create_connection(("127.0.0.1", provider.port), timeout=5) as raw:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        eventually(provider.calls, within=5)
        provider.process.send_signal(signal.SIGTERM)
        provider.process.wait(20)
