"""
The command line: ``python -m workers submit PROMPTS_FILE``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from workers.app import app, settings
from workers.prompts import PromptFile, read_prompts
from workers.submit import Sent, UnreachableError, connected, send, wait

__all__ = ["main"]

INCOMPLETE, UNREACHABLE = 1, 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """
    Have articles written by the workers.
    """


@main.command()
@click.argument("prompts_file", type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path))
@click.option("--wait", "waits", is_flag=True, help="Stay until every article is written or has failed.")
def submit(prompts_file: Path, waits: bool) -> None:  # noqa: FBT001 - a command line flag
    """
    Send one task per prompt of PROMPTS_FILE.

    One prompt a line; or, in a .jsonl file, one {"prompt": "...", "slug": "...", "variation": 0} a line,
    where slug and variation may be left out.  Prints each task's id and its article's name.

    Exit status: 0 all well, 1 some line was skipped or some article failed, 2 nothing answers.
    """
    read = read_prompts(prompts_file)
    for each in read.bad:
        _say(f"{prompts_file}:{each.line}: {each.reason}; skipped")
    if not read.prompts and not read.bad:
        _say(f"{prompts_file}: no prompt in it")
    failed = _submit(read, waits=waits)
    sys.exit(INCOMPLETE if failed or read.bad or not read.prompts else 0)


def _submit(read: PromptFile, *, waits: bool) -> int:
    """
    Send, and wait when asked to; give how many articles failed.
    """
    sent: list[Sent] = []
    try:
        if waits and settings.result_backend != settings.broker_url:
            with connected(app, settings.result_backend):
                pass
        with connected(app, settings.broker_url) as connection, _progress() as progress:
            bar = progress.add_task("sent", total=len(read.prompts))
            for each in send(app, connection, read.prompts):
                sent.append(each)
                click.echo(f"{each.result.id}\t{each.slug}")
                progress.advance(bar)
    except UnreachableError as error:
        _say(f"workers: {error}; {len(sent)} of {len(read.prompts)} prompts sent")
        sys.exit(UNREACHABLE)
    _say(f"sent {len(sent)} prompts, skipped {len(read.bad)} lines")
    return _wait(sent) if waits and sent else 0


def _wait(sent: list[Sent]) -> int:
    """
    Show the articles come in; give how many failed.
    """
    # The result of a failed task names its error's class, which must be known here to be rebuilt.
    import workers.tasks  # noqa: F401, PLC0415 - takes half a second, and only waiting needs it

    failed = 0
    with _progress() as progress:
        bar = progress.add_task("written", total=len(sent))

        def on_done(slug: str, error: BaseException | None) -> None:
            nonlocal failed
            progress.advance(bar)
            if error is not None:
                failed += 1
                progress.console.print(f"{slug}: {type(error).__name__}: {error}", markup=False, soft_wrap=True)

        try:
            wait(app, sent, on_done)
        except UnreachableError as error:
            _say(f"workers: {error}; the articles sent are still being written")
            sys.exit(UNREACHABLE)
    _say(f"written {len(sent) - failed}, failed {failed}")
    return failed


def _progress() -> Progress:
    """
    Make a bar on standard error; nothing at all when that is not a terminal.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # With both on one screen rich must print the ids, or the bar runs through them.
    return Progress(*columns, console=console, disable=not console.is_terminal, redirect_stdout=sys.stdout.isatty())


def _say(line: str) -> None:
    """
    Tell the person; standard output is for the task ids.
    """
    click.echo(line, err=True)


if __name__ == "__main__":
    main(prog_name="python -m workers")
