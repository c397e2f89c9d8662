"""
The Redis schema of a circuit: key names, the order of arguments, the scripts.

The held tasks' keys are the lot's own: :mod:`omni_tasks.integration.lot`.
"""

from __future__ import annotations

import math
from dataclasses import fields
from importlib import resources
from typing import Any
from urllib.parse import quote

from omni_tasks.core.keys import split_key
from omni_tasks.core.model import FOREVER_MS, Circuit, CircuitState, LogRecord, Override
from omni_tasks.core.ramp import CALL
from omni_tasks.errors import StoreReplyError

__all__ = [
    "STANDALONE",
    "VERBS",
    "alerts_key",
    "circuit_from_reply",
    "circuit_keys",
    "command_key",
    "history_keys",
    "hold_key",
    "list_key",
    "log_from_reply",
    "monitor_key",
    "part_text",
    "revoked_key",
    "script_parts",
    "script_text",
]

#: One script a verb; file name = verb = store method.
VERBS = ("acquire", "settle", "tally", "draw", "force", "reset")

#: Scripts that do not take the prelude in front.
STANDALONE = ("snapshot", "forget")

_TEXT_FIELDS = ("gen", "window", "reason", "durations", "policy", "last_op", "quiet")
_INT_FIELDS = tuple(f.name for f in fields(Circuit) if isinstance(f.default, int))


def circuit_keys(prefix: str, name: str) -> list[str]:
    """
    The four keys of a circuit, in the order the scripts declare them.

    The name is percent-encoded, so different names never share a key and no
    name can break out of the hash tag that keeps the four in one slot.  A
    circuit of a key shares the tag of the circuit that configures it.
    """
    key = split_key(name)[1]
    tag = _tag(prefix, name) + (f":{quote(key, safe='')}" if key else "")
    return [f"{tag}:circuit", f"{tag}:calls", f"{tag}:probes", f"{tag}:log"]


def list_key(prefix: str, name: str) -> str:
    """
    The list of the keys that have a circuit of their own, beside the circuit that configures them.
    """
    return f"{_tag(prefix, name)}:keys"


def _tag(prefix: str, name: str) -> str:
    return f"{prefix}:{{{quote(split_key(name)[0], safe='')}}}"


def script_text(verb: str) -> str:
    """
    The whole text of a verb's script: constant, so that its SHA is too.
    """
    return "".join(map(part_text, script_parts(verb)))


def script_parts(verb: str) -> tuple[str, ...]:
    """
    The files a verb's script is made of, in order.
    """
    return (verb,) if verb in STANDALONE else ("_prelude", verb)


def part_text(part: str) -> str:
    """
    The text of one file.
    """
    return (resources.files("omni_tasks.store") / "lua" / f"{part}.lua").read_text(encoding="utf-8")


def circuit_from_reply(flat: object) -> Circuit:
    """
    Read ``HGETALL`` as a circuit, the way the scripts do: what cannot be read is its default.

    Raises:
        StoreReplyError: The reply is not a list of pairs.
    """
    if not isinstance(flat, list) or len(flat) % 2:
        raise StoreReplyError(f"a circuit's hash must be a list of field and value pairs, got {type(flat).__name__}")
    stored = {
        flat[i].decode("utf-8", "replace"): flat[i + 1].decode("utf-8", "replace") for i in range(0, len(flat), 2)
    }
    numbers: dict[str, Any] = {name: _integer(name, stored.get(name, "0")) for name in _INT_FIELDS}
    override = stored.get("override", "")
    return Circuit(
        state=_state(stored.get("state", "")) or CircuitState.CLOSED,
        override=Override(override) if override in list(Override) else Override.AUTO,
        **{name: stored.get(name, "") for name in _TEXT_FIELDS},
        **numbers,
    )


def log_from_reply(entries: object) -> list[LogRecord]:
    """
    Read the entries of a log; what somebody else has written between them is left out.

    Raises:
        StoreReplyError: The reply is not a list of entries.
    """
    if not isinstance(entries, list):
        raise StoreReplyError(f"a circuit's log must be a list of entries, got {type(entries).__name__}")
    records = []
    for _, flat in entries:
        texts_read = [text.decode("utf-8", "replace") for text in flat]
        stored = dict(zip(texts_read[::2], texts_read[1::2], strict=True))
        numbers: dict[str, Any] = {
            name: _integer(name, stored.get(name, "0")) for name in ("at_ms", "epoch", "failures", "ttl_ms")
        }
        texts = {name: stored.get(name, "") for name in ("kind", "reason", "action", "actor")}
        previous, current = (_state(stored.get(name, "")) for name in ("from", "to"))
        if texts["kind"] == "operator" or (texts["kind"] == "transition" and previous and current):
            records.append(LogRecord(previous=previous, current=current, **numbers, **texts))
    return records


def _state(text: str) -> CircuitState | None:
    return CircuitState(text) if text in list(CircuitState) else None


def _integer(field: str, text: str) -> int:
    try:
        number = math.floor(float(text))
    except (ValueError, OverflowError):
        return 0
    return number if (-CALL if field == "ramp_tokens" else 0) <= number <= FOREVER_MS else 0


def history_keys(prefix: str, name: str) -> list[str]:
    """
    What the monitor records about a circuit, in the circuit's own slot: notes, minutes, quarters of an hour.
    """
    tag = circuit_keys(prefix, name)[0].removesuffix(":circuit")
    return [f"{tag}:buckets", f"{tag}:minutes", f"{tag}:quarters"]


def monitor_key(prefix: str, name: str) -> str:
    """
    A key of the monitor's own; all of them are in one slot.
    """
    return f"{prefix}:{{monitor}}:{name}"


def alerts_key(prefix: str) -> str:
    """
    The hash of alerts whose episode is going on: ``rule:circuit`` -> the episode, JSON.
    """
    return monitor_key(prefix, "alerts")


def revoked_key(prefix: str) -> str:
    """
    The sorted set of what was revoked while tasks are held: ``id:...`` or ``stamp:...`` -> when it may be forgotten.
    """
    return f"{prefix}:revoked"


def command_key(prefix: str, digest: str) -> str:
    """
    What says, for some seconds, that a worker has carried out the command of that digest.
    """
    return f"{prefix}:command:{digest}"


def hold_key(prefix: str, words: str) -> str:
    """
    What names the one task of that ``hold_key`` that is held.
    """
    return f"{prefix}:hold:{quote(words, safe='')}"
