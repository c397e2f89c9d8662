"""
Articles by prompt, from OpenAI and from DeepSeek, under the circuit ``ai_providers``.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from omni_tasks.api import circuit_breaker
from omni_tasks.gateways.client import complete
from omni_tasks.gateways.config import DEEPSEEK, OPENAI, GatewayConfig, Provider, is_text
from omni_tasks.gateways.errors import GatewayInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Article", "generate_article_deepseek", "generate_article_openai"]

CIRCUIT = "ai_providers"

# Characters.  Far above any prompt that was meant, far below what hurts a worker.
LONGEST_PROMPT = 500_000
MOST_VARIATIONS = 1_000_000

_NOT_FOR_A_HEADER = re.compile(r"[^\x21-\x7e]")


@dataclass(frozen=True)
class Article:
    """
    One article, as the provider delivered it.

    Attributes:
        text: The article, in Markdown unless the system prompt says otherwise.

        provider: Who wrote it, as in ``"openai"``.

        model: The model that answered.

        trace_id: The id the request carried as ``X-Trace-Id``.

        prompt_tokens: Tokens of the question, >= 0; ``None`` when the provider does not count.

        completion_tokens: Tokens of the answer, likewise.

        finish_reason: ``"stop"``, or ``"length"`` for a text that was cut at ``max_tokens``.
    """

    text: str
    provider: str
    model: str
    trace_id: str
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str

    def as_dict(self) -> dict[str, str | int | None]:
        """
        Give the fields as a JSON-able dictionary.
        """
        return asdict(self)


def generate_article_openai(
    config: GatewayConfig | Mapping[str, object], prompt: str, trace_id: str | None = None, variation: int = 0
) -> Article:
    """
    Have an article written by OpenAI, or by whatever ``OPENAI_BASE_URL`` points at.

    Args:
        config: How to ask; what it leaves out comes from ``OPENAI_API_KEY``, ``OPENAI_BASE_URL`` and ``OPENAI_MODEL``.

        prompt: What the article is about; 1-500,000 characters.

        trace_id: Goes into the request's ``X-Trace-Id`` and into the result.  Default: a new random id.

        variation: 0-1,000,000.  Another number asks for another article on the same prompt.

    Raises:
        ProviderError: The provider did not deliver; the class says why.
        CircuitOpenError: The circuit ``ai_providers`` refused; nothing was sent.
        GatewayConfigError: The configuration is wrong, or there is no key.
        GatewayInputError: The prompt or the variation is wrong.
    """
    return _generate(OPENAI, config, prompt, trace_id, variation)


def generate_article_deepseek(
    config: GatewayConfig | Mapping[str, object], prompt: str, trace_id: str | None = None, variation: int = 0
) -> Article:
    """
    Have an article written by DeepSeek: as :func:`generate_article_openai`, with ``DEEPSEEK_*`` variables.
    """
    return _generate(DEEPSEEK, config, prompt, trace_id, variation)


def _generate(
    provider: Provider,
    config: GatewayConfig | Mapping[str, object],
    prompt: str,
    trace_id: str | None,
    variation: int,
) -> Article:
    """
    Check everything that is the caller's before the circuit is asked.
    """
    resolved = GatewayConfig.of(config).resolved(provider)
    _check_prompt(prompt)
    if type(variation) is not int or not 0 <= variation <= MOST_VARIATIONS:
        raise GatewayInputError(f"variation must be a whole number from 0 to {MOST_VARIATIONS}, got {variation!r}")
    trace = str(trace_id or uuid.uuid4())
    # A header that cannot be sent would read as an outage of the provider.
    header = _NOT_FOR_A_HEADER.sub("_", trace)[:200]
    answer = _complete(provider, resolved, _messages(resolved, prompt, variation), header)
    return Article(
        text=answer.text,
        provider=provider.name,
        model=answer.model or str(resolved.model),
        trace_id=trace,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        finish_reason=answer.finish_reason,
    )


_complete = circuit_breaker(CIRCUIT)(complete)


def _check_prompt(prompt: object) -> None:
    """
    Refuse what no provider can make an article of.
    """
    if not isinstance(prompt, str):
        raise GatewayInputError(f"prompt must be text, got {type(prompt).__name__}")
    if not prompt.strip():
        raise GatewayInputError("prompt must have text in it, got blanks only")
    if len(prompt) > LONGEST_PROMPT:
        raise GatewayInputError(f"prompt must be at most {LONGEST_PROMPT} characters, got {len(prompt)}")
    if not is_text(prompt):
        raise GatewayInputError("prompt must be valid text, got binary data in it")


def _messages(config: GatewayConfig, prompt: str, variation: int) -> list[dict[str, str]]:
    """
    Put the question.  A variation is asked for in words: not every model takes a seed or a temperature.
    """
    system = config.system_prompt
    if variation:
        system += (
            f"\n\nThis is variation {variation} of the article. Choose a title, an angle, a structure and examples "
            "that differ from the obvious ones and from every other variation number's."
        )
    return [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
