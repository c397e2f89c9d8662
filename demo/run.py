"""
One run, from the empty folder to the last line.
"""

from __future__ import annotations

import logging
import os
import sys
import uuid
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console

from demo.client import ProviderClient
from demo.interruption import InterruptionError
from demo.ledger import settle
from demo.lines import Lines
from demo.processes import ProcessEndedError, Processes
from demo.screen import Screen
from demo.server import UnreachableError, named_server, open_server
from demo.stage import ROOT, Stage, StageError
from demo.story import Story
from demo.watch import Watch
from omni_tasks.embedded import EmbeddedServerError

if TYPE_CHECKING:
    from celery import Celery

    from demo.interruption import Interruption
    from demo.ledger import Ledger
    from demo.plan import Plan
    from demo.server import Server
    from demo.story import View

__all__ = ["run"]

_AS_IT_SHOULD_BE: Final = 0
_NOT_AS_IT_SHOULD_BE: Final = 1
_NO_REDIS: Final = 2
_INTERRUPTED: Final = 130

_PROMPTS: Final = Path(__file__).with_name("prompts.txt")


def run(plan: Plan, runs: Path, interruption: Interruption) -> int:
    """
    Go through one run and tell about it.

    Args:
        plan: What is to happen.

        runs: Folder that gets the run's own.

        interruption: What may end it early.

    Returns:
        The exit status.
    """
    try:
        # Before anything is made: a wrong address is answered with one line.
        named = named_server()
        return _run(plan, named, _new_folder(runs), interruption)
    except InterruptionError:
        click.echo("demo: interrupted; every process that it had started has ended")
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read this has left.  What is still in the buffer must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NOT_AS_IT_SHOULD_BE
    except (UnreachableError, EmbeddedServerError) as error:
        click.echo(f"demo: {error}", err=True)
        return _NO_REDIS
    except (ProcessEndedError, StageError, OSError) as error:
        click.echo(f"demo: {error}", err=True)
        return _NOT_AS_IT_SHOULD_BE


def _run(plan: Plan, named: Server | None, folder: Path, interruption: Interruption) -> int:
    logs = folder / "logs"
    logging.basicConfig(filename=logs / "demo.log", level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.captureWarnings(capture=True)
    view = _view()
    view.note(f"full logs in {logs}")
    with ExitStack() as stack:
        server = stack.enter_context(open_server(named, logs))
        view.note(f"Redis is {server.label}")
        processes = Processes(ROOT, logs)
        stack.callback(processes.stop)
        stack.callback(view.close)
        ledger = _perform(Stage(plan, server, folder.absolute()), plan, processes, view, interruption)
    view.account(ledger)
    objections = ledger.objections()
    for objection in objections:
        view.note(f"not as it should be: {objection}")
    click.echo(ledger.summary())
    return _NOT_AS_IT_SHOULD_BE if objections else _AS_IT_SHOULD_BE


def _perform(stage: Stage, plan: Plan, processes: Processes, view: View, interruption: Interruption) -> Ledger:
    provider = ProviderClient(stage.start_provider(processes, interruption))
    app = stage.load_application(provider.port)
    stage.start_workers(processes)
    view.note("waiting for provider, worker, beat")
    stage.await_worker(app, processes, interruption)
    sent = _send(app, plan)
    watch = Watch(plan, app, provider, sent)
    watch.start()
    story = Story(plan, provider, watch)
    try:
        story.tell(view, processes, interruption)
    finally:
        watch.stop()
        stage.forget(app, sent)
    return settle(
        plan,
        endings=watch.endings(),
        calls=watch.calls,
        files={path.stem for path in stage.articles.glob("*.md") if path.stat().st_size},
        most_held=watch.most_held,
        outage=story.outage,
        drain=story.drain,
        whole=story.ended_at or watch.elapsed,
    )


def _send(app: Celery, plan: Plan) -> dict[str, str]:
    # Not at the top: this module's application reads the environment, which the stage settles first.
    from workers.prompts import read_prompts  # noqa: PLC0415
    from workers.submit import UnreachableError as SendingError  # noqa: PLC0415
    from workers.submit import connected, send  # noqa: PLC0415

    prompts = [(prompt, str(uuid.uuid4())) for prompt in read_prompts(_PROMPTS).prompts[: plan.articles]]
    try:
        with connected(app, app.conf.broker_url) as connection:
            return {sent.result.id: sent.slug for sent in send(app, connection, prompts)}
    except SendingError as error:
        raise StageError(f"the articles could not be sent: {error}") from None


def _view() -> View:
    console = Console()
    # FORCE_COLOR makes rich take a pipe for a terminal, so it is not the one to ask.
    cursor = sys.stdout.isatty() and not console.is_dumb_terminal
    return Screen(console) if cursor and console.encoding.startswith("utf") else Lines()


def _new_folder(runs: Path) -> Path:
    name = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(1, 100):
        folder = runs / (name if attempt == 1 else f"{name}_{attempt}")
        try:
            (folder / "logs").mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise StageError(f"no free name for a run folder like {runs / name}")
