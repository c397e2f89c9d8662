"""
What became of tasks whose workers were killed: told from the dependency's ledger and the moments of the kills.
"""

from __future__ import annotations

import re
import socket
import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.dependency import Call

__all__ = ["Account", "Feed", "account"]


@dataclass(frozen=True, kw_only=True)
class Account:
    """
    Runs beyond one a task, by what caused them.

    Attributes:
        lost: Tasks that never came to their end.

        interrupted: Bodies that a kill ended; they ran again, as late acknowledgement promises.

        unacknowledged: Bodies that had ended when the kill came, the last ones of their children: their messages
            were not acknowledged yet.

        others: Anything else.

        worst: Most of the second and third kind at one kill.
    """

    lost: frozenset[str]
    interrupted: int
    unacknowledged: int
    others: int
    worst: int

    def __str__(self) -> str:
        """
        One line.
        """
        return (
            f"lost {len(self.lost)}; run again: {self.interrupted} interrupted by a kill, "
            f"{self.unacknowledged} ended and not yet acknowledged, {self.others} others"
        )


def account(sent: Iterable[str], started: Sequence[Call], ended: Sequence[Call], kills: Sequence[float]) -> Account:
    """
    Settle the account.

    Args:
        sent: Ids of the tasks.

        started: Calls as they arrived.

        ended: Calls as they were answered.

        kills: Moments, by the same clock, in order.
    """
    finished = {(call.task_id, call.pid) for call in ended}
    last_of_child = {call.pid: call for call in started}
    runs: dict[str, list[Call]] = defaultdict(list)
    for call in started:
        runs[call.task_id].append(call)
    causes: Counter[str] = Counter()
    hit: Counter[int] = Counter()
    for call in (call for several in runs.values() for call in several[:-1]):
        kill = bisect_left(kills, call.at)
        if kill == len(kills) or last_of_child[call.pid] != call:
            # Nobody was killed since, or the child had gone on to its next task.
            causes["others"] += 1
            continue
        hit[kill] += 1
        causes["unacknowledged" if (call.task_id, call.pid) in finished else "interrupted"] += 1
    return Account(
        lost=frozenset(sent) - {call.task_id for call in ended},
        interrupted=causes["interrupted"],
        unacknowledged=causes["unacknowledged"],
        others=causes["others"],
        worst=max(hit.values(), default=0),
    )


class Feed:
    """
    Every command that a Redis server carries out, from the moment this is made until it is closed.
    """

    _NAME = "feed.log"
    _COMMAND = re.compile(r'^\+?\S+ \[\d+ \S+\] "(\w+)" "([^"]*)"')

    def __init__(self, url: str, folder: Path) -> None:
        """
        Write what the server at *url* does to a file in *folder*.
        """
        self._path = folder / self._NAME
        where = urlsplit(url)
        self._socket = socket.create_connection((where.hostname, where.port))
        self._socket.sendall(b"MONITOR\r\n")
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def close(self) -> None:
        """
        Stop.
        """
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    @classmethod
    def last_moves(cls, folder: Path, ids: Iterable[str]) -> dict[str, tuple[str, str]]:
        """
        For each id the last command that put the message with it somewhere, and the key it put it into.
        """
        found: dict[str, tuple[str, str]] = {}
        wanted = re.compile("|".join(map(re.escape, ids)) or "$^")
        with (folder / cls._NAME).open(errors="replace") as lines:
            for line in lines:
                command = cls._COMMAND.match(line)
                if command and command[1] in {"LPUSH", "RPUSH", "HSET"}:
                    found |= dict.fromkeys(wanted.findall(line), (command[1], command[2]))
        return found

    def _read(self) -> None:
        with self._path.open("wb") as file:
            while part := self._socket.recv(1 << 16):
                file.write(part)
