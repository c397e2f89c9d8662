"""
The operator's words: each is followed once, at once and in the whole cluster.

Twin: ``store/lua/force.lua`` and ``store/lua/reset.lua``.
"""

from __future__ import annotations

import re
from dataclasses import replace

from omni_tasks.core.model import FOREVER_MS, Circuit, CircuitState, Override, Transition, Word
from omni_tasks.core.steps import transition

__all__ = ["force", "reset"]

_LAST_OP = re.compile(r"(closed|open|half_open) (closed|open|half_open) ([0-9]{1,14}) ([0-9]{1,14}) (.*)", re.DOTALL)


def force(
    circuit: Circuit, override: Override, word: Word, *, ttl_ms: int, now_ms: int
) -> tuple[Circuit, Transition | None]:
    """
    Follow the operator's word until *ttl_ms* have passed; 0 means until the next word.

    The same word again, by its id, with no other word in between, changes nothing and gets the same answer.
    """
    if known := _known(circuit, word):
        return circuit, _answer(known, word)
    before = circuit.effective_state
    until_ms = now_ms + ttl_ms if ttl_ms else FOREVER_MS
    circuit = replace(
        circuit,
        gen=circuit.gen or word.op_id,
        epoch=circuit.epoch + 1,
        override=override,
        override_until_ms=0 if override is Override.AUTO else until_ms,
        changed_at_ms=now_ms,
    )
    return _remember(circuit, before, word), transition(before, circuit, word.reason)


def reset(circuit: Circuit, word: Word, *, now_ms: int) -> tuple[Circuit, Transition | None]:
    """
    Close the circuit and clear everything it has counted; only its identity goes on.

    The same word again, by its id, with no other word in between, changes nothing and gets the same answer.
    """
    if known := _known(circuit, word):
        return circuit, _answer(known, word)
    before = circuit.effective_state
    fresh = Circuit(gen=circuit.gen or word.op_id, epoch=circuit.epoch + 1, changed_at_ms=now_ms)
    return _remember(fresh, before, word), transition(before, fresh, word.reason)


def _remember(circuit: Circuit, before: CircuitState, word: Word) -> Circuit:
    answer = f"{before} {circuit.effective_state} {circuit.epoch} {circuit.failures} {word.op_id}"
    return replace(circuit, last_op=answer)


def _known(circuit: Circuit, word: Word) -> re.Match[str] | None:
    last = _LAST_OP.fullmatch(circuit.last_op)
    return last if last and last[5] == word.op_id else None


def _answer(known: re.Match[str], word: Word) -> Transition | None:
    before, after = CircuitState(known[1]), CircuitState(known[2])
    if before is after:
        return None
    return Transition(previous=before, current=after, epoch=int(known[3]), failures=int(known[4]), reason=word.reason)
