"""
From what the ``openai`` SDK raises to our own errors.

The SDK's do not survive pickling, and they carry the request: its headers, so
the key, and its body, so the prompt.  Only names and numbers are taken over.
"""

from __future__ import annotations

import re
from http import HTTPStatus

import httpx2
import openai

from omni_tasks.gateways.answers import MalformedAnswerError, ReportedError
from omni_tasks.gateways.errors import (
    ProviderAuthError,
    ProviderBadResponse,
    ProviderError,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
)
from omni_tasks.gateways.retry_after import LONGEST_WAIT, read_retry_after
from omni_tasks.gateways.wire import OversizedAnswerError

__all__ = ["identifier", "translate"]

# ``code`` or ``type`` of a 429 that no waiting cures.
QUOTA_CODES = frozenset({"billing_hard_limit_reached", "billing_not_active", "insufficient_quota"})

_BY_STATUS: dict[int, type[ProviderError]] = {
    401: ProviderAuthError,
    402: ProviderQuotaExhausted,
    408: ProviderUnavailable,
    429: ProviderRateLimited,
}

# Where a 200 says that it failed after all: there is no status then, only the provider's code.
_BY_CODE: dict[str, type[ProviderError]] = {
    **dict.fromkeys(QUOTA_CODES, ProviderQuotaExhausted),
    "rate_limit_exceeded": ProviderRateLimited,
    "invalid_api_key": ProviderAuthError,
    "content_filter": ProviderRejected,
    "context_length_exceeded": ProviderRejected,
    "invalid_prompt": ProviderRejected,
    "invalid_request_error": ProviderRejected,
}

# Identifiers only: free text of the provider's may quote the prompt or the key.
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.:-]{1,80}", re.ASCII)


def translate(
    error: Exception, *, provider: str, secret: str, status: int | None = None, request_id: str | None = None
) -> ProviderError:
    """
    Make our own error of whatever ended a call.

    Args:
        error: What was raised.

        provider: Name of the provider that was asked.

        secret: The key of the call; nothing that contains it is taken over.

        status: HTTP status of the answer that was being read, if one was.

        request_id: Of that answer.

    Returns:
        The error to raise, without a cause: a cause would bring the request along.
    """
    if isinstance(error, openai.APIStatusError):
        return _from_status(error, provider, secret)
    reported = _reported(error)
    if reported is not None:
        kind = next((_BY_CODE[code] for code in reported if code in _BY_CODE), ProviderUnavailable)
        code = next((found for found in (identifier(each, secret) for each in reported) if found), "no code")
        said = f"{provider}: HTTP {status}, then an error ({code})"
        return kind(said, provider, status, _wait_for(kind, None), request_id)
    why = _why_malformed(error)
    if why is None:
        kind_of_trouble = "no answer in time" if isinstance(error, openai.APITimeoutError) else "the connection failed"
        return ProviderUnavailable(f"{provider}: {kind_of_trouble} ({_names(error)})", provider)
    said = f"HTTP {status}, but " if status else ""
    return ProviderBadResponse(f"{provider}: {said}{why}", provider, status, request_id=request_id)


def _from_status(error: openai.APIStatusError, provider: str, secret: str) -> ProviderError:
    """
    Classify an answer with an HTTP status that is not a success.
    """
    status, headers = error.status_code, error.response.headers
    code = identifier(error.code, secret) or identifier(error.type, secret)
    request_id = identifier(error.request_id, secret)
    wait = read_retry_after(headers)
    kind = _kind(status)
    if kind is ProviderRateLimited and not QUOTA_CODES.isdisjoint(_words(error.code, error.type)):
        kind = ProviderQuotaExhausted
    details = [type(error).__name__]
    details += [f"code {code}"] if code else []
    details += [f"request {request_id}"] if request_id else []
    asks = "" if wait is None else f", asks to wait {wait:g} s"
    said = f"{provider}: HTTP {status} ({', '.join(details)}){asks}"
    return kind(said, provider, status, _wait_for(kind, wait), request_id)


def _wait_for(kind: type[ProviderError], asked: float | None) -> float | None:
    """
    Give the seconds until another call makes sense; ``None`` when nobody can say.
    """
    # Somebody has to pay a bill or change a key.  A health check or an operator ends the wait when that is done.
    return LONGEST_WAIT if issubclass(kind, (ProviderQuotaExhausted, ProviderAuthError)) else asked


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


def _reported(error: Exception) -> list[str] | None:
    """
    Give the codes of a failure that was reported inside a 200; ``None`` when it is something else.
    """
    if isinstance(error, ReportedError):
        return _words(*error.codes)
    # Bare: the SDK's way to pass on an error event of a stream.
    return _words(error.code, error.type) if type(error) is openai.APIError else None


def _words(*codes: object) -> list[str]:
    """
    Keep the codes that are text: the SDK does not check what a provider sends, which may be a list or an object.
    """
    return [code for code in codes if isinstance(code, str)]


def _why_malformed(error: Exception) -> str | None:
    """
    Say what is wrong with an answer that came; ``None`` when it did not come, or not to its end.
    """
    cause = error.__cause__
    for each in (error, cause):
        if isinstance(each, (MalformedAnswerError, OversizedAnswerError)):
            return str(each)
    if isinstance(error, openai.APIConnectionError) and not isinstance(cause, httpx2.DecodingError):
        return None
    if isinstance(error, (httpx2.TransportError, OSError)):
        return None
    return f"the answer cannot be read ({_names(error)})"


def identifier(value: object, secret: str) -> str | None:
    """
    Take *value* over when it is a plain identifier without the key in it.
    """
    fits = isinstance(value, str) and _IDENTIFIER.fullmatch(value) and secret not in value
    return str(value) if fits else None


def _names(error: BaseException) -> str:
    """
    Name the error's type and that of the HTTP library's own below it, the most telling word there is.
    """
    cause = error.__cause__
    return type(error).__name__ + (f", {type(cause).__name__}" if cause is not None else "")
