"""
The quiet circuit: closed, with no failure in a row, no ramp and no rule over a rate.

A call that succeeds in it changes nothing but counts.  So the circuit says in one short word that it is quiet, and
for whom; a busy process reads the word before each call and tells of many calls at once, afterwards.

Twin: ``store/lua/_prelude.lua``, mark(); ``store/lua/tally.lua``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from omni_tasks.core import durations
from omni_tasks.core.model import Circuit, CircuitState, Override
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.core.steps import adopt, permit_key
from omni_tasks.core.waits import lapse

__all__ = ["Told", "marked", "tally"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """
    What a process tells of the calls it let in while the circuit was quiet.

    Attributes:
        gen: The incarnation that was quiet.

        epoch: The epoch that was.

        running: Calls that run still: permit id -> the lease asked for, ms; 0 for the circuit's own.

        succeeded: Calls that have ended, each of them well.

        slow: How many of these were slow.

        took_ms: How long they took together.

        durations: How many took how long, as :mod:`omni_tasks.core.durations` writes it.
    """

    gen: str
    epoch: int
    running: Mapping[str, int] = field(default_factory=dict)
    succeeded: int = 0
    slow: int = 0
    took_ms: int = 0
    durations: str = ""


def marked(circuit: Circuit, config: CircuitBreakerConfig) -> Circuit:
    """
    Let the circuit say ``"epoch gen"`` while a success changes nothing but counts; else nothing.
    """
    policy = config.policy.or_newer(circuit.policy)
    calm = (
        circuit.gen
        and circuit.state is CircuitState.CLOSED
        and circuit.override is Override.AUTO
        and not circuit.failures
        and not circuit.ramp_rate_mps
        and not policy.failure_rate_ppm
        and not policy.slow_rate_ppm
    )
    return replace(circuit, quiet=f"{circuit.epoch} {circuit.gen}" if calm else "")


def tally(circuit: Circuit, config: CircuitBreakerConfig, told: Told, *, now_ms: int) -> Circuit:
    """
    Count calls that were let in while the circuit was quiet; what runs still gets its permit.

    Whatever has happened since, this changes no state and ends no override: the calls of an earlier epoch are
    counted and no more, those of an earlier incarnation are stale, and a window that a newer configuration has
    opened does not see them.  A row of failures goes on: it has begun after all of these calls, for there was none
    when they were let in.
    """
    if told.gen != circuit.gen:
        return replace(circuit, stale=circuit.stale + told.succeeded) if circuit.gen else circuit
    circuit, policy = adopt(circuit, config)
    circuit = lapse(circuit, policy, now_ms)
    permits = {
        permit_key(told.epoch, permit_id): now_ms + max(lease_ms, policy.longest_lease_ms)
        for permit_id, lease_ms in told.running.items()
    }
    fresh = len(permits.keys() - circuit.calls.keys())
    circuit = replace(circuit, calls={**permits, **circuit.calls}, admitted=circuit.admitted + fresh)
    if not told.succeeded:
        return circuit
    return replace(
        circuit,
        admitted=circuit.admitted + told.succeeded,
        succeeded=circuit.succeeded + told.succeeded,
        successes_in_a_row=circuit.successes_in_a_row + told.succeeded,
        slow=circuit.slow + told.slow,
        took_ms=circuit.took_ms + told.took_ms,
        durations=durations.merged(circuit.durations, told.durations) if told.took_ms else circuit.durations,
        last_success_ms=now_ms,
    )
