"""
Everything that ends by itself: open times, leases, overrides; and how long it still takes.

Twin: ``store/lua/_prelude.lua`` and ``store/lua/settle.lua``, the functions of the same names.
"""

from __future__ import annotations

from dataclasses import replace

from omni_tasks.core.model import FOREVER_MS, Circuit, CircuitState, Override
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.core.ramp import CALL, bound_ramp
from omni_tasks.core.steps import ticket
from omni_tasks.core.wire import Policy

__all__ = ["chance", "lapse", "left_open", "open_time", "retry_after", "tidy"]


def open_time(circuit: Circuit, policy: Policy, *, retry_after_ms: int) -> int:
    """
    How long a circuit that has just opened stays open, in ms.

    The recovery timeout, backed off; the dependency's own Retry-After if that is longer; lengthened by
    chance; capped.
    """
    open_ms = policy.recovery_ms
    for _ in range(circuit.reopens):
        longer_ms = open_ms * policy.backoff_permille // 1000
        # Many reopenings must not take many steps: not past the cap, and not where a step adds nothing.
        if longer_ms == open_ms or open_ms >= policy.longest_open_ms:
            break
        open_ms = longer_ms
    # A Retry-After can only make the wait longer.
    open_ms = min(max(open_ms, retry_after_ms), policy.longest_open_ms)
    if policy.jitter_permille:
        open_ms += open_ms * policy.jitter_permille * chance(circuit) // 1_000_000
    return min(open_ms, policy.longest_open_ms)


def chance(circuit: Circuit) -> int:
    """
    A number from 0 to 1000 that looks like chance and is the same wherever it is asked for in one epoch.
    """
    mixed = 0
    for byte in ticket(circuit).encode(errors="surrogateescape"):
        mixed = (mixed * 69_069 + byte) % 2**32
    # Epochs differ in their last digit: it must reach the high bits too.
    for _ in range(2):
        mixed = (mixed * 69_069 + 1) % 2**32
    return mixed * 1001 // 2**32


def left_open(circuit: Circuit, now_ms: int) -> int:
    """
    Milliseconds the circuit stays open from now; 0 unless it is open.
    """
    return max(circuit.open_until_ms - now_ms, 0) if circuit.state is CircuitState.OPEN else 0


def retry_after(circuit: Circuit, config: CircuitBreakerConfig, *, now_ms: int) -> int:
    """
    Milliseconds, > 0, until asking again can help.
    """
    policy = config.policy.or_newer(circuit.policy)
    if circuit.override is Override.FORCED_OPEN:
        endless = circuit.override_until_ms == FOREVER_MS
        left = policy.recovery_ms if endless else circuit.override_until_ms - now_ms
    elif circuit.effective_state is CircuitState.CLOSED:
        # Refused by the ramp: the time to earn one start.
        left = -(-(CALL - circuit.ramp_tokens) // max(circuit.ramp_rate_mps, 1))
    elif circuit.state is CircuitState.OPEN:
        left = circuit.open_until_ms - now_ms
    else:
        left = min(min(circuit.probes.values(), default=now_ms) - now_ms, policy.recovery_ms)
    return min(max(left, 1), policy.longest_open_ms)


def tidy(circuit: Circuit, policy: Policy, now_ms: int) -> Circuit:
    """
    Do what time alone brings about: leases end, an override ends, a clock step is taken back.
    """
    circuit = bound_ramp(_bound_waits(circuit, policy, now_ms), least_mps=policy.ramp_initial_mps)
    if circuit.override is not Override.AUTO and now_ms >= circuit.override_until_ms:
        circuit = replace(circuit, override=Override.AUTO, override_until_ms=0, epoch=circuit.epoch + 1)
    return lapse(circuit, policy, now_ms)


def lapse(circuit: Circuit, policy: Policy, now_ms: int) -> Circuit:
    """
    End the leases whose time has come.
    """
    calls = {permit: deadline for permit, deadline in circuit.calls.items() if deadline > now_ms}
    expired = circuit.expired + len(circuit.calls) - len(calls)
    # A worker that died mid-probe never reports: its lease frees the slot, and proves nothing.  One that
    # is only slow still may, as long as the epoch is the same.
    furthest_ms = now_ms + policy.longest_lease_ms
    lapsed = {permit: furthest_ms for permit, deadline in circuit.probes.items() if deadline <= now_ms}
    probes = {permit: min(deadline, furthest_ms) for permit, deadline in circuit.probes.items() if permit not in lapsed}
    return replace(circuit, probes=probes, calls={**calls, **lapsed}, expired=expired)


def _bound_waits(circuit: Circuit, policy: Policy, now_ms: int) -> Circuit:
    """
    Keep every wait within its own length from now, wherever the server's clock has stepped to.
    """
    if circuit.override is not Override.AUTO and circuit.override_until_ms != FOREVER_MS:
        override_ms = circuit.override_until_ms - circuit.changed_at_ms
        circuit = replace(circuit, override_until_ms=min(circuit.override_until_ms, now_ms + override_ms))
    open_ms = min(circuit.open_until_ms - circuit.opened_at_ms, policy.longest_open_ms)
    return replace(
        circuit,
        changed_at_ms=min(circuit.changed_at_ms, now_ms),
        closed_at_ms=min(circuit.closed_at_ms, now_ms),
        opened_at_ms=min(circuit.opened_at_ms, now_ms),
        open_until_ms=min(circuit.open_until_ms, now_ms + open_ms),
    )
