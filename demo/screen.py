"""
The story as a picture that stands still while its numbers change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from demo.sentence import say

if TYPE_CHECKING:
    from demo.ledger import Ledger
    from demo.moment import Moment
    from demo.timeline import Second

__all__ = ["Screen", "picture"]

_WIDEST: Final = 92
_MARGIN: Final = 2
_LABEL: Final = 13
_BAR_ROWS: Final = 4
_EIGHTHS: Final = " ▁▂▃▄▅▆▇█"

# Calls per second that fill the chart; more than that and it grows.
_LEAST_FULL: Final = 8

_STATES: Final = {
    "closed": ("CLOSED", "green", "━"),
    "open": ("OPEN", "red", "╍"),
    "half_open": ("HALF OPEN", "yellow", "╍"),
    None: ("UNKNOWN", "bright_black", " "),
}


class Screen:
    """
    Draws moments in place, by ``rich``.
    """

    def __init__(self, console: Console) -> None:
        """
        Draw on *console*, which is a terminal.
        """
        self._console = console
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")

    def note(self, text: str) -> None:
        """
        Say something outside the picture.
        """
        self._console.print(Text(" " * _MARGIN + text, "bright_black"))

    def show(self, moment: Moment) -> None:
        """
        Bring the picture up to date.
        """
        if not self._live.is_started:
            self._live.start()
        self._live.update(picture(moment, self._console.width), refresh=True)

    def close(self) -> None:
        """
        Leave the last picture standing and give the cursor back.
        """
        self._live.stop()

    def account(self, ledger: Ledger) -> None:
        """
        Print the ledger.
        """
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column()
        table.add_column(justify="right", style="bold")
        table.add_column(style="bright_black")
        for row in ledger.rows():
            table.add_row(*row)
        heading = Text("ledger", "bold").append(
            "   the provider's own book, the folder, the result backend", "not bold bright_black"
        )
        self._console.print(Padding(Group(heading, Text(), table), (1, _MARGIN)))


def picture(moment: Moment, width: int) -> Padding:
    """
    Compose one picture.

    Args:
        moment: What is to be seen.

        width: Columns of the terminal.  >= 1.

    Returns:
        Something for rich to draw, always of the same height.
    """
    inner = max(40, min(width, _WIDEST) - 2 * _MARGIN)
    state, colour, _ = _STATES.get(moment.circuit, _STATES[None])
    title = Text("omni_tasks", "bold").append("  the main job, live", "not bold bright_black")
    clock = f"{int(moment.elapsed) // 60}:{int(moment.elapsed) % 60:02}"
    title.append(clock.rjust(inner - title.cell_len), "not bold")
    headline = Text().append(f"● {state:<9}", f"bold {colour}").append(" " * (_LABEL - 11)).append(say(moment))
    lines = [
        title,
        Text(),
        headline,
        Text(),
        _progress(moment, inner),
        Text(),
        _numbers(moment),
        Text(),
        *_chart(moment, inner - _LABEL),
    ]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return Padding(Group(*lines), (1, _MARGIN))


def _progress(moment: Moment, inner: int) -> Text:
    bar = inner - _LABEL
    done, held = (bar * part // moment.total for part in (moment.done, moment.held))
    line = Text("articles".ljust(_LABEL), "bright_black")
    line.append("━" * done, "green").append("━" * held, "yellow")
    return line.append("─" * max(0, bar - done - held), "bright_black")


def _numbers(moment: Moment) -> Text:
    numbers = []
    for name, value, colour in (
        ("written", moment.done, "green"),
        ("held", moment.held, "yellow"),
        ("running", moment.running, ""),
        ("waiting", moment.queued, ""),
        ("failed", moment.failed, "red"),
    ):
        number = Text(f"{value:>3}", f"bold {colour}".strip() if value else "bright_black")
        numbers.append(number.append(f" {name}", "not bold bright_black"))
    return Text(" " * _LABEL).append(Text("   ").join(numbers))


def _chart(moment: Moment, columns: int) -> list[Text]:
    past = moment.seconds[-columns:]
    first = len(moment.seconds) - len(past)
    full = max([_LEAST_FULL, *(second.answered + second.dead for second in past)])
    rows = []
    for row in range(_BAR_ROWS, 0, -1):
        label = {_BAR_ROWS: "calls", _BAR_ROWS - 1: "per second"}.get(row, "")
        scale = str(full) if row == _BAR_ROWS else "0" if row == 1 else ""
        line = Text(f"{label:<{_LABEL - 3}}{scale:>2} ", "bright_black")
        for second in past:
            line.append(*_cell(second, row, full))
        rows.append(line)
    provider, circuit = (Text(name.ljust(_LABEL), "bright_black") for name in ("provider", "circuit"))
    for second in past:
        provider.append("╍" if second.provider_down else "━", "red" if second.provider_down else "green")
        _, colour, stroke = _STATES.get(second.circuit, _STATES[None])
        circuit.append(stroke, colour)
    dead = Text("dead calls".ljust(_LABEL), "bright_black").append(
        str(moment.dead_calls), "bold red" if moment.dead_calls else ""
    )
    dead.append("  calls that reached the provider while it was down", "not bold bright_black")
    return [*rows, provider, circuit, _axis(first, columns), Text(), dead]


def _cell(second: Second, row: int, full: int) -> tuple[str, str]:
    """
    Draw one character of a bar: how far the second's calls fill this row, in the colour of most of them.
    """
    total = second.answered + second.dead
    eighths = round(8 * _BAR_ROWS * total / full) - 8 * (row - 1)
    if row == 1 and total:
        # One call is few, but it must not be invisible.
        eighths = max(1, eighths)
    return _EIGHTHS[max(0, min(8, eighths))], "red" if second.dead >= second.answered else "green"


def _axis(first: int, columns: int) -> Text:
    marks = [" "] * columns
    for second in range(first, first + columns):
        label = f"{second}s"
        at = second - first
        if second % 10 == 0 and at + len(label) <= columns:
            marks[at : at + len(label)] = label
    return Text(" " * _LABEL + "".join(marks), "bright_black")
