"""
What each answer of a provider means: the table that the gateways' tests walk, and that docs/gateways.md shows.
"""

from __future__ import annotations

from dataclasses import dataclass

from demo.calls import Mode
from omni_tasks.gateways import (
    ProviderAuthError,
    ProviderBadResponse,
    ProviderError,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
)

__all__ = ["TABLE", "Row"]


@dataclass(frozen=True)
class Row:
    """
    One kind of answer.

    Attributes:
        mode: The provider's.

        seen: In words.

        kind: The error it becomes.

        circuit: ``"failure"``, ``"trip"`` for a failure that opens the circuit at once, ``"neutral"``.

        retry: Whether a retry of the task may cure it.
    """

    mode: Mode
    seen: str
    kind: type[ProviderError]
    circuit: str
    retry: bool

    @property
    def in_docs(self) -> str:
        """
        The row as docs/gateways.md has it.
        """
        circuit = f"trip, `{self.kind.circuit_reason}`" if self.circuit == "trip" else self.circuit
        return f"| {self.seen} | `{self.kind.__name__}` | {circuit} | {'yes' if self.retry else 'no'} |"


def _unavailable(mode: Mode, seen: str) -> Row:
    return Row(mode, seen, ProviderUnavailable, "failure", retry=True)


def _rejected(mode: Mode, seen: str) -> Row:
    return Row(mode, seen, ProviderRejected, "neutral", retry=False)


def _bad(mode: Mode, seen: str) -> Row:
    return Row(mode, seen, ProviderBadResponse, "failure", retry=True)


TABLE = [
    _unavailable(Mode.RESET, "TCP reset"),
    _unavailable(Mode.HALF_BODY, "half a body, then the end of the connection"),
    _unavailable(Mode.HANG, "no byte before the timeout"),
    _unavailable(Mode.BLANK_LINES, "blank lines that keep the call alive past the deadline"),
    _unavailable(Mode.SSE_COMMENTS, "comments that keep a stream alive past the deadline"),
    _unavailable(Mode.SSE_ERROR, "an error event in a stream"),
    _unavailable(Mode.ERROR408, "408"),
    _unavailable(Mode.ERROR500, "500"),
    _unavailable(Mode.ERROR502, "502"),
    _unavailable(Mode.ERROR503, "503, overloaded"),
    _unavailable(Mode.ERROR504, "504"),
    _unavailable(Mode.ERROR529, "529, overloaded"),
    Row(Mode.RATE_LIMIT, "429 with Retry-After in seconds", ProviderRateLimited, "trip", retry=True),
    Row(Mode.RATE_LIMIT_DATED, "429 with Retry-After as a date", ProviderRateLimited, "trip", retry=True),
    Row(Mode.INSUFFICIENT_QUOTA, "429 `insufficient_quota`", ProviderQuotaExhausted, "trip", retry=False),
    Row(Mode.ERROR402, "402", ProviderQuotaExhausted, "trip", retry=False),
    Row(Mode.ERROR401, "401", ProviderAuthError, "trip", retry=False),
    _rejected(Mode.ERROR400, "400"),
    _rejected(Mode.ERROR403, "403"),
    _rejected(Mode.ERROR404, "404, as for an unknown model"),
    _rejected(Mode.ERROR409, "409"),
    _rejected(Mode.ERROR413, "413"),
    _rejected(Mode.ERROR422, "422"),
    _rejected(Mode.CONTENT_FILTER, "200, stopped by the content filter"),
    _bad(Mode.HTML, "200 with HTML"),
    _bad(Mode.WRONG_JSON, "200 with JSON of another shape"),
    _bad(Mode.SSE_CUT, "a stream that ends in the middle"),
    _bad(Mode.GZIP_BOMB, "200, packed"),
    _bad(Mode.FLOOD, "200 with more than 32 MiB"),
]
