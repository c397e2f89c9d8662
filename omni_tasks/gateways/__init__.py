"""
Articles from LLM providers, each behind a circuit of its own.
"""

from __future__ import annotations

from omni_tasks.gateways.articles import (
    Article,
    agenerate_article_deepseek,
    agenerate_article_openai,
    generate_article_deepseek,
    generate_article_openai,
)
from omni_tasks.gateways.config import PROVIDERS, GatewayConfig
from omni_tasks.gateways.errors import (
    RETRYABLE_ERRORS,
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
    "PROVIDERS",
    "RETRYABLE_ERRORS",
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
    "agenerate_article_deepseek",
    "agenerate_article_openai",
    "generate_article_deepseek",
    "generate_article_openai",
]
