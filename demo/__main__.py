"""
The command: ``python -m demo``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from demo.interruption import Interruption
from demo.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

# Fewer are written before anybody sees the outage; more prompts do not ship.
_FEWEST_ARTICLES: Final = 40
_MOST_ARTICLES: Final = 200
_LONGEST_OUTAGE_S: Final = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the demo.

    Args:
        arguments: The command line after the program's name; None for this process's own.

    Returns:
        The exit status.
    """
    # Before the imports that take their time: from here on a signal cannot leave anything behind.
    interruption = Interruption()
    options = _parser().parse_args(arguments)
    from demo.run import run  # noqa: PLC0415

    return run(Plan(articles=options.articles, outage=options.outage), options.runs, interruption)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="A provider goes down, its tasks are held, nothing fails: the main job, shown live.",
        epilog="Exit status: 0 the ledger is as it should be, 1 it is not, 2 there is no Redis, 130 interrupted. "
        "OMNI_REDIS_URL names a Redis to use; without it a throw-away one is started.",
    )
    parser.add_argument("--articles", type=_articles, default=Plan.articles, help="how many to write, 40-200")
    parser.add_argument("--outage", type=_outage, default=Plan.outage, help="seconds that the provider is down, 1-60")
    parser.add_argument("--runs", type=Path, default=Path("demo-runs"), help="folder that gets one folder per run")
    return parser


def _articles(text: str) -> int:
    if not text.isdecimal() or not _FEWEST_ARTICLES <= int(text) <= _MOST_ARTICLES:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {_FEWEST_ARTICLES} to {_MOST_ARTICLES}")
    return int(text)


def _outage(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= _LONGEST_OUTAGE_S:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds from 1 to {_LONGEST_OUTAGE_S:.0f}")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
