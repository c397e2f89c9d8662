"""
Remote control: what ``celery -A app inspect`` and ``celery -A app control`` can ask of the workers.

Every worker hears a command, and a circuit is one thing in the whole cluster: the
first worker to hear it carries it out, the others say so.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import Any

import redis
from celery.worker.control import Panel, control_command, inspect_command, nok, ok

from omni_tasks.errors import ConfigurationError, OmniTasksError, ParkingError
from omni_tasks.integration.held import REPLAYED, Parking
from omni_tasks.integration.install import Integration, integration_of

__all__ = ["circuits", "dead_letters", "held"]

#: How long a second worker still knows that the first has carried a command out, in ms.
_KNOWN_MS = 5000

#: Held tasks shown, and moved, by one command that names no number.
_AT_ONCE = 100

#: Most that one command may name.
_MOST = 100_000


# Looking.


@inspect_command(args=[("circuit", str)], signature="[circuit]")
def circuits(state: Any, circuit: str | None = None, **_kwargs: Any) -> dict[str, dict[str, Any]]:
    """
    Every circuit: its state, its numbers, how many tasks it holds.
    """
    integration = integration_of(state.app)
    metrics = integration.manager.get_all_metrics()
    held: dict[str, int] = {}
    try:
        held = integration.lot.counts(metrics)
    except (redis.RedisError, OSError, ParkingError):
        # The circuits are worth showing without the lot; "held" is left out rather than called 0.
        held = {}
    return {
        key: {
            **{name: _plain(value) for name, value in asdict(metric).items()},
            **({"held": held[key]} if key in held else {}),
        }
        for key, metric in metrics.items()
        if circuit in {None, key}
    }


@inspect_command(args=[("circuit", str), ("limit", int)], signature="[circuit [limit=100]]")
def held(state: Any, circuit: str | None = None, limit: int = _AT_ONCE, **_kwargs: Any) -> dict[str, Any]:
    """
    The held tasks of every circuit, or of one, in the order they will leave.
    """
    integration = integration_of(state.app)
    return _listed(integration, integration.lot, circuit, limit)


@inspect_command(args=[("circuit", str), ("limit", int)], signature="[circuit [limit=100]]")
def dead_letters(state: Any, circuit: str | None = None, limit: int = _AT_ONCE, **_kwargs: Any) -> dict[str, Any]:
    """
    Tasks that have been held for as long as they may be, and were kept.
    """
    integration = integration_of(state.app)
    return _listed(integration, integration.dead_letters, circuit, limit)


def _listed(integration: Integration, lot: Parking, circuit: str | None, limit: int) -> dict[str, Any]:
    try:
        keys = [integration.manager.get(circuit).key] if circuit else integration.manager.keys()
        most = _number(limit)
        return {
            key: [{name: _plain(value) for name, value in asdict(task).items()} for task in lot.list(key, most)]
            for key, count in lot.counts(keys).items()
            if count or circuit
        }
    except (OmniTasksError, redis.RedisError, OSError) as error:
        return nok(str(error))  # type: ignore[no-any-return] # Celery ships no types


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value


# Speaking.


def _seconds(text: str) -> float | None:
    # Words on a command line have places: "-" stands for "no end" where a reason is to follow.
    return None if text == "-" else float(text)


_FORCED: dict[str, Any] = {
    "args": [("circuit", str), ("ttl", _seconds), ("actor", str), ("reason", str)],
    "signature": "<circuit> [ttl_seconds | - [actor [reason]]]",
}
_SAID: dict[str, Any] = {
    "args": [("circuit", str), ("actor", str), ("reason", str)],
    "signature": "<circuit> [actor [reason]]",
}
_MOVED: dict[str, Any] = {"args": [("circuit", str), ("count", int)], "signature": "<circuit> [count=100]"}


def _once(carry_out: Callable[..., str]) -> Callable[..., Any]:
    """
    Carry a command out in the first worker that hears it, and answer with what came of it.
    """

    @functools.wraps(carry_out)
    def command(state: Any, circuit: str | None = None, **arguments: Any) -> Any:
        integration = integration_of(state.app)
        try:
            if circuit is None:
                raise ConfigurationError("circuit", circuit, "one of " + ", ".join(integration.manager.configured()))
            integration.manager.get(circuit)
            if not _first(integration, carry_out.__name__, circuit, arguments):
                return ok("carried out by another worker")
            return ok(carry_out(integration, circuit, **arguments))
        except (OmniTasksError, redis.RedisError, OSError) as error:
            return nok(str(error))

    return command


def _first(integration: Integration, name: str, circuit: str, arguments: dict[str, Any]) -> bool:
    client = integration.store_client
    if client is None:
        return True
    words = json.dumps([name, circuit, arguments], sort_keys=True, default=str)
    key = integration.command_key(hashlib.sha256(words.encode()).hexdigest())
    return bool(client.set(key, 1, nx=True, px=_KNOWN_MS))


@control_command(**_FORCED)
@_once
def circuit_force_open(
    integration: Integration, circuit: str, ttl: float | None = None, actor: str = "", reason: str = ""
) -> str:
    """
    Refuse every call of a circuit, for some seconds or until the next word.
    """
    integration.manager.get(circuit).force_open(ttl=ttl, actor=actor, reason=reason)
    return f"{circuit} is forced open"


@control_command(**_FORCED)
@_once
def circuit_force_close(
    integration: Integration, circuit: str, ttl: float | None = None, actor: str = "", reason: str = ""
) -> str:
    """
    Let every call of a circuit through, for some seconds or until the next word.
    """
    integration.manager.get(circuit).force_close(ttl=ttl, actor=actor, reason=reason)
    return f"{circuit} is forced closed"


@control_command(**_SAID)
@_once
def circuit_release(integration: Integration, circuit: str, actor: str = "", reason: str = "") -> str:
    """
    Let a circuit that was forced decide for itself again.
    """
    integration.manager.get(circuit).release_force(actor=actor, reason=reason)
    return f"{circuit} decides for itself"


@control_command(**_SAID)
@_once
def circuit_reset(integration: Integration, circuit: str, actor: str = "", reason: str = "") -> str:
    """
    Close a circuit and clear what it has counted.
    """
    integration.manager.get(circuit).reset(actor=actor, reason=reason)
    return f"{circuit} is reset"


@control_command(**_MOVED)
@_once
def held_drain(integration: Integration, circuit: str, count: int = _AT_ONCE) -> str:
    """
    Send held tasks back to their queues now; a circuit that is open holds them again.
    """
    return f"{integration.lot.unpark(circuit, _number(count), '')} returned"


@control_command(**_MOVED)
@_once
def held_replay(integration: Integration, circuit: str, count: int = _AT_ONCE) -> str:
    """
    Send dead letters back to their queues; their time begins anew.
    """
    return f"{integration.dead_letters.unpark(circuit, _number(count), REPLAYED)} returned"


def _number(count: object) -> int:
    if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= _MOST:
        raise ConfigurationError("count", count, f"a whole number from 1 to {_MOST}")
    return count


# Celery's own revokes, written down for held tasks.


def _remembering(name: str, remember: Callable[[Integration, Any], None], argument: str) -> None:
    command = Panel.data[name]

    @functools.wraps(command)
    def remembering(state: Any, *args: Any, **kwargs: Any) -> Any:
        answer = command(state, *args, **kwargs)
        try:
            integration = integration_of(state.app)
        except ConfigurationError:
            # An application that knows nothing of circuits.
            return answer
        remember(integration, kwargs.get(argument))
        return answer

    Panel.data[name] = remembering


def _remember_ids(integration: Integration, ids: Any) -> None:
    integration.revoked.remember(ids=[ids] if isinstance(ids, str) else ids or ())


def _remember_stamps(integration: Integration, headers: Any) -> None:
    if isinstance(headers, list):
        headers = dict(pair.split("=", 1) for pair in headers)
    stamps = {name: value if isinstance(value, (list, tuple, set)) else [value] for name, value in headers.items()}
    integration.revoked.remember(stamps=stamps)


_remembering("revoke", _remember_ids, "task_id")
_remembering("terminate", _remember_ids, "task_id")
_remembering("revoke_by_stamped_headers", _remember_stamps, "headers")
