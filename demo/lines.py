"""
The story as plain lines, for a pipe or a terminal without cursor control.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from demo.sentence import say

if TYPE_CHECKING:
    from demo.ledger import Ledger
    from demo.moment import Moment

__all__ = ["Lines"]

_INTERVAL_S: Final = 1.0


class Lines:
    """
    One line a second, and one whenever the circuit or the chapter changes.  ASCII only.
    """

    def __init__(self) -> None:
        """
        Begin with nothing said.
        """
        self._last_at = -_INTERVAL_S
        self._last_turn: object = None

    def note(self, text: str) -> None:
        """
        Say something outside the story.
        """
        click.echo(text)

    def show(self, moment: Moment) -> None:
        """
        Say what is going on, if it is time to.
        """
        turn = moment.circuit, moment.chapter
        if turn == self._last_turn and moment.elapsed - self._last_at < _INTERVAL_S:
            return
        self._last_turn, self._last_at = turn, moment.elapsed
        click.echo(
            f"{moment.elapsed:5.1f} s  circuit {moment.circuit or 'unknown':9}"
            f"  running {moment.running:3}  held {moment.held:3}  done {moment.done:3}"
            f"  dead calls {moment.dead_calls:2}  | {say(moment)}"
        )

    def close(self) -> None:
        """
        End the story; there is nothing to put back.
        """

    def account(self, ledger: Ledger) -> None:
        """
        Print the ledger.
        """
        rows = ledger.rows()
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        click.echo("\nledger: the provider's own book, the folder of articles, the result backend")
        for name, value, meaning in rows:
            click.echo(f"  {name:{first}}  {value:>{second}}  {meaning}")
        click.echo()
