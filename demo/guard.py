"""
The last net: ends the demo's processes when the demo itself was killed.

Run as a program with a pipe for its standard input.  Each line names a process group; the end of the pipe means
that nobody is left to end them in order.  A parent-death signal is not enough here: a Celery worker whose server
has gone too can hang in its shutdown, and the processes of its pool have another parent.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

__all__ = ["main"]


def main() -> None:
    """
    Wait for the end of the pipe, then kill every group named before it.
    """
    for group in [int(line) for line in sys.stdin]:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
