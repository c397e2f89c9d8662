"""
The search for an order of operations in which a single circuit would have given all of their answers.

The search of Wing and Gong with Lowe's memory: an operation may come next when none of those still to be placed had
returned before it was called; a set of placed operations that leads to the same circuit is looked at once.  What a
single circuit would answer is said by the pure machine.  Every operation brings its own instant, so the
specification reads no clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from enum import StrEnum

from omni_tasks.core import held, machine, operate
from omni_tasks.core.model import Circuit, Override, Permit, Request, Word
from omni_tasks.core.outcome import Report
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.core.quiet import marked
from omni_tasks.store.base import Reading

__all__ = ["Call", "Operation", "Verdict", "apply", "check", "seen_as"]

#: What changes a circuit, as :class:`Operation` has it.
Write = Request | tuple[Permit, Report] | int | tuple[Override | None, int, str]

_FIELDS = [field.name for field in fields(Circuit)]


class Verdict(StrEnum):
    """
    What is known about a history.
    """

    LINEARIZABLE = "linearizable"
    VIOLATION = "violation"
    #: The search was given up.
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """
    One question to one circuit.

    Attributes:
        asked: The acquire's request, the settle's permit and report, how many the draw wants, or the operator's word
            (its override, ``None`` for a reset, with its time to live in ms and its id); ``None`` for a reading.

        now_ms: The instant the client passes with it, Unix ms.
    """

    asked: Write | None
    now_ms: int


@dataclass(frozen=True, slots=True)
class Call:
    """
    One operation as its client saw it: both times of one monotonic clock, in ns, and the answer.
    """

    called_ns: int
    returned_ns: int
    operation: Operation
    answer: object


def apply(circuit: Circuit, config: CircuitBreakerConfig, operation: Operation) -> tuple[Circuit, object]:
    """
    Ask the pure machine.
    """
    asked, now_ms = operation.asked, operation.now_ms
    if asked is None:
        return circuit, Reading(
            circuit=replace(circuit, calls={}, probes={}),
            now_ms=now_ms,
            calls=len(circuit.calls),
            probes=len(circuit.probes),
            first_lease_ms=min(circuit.probes.values(), default=0),
        )
    circuit, answer = _write(circuit, config, asked, now_ms)
    return marked(circuit, config), answer


def _write(circuit: Circuit, config: CircuitBreakerConfig, asked: Write, now_ms: int) -> tuple[Circuit, object]:
    if isinstance(asked, Request):
        return machine.acquire(circuit, config, asked, now_ms=now_ms)
    if isinstance(asked, int):
        return held.draw(circuit, config, wanted=asked, now_ms=now_ms)
    if len(asked) == 2:
        return machine.settle(circuit, config, *asked, now_ms=now_ms)
    override, ttl_ms, op_id = asked
    if override is None:
        return operate.reset(circuit, Word(op_id=op_id), now_ms=now_ms)
    return operate.force(circuit, override, Word(op_id=op_id), ttl_ms=ttl_ms, now_ms=now_ms)


def check(history: Iterable[Call], config: CircuitBreakerConfig, *, most_states: int = 2_000_000) -> Verdict:
    """
    Look for an order, beginning with a circuit nobody has used.

    Args:
        history: Every operation on one circuit; each has returned.

        config: What the circuit was configured to do.

        most_states: After looking at so many circuits the search is given up.  >= 1.
    """
    calls = sorted(history, key=lambda call: call.called_ns)
    everything = (1 << len(calls)) - 1
    todo, seen = [(0, Circuit())], set[int]()
    while todo:
        placed, circuit = todo.pop()
        if placed == everything:
            return Verdict.LINEARIZABLE
        if len(seen) >= most_states:
            return Verdict.UNDECIDED
        # The stack turns them round: what returned first is tried first, and mostly did come first.
        for number in sorted(_next(calls, placed), key=lambda number: -calls[number].returned_ns):
            after, answer = apply(circuit, config, calls[number].operation)
            if answer != calls[number].answer:
                continue
            known = seen_as(placed | 1 << number, after)
            if known not in seen:
                seen.add(known)
                todo.append((placed | 1 << number, after))
    return Verdict.VIOLATION


def seen_as(placed: int, circuit: Circuit) -> int:
    """
    What is remembered of a step of the search: the calls that are placed, a bit each, and the circuit they leave.
    """
    # The hash alone, or a long search fills the memory.  Two steps that share one of 64 bits could only hide an order
    # and be reported; they cannot make one up.  As text, because the hash of a number wraps round after 61 bits.
    return hash((f"{placed:x}", _frozen(circuit)))


def _next(calls: list[Call], placed: int) -> list[int]:
    # Sorted by their calls: behind the first return of what is open, nothing can have been called before it.
    candidates, first_return_ns = list[int](), float("inf")
    # The lowest bit not set is the first operation still to be placed.
    for number in range((~placed & (placed + 1)).bit_length() - 1, len(calls)):
        if not placed >> number & 1:
            if calls[number].called_ns > first_return_ns:
                break
            candidates.append(number)
            first_return_ns = min(first_return_ns, calls[number].returned_ns)
    return candidates


def _frozen(circuit: Circuit) -> tuple[object, ...]:
    values = (getattr(circuit, name) for name in _FIELDS)
    return tuple(frozenset(value.items()) if isinstance(value, dict) else value for value in values)
