"""
The command line: ``omni exporter``, ``omni circuits``.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from celery.app.utils import find_app

from omni_tasks.errors import ConfigurationError
from omni_tasks.events import use_format
from omni_tasks.integration.install import integration_of
from omni_tasks.manager import CircuitBreakerManager
from omni_tasks.observe.backlog import Backlog, Waiting, read_backlogs
from omni_tasks.observe.exporter import Exporter
from omni_tasks.observe.metrics import CircuitCollector

__all__ = ["main"]

_APP = click.option(
    "--app",
    "-A",
    metavar="MODULE",
    help="The Celery application, as for celery -A; without one the environment is read.",
)


class _Wrong(click.ClickException):
    """
    A wrong setting or a port that is taken: one line, as a worker's start has it.
    """

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """
        Say it.
        """
        click.echo(f"omni: {self.message}", file=file or sys.stderr)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """
    Look at the circuits of an application.
    """


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Name or address to listen on.")
@click.option("--port", default=9808, show_default=True, type=click.IntRange(0, 65_535), help="0 for any that is free.")
@_APP
def exporter(host: str, port: int, app: str | None) -> None:
    """
    Serve the metrics of all circuits to Prometheus, at /metrics.
    """
    manager, lot = _application(app)
    use_format(manager.settings.log_format)
    try:
        server = Exporter(CircuitCollector(manager, lot), host=host, port=port)
    except OSError as error:
        raise _Wrong(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    click.echo(f"metrics of {len(manager.keys())} circuits at http://{host}:{server.port}/metrics", err=True)
    # As Ctrl-C ends it, so does a supervisor's word; the first process of a container would not hear it otherwise.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.serve()
    except KeyboardInterrupt:
        return


@main.command()
@_APP
@click.option("--json", "as_json", is_flag=True, help="Every number, as JSON.")
def circuits(app: str | None, *, as_json: bool) -> None:
    """
    Show every circuit: its state, its numbers, how many tasks it holds.
    """
    manager, lot = _application(app)
    metrics = manager.get_all_metrics()
    if manager.degraded:
        raise _Wrong("the shared store does not answer")
    held: Mapping[str, Backlog] = {}
    if lot is not None:
        try:
            held = read_backlogs(lot, metrics.keys())
        except Exception as error:  # noqa: BLE001 - each transport has its own; the circuits are shown without
            click.echo(f"omni: the broker does not answer, held tasks are left out: {error}", err=True)
    if as_json:
        rows = {
            key: {**asdict(each), **({"held": held[key].count} if key in held else {})} for key, each in metrics.items()
        }
        click.echo(json.dumps(rows, default=_plain, indent=2))
        return
    lines = [("CIRCUIT", "STATE", "CALLS", "FAILED", "REFUSED", "HELD", "RETRY AFTER")]
    lines += [
        (
            key,
            each.state.value,
            str(each.total_requests),
            str(each.failed_requests),
            str(each.rejected_requests),
            str(held[key].count) if key in held else "-",
            f"{each.retry_after:.1f} s" if each.retry_after else "-",
        )
        for key, each in metrics.items()
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _application(app: str | None) -> tuple[CircuitBreakerManager, Waiting | None]:
    """
    The circuits to look at, and their held tasks where an application says where those are.
    """
    try:
        if app is None:
            manager = CircuitBreakerManager()
            if manager.redis_url is None:
                raise _Wrong("OMNI_REDIS_URL must be set, or an application be named with --app")
            return manager, None
        # As the celery command does it: the application is found from where one stands.
        sys.path.insert(0, str(Path.cwd()))
        integration = integration_of(find_app(app))
        manager = integration.manager
        lot = integration.lot if manager.enabled else None
    except ConfigurationError as error:
        raise _Wrong(str(error)) from None
    except (ImportError, AttributeError) as error:
        raise _Wrong(f"--app {app}: {error}") from None
    return manager, lot


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


if __name__ == "__main__":
    main()
