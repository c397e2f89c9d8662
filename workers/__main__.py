"""
The command line: ``python -m workers submit PROMPTS_FILE --out FOLDER``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from workers.app import PRIORITIES, app, settings
from workers.articles import SlugError, folder_of, read_record
from workers.manifest import Manifest, ManifestError
from workers.prompts import Prompt, read_prompts
from workers.settings import PROVIDER_NAMES
from workers.submit import (
    Order,
    Sent,
    UnreachableError,
    connected,
    make_plan,
    outcome,
    send,
    wait,
)

__all__ = ["main"]

INCOMPLETE, UNREACHABLE = 1, 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """
    Have articles written by the workers.
    """


@main.command()
@click.argument("prompts_file", type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=settings.articles_dir,
    help="ARTICLES_DIR, or a folder below it: where the articles and manifest.jsonl go.",
)
@click.option("--provider", type=click.Choice(PROVIDER_NAMES), default=settings.provider, show_default=True)
@click.option(
    "--fallback",
    "fallbacks",
    type=click.Choice(PROVIDER_NAMES),
    multiple=True,
    default=settings.fallbacks,
    help="Who is asked when the provider is down; may be given again.",
)
@click.option("--priority", type=click.Choice(list(PRIORITIES)), default="normal", show_default=True)
@click.option("--resend", is_flag=True, help="Send again what was sent before and has not come.")
@click.option("--wait/--no-wait", "waits", default=True, help="Stay until every article is written or has failed.")
def submit(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    prompts_file: Path,
    out: Path,
    provider: str,
    fallbacks: tuple[str, ...],
    priority: str,
    resend: bool,  # noqa: FBT001 - a command line flag
    waits: bool,  # noqa: FBT001 - likewise
) -> None:
    """
    Have an article written for each prompt of PROMPTS_FILE.

    One prompt a line; or, in a .jsonl file, one {"prompt": "...", "slug": "...", "variation": 0,
    "provider": "...", "config": {"model": "..."}} a line, of which only the prompt is needed.

    What is there already is not asked for again, nor is what an earlier run has sent and is still under way:
    a run that was ended can simply be started again.  Prints the id of each task that is sent, and its article's
    name; what became of each article goes to manifest.jsonl.

    Exit status: 0 all well, 1 some line was skipped or some article failed, 2 nothing answers.
    """
    read = read_prompts(prompts_file)
    for each in read.bad:
        _say(f"{prompts_file}:{each.line}: {each.reason}; skipped")
    if not read.prompts and not read.bad:
        _say(f"{prompts_file}: no prompt in it")
    order = Order((provider, *(name for name in dict.fromkeys(fallbacks) if name != provider)), priority, _below(out))
    try:
        with Manifest(out) as book:
            failed = _Run(out, book, order).work(read.prompts, resend=resend, waits=waits)
    except (ManifestError, UnreachableError) as error:
        _say(f"workers: {error}")
        sys.exit(UNREACHABLE)
    sys.exit(INCOMPLETE if failed or read.bad or not read.prompts else 0)


def _below(out: Path) -> str:
    """
    Name a folder as the workers know it: below theirs.
    """
    try:
        below = out.absolute().relative_to(settings.articles_dir)
    except ValueError:
        raise click.BadParameter(
            f"must be {settings.articles_dir} (ARTICLES_DIR) or below it", param_hint="--out"
        ) from None
    name = "" if below == Path() else below.as_posix()
    try:
        folder_of(settings.articles_dir, name)
    except SlugError as error:
        raise click.BadParameter(str(error), param_hint="--out") from None
    return name


class _Run:
    """
    One run of ``submit``.
    """

    def __init__(self, out: Path, book: Manifest, order: Order) -> None:
        self._out, self._book, self._order = out, book, order
        self._failed = 0

    def work(self, prompts: tuple[Prompt, ...], *, resend: bool, waits: bool) -> int:
        """
        Do what is left to do; give how many articles failed.
        """
        plan = make_plan(app, prompts, self._out, self._book, resend=resend)
        for slug in plan.there:
            # Finished while nobody looked.
            if self._book.records.get(slug, {}).get("state") != "written":
                self._book.record(slug, "written", read_record(self._out, slug))
        if waits and settings.redis_backend and settings.result_backend != settings.broker_url:
            with connected(app, settings.result_backend):
                pass
        sent = self._send(plan.to_send)
        _say(f"sent {len(sent)} prompts; {len(plan.there)} were there, {len(plan.waiting)} under way")
        if waits and (sent or plan.waiting):
            self._wait([*plan.waiting, *sent])
            _say(f"written {len(prompts) - self._failed}, failed {self._failed}")
        return self._failed

    def _send(self, to_send: list[tuple[Prompt, str]]) -> list[Sent]:
        sent: list[Sent] = []
        if not to_send:
            return sent

        with connected(app, settings.broker_url) as connection, _progress() as progress:
            bar = progress.add_task("sent", total=len(to_send))
            for prompt, task_id in to_send:
                self._book.send(prompt.slug, task_id)
                sent += send(app, connection, [(prompt, task_id)], self._order)
                self._book.has_sent(prompt.slug, task_id)
                click.echo(f"{task_id}\t{prompt.slug}")
                progress.advance(bar)
        return sent

    def _wait(self, sent: list[Sent]) -> None:
        """
        Show the articles come in.
        """
        # The result of a failed task names its error's class, which must be known here to be rebuilt.
        import workers.tasks  # noqa: F401, PLC0415 - takes half a second, and only waiting needs it

        with _progress() as progress:
            bar = progress.add_task("written", total=len(sent))

            def on_done(each: Sent, value: object) -> None:
                self._note(each, value, progress, bar)

            wait(app, sent, on_done)

    def _note(self, each: Sent, value: object, progress: Progress, bar: TaskID) -> None:
        state, details = outcome(value, each.result.id)
        self._book.record(each.slug, state, details)
        progress.advance(bar)
        if state == "failed":
            self._failed += 1
            line = f"{each.slug}: {details['error']}: {details['reason']}"
            progress.console.print(line, markup=False, soft_wrap=True)


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
