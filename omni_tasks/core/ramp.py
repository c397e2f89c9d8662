"""
The paced return: how fast tasks may start after the circuit has closed.

Held tasks that return all at once knock the dependency down again; the ramp is
a token bucket whose rate is found the way TCP finds a path's: it doubles every
second while calls succeed, steps back on a counted failure, and from then on
creeps up from just below the rate that failed.  Rates are thousandths of a call
per second, tokens millionths of a call, so a millisecond at rate *r* earns
exactly *r* tokens and nothing is ever rounded.

Twin: ``store/lua/_prelude.lua``, the functions of the same names.
"""

from __future__ import annotations

from dataclasses import replace

from omni_tasks.core.model import Circuit

__all__ = [
    "CALL",
    "bound_ramp",
    "bucket",
    "cut_ramp",
    "fill_ramp",
    "grow_ramp",
    "is_easing",
    "start_ramp",
    "stop_ramp",
    "take",
]

#: Tokens that one start costs.
CALL = 1_000_000

#: Most starts the bucket saves up, as the time it takes to earn them.
BUCKET_MS = 200

#: One step back at most in this time: failures of one burst are one piece of news.
CUT_PAUSE_MS = 500

#: What a step back leaves of the rate, and where slow growth begins, in percent of the rate that failed.
CUT_PERCENT = 70
CEILING_PERCENT = 85

#: Past the ceiling the rate grows by this much of it per second.
CREEP_PERMILLE = 20

#: Faster than any cluster starts tasks: here the ramp limits nothing any more, and ends.
FASTEST_MPS = 10_000_000


def start_ramp(circuit: Circuit, *, rate_mps: int, now_ms: int) -> Circuit:
    """
    Begin at *rate_mps*, with one start in hand; a ceiling learned earlier is kept.
    """
    return replace(circuit, ramp_rate_mps=rate_mps, ramp_tokens=CALL, ramp_filled_ms=now_ms, ramp_cut_ms=0)


def bound_ramp(circuit: Circuit, *, least_mps: int) -> Circuit:
    """
    Keep a stored ramp within its bounds, which the configuration may have moved.
    """
    if not circuit.ramp_rate_mps:
        return circuit
    return replace(
        circuit,
        ramp_rate_mps=min(max(circuit.ramp_rate_mps, least_mps), FASTEST_MPS),
        ramp_tokens=max(circuit.ramp_tokens, -CALL),
    )


def stop_ramp(circuit: Circuit) -> Circuit:
    """
    Let calls start freely again and forget what was learned.
    """
    return replace(circuit, ramp_rate_mps=0, ramp_tokens=0, ramp_ceiling_mps=0)


def bucket(circuit: Circuit) -> int:
    """
    Most tokens that are saved up.  Also the worth of the held tasks that may be on their way to a gate.
    """
    return max(CALL, circuit.ramp_rate_mps * BUCKET_MS)


def fill_ramp(circuit: Circuit, now_ms: int) -> Circuit:
    """
    Add what was earned since the last look.  A clock that stepped back earns nothing.
    """
    if not circuit.ramp_rate_mps:
        return circuit
    # Enough to fill any bucket, and far from overflowing.
    elapsed_ms = min(max(now_ms - circuit.ramp_filled_ms, 0), 10_000)
    tokens = min(circuit.ramp_tokens + elapsed_ms * circuit.ramp_rate_mps, bucket(circuit))
    return replace(circuit, ramp_tokens=tokens, ramp_filled_ms=now_ms)


def take(circuit: Circuit, starts: int) -> Circuit:
    """
    Spend tokens for *starts*.  A caller that may not be refused goes into a bounded debt.
    """
    if not circuit.ramp_rate_mps:
        return circuit
    return replace(circuit, ramp_tokens=max(circuit.ramp_tokens - starts * CALL, -CALL))


def grow_ramp(circuit: Circuit) -> Circuit:
    """
    Go faster, because a call has succeeded; but not faster than the workers start what is drawn.
    """
    rate = circuit.ramp_rate_mps
    if not rate or circuit.drawn * CALL >= bucket(circuit):
        return circuit
    ceiling = circuit.ramp_ceiling_mps
    if ceiling and rate >= ceiling:
        # At *rate* successes a second this adds up to the creep per second.
        rate += max(500, ceiling * CREEP_PERMILLE // 1000) * 1000 // rate
    else:
        rate += 1000
    return replace(circuit, ramp_rate_mps=rate) if rate < FASTEST_MPS else stop_ramp(circuit)


def is_easing(circuit: Circuit, now_ms: int) -> bool:
    """
    Whether a step back cannot have shown yet what it does.

    While held tasks return, what fails right after it was started at the pace before it: our own doing, and no
    reason to trip.
    """
    if not circuit.ramp_rate_mps or now_ms < max(circuit.ramp_cut_ms, circuit.drawn_ms):
        return False
    return now_ms - min(circuit.ramp_cut_ms, circuit.drawn_ms) < CUT_PAUSE_MS


def cut_ramp(circuit: Circuit, *, least_mps: int, now_ms: int) -> Circuit:
    """
    Step back, because a call has failed.
    """
    rate = circuit.ramp_rate_mps
    if not rate or 0 <= now_ms - circuit.ramp_cut_ms < CUT_PAUSE_MS:
        return circuit
    return replace(
        circuit,
        ramp_rate_mps=max(least_mps, rate * CUT_PERCENT // 100),
        ramp_ceiling_mps=max(least_mps, rate * CEILING_PERCENT // 100),
        ramp_tokens=min(circuit.ramp_tokens, 0),
        ramp_cut_ms=now_ms,
    )
