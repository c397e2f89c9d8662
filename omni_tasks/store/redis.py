"""
Circuits shared through Redis: encode, one script, decode.  Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Self, TypeVar
from urllib.parse import unquote

import redis
from redis.cluster import RedisCluster
from redis.exceptions import RedisClusterException

from omni_tasks.core.keys import SEPARATOR, split_key
from omni_tasks.core.model import (
    Admission,
    CircuitState,
    Draw,
    LogRecord,
    Override,
    Permit,
    Request,
    Settlement,
    Transition,
    Word,
)
from omni_tasks.core.outcome import Report
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.core.quiet import Told
from omni_tasks.errors import StoreError, StoreReplyError
from omni_tasks.store import replies
from omni_tasks.store.base import CANDIDATES, LOG_LENGTH, Reading
from omni_tasks.store.connect import connect, connect_cluster
from omni_tasks.store.line import bulk, command
from omni_tasks.store.quiet import QuietCalls, QuietCircuit
from omni_tasks.store.schema import (
    STANDALONE,
    VERBS,
    circuit_keys,
    list_key,
    log_from_reply,
    script_text,
)
from omni_tasks.store.script import Argument, Question, Scripts
from omni_tasks.store.url import parse

__all__ = ["RedisStore", "connect"]


#: Whatever a question may end with when no answer came, or none of ours.
FAILURES = (redis.RedisError, RedisClusterException, OSError)

#: Circuits whose constant arguments are kept at most; circuits per key come and go.
_MOST_QUESTIONS = 10_000

Answer = TypeVar("Answer")


class RedisStore:
    """
    Implements :class:`omni_tasks.store.base.Store` over Redis or Valkey.

    Connections are made on first use, in the process that uses them, and anew after a fork.
    """

    def __init__(
        self,
        client: redis.Redis | Callable[[], RedisCluster],
        *,
        prefix: str = "omni",
        now_ms: Callable[[], int] | None = None,
        trust_quiet: bool = False,
    ) -> None:
        """
        Keep circuits under *prefix*.

        Args:
            client: Made by :func:`connect`, or what makes one of a cluster; replies must not be decoded.

            prefix: First part of every key.

            now_ms: Unix ms, in tests.  Production leaves it out and reads the server's clock.

            trust_quiet: Whether a busy process may let calls in by a circuit's own word that it is quiet,
                and tell it of them within 0.1 s.
        """
        self._prefix = prefix
        self._now_ms = now_ms
        self._trusts = trust_quiet
        self._scripts = Scripts(client, {verb: script_text(verb) for verb in (*VERBS, *STANDALONE)})
        self._questions: dict[str, tuple[CircuitBreakerConfig, Question]] = {}
        self._quiet = QuietCalls(self._quiet_circuit)

    @classmethod
    def at(cls, url: str, *, timeout: float, prefix: str = "omni") -> Self:
        """
        The store at *url*, as production uses it; connects with the first question.

        Args:
            url: Any that :func:`omni_tasks.store.url.parse` takes.

            timeout: Seconds to connect, and to wait for one answer.

            prefix: First part of every key.
        """
        if parse(url).kind == "cluster":
            return cls(partial(connect_cluster, url, timeout=timeout), prefix=prefix, trust_quiet=True)
        return cls(connect(url, timeout=timeout), prefix=prefix, trust_quiet=True)

    def acquire(self, config: CircuitBreakerConfig, request: Request) -> Admission:
        """
        Decide whether one more call may run.
        """
        if self._trusts and request.here and (admission := self._peek(config, request)):
            return admission
        admission = self._acquire(config, request)
        if admission.crowded and self.forget(config):
            admission = self._acquire(config, request)
        return admission

    def _acquire(self, config: CircuitBreakerConfig, request: Request) -> Admission:
        paced, health = int(request.paced), int(request.health)
        asked = (request.permit_id, request.lease_ms, paced, _bytes(request.ticket), health, config.max_keys)
        admission, quiet = self._run("acquire", config, asked, partial(replies.admission, request))
        if circuit := self._quiet.known(config.name):
            circuit.hear(quiet=quiet)
        return admission

    def _peek(self, config: CircuitBreakerConfig, request: Request) -> Admission | None:
        circuit = self._quiet.of(config)
        if circuit is None or not circuit.asked_soon_again():
            return None
        with _asking("acquire", config):
            answer = self._scripts.peek(self._question(config).keys[0], circuit.question)
        permit = circuit.admit(answer, request)
        if permit is None:
            return None
        self._quiet.keep_telling()
        return Admission(permit=permit, state=CircuitState.CLOSED)

    def settle(self, config: CircuitBreakerConfig, permit: Permit, report: Report) -> Settlement:
        """
        Take a finished call's report.
        """
        circuit = self._quiet.known(config.name)
        if circuit is not None and circuit.end(permit, report):
            return replies.COUNTED
        asked = (
            permit.id,
            _bytes(permit.gen),
            permit.epoch,
            int(permit.probe),
            report.outcome.value,
            report.retry_after_ms,
            report.duration_ms,
            int(report.trip),
            _bytes(report.reason),
        )
        return self._run("settle", config, asked, replies.settlement)

    def tally(self, config: CircuitBreakerConfig, told: Told) -> bool:
        """
        Hear of calls that were let in while the circuit was quiet.

        Returns:
            Whether it is the incarnation that they were let into.
        """
        running = [argument for permit in told.running.items() for argument in permit]
        asked = (_bytes(told.gen), told.epoch, told.succeeded, told.slow, told.took_ms, told.durations, *running)
        return self._run("tally", config, asked, replies.tally, again=False)

    def draw(self, config: CircuitBreakerConfig, wanted: int) -> Draw:
        """
        Pay for the return of up to *wanted* held tasks.
        """
        return self._run("draw", config, (wanted,), replies.draw)

    def force(
        self, config: CircuitBreakerConfig, override: Override, word: Word, *, ttl_ms: int = 0
    ) -> Transition | None:
        """
        Follow the operator's word until *ttl_ms* have passed; 0 means until the next one.
        """
        return self._run("force", config, (override.value, ttl_ms, *_word(word)), partial(replies.followed, word))

    def reset(self, config: CircuitBreakerConfig, word: Word) -> Transition | None:
        """
        Close the circuit and clear what it has counted; its log goes on.
        """
        self._tell([config])
        return self._run("reset", config, _word(word), partial(replies.followed, word))

    def read(self, configs: Sequence[CircuitBreakerConfig]) -> list[Reading]:
        """
        Read many circuits in one round trip to each server that has some; changes nothing.
        """
        if not configs:
            return []
        with suppress(StoreError):
            # A server that only reads can still be read.
            self._tell(configs)
        with _asking("read"):
            questions = [Question(self._question(config).keys[:3]) for config in configs]
            answers = self._scripts.run_many("snapshot", questions, [self._now()])
        try:
            return [replies.reading(answer) for answer in answers]
        except (TypeError, ValueError) as error:
            raise StoreReplyError(f"read: cannot read the answer: {error}") from error

    def log(self, config: CircuitBreakerConfig, *, since_ms: int = 0, limit: int = LOG_LENGTH) -> list[LogRecord]:
        """
        Read the log, oldest first: of what was written since *since_ms* the newest *limit* records.
        """
        key = self._question(config).keys[3]
        with _asking("log", config):
            # An entry's id is never earlier than its moment: with a clock that stepped back it is later.
            [answer] = self._scripts.run_commands([["XREVRANGE", key, "+", since_ms, "COUNT", limit]])
            entries = _unless_of_another_type(answer)
        return [record for record in reversed(log_from_reply(entries)) if record.at_ms >= since_ms]

    def list_keys(self, configs: Sequence[CircuitBreakerConfig]) -> list[tuple[str, ...]]:
        """
        Read which keys of each circuit have a circuit of their own, in one round trip; changes nothing.
        """
        with _asking("list_keys"):
            asked: list[list[Argument]] = [["ZRANGE", list_key(self._prefix, config.name), 0, -1] for config in configs]
            answers = [_unless_of_another_type(answer) for answer in self._scripts.run_commands(asked)]
        return [tuple(unquote(replies.text(key)) for key in keys) for keys in answers]

    def forget(self, config: CircuitBreakerConfig) -> int:
        """
        Make room for the circuit of another key: forget the least recently used that is closed and idle.

        Args:
            config: Of the key that needs room.

        Returns:
            How many were forgotten.
        """
        circuit, _ = split_key(config.name)
        listed = list_key(self._prefix, circuit)
        with _asking("forget", config):
            [oldest] = self._scripts.run_commands([["ZRANGE", listed, 0, CANDIDATES - 1]])
            names = [f"{circuit}{SEPARATOR}{unquote(replies.text(key))}" for key in _unless_of_another_type(oldest)]
            asked = [Question([*circuit_keys(self._prefix, name), listed]) for name in names]
            answers = self._scripts.run_many("forget", asked, [self._now(), config.max_keys])
        return sum(forgotten for [forgotten] in answers)

    def _run(
        self,
        verb: str,
        config: CircuitBreakerConfig,
        arguments: Sequence[Argument],
        read: Callable[[Any], Answer],
        *,
        again: bool = True,
    ) -> Answer:
        with _asking(verb, config):
            answer = self._scripts.run(verb, self._question(config), [self._now(), *arguments], again=again)
        try:
            return read(answer)
        except (AttributeError, TypeError, ValueError) as error:
            raise StoreReplyError(f"{verb} {config.name!r}: cannot read the answer {answer!r}") from error

    def _tell(self, configs: Iterable[CircuitBreakerConfig]) -> None:
        for config in configs:
            if circuit := self._quiet.known(config.name):
                circuit.tell()

    def _quiet_circuit(self, config: CircuitBreakerConfig) -> QuietCircuit:
        question = command(bulk("HGET"), bulk(self._question(config).keys[0]), bulk("quiet"), count=3)
        return QuietCircuit(config, question, partial(self.tally, config))

    def _question(self, config: CircuitBreakerConfig) -> Question:
        known = self._questions.get(config.name)
        if known is None or known[0] is not config:
            if len(self._questions) >= _MOST_QUESTIONS:
                self._questions.clear()
            keys = [*circuit_keys(self._prefix, config.name), list_key(self._prefix, config.name)]
            known = config, Question(keys, (config.policy.text,))
            self._questions[config.name] = known
        return known[1]

    def _now(self) -> int | str:
        return self._now_ms() if self._now_ms else ""


@contextmanager
def _asking(verb: str, config: CircuitBreakerConfig | None = None) -> Iterator[None]:
    try:
        yield
    except FAILURES as error:
        of = f" {config.name!r}" if config else ""
        raise StoreError(f"{verb}{of}: {type(error).__name__}: {error}") from error


def _word(word: Word) -> tuple[bytes, bytes, bytes]:
    return _bytes(word.op_id), _bytes(word.actor), _bytes(word.reason)


def _unless_of_another_type(answer: Any) -> Any:
    # A key of another type was written by somebody else: it is as good as empty.
    if isinstance(answer, redis.ResponseError) and str(answer).startswith("WRONGTYPE"):
        return []
    if isinstance(answer, Exception):
        raise answer
    return answer


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
