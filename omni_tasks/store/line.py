"""
The connections of one process to one server.

redis-py makes the connections and speaks the protocol.  What is ours is that many commands go in one write, and that
a server which falls silent costs the process one wait, not one a thread.
"""

from __future__ import annotations

import os
import socket
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from redis.connection import ConnectionInterface
from redis.exceptions import ConnectionError as LostConnectionError
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as NoAnswerError

__all__ = ["Lines", "bulk", "command"]


def bulk(value: str | bytes | int) -> bytes:
    """
    One argument, as the protocol has it.
    """
    raw = value if isinstance(value, bytes) else str(value).encode()
    return b"$%d\r\n%b\r\n" % (len(raw), raw)


def command(*parts: bytes, count: int) -> bytes:
    """
    A whole command from packed *parts* that hold *count* arguments.
    """
    return b"*%d\r\n%b" % (count, b"".join(parts))


class _Line:
    """
    One connection, used by one thread at a time.
    """

    def __init__(self, connection: ConnectionInterface) -> None:
        self.interrupted = False
        self._connection = connection
        self._connected = False

    def ask(self, commands: Sequence[bytes]) -> list[Any]:
        if not self._connected:
            # Left to the first command, a connection that sentinels manage would not ask them.
            self._connection.connect()
            self._connected = True
        self._connection.send_packed_command([b"".join(commands)], check_health=False)
        return [self._read() for _ in commands]

    def interrupt(self) -> None:
        """
        From another thread: end the wait for an answer.
        """
        self.interrupted = True
        waiting: socket.socket | None = getattr(self._connection, "_sock", None)
        if waiting is not None:
            with suppress(OSError):
                # Past TLS, whose own shutdown() would pull the session from under the thread that reads.
                socket.socket.shutdown(waiting, socket.SHUT_RDWR)

    def close(self) -> None:
        self._connection.disconnect()

    def _read(self) -> Any:
        try:
            return self._connection.read_response()
        except ResponseError as refusal:
            return refusal


class Lines:
    """
    The connections of one process to one server.  Thread-safe.
    """

    def __init__(self, make: Callable[[], ConnectionInterface], scripts: Callable[[], Sequence[bytes]]) -> None:
        """
        Use connections from *make*, which does not connect yet.

        Args:
            make: Makes a connection.

            scripts: The packed commands that make all scripts known to a server.
        """
        self._make = make
        self._scripts = scripts
        self._start_anew()
        _all.add(self)

    def ask(self, commands: Sequence[bytes], *, again: bool = True) -> list[Any]:
        """
        Send all *commands* in one write, and wait for every answer.

        Args:
            commands: Packed.

            again: Whether they are sent again, once, when a connection that was idle turns out to be closed:
                where a repetition is taken as one.

        Returns:
            One answer a command; a refusal is a ``ResponseError`` among them.

        Raises:
            RedisError: No answer.  When it was a deadline that passed, every other thread that waits for this
                server stops waiting too: one stall in the process, not one a thread.
        """
        line = self._take()
        try:
            return self._ask(line, commands) if line else self._ask_anew(commands)
        except LostConnectionError:
            if line is None or not again:
                raise
            return self._ask_anew(commands)

    def close(self) -> None:
        """
        Hang up on everything that is idle.
        """
        while (line := self._take()) is not None:
            self._drop(line)

    def _start_anew(self) -> None:
        # The last used first: the others may be closed one day, for want of use.
        self._idle: deque[_Line] = deque()
        self._busy: set[_Line] = set()

    def _ask_anew(self, commands: Sequence[bytes]) -> list[Any]:
        line = _Line(self._make())
        self._busy.add(line)
        return self._ask(line, commands)

    def _ask(self, line: _Line, commands: Sequence[bytes]) -> list[Any]:
        try:
            answers = line.ask(commands)
            unknown = [number for number, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            if unknown:
                # All scripts: a server that has lost one has lost all.
                line.ask(self._scripts())
                again = line.ask([commands[number] for number in unknown])
                for number, answer in zip(unknown, again, strict=True):
                    answers[number] = answer
        except NoAnswerError:
            self._drop(line)
            self._hang_up()
            raise
        except LostConnectionError:
            self._drop(line)
            if line.interrupted:
                raise NoAnswerError("given up with another thread that had waited too long") from None
            raise
        except BaseException:
            # Whatever ended it, half of an answer may still be on its way.
            self._drop(line)
            raise
        self._give_back(line)
        return answers

    def _take(self) -> _Line | None:
        try:
            line = self._idle.pop()
        except IndexError:
            return None
        self._busy.add(line)
        return line

    def _give_back(self, line: _Line) -> None:
        self._busy.discard(line)
        if line.interrupted:
            # Its answer came while another thread gave up.
            line.close()
        else:
            self._idle.append(line)

    def _drop(self, line: _Line) -> None:
        self._busy.discard(line)
        line.close()

    def _hang_up(self) -> None:
        for line in self._busy.copy():
            line.interrupt()
        self.close()


_all: weakref.WeakSet[Lines] = weakref.WeakSet()


def _after_fork() -> None:
    # The sockets and the answers on them are the parent's.  At once: of the child's threads none may meet what another
    # one is about to replace.
    for lines in tuple(_all):
        lines._start_anew()  # noqa: SLF001 - of this module


os.register_at_fork(after_in_child=_after_fork)
