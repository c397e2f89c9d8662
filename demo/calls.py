"""
A call as the provider's own book has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Call", "Mode"]


class Mode(StrEnum):
    """
    How the provider answers.
    """

    OK = "ok"

    # An HTTP status and the body that goes with it; the numbers are in demo/faults.py.
    ERROR400 = "error400"
    ERROR401 = "error401"
    ERROR402 = "error402"
    ERROR403 = "error403"
    ERROR404 = "error404"
    ERROR408 = "error408"
    ERROR409 = "error409"
    ERROR413 = "error413"
    ERROR422 = "error422"
    ERROR500 = "error500"
    ERROR502 = "error502"
    ERROR503 = "error503"
    ERROR504 = "error504"
    ERROR529 = "error529"
    RATE_LIMIT = "rate_limit"  # 429 with Retry-After in seconds
    RATE_LIMIT_DATED = "rate_limit_dated"  # 429 with Retry-After as a date
    INSUFFICIENT_QUOTA = "insufficient_quota"  # 429 that no waiting cures

    # 200, and not what was asked for.
    CONTENT_FILTER = "content_filter"
    HTML = "html"
    WRONG_JSON = "wrong_json"
    GZIP_BOMB = "gzip_bomb"
    FLOOD = "flood"  # a body without end, uncompressed
    SSE_CUT = "sse_cut"  # an event stream that ends in the middle, in an orderly way
    SSE_ERROR = "sse_error"  # an event stream with an error event in it

    # Trouble with the connection.
    HALF_BODY = "half_body"
    BLANK_LINES = "blank_lines"  # blank lines for ever, as an overloaded provider keeps calls alive
    SSE_COMMENTS = "sse_comments"  # the same in an event stream
    HANG = "hang"
    RESET = "reset"


@dataclass(slots=True)
class Call:
    """
    One call as the provider saw it.

    Attributes:
        at_monotonic: Arrival on the monotonic clock, which all processes of one machine share, in seconds.

        at_unix: Arrival on the wall clock, in seconds since 1970.

        trace_id: The header ``X-Trace-Id``; empty when the caller sent none.

        mode: The mode on arrival, which decides the answer.

        answered:
            HTTP status, or the name of the mode where there is none to speak of; None while the
            answer is still being prepared.  A caller that left before its answer has ``"gone"``.
    """

    at_monotonic: float
    at_unix: float
    trace_id: str
    mode: str
    answered: int | str | None = None

    @property
    def dead(self) -> bool:
        """
        Whether it reached a provider that was down.
        """
        return self.mode != Mode.OK

    @property
    def completed(self) -> bool:
        """
        Whether the provider did the work.
        """
        return self.answered == 200 and not self.dead  # noqa: PLR2004 - HTTP's own word for it
