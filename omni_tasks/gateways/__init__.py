"""
Articles from LLM providers, behind a circuit.
"""

from __future__ import annotations

from omni_tasks.gateways.articles import Article, generate_article_deepseek, generate_article_openai
from omni_tasks.gateways.config import GatewayConfig
from omni_tasks.gateways.errors import (
    GatewayConfigError,
    GatewayInputError,
    ProviderAuthError,
    ProviderBadResponse,
    ProviderError,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
)

__all__ = [
    "Article",
    "GatewayConfig",
    "GatewayConfigError",
    "GatewayInputError",
    "ProviderAuthError",
    "ProviderBadResponse",
    "ProviderError",
    "ProviderQuotaExhausted",
    "ProviderRateLimited",
    "ProviderRejected",
    "ProviderUnavailable",
    "generate_article_deepseek",
    "generate_article_openai",
]
