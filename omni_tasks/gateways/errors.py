"""
What a gateway can raise, and what each error means to a circuit.

::

    OmniTasksError
    ├── ProviderError               anything the provider, or the way to it, did
    │   ├── ProviderUnavailable     no connection, no answer in time, 5xx, 408, 529
    │   ├── ProviderRateLimited     429: slow down, try again after retry_after (trips at once when it says when)
    │   ├── ProviderQuotaExhausted  402, 429 insufficient_quota: somebody has to pay (trips at once)
    │   ├── ProviderAuthError       401: the key is wrong (trips at once)
    │   ├── ProviderRejected        other 4xx, content filter: this request, not the provider (ignored)
    │   └── ProviderBadResponse     an answer that is none: HTML, wrong JSON, a stream that was cut
    ├── GatewayConfigError          a wrong GatewayConfig (also ConfigurationError; ignored)
    └── GatewayInputError           a wrong prompt or variation; nothing was sent (ignored)

``circuit_outcome`` is how a circuit counts the error, ``trips_circuit`` whether one
such error opens it, ``circuit_reason`` the word for it in logs and alerts.  No error
carries the key, the prompt, a header or the provider's own prose, which may quote them.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from omni_tasks.errors import ConfigurationError, OmniTasksError

__all__ = [
    "RETRYABLE_ERRORS",
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

        retry_after: Seconds until another call makes sense, 0-3600: what the provider asks to wait; an hour
            where somebody has to see to the account first; ``None`` when nobody can say.

        request_id: The provider's own id of the request, for its support; ``None`` when it gave none.

        circuit_outcome:
            How a circuit counts it.  ``"ignored"`` once the provider's own circuit has counted it:
            one failure is not held against the circuits further out as well.
    """

    circuit_outcome: Outcome = "failure"
    circuit_reason: ClassVar[str] = "unavailable"

    @property
    def trips_circuit(self) -> bool:
        """
        Whether this one error is reason enough to open the provider's circuit.
        """
        return False

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

    circuit_reason = "rate_limit"

    @property
    def trips_circuit(self) -> bool:
        """
        Whether the provider says when to come back: then nobody should ask it before.
        """
        return bool(self.retry_after)


class ProviderQuotaExhausted(ProviderError):  # noqa: N818 - it says what happened
    """
    The account has no credit left.  Waiting does not help.
    """

    circuit_reason = "billing"

    @property
    def trips_circuit(self) -> bool:
        """
        Every other call would get the same answer.
        """
        return True


class ProviderAuthError(ProviderError):
    """
    The key is missing, wrong or revoked.  Waiting does not help.
    """

    circuit_reason = "auth"

    @property
    def trips_circuit(self) -> bool:
        """
        Every other call would get the same answer.
        """
        return True


class ProviderRejected(ProviderError):  # noqa: N818 - it says what happened
    """
    The provider works and refuses this one request.
    """

    circuit_outcome = "ignored"
    circuit_reason = ""
    #: It answered: a probe need not find out more.
    proves_alive: ClassVar[bool] = True


class ProviderBadResponse(ProviderError):  # noqa: N818 - it says what happened
    """
    The answer is none: HTML, broken JSON, no choices, a stream that was cut, far too many bytes, a redirect.
    """

    circuit_reason = "bad_response"


#: What another attempt may cure: for a task's ``autoretry_for``.
RETRYABLE_ERRORS = (ProviderUnavailable, ProviderRateLimited, ProviderBadResponse)


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
