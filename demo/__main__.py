"""
The command: ``python -m demo``.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from demo.interruption import Interruption, InterruptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from demo.story import View

__all__ = ["main"]

_FAILED: Final = 1
_CANNOT_START: Final = 2
_INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the demo.

    Args:
        arguments: The command line after the program's name; None for this process's own.

    Returns:
        0 when the ledger is as it should be, 1 when it is not, 2 when there is no Redis, 130 when interrupted.
    """
    # Before the imports that take their time: from here on nothing can be left behind.
    interruption = Interruption()
    options = _options(arguments)

    from omni_tasks.embedded import EmbeddedServerError  # noqa: PLC0415

    from demo.processes import ProcessEndedError  # noqa: PLC0415
    from demo.server import UnreachableError  # noqa: PLC0415
    from demo.stage import StageError  # noqa: PLC0415

    try:
        return _run(options, interruption)
    except InterruptionError:
        print("demo: interrupted; everything that it had started has ended")
        return _INTERRUPTED
    except (UnreachableError, EmbeddedServerError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return _CANNOT_START
    except (ProcessEndedError, StageError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return _FAILED


def _run(options: argparse.Namespace, interruption: Interruption) -> int:
    from demo.plan import Plan  # noqa: PLC0415
    from demo.processes import Processes  # noqa: PLC0415
    from demo.server import open_server  # noqa: PLC0415
    from demo.stage import ROOT  # noqa: PLC0415

    plan = Plan(articles=options.articles, outage=options.outage)
    folder, logs = _make_folders(options.runs)
    view = _view()
    view.note(f"run folder {folder}, full logs in {logs}")
    with ExitStack() as stack:
        server = stack.enter_context(open_server(os.environ.get("OMNI_REDIS_URL"), logs))
        view.note(f"Redis: {server.label}")
        processes = Processes(ROOT, logs)
        stack.callback(processes.stop)
        stack.callback(view.close)
        interruption.check()
        ledger = _perform(plan, server, folder, processes, view, interruption)
    view.account(ledger)
    objections = ledger.objections()
    for objection in objections:
        view.note(f"not as it should be: {objection}")
    print(ledger.summary(), flush=True)
    return _FAILED if objections else 0


def _perform(plan, server, folder, processes, view, interruption):
    from demo.client import ProviderClient
    from demo.ledger import settle
    from demo.stage import Stage
    from demo.story import Story
    from demo.watch import Watch


if __name__ == "__main__":
    sys.exit(main())
