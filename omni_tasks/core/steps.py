"""
What every rule of the circuit is made of: the policy in force, entering a state, naming a permit.

Twin: ``store/lua/_prelude.lua``, the functions of the same names.
"""

from __future__ import annotations

from dataclasses import replace

from omni_tasks.core.model import Circuit, CircuitState, Transition
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.core.wire import Policy

__all__ = ["adopt", "enter", "permit_key", "ticket", "transition"]


def adopt(circuit: Circuit, config: CircuitBreakerConfig) -> tuple[Circuit, Policy]:
    """
    Keep a configuration that is newer than any before it.

    Returns:
        The circuit, and the policy to decide by: a process that was not told of the new configuration
        yet decides by it all the same.
    """
    own = config.policy
    policy = own.or_newer(circuit.policy)
    kept = Policy.parse(circuit.policy)
    if policy.version > (kept.version if kept else 0):
        circuit = replace(circuit, policy=policy.text)
    return circuit, policy


def enter(circuit: Circuit, state: CircuitState, now_ms: int) -> Circuit:
    """
    Go to another state, and leave behind what belonged to the last one.
    """
    return replace(
        circuit,
        state=state,
        epoch=circuit.epoch + 1,
        changed_at_ms=now_ms,
        probe_successes=0,
        window="",
        # The held tasks that were sent out to probe are still on their way when the first one half-opens the circuit.
        drawn=circuit.drawn if state is CircuitState.HALF_OPEN else 0,
        ramp_rate_mps=0,
        ramp_tokens=0,
        opened=circuit.opened + (state is CircuitState.OPEN),
        half_opened=circuit.half_opened + (state is CircuitState.HALF_OPEN),
    )


def transition(before: CircuitState, circuit: Circuit, reason: str | None = None) -> Transition | None:
    """
    What has changed for callers since *before*, or ``None``; *reason* is the operator's, else the circuit's.
    """
    after = circuit.effective_state
    if before is after:
        return None
    return Transition(
        previous=before,
        current=after,
        epoch=circuit.epoch,
        failures=circuit.failures,
        reason=circuit.reason if reason is None else reason,
    )


def ticket(circuit: Circuit) -> str:
    """
    Name the present epoch of this incarnation.
    """
    return f"{circuit.gen}:{circuit.epoch}"


def permit_key(epoch: int, permit_id: str) -> str:
    """
    Name a permit together with the epoch that gave it.

    A question asked again later is a new one: the answer of an earlier epoch would let its call run, or
    its report count, as if nothing had happened in between.
    """
    return f"{epoch}:{permit_id}"
