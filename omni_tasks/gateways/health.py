"""
Whether a provider is well: the list of its models, which costs no tokens.

Each check raises what an article would have raised; its return says nothing but "well".
"""

from __future__ import annotations

import openai as sdk

from omni_tasks.gateways.config import DEEPSEEK, OPENAI, GatewayConfig, Provider
from omni_tasks.gateways.deadline import Deadline
from omni_tasks.gateways.errors import ProviderBadResponse, ProviderError, ProviderUnavailable
from omni_tasks.gateways.translate import translate
from omni_tasks.gateways.wire import http_client, timeouts

__all__ = ["deepseek", "openai"]

# Seconds.  A provider that needs longer for a list is not well.
PATIENCE = 10.0


def openai() -> None:
    """
    Ask OpenAI for its models, as ``OPENAI_*`` says.

    Raises:
        ProviderError: It is not well; the class says how.

        GatewayConfigError: There is no key, or a variable is wrong.
    """
    _check(OPENAI)


def deepseek() -> None:
    """
    Ask DeepSeek for its models, as ``DEEPSEEK_*`` says; otherwise as :func:`openai`.
    """
    _check(DEEPSEEK)


def _check(provider: Provider) -> None:
    config = GatewayConfig(timeout=PATIENCE, connect_timeout=min(5.0, PATIENCE)).resolved(provider)
    name = provider.name
    problem: ProviderError | None = None
    with Deadline(config.timeout) as deadline:
        try:
            with sdk.OpenAI(
                api_key=config.api_key,
                base_url=config.base_url,
                timeout=timeouts(config),
                max_retries=0,
                http_client=http_client(config, deadline),
            ) as client:
                page = client.models.list()
                if not isinstance(getattr(page, "data", None), list):
                    problem = ProviderBadResponse(f"{name}: the answer is not a list of models", name)
        except Exception as error:  # noqa: BLE001 - whatever fails while reading the provider's bytes is its doing
            problem = translate(error, provider=name, secret=config.api_key or "")
    if deadline.expired:
        problem = ProviderUnavailable(f"{name}: no list of models within {config.timeout:g} s (wall deadline)", name)
    if problem is not None:
        raise problem
