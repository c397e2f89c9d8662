"""
How long a provider asks to wait, read from its ``Retry-After`` header.
"""

from __future__ import annotations

import math
import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LONGEST_WAIT", "read_retry_after"]

# Seconds.  A provider must not be able to park a fleet for a year by one header.
LONGEST_WAIT = 3600.0

# The standard knows whole seconds only; some providers send fractions.  "inf",
# "nan", exponents and signs stay out, and so does a number of a megabyte.
_SECONDS = re.compile(r"[0-9]{1,32}(\.[0-9]{1,32})?", re.ASCII)


def read_retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """
    Read the wait a response asks for.

    Args:
        headers: The response's headers; look-up must ignore case, or use lower-case names.

        now:
            Unix time in seconds that a dated Retry-After counts from.  Default: the
            response's own ``date`` header, so that a wrong local clock changes
            nothing; else the local clock.

    Returns:
        Seconds, 0-3600, or ``None`` when the header is missing, negative, past or unreadable.
    """
    value = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(value):
        return min(float(value), LONGEST_WAIT)
    until = _unix_time(value)
    if until is None:
        return None
    start = now if now is not None else _unix_time(headers.get("date", ""))
    wait = until - (time.time() if start is None else start)
    return min(wait, LONGEST_WAIT) if math.isfinite(wait) and wait >= 0 else None


def _unix_time(value: str) -> float | None:
    """
    Read an HTTP date as Unix seconds; ``None`` when it is not one.
    """
    try:
        parsed = parsedate_to_datetime(value)
        # "-0000" gives a naive time, which would be read in the local zone.
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
