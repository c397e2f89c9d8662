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

from omni_tasks.core.model import FOREVER_MS, Circuit, CircuitState, Override
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.core.ramp import CALL
from omni_tasks.errors import StoreReplyError

__all__ = ["STANDALONE", "VERBS", "alerts_key", "circuit_from_reply", "circuit_keys", "policy_arguments", "script_text"]

#: One script a verb; file name = verb = store method.
VERBS = ("acquire", "settle", "draw", "force", "reset")

#: Scripts that do not take the prelude in front.
STANDALONE = ("snapshot",)

_TEXT_FIELDS = frozenset({"gen", "state", "override", "window"})
_INT_FIELDS = tuple(f.name for f in fields(Circuit) if f.name not in _TEXT_FIELDS | {"calls", "probes"})


def circuit_keys(prefix: str, name: str) -> list[str]:
    """
    The three keys of a circuit, in the order the scripts declare them.

    The name is percent-encoded, so different names never share a key and no
    name can break out of the hash tag that keeps the three in one slot.
    """
    tag = f"{prefix}:{{{quote(name, safe='')}}}"
    return [f"{tag}:circuit", f"{tag}:calls", f"{tag}:probes"]


def policy_arguments(config: CircuitBreakerConfig) -> list[int]:
    """
    ARGV[2..15] of every script that takes the prelude.
    """
    return [
        config.failure_limit,
        config.recovery_ms,
        config.longest_open_ms,
        config.backoff_permille,
        config.half_open_max_calls,
        config.success_threshold,
        config.probe_lease_ms,
        config.longest_lease_ms,
        config.ramp_initial_mps,
        config.failure_rate_ppm,
        config.slow_rate_ppm,
        config.minimum_calls,
        config.window_calls,
        config.window_ms,
    ]


def script_text(verb: str) -> str:
    """
    The whole text of a verb's script: constant, so that its SHA is too.
    """
    folder = resources.files("omni_tasks.store") / "lua"
    text = (folder / f"{verb}.lua").read_text(encoding="utf-8")
    if verb in STANDALONE:
        return text
    return (folder / "_prelude.lua").read_text(encoding="utf-8") + text


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
    state, override = stored.get("state", ""), stored.get("override", "")
    return Circuit(
        gen=stored.get("gen", ""),
        window=stored.get("window", ""),
        state=CircuitState(state) if state in list(CircuitState) else CircuitState.CLOSED,
        override=Override(override) if override in list(Override) else Override.AUTO,
        **numbers,
    )


def _integer(field: str, text: str) -> int:
    try:
        number = math.floor(float(text))
    except (ValueError, OverflowError):
        return 0
    return number if (-CALL if field == "ramp_tokens" else 0) <= number <= FOREVER_MS else 0


def alerts_key(prefix: str) -> str:
    """
    The hash of alerts whose episode is going on: ``rule:circuit`` -> detail.
    """
    return f"{prefix}:alerts"
