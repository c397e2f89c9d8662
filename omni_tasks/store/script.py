"""
Scripts by their SHA: what is constant in a question is packed once, and a server that does not know a script is told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from redis.cluster import RedisCluster
from redis.exceptions import ResponseError

from omni_tasks.store.line import Lines, bulk, command
from omni_tasks.store.server import Cluster, Server, Where

__all__ = ["Argument", "Question", "Scripts"]

Argument = str | bytes | int

#: Packed questions kept at most; circuits per key come and go.
_MOST_PACKED = 10_000


@dataclass(frozen=True, slots=True)
class Question:
    """
    The part of a script's call that is the same every time.

    Attributes:
        keys: The script's keys; all in one slot.

        constant: Arguments that come after the first one, which is the time.
    """

    keys: Sequence[str]
    constant: Sequence[Argument] = ()


class Scripts:
    """
    Scripts by name, and the way to run them.
    """

    def __init__(self, client: redis.Redis | Callable[[], RedisCluster], texts: Mapping[str, str]) -> None:
        """
        Run *texts* where *client* leads to.
        """
        self._texts: dict[str, str] = {}
        self._shas: dict[str, str] = {}
        self._packed: dict[tuple[str, str], tuple[Question, bytes, bytes]] = {}
        for name, text in texts.items():
            self.put(name, text)
        self._where: Where
        if isinstance(client, redis.Redis):
            self._where = Server(client, self._loads)
        else:
            self._where = Cluster(client, self._loads)

    def put(self, name: str, text: str) -> None:
        """
        Run *text* under that name from now on; proofs put scripts that are wrong.
        """
        self._texts[name] = text
        self._shas[name] = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._packed.clear()

    def run(self, name: str, question: Question, arguments: Sequence[Argument], *, again: bool = True) -> Any:
        """
        Run one script in one round trip.

        Args:
            name: The script's.

            question: What is constant.

            arguments: The time first, then what comes after the constant ones.

            again: Whether it may be sent twice, as for :meth:`Lines.ask`.

        Raises:
            RedisError: No answer, or a refusal.
        """
        lines = self._where.lines(question.keys[0])
        answer = self._ask(lines, [self._pack(name, question, arguments)], again=again)[0]
        return self._followed(answer, name, question, arguments)

    def run_many(self, name: str, questions: Sequence[Question], arguments: Sequence[Argument]) -> list[Any]:
        """
        Run one script for many circuits: one round trip to each server that has some of them.
        """
        packed = [self._pack(name, question, arguments) for question in questions]
        answers = self._ask_each([question.keys[0] for question in questions], packed)
        return [
            self._followed(answer, name, question, arguments)
            for answer, question in zip(answers, questions, strict=True)
        ]

    def run_commands(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """
        Run plain commands, whose first argument is their key: one round trip to each server that has some.

        Returns:
            One answer a command; a refusal is a ``ResponseError`` among them.
        """
        packed = [command(*map(bulk, arguments), count=len(arguments)) for arguments in commands]
        answers = self._ask_each([str(arguments[1]) for arguments in commands], packed)
        return [
            self._where.moved(answer, arguments) if isinstance(answer, ResponseError) else answer
            for answer, arguments in zip(answers, commands, strict=True)
        ]

    def peek(self, key: str, packed: bytes) -> Any:
        """
        Run one plain command about *key*, packed.

        Returns:
            The answer; a refusal is a ``ResponseError``.

        Raises:
            RedisError: No answer.
        """
        return self._ask(self._where.lines(key), (packed,))[0]

    def _ask(self, lines: Lines, commands: Sequence[bytes], *, again: bool = True) -> list[Any]:
        try:
            return lines.ask(commands, again=again)
        except Exception:
            self._where.failed()
            raise

    def _loads(self) -> list[bytes]:
        return [command(bulk("SCRIPT"), bulk("LOAD"), bulk(text), count=3) for text in self._texts.values()]

    def _ask_each(self, keys: Sequence[str], packed: Sequence[bytes]) -> list[Any]:
        groups: dict[int, tuple[Lines, list[int]]] = {}
        for number, key in enumerate(keys):
            lines = self._where.lines(key)
            groups.setdefault(id(lines), (lines, []))[1].append(number)
        answers: list[Any] = [None] * len(keys)
        for lines, numbers in groups.values():
            for number, answer in zip(numbers, self._ask(lines, [packed[number] for number in numbers]), strict=True):
                answers[number] = answer
        return answers

    def _pack(self, name: str, question: Question, arguments: Sequence[Argument]) -> bytes:
        known = self._packed.get((name, question.keys[0]))
        if known is None or known[0] is not question:
            if len(self._packed) >= _MOST_PACKED:
                self._packed.clear()
            head: list[Argument] = ["EVALSHA", self._shas[name], len(question.keys), *question.keys]
            known = question, b"".join(map(bulk, head)), b"".join(map(bulk, question.constant))
            self._packed[name, question.keys[0]] = known
        _, head_packed, constant = known
        now, *rest = arguments
        count = 3 + len(question.keys) + len(question.constant) + len(arguments)
        return command(head_packed, bulk(now), constant, *map(bulk, rest), count=count)

    def _followed(self, answer: Any, name: str, question: Question, arguments: Sequence[Argument]) -> Any:
        if isinstance(answer, ResponseError):
            now, *rest = arguments
            sha, keys = self._shas[name], question.keys
            answer = self._where.moved(answer, ["EVALSHA", sha, len(keys), *keys, now, *question.constant, *rest])
        if isinstance(answer, Exception):
            raise answer
        return answer
