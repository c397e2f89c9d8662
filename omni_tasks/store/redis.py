"""
Circuits shared through Redis: encode, one script, decode.  Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.retry import Retry

from omni_tasks.core.model import (
    Admission,
    CircuitState,
    Draw,
    Override,
    Permit,
    Request,
    Settlement,
    Transition,
)
from omni_tasks.core.outcome import Report
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.errors import StoreError, StoreReplyError
from omni_tasks.store.base import Reading
from omni_tasks.store.schema import (
    STANDALONE,
    VERBS,
    circuit_from_reply,
    circuit_keys,
    policy_arguments,
    script_text,
)

__all__ = ["RedisStore", "connect"]


def connect(url: str, *, timeout: float) -> redis.Redis:
    """
    A client that answers or fails within about *timeout* seconds, once.

    redis-py 8's own defaults retry ten times and block 59 s on a frozen
    server; a retried command may also have been applied twice.
    """
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )


class RedisStore:
    """
    Implements :class:`omni_tasks.store.base.Store` over one Redis or Valkey server.

    Connections are made on first use, in the process that uses them: redis-py's
    pool notices a fork and starts anew in the child.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        prefix: str = "omni",
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        """
        Keep circuits under *prefix*.

        Args:
            client: Made by :func:`connect`; replies must not be decoded.

            prefix: First part of every key.

            now_ms: Unix ms, in tests.  Production leaves it out and reads the server's clock.
        """
        self._client = client
        self._prefix = prefix
        self._now_ms = now_ms
        self._scripts = {verb: Script(client, script_text(verb)) for verb in (*VERBS, *STANDALONE)}

    def acquire(self, config: CircuitBreakerConfig, request: Request) -> Admission:
        """
        Decide whether one more call may run.
        """
        kind, gen, epoch, state, retry_after_ms, previous, failures = self._run(
            "acquire", config, request.permit_id, request.lease_ms, int(request.paced), _bytes(request.ticket)
        )
        permit = None
        if kind:
            permit = Permit(request.permit_id, _text(gen), epoch, probe=kind == b"probe")
        return Admission(
            permit=permit,
            state=_state(state),
            retry_after_ms=retry_after_ms,
            transition=_transition(previous, state, epoch, failures),
        )

    def settle(self, config: CircuitBreakerConfig, permit: Permit, report: Report) -> Settlement:
        """
        Take a finished call's report.
        """
        applied, state, open_ms, previous, epoch, failures = self._run(
            "settle",
            config,
            permit.id,
            _bytes(f"{permit.gen}:{permit.epoch}"),
            int(permit.probe),
            report.outcome.value,
            report.retry_after_ms,
            int(bool(config.slow_ms) and report.duration_ms >= config.slow_ms),
        )
        return Settlement(
            applied=bool(applied),
            state=_state(state),
            retry_after_ms=open_ms,
            transition=_transition(previous, state, epoch, failures),
        )

    def draw(self, config: CircuitBreakerConfig, wanted: int) -> Draw:
        """
        Pay for the return of up to *wanted* held tasks.
        """
        count, ticket, state, ramping, previous, epoch, failures = self._run("draw", config, wanted)
        return Draw(
            count=count,
            ticket=_text(ticket),
            state=_state(state),
            ramping=bool(ramping),
            transition=_transition(previous, state, epoch, failures),
        )

    def force(self, config: CircuitBreakerConfig, override: Override, *, ttl_ms: int, op_id: str) -> Transition | None:
        """
        Follow the operator's word.
        """
        state, previous, epoch, failures = self._run("force", config, override.value, ttl_ms, op_id)
        return _transition(previous, state, epoch, failures)

    def reset(self, config: CircuitBreakerConfig, *, op_id: str) -> Transition | None:
        """
        Close the circuit and clear what it has counted.
        """
        state, previous, epoch, failures = self._run("reset", config, op_id)
        return _transition(previous, state, epoch, failures)

    def read(self, configs: Sequence[CircuitBreakerConfig]) -> list[Reading]:
        """
        Read many circuits in one round trip; changes nothing.
        """
        if not configs:
            return []
        try:
            try:
                replies = self._read(configs)
            except redis.exceptions.NoScriptError:
                self._client.script_load(self._scripts["snapshot"].script)
                replies = self._read(configs)
        except (redis.RedisError, OSError) as error:
            raise StoreError(f"read: {type(error).__name__}: {error}") from error
        return [
            Reading(circuit=circuit_from_reply(flat), now_ms=now, calls=calls, probes=probes, first_lease_ms=lease)
            for now, flat, calls, probes, lease in replies
        ]

    def _read(self, configs: Sequence[CircuitBreakerConfig]) -> list[Any]:
        # By its SHA: redis-py's own Script asks first whether the server knows it, one round trip more each time.
        sha = self._scripts["snapshot"].sha
        with self._client.pipeline(transaction=False) as pipe:
            for config in configs:
                keys = circuit_keys(self._prefix, config.name)
                pipe.evalsha(sha, len(keys), *keys, self._now())
            return pipe.execute()

    def _run(self, verb: str, config: CircuitBreakerConfig, *arguments: str | bytes | int) -> list[Any]:
        try:
            reply = self._scripts[verb](
                keys=circuit_keys(self._prefix, config.name),
                args=[self._now(), *policy_arguments(config), *arguments],
            )
        except (redis.RedisError, OSError) as error:
            raise StoreError(f"{verb} {config.name!r}: {type(error).__name__}: {error}") from error
        if not isinstance(reply, list):
            raise StoreReplyError(f"{verb} {config.name!r}: expected a list, got {type(reply).__name__}")
        return reply

    def _now(self) -> int | str:
        return self._now_ms() if self._now_ms else ""


def _text(raw: bytes) -> str:
    # What names an incarnation may have been damaged, and must still come back as it was given out.
    return raw.decode(errors="surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _state(raw: bytes) -> CircuitState:
    return CircuitState(raw.decode())


def _transition(previous: bytes, current: bytes, epoch: int, failures: int) -> Transition | None:
    if previous == current:
        return None
    return Transition(previous=_state(previous), current=_state(current), epoch=epoch, failures=failures)
