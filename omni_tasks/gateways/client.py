"""
One call to a provider over the ``openai`` SDK: no hidden retries, a wall deadline, a checked answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import openai
from billiard.exceptions import SoftTimeLimitExceeded

from omni_tasks.gateways.answers import Answer, ChatReader, Reader, ResponsesReader
from omni_tasks.gateways.deadline import Deadline
from omni_tasks.gateways.errors import ProviderError, ProviderRejected, ProviderUnavailable
from omni_tasks.gateways.translate import identifier, translate
from omni_tasks.gateways.wire import async_http_client, http_client, timeouts

if TYPE_CHECKING:
    from openai._legacy_response import LegacyAPIResponse

    from omni_tasks.gateways.config import GatewayConfig, Provider

__all__ = ["Question", "acomplete", "complete"]


@dataclass(frozen=True)
class Question:
    """
    What a provider is asked.

    Attributes:
        system: What the model is told before the prompt.

        prompt: The user's words.

        trace_id: Sent as ``X-Trace-Id``; printable ASCII.
    """

    system: str
    prompt: str
    trace_id: str


def complete(provider: Provider, config: GatewayConfig, question: Question) -> Answer:
    """
    Ask once.

    Args:
        provider: Whom to ask.

        config: A resolved configuration of that provider.

        question: What to ask.

    Raises:
        ProviderError: The one class that says what happened.
    """
    call = _Call(provider, config, question)
    with Deadline(config.timeout) as deadline:
        try:
            with openai.OpenAI(**call.client_options(), http_client=http_client(config, deadline)) as client:
                received = call.endpoint(client)(**call.arguments())
                parsed = call.opened(received)
                for event in parsed if config.stream else [parsed]:
                    call.reader.take(event)
            outcome: Answer | Exception = call.answer()
        except Exception as error:  # noqa: BLE001 - whatever fails while reading the provider's bytes is its doing
            outcome = _time_limit(error) or call.failure(error)
    if deadline.expired:
        outcome = call.too_late()
    return _given(outcome)


async def acomplete(provider: Provider, config: GatewayConfig, question: Question) -> Answer:
    """
    Ask once, on an event loop; otherwise as :func:`complete`.
    """
    call = _Call(provider, config, question)
    try:
        async with (
            asyncio.timeout(config.timeout),
            openai.AsyncOpenAI(**call.client_options(), http_client=async_http_client(config)) as client,
        ):
            received = await call.endpoint(client)(**call.arguments())
            parsed = call.opened(received)
            if config.stream:
                async for event in parsed:
                    call.reader.take(event)
            else:
                call.reader.take(parsed)
        outcome: Answer | Exception = call.answer()
    except TimeoutError:
        outcome = call.too_late()
    except Exception as error:  # noqa: BLE001 - as above
        outcome = call.failure(error)
    return _given(outcome)


def _time_limit(error: Exception) -> Exception | None:
    """
    Find Celery's soft time limit, which the SDK takes for a broken connection where it strikes inside a request.
    """
    return next((each for each in (error, error.__cause__) if isinstance(each, SoftTimeLimitExceeded)), None)


def _given(outcome: Answer | Exception) -> Answer:
    if isinstance(outcome, Exception):
        # Raised here and not in the handler, so that the SDK's error, and with
        # it the request, is not even its context.
        raise outcome
    return outcome


class _Call:
    """
    What the two ways of asking share: everything but waiting.
    """

    def __init__(self, provider: Provider, config: GatewayConfig, question: Question) -> None:
        self._provider, self._config, self._question = provider, config, question
        self._secret = config.api_key or ""
        self._status: int | None = None
        self._request_id: str | None = None
        self.reader: Reader = ChatReader() if config.api == "chat" else ResponsesReader()

    def client_options(self) -> dict[str, Any]:
        config = self._config
        return {
            "api_key": config.api_key,
            "base_url": config.base_url,
            "timeout": timeouts(config),
            "max_retries": 0,
        }

    def endpoint(self, client: Any) -> Callable[..., Any]:
        resource = client.chat.completions if self._config.api == "chat" else client.responses
        create: Callable[..., Any] = resource.with_raw_response.create
        return create

    def arguments(self) -> dict[str, Any]:
        config, question = self._config, self._question
        sent: dict[str, Any] = {"model": config.model, "extra_headers": {"X-Trace-Id": question.trace_id}}
        if config.temperature is not None:
            sent["temperature"] = config.temperature
        if config.api == "responses":
            sent |= {"instructions": question.system, "input": question.prompt, "store": False}
            length = "max_output_tokens"
        else:
            roles = {"system": question.system, "user": question.prompt}
            sent["messages"] = [{"role": role, "content": content} for role, content in roles.items()]
            length = self._provider.length_option
        if config.max_tokens is not None:
            sent[length] = config.max_tokens
        if config.stream:
            sent["stream"] = True
            if config.api == "chat":
                sent["stream_options"] = {"include_usage": True}
        return sent

    def opened(self, received: LegacyAPIResponse[Any]) -> Any:
        self._status = received.http_response.status_code
        self._request_id = identifier(received.headers.get("x-request-id"), self._secret)
        return received.parse()

    def answer(self) -> Answer:
        return self.reader.seen.answer(self._refusal)

    def failure(self, error: Exception) -> ProviderError:
        if isinstance(error, ProviderError):
            return error
        return translate(
            error,
            provider=self._provider.name,
            secret=self._secret,
            status=self._status,
            request_id=self._request_id,
        )

    def too_late(self) -> ProviderError:
        name = self._provider.name
        return ProviderUnavailable(
            f"{name}: no complete answer within {self._config.timeout:g} s (wall deadline)", name
        )

    def _refusal(self, why: str) -> ProviderRejected:
        name = self._provider.name
        return ProviderRejected(f"{name}: {why}", name, self._status, request_id=self._request_id)
