"""
What a gateway can raise, and what each error means to a circuit.

::

    OmniTasksError
    ├── ProviderError               anything the provider, or the way to it, did
    │   ├── ProviderUnavailable     no connection, no answer in time, 5xx, 408, 529
    │   ├── ProviderRateLimited     429: slow down, try again after retry_after
    │   ├── ProviderQuotaExhausted  402, 429 insufficient_quota: somebody has to pay
    │   ├── ProviderAuthError       401: the key is wrong
    │   ├── ProviderRejected        other 4xx, content filter: this request, not the provider (ignored)
    │   └── ProviderBadResponse     an answer that is not a chat completion
    ├── GatewayConfigError          a wrong GatewayConfig (also ConfigurationError; ignored)
    └── GatewayInputError           a wrong prompt or variation; nothing was sent (ignored)

``circuit_outcome`` is how a circuit counts the error.  No error carries the
key, the prompt, a header or the provider's own prose, which may quote them.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from omni_tasks.errors import ConfigurationError, OmniTasksError

__all__ = [
    "GatewayConfigError",
    "GatewayInputError",
    "ProviderAuthError",
    "ProviderBadResponse",
    "ProviderError",
    "ProviderQuotaExhausted",
    "ProviderRateLimited",
    "ProviderRejected",
    "ProviderUnavailable",
]

Outcome = Literal["failure", "ignored"]


class ProviderError(OmniTasksError):
    """
    The provider, or the way to it, did not deliver an article.

    Attributes:
        message: One line, safe to log.

        provider: Name of the provider, as in ``"openai"``.

        status: HTTP status, 300-599; 200 for an unreadable answer; ``None`` when no answer came.

        retry_after: Seconds the provider asks to wait, 0-3600; ``None`` when it does not say.

        request_id: The provider's own id of the request, for its support; ``None`` when it gave none.
    """

    circuit_outcome: ClassVar[Outcome] = "failure"

    def __init__(
        self,
        message: str,
        provider: str,
        status: int | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        """
        Describe one failed call.
        """
        # Every field is an argument: pickle and Celery's JSON result backend
        # both rebuild an exception from its ``args``.
        super().__init__(message, provider, status, retry_after, request_id)
        self.message = message
        self.provider = provider
        self.status = status
        self.retry_after = retry_after
        self.request_id = request_id

    def __str__(self) -> str:
        """
        Give the message alone.
        """
        return self.message


class ProviderUnavailable(ProviderError):  # noqa: N818 - it says what happened
    """
    Not reached, not answered in time, or answered with a server error.
    """


class ProviderRateLimited(ProviderError):  # noqa: N818 - it says what happened
    """
    The provider is well and asks for fewer calls.
    """


class ProviderQuotaExhausted(ProviderError):  # noqa: N818 - it says what happened
    """
    The account has no credit left.  Waiting does not help.
    """


class ProviderAuthError(ProviderError):
    """
    The key is missing, wrong or revoked.  Waiting does not help.
    """


class ProviderRejected(ProviderError):  # noqa: N818 - it says what happened
    """
    The provider works and refuses this one request.
    """

    circuit_outcome: ClassVar[Outcome] = "ignored"


class ProviderBadResponse(ProviderError):  # noqa: N818 - it says what happened
    """
    The answer is not a chat completion: HTML, broken JSON, no choices, a redirect.
    """


class GatewayConfigError(ConfigurationError):
    """
    A gateway's configuration is wrong.  One line: the option, its value, what is allowed.
    """

    # The provider was not asked: no evidence about it.
    circuit_outcome: ClassVar[Outcome] = "ignored"


class GatewayInputError(OmniTasksError):
    """
    A call's argument is wrong; nothing was sent.  Never quotes the prompt.
    """

    circuit_outcome: ClassVar[Outcome] = "ignored"
