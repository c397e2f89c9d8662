"""
Articles by prompt, from OpenAI and from DeepSeek, each under its own circuit of ``ai_providers``.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from omni_tasks.gateways.answers import Answer
from omni_tasks.gateways.client import Question, acomplete, complete
from omni_tasks.gateways.config import DEEPSEEK, OPENAI, PROVIDERS, GatewayConfig, Provider, is_text
from omni_tasks.gateways.errors import GatewayInputError
from omni_tasks.gateways.failover import Served, Target, afirst_answer, first_answer

__all__ = [
    "Article",
    "agenerate_article_deepseek",
    "agenerate_article_openai",
    "generate_article_deepseek",
    "generate_article_openai",
]

# Characters.  Far above any prompt that was meant, far below what hurts a worker.
LONGEST_PROMPT = 500_000
MOST_VARIATIONS = 1_000_000

_NOT_FOR_A_HEADER = re.compile(r"[^\x21-\x7e]")

Config = GatewayConfig | Mapping[str, object]
#: Names of providers, or their configurations by name.
Fallbacks = Sequence[str] | Mapping[str, Config]


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

        attempts: Requests sent for it in this call, to any provider, >= 1.

        passed_over: Names of the providers that refused or failed before, in order.
    """

    text: str
    provider: str
    model: str
    trace_id: str
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str
    attempts: int = 1
    passed_over: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """
        Give the fields as a JSON-able dictionary.
        """
        return {**asdict(self), "passed_over": list(self.passed_over)}


def generate_article_openai(
    config: Config, prompt: str, trace_id: str | None = None, variation: int = 0, *, fallbacks: Fallbacks = ()
) -> Article:
    """
    Have an article written by OpenAI, or by whatever ``OPENAI_BASE_URL`` points at.

    Args:
        config: How to ask; what it leaves out comes from ``OPENAI_API_KEY``, ``OPENAI_BASE_URL`` and ``OPENAI_MODEL``.

        prompt: What the article is about; 1-500,000 characters.

        trace_id: Goes into the request's ``X-Trace-Id`` and into the result.  Default: a new random id.

        variation: 0-1,000,000.  Another number asks for another article on the same prompt.

        fallbacks:
            Who is asked, in turn, when OpenAI's circuit refuses or OpenAI fails; not for a request that
            OpenAI rejects.  Names, as in ``["deepseek"]``, for *config* without its model, address and
            key; or ``{"deepseek": {"model": "..."}}``.

    Raises:
        ProviderError: The provider did not deliver; the class says why.
        CircuitOpenError:
            The circuit ``ai_providers:openai`` refused and nothing was sent; with fallbacks: every
            provider's refuses by now, and this is the one that can be tried first.
        GatewayConfigError: The configuration is wrong, or there is no key.
        GatewayInputError: The prompt, the variation or a fallback's name is wrong.
    """
    order = _Order.check(OPENAI, config, prompt, trace_id=trace_id, variation=variation, fallbacks=fallbacks)
    return order.article(first_answer(order.targets, order.ask, order.trace_id))


def generate_article_deepseek(
    config: Config, prompt: str, trace_id: str | None = None, variation: int = 0, *, fallbacks: Fallbacks = ()
) -> Article:
    """
    Have an article written by DeepSeek: as :func:`generate_article_openai`, with ``DEEPSEEK_*`` variables.
    """
    order = _Order.check(DEEPSEEK, config, prompt, trace_id=trace_id, variation=variation, fallbacks=fallbacks)
    return order.article(first_answer(order.targets, order.ask, order.trace_id))


async def agenerate_article_openai(
    config: Config, prompt: str, trace_id: str | None = None, variation: int = 0, *, fallbacks: Fallbacks = ()
) -> Article:
    """
    Have an article written by OpenAI, on an event loop: as :func:`generate_article_openai`.
    """
    order = _Order.check(OPENAI, config, prompt, trace_id=trace_id, variation=variation, fallbacks=fallbacks)
    return order.article(await afirst_answer(order.targets, order.aask, order.trace_id))


