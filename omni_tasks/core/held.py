"""
The held tasks' way back: how many may leave now.

Twin: ``store/lua/draw.lua``.
"""

from __future__ import annotations

from dataclasses import replace

from omni_tasks.core.model import Circuit, CircuitState, Draw, Override
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.core.ramp import CALL, bucket, fill_ramp, start_ramp, stop_ramp, take
from omni_tasks.core.steps import adopt, ticket, transition
from omni_tasks.core.waits import tidy

__all__ = ["draw"]

#: How long held tasks that were sent out may take to reach a worker's gate before they count as lost.
DRAWN_MS = 1000


def draw(circuit: Circuit, config: CircuitBreakerConfig, *, wanted: int, now_ms: int) -> tuple[Circuit, Draw]:
    """
    Decide how many held tasks may return to their queues now, and pay for their starts.

    Args:
        circuit: The circuit as the store last saw it.

        config: What it is configured to do.

        wanted: Tasks held, >= 0.  With 0 there is nothing left to pace: a circuit that has
            not failed since it closed drops its ramp.

        now_ms: Unix time from the *store's* clock.

    Returns:
        The circuit to store and how many may go.
    """
    before = circuit.effective_state
    circuit, policy = adopt(circuit, config)
    circuit = tidy(circuit, policy, now_ms)
    count, on_the_way = 0, circuit.drawn if 0 <= now_ms - circuit.drawn_ms < DRAWN_MS else 0
    if circuit.effective_state is CircuitState.CLOSED:
        if wanted == 0 and circuit.failures == 0:
            circuit, on_the_way = stop_ramp(circuit), 0
        elif wanted and not circuit.ramp_rate_mps:
            # Closed by the operator's word, or the store forgot: the held tasks must still not return as one wave.
            circuit = start_ramp(circuit, rate_mps=policy.ramp_initial_mps, now_ms=now_ms)
        circuit = fill_ramp(circuit, now_ms)
        # What workers do not start yet stays here: in the queue it would keep others waiting.
        room = bucket(circuit) // CALL - on_the_way
        count = max(min(wanted, circuit.ramp_tokens // CALL, room), 0)
        circuit = take(circuit, count)
    elif circuit.override is Override.AUTO and now_ms >= circuit.open_until_ms:
        count = max(min(wanted, policy.half_open_max_calls - len(circuit.probes) - on_the_way), 0)
    circuit = replace(circuit, drawn=on_the_way + count)
    if count:
        circuit = replace(circuit, drawn_ms=now_ms)
    return circuit, Draw(
        count=count,
        ticket=ticket(circuit),
        state=circuit.effective_state,
        ramping=circuit.ramp_rate_mps > 0,
        transition=transition(before, circuit),
    )
