"""
From the ``openai`` SDK's exceptions to our own.

The SDK's do not survive pickling, and they carry the request: its headers, so
the key, and its body, so the prompt.  Only names and numbers are taken over.
"""

from __future__ import annotations

import re
from http import HTTPStatus

import httpx2
import openai

from omni_tasks.gateways.errors import (
    ProviderAuthError,
    ProviderBadResponse,
    ProviderError,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
)
from omni_tasks.gateways.retry_after import read_retry_after

__all__ = ["translate"]

# ``code`` or ``type`` of a 429 that no waiting cures.
QUOTA_CODES = frozenset({"billing_hard_limit_reached", "billing_not_active", "insufficient_quota"})

_BY_STATUS: dict[int, type[ProviderError]] = {
    401: ProviderAuthError,
    402: ProviderQuotaExhausted,
    408: ProviderUnavailable,
    429: ProviderRateLimited,
}

# Identifiers only: free text of the provider's may quote the prompt or the key.
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.:-]{1,80}", re.ASCII)


def translate(error: openai.OpenAIError, *, provider: str, secret: str) -> ProviderError:
    """
    Make our own error of one of the SDK's.

    Args:
        error: What the SDK raised.

        provider: Name of the provider that was asked.

        secret: The key of the call; nothing that contains it is taken over.

    Returns:
        The error to raise, without a cause: a cause would bring the request along.
    """
    if isinstance(error, openai.APIStatusError):
        return _from_status(error, provider, secret)
    kind = type(error).__name__
    if isinstance(error, openai.APITimeoutError):
        return ProviderUnavailable(f"{provider}: no answer in time ({kind}{_cause(error)})", provider)
    # The bytes came, in an encoding they do not have.
    garbled = isinstance(error.__cause__, httpx2.DecodingError)
    if isinstance(error, openai.APIConnectionError) and not garbled:
        return ProviderUnavailable(f"{provider}: the connection failed ({kind}{_cause(error)})", provider)
    return ProviderBadResponse(f"{provider}: the answer is not a chat completion ({kind}{_cause(error)})", provider)


def _from_status(error: openai.APIStatusError, provider: str, secret: str) -> ProviderError:
    """
    Classify an answer with an HTTP status that is not a success.
    """
    status, headers = error.status_code, error.response.headers
    code = identifier(error.code, secret) or identifier(error.type, secret)
    request_id = identifier(error.request_id, secret)
    wait = read_retry_after(headers)
    kind = _kind(status)
    if kind is ProviderRateLimited and not QUOTA_CODES.isdisjoint({error.code, error.type}):
        kind = ProviderQuotaExhausted
    details = [type(error).__name__]
    details += [f"code {code}"] if code else []
    details += [f"request {request_id}"] if request_id else []
    asks = "" if wait is None else f", asks to wait {wait:g} s"
    return kind(f"{provider}: HTTP {status} ({', '.join(details)}){asks}", provider, status, wait, request_id)


def _kind(status: int) -> type[ProviderError]:
    """
    Give the error class of an HTTP status from 300 up.
    """
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ProviderUnavailable
    # A redirect is what a captive portal or a wrong base URL sends, not a provider.
    return ProviderRejected if status >= HTTPStatus.BAD_REQUEST else ProviderBadResponse


def identifier(value: object, secret: str) -> str | None:
    """
    Take *value* over when it is a plain identifier without the key in it.
    """
    fits = isinstance(value, str) and _IDENTIFIER.fullmatch(value) and secret not in value
    return str(value) if fits else None


def _cause(error: BaseException) -> str:
    """
    Name the HTTP library's own error type, the most telling word there is.
    """
    return f", {type(error.__cause__).__name__}" if error.__cause__ is not None else ""