async def agenerate_article_deepseek(
    config: Config, prompt: str, trace_id: str | None = None, variation: int = 0, *, fallbacks: Fallbacks = ()
) -> Article:
    """
    Have an article written by DeepSeek, on an event loop: as :func:`generate_article_deepseek`.
    """
    order = _Order.check(DEEPSEEK, config, prompt, trace_id=trace_id, variation=variation, fallbacks=fallbacks)
    return order.article(await afirst_answer(order.targets, order.aask, order.trace_id))


@dataclass(frozen=True)
class _Order:
    """
    One article to have written; everything that is the caller's has been checked before any circuit is asked.
    """

    targets: tuple[Target, ...]
    prompt: str
    trace_id: str
    variation: int

    @classmethod
    def check(  # noqa: PLR0913 - the public signature, and the provider
        cls,
        provider: Provider,
        config: Config,
        prompt: str,
        *,
        trace_id: str | None,
        variation: int,
        fallbacks: Fallbacks,
    ) -> _Order:
        """
        Check a caller's arguments.
        """
        given = GatewayConfig.of(config)
        targets = [Target(provider, given.resolved(provider)), *_fallback_targets(given, provider, fallbacks)]
        _check_prompt(prompt)
        if type(variation) is not int or not 0 <= variation <= MOST_VARIATIONS:
            raise GatewayInputError(f"variation must be a whole number from 0 to {MOST_VARIATIONS}, got {variation!r}")
        return cls(tuple(targets), prompt, str(trace_id or uuid.uuid4()), variation)

    def ask(self, target: Target) -> Answer:
        """
        Ask one of the targets.
        """
        return complete(target.provider, target.config, self._question(target))

    async def aask(self, target: Target) -> Answer:
        """
        Ask one of the targets, on an event loop.
        """
        return await acomplete(target.provider, target.config, self._question(target))

    def article(self, served: Served[Answer]) -> Article:
        """
        Make the article of what was delivered.
        """
        answer, target = served.answer, served.target
        return Article(
            text=answer.text,
            provider=target.provider.name,
            model=answer.model or str(target.config.model),
            trace_id=self.trace_id,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            finish_reason=answer.finish_reason,
            attempts=served.attempts,
            passed_over=served.passed_over,
        )

    def _question(self, target: Target) -> Question:
        system = target.config.system_prompt
        if self.variation:
            # In words: not every model takes a seed or a temperature.
            system += (
                f"\n\nThis is variation {self.variation} of the article. Choose a title, an angle, a structure and "
                "examples that differ from the obvious ones and from every other variation number's."
            )
        # A header that cannot be sent would read as an outage of the provider.
        return Question(system, self.prompt, _NOT_FOR_A_HEADER.sub("_", self.trace_id)[:200])


def _fallback_targets(given: GatewayConfig, preferred: Provider, fallbacks: Fallbacks) -> list[Target]:
    """
    Find whom else to ask, and how.
    """
    if isinstance(fallbacks, str) or not isinstance(fallbacks, (Sequence, Mapping)):
        raise GatewayInputError(f"fallbacks must be a list of names or a mapping, got {type(fallbacks).__name__}")
    targets: list[Target] = []
    for name in fallbacks:
        provider = PROVIDERS.get(str(name))
        if provider is None or provider is preferred or provider in [target.provider for target in targets]:
            others = ", ".join(known for known in PROVIDERS if known != preferred.name)
            raise GatewayInputError(f"fallbacks must be of {others}, each once, got {str(name)[:40]!r}")
        own = GatewayConfig.of(fallbacks[name]) if isinstance(fallbacks, Mapping) else given.at(provider)
        targets.append(Target(provider, own.resolved(provider)))
    return targets


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
