"""
One chat completion over the ``openai`` SDK: no hidden retries, a wall deadline, a checked answer.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2
import openai
from openai.types.chat import ChatCompletion

from omni_tasks.gateways.deadline import Deadline
from omni_tasks.gateways.errors import ProviderBadResponse, ProviderError, ProviderRejected, ProviderUnavailable
from omni_tasks.gateways.translate import identifier, translate

if TYPE_CHECKING:
    import ssl

    from openai._legacy_response import LegacyAPIResponse

    from omni_tasks.gateways.config import GatewayConfig, Provider

__all__ = ["Answer", "complete"]


@dataclass(frozen=True)
class Answer:
    """
    A checked chat completion.

    Attributes:
        text: What the model wrote, not empty.

        model: The model that answered, which may be more exact than the one asked for.

        prompt_tokens: Tokens of the question, >= 0; ``None`` when the provider does not count.

        completion_tokens: Tokens of the answer, likewise.

        finish_reason: ``"stop"``, or ``"length"`` for a text that was cut at ``max_tokens``.
    """

    text: str
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str


def complete(provider: Provider, config: GatewayConfig, messages: list[dict[str, str]], trace_id: str) -> Answer:
    """
    Ask once.

    Args:
        provider: Whom to ask.

        config: A resolved configuration of that provider.

        messages: ``role`` and ``content`` of each message.

        trace_id: Sent as ``X-Trace-Id``; printable ASCII.

    Raises:
        ProviderError: The one class that says what happened.
    """
    secret = config.api_key or ""
    outcome: LegacyAPIResponse[ChatCompletion] | ProviderError
    with Deadline(config.timeout) as deadline:
        try:
            outcome = _ask(provider, config, messages, trace_id, deadline)
        except openai.OpenAIError as error:
            outcome = translate(error, provider=provider.name, secret=secret)
    if deadline.expired:
        outcome = ProviderUnavailable(
            f"{provider.name}: no complete answer within {config.timeout:g} s (wall deadline)", provider.name
        )
    if isinstance(outcome, ProviderError):
        # Raised here and not in the handler, so that the SDK's error, and with
        # it the request, is not even its context.
        raise outcome
    return _read(provider.name, outcome, secret=secret)


def _ask(
    provider: Provider, config: GatewayConfig, messages: list[dict[str, str]], trace_id: str, deadline: Deadline
) -> LegacyAPIResponse[ChatCompletion]:
    """
    Send the request and receive the whole answer, unread.
    """
    timeout = openai.Timeout(config.timeout, connect=config.connect_timeout)
    # A client per call: nothing is shared by threads or inherited over a fork,
    # and beside an article a new connection costs nothing.
    http = openai.DefaultHttpxClient(
        timeout=timeout,
        verify=_tls(),
        # A redirect would carry the prompt to an address nobody configured.
        follow_redirects=False,
        event_hooks={"request": [deadline.watch]},
    )
    options: dict[str, Any] = {"model": config.model, "messages": messages}
    if config.temperature is not None:
        options["temperature"] = config.temperature
    if config.max_tokens is not None:
        options[provider.length_option] = config.max_tokens
    with openai.OpenAI(
        api_key=config.api_key, base_url=config.base_url, timeout=timeout, max_retries=0, http_client=http
    ) as client:
        return client.chat.completions.with_raw_response.create(**options, extra_headers={"X-Trace-Id": trace_id})


@functools.lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """
    Read the trusted certificates once per process; it takes longer than all the rest of a client.
    """
    return httpx2.create_ssl_context()


def _read(provider: str, raw: LegacyAPIResponse[ChatCompletion], *, secret: str) -> Answer:
    """
    Check the answer.  The SDK does not: HTML comes back as text, a wrong shape as ``None``.
    """
    status, request_id = raw.http_response.status_code, identifier(raw.headers.get("x-request-id"), secret)

    def bad(what: str) -> ProviderBadResponse:
        message = f"{provider}: HTTP {status}, but {what}"
        return ProviderBadResponse(message, provider, status, request_id=request_id)

    parsed: object
    try:
        parsed = raw.parse()
    except Exception as error:  # noqa: BLE001 - whatever fails while reading the provider's bytes is its doing
        parsed = error
    choices = getattr(parsed, "choices", None)
    if not isinstance(parsed, ChatCompletion) or not isinstance(choices, list):
        raise bad(f"the body is not a chat completion ({type(parsed).__name__})")
    if not choices:
        raise bad("it has no choices")
    reason, message = getattr(choices[0], "finish_reason", None), getattr(choices[0], "message", None)
    text = getattr(message, "content", None)
    # All three are the provider's word about this request, and no fault of its service.
    for refused, why in (
        (reason == "content_filter", "its content filter stopped the article"),
        (bool(getattr(message, "refusal", None)), "the model declined to write the article"),
        (reason == "length" and not text, "max_tokens is too small for any text"),
    ):
        if refused:
            raise ProviderRejected(f"{provider}: {why}", provider, status, request_id=request_id)
    if not isinstance(text, str) or not text.strip():
        raise bad("its first choice has no text")
    model: object = parsed.model
    prompt_tokens, completion_tokens = (_count(parsed, name) for name in ("prompt_tokens", "completion_tokens"))
    return Answer(
        text=text,
        model=model if isinstance(model, str) else "",
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        finish_reason=reason if isinstance(reason, str) else "",
    )


def _count(completion: ChatCompletion, name: str) -> int | None:
    """
    Read a token count; ``None`` when there is none, or none that makes sense.
    """
    value = getattr(completion.usage, name, None)
    return value if type(value) is int and value >= 0 else None
