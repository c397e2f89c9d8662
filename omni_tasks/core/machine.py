"""
The circuit's rules, as pure functions.

Nothing here reads a clock or opens a socket: time arrives as *now_ms* and every
function returns a new value.  The Redis store states the same rules in Lua
(``store/lua/*.lua``); ``tests/contract`` holds both to one set of cases.

The only legal arrows, besides the operator's::

    CLOSED --trip--> OPEN --recovery timeout--> HALF_OPEN --close--> CLOSED
                      ^                             |
                      +-----------reopen------------+

A state change is visible to its caller by comparing the state before with the
state after, so no rule has to remember to announce itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from omni_tasks.core import window
from omni_tasks.core.model import (
    FOREVER_MS,
    Admission,
    Circuit,
    CircuitState,
    Draw,
    Override,
    Permit,
    Request,
    Settlement,
    Transition,
)
from omni_tasks.core.outcome import Outcome, Report
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.core.ramp import CALL, bound_ramp, cut_ramp, fill_ramp, grow_ramp, start_ramp, stop_ramp, take

__all__ = ["acquire", "draw", "force", "reset", "retry_after", "settle"]

#: How long a held task that was sent out as a probe may take to reach a worker's gate
#: before another is sent.
DRAWN_MS = 1000


def acquire(
    circuit: Circuit, config: CircuitBreakerConfig, request: Request, *, now_ms: int
) -> tuple[Circuit, Admission]:
    """
    Decide whether one more call may run.

    Args:
        circuit: The circuit as the store last saw it.

        config: What it is configured to do.

        request: The call's question.

        now_ms: Unix time from the *store's* clock.

    Returns:
        The circuit to store and the answer.
    """
    before = circuit.effective_state
    if not circuit.gen:
        # The first question, or the first after the state was lost: old permits do not match it.
        circuit = replace(circuit, gen=request.permit_id, changed_at_ms=now_ms)
    circuit = _tidy(circuit, config, now_ms)
    circuit, permit = _grant(circuit, config, request, now_ms)
    if permit is None:
        circuit = replace(circuit, rejected=circuit.rejected + 1)
    return circuit, Admission(
        permit=permit,
        state=circuit.effective_state,
        retry_after_ms=0 if permit else retry_after(circuit, config, now_ms=now_ms),
        transition=_transition(before, circuit),
    )


def _grant(
    circuit: Circuit, config: CircuitBreakerConfig, request: Request, now_ms: int
) -> tuple[Circuit, Permit | None]:
    permit_id = request.permit_id
    if permit_id in circuit.calls or permit_id in circuit.probes:
        # The same question again: its first answer got lost on the way.
        return circuit, Permit(permit_id, circuit.gen, circuit.epoch, permit_id in circuit.probes)
    if circuit.override is Override.FORCED_OPEN:
        return circuit, None
    if circuit.effective_state is CircuitState.CLOSED:
        return _grant_call(circuit, config, request, now_ms)
    if circuit.state is CircuitState.OPEN:
        if now_ms < circuit.open_until_ms:
            return circuit, None
        circuit = _enter(circuit, CircuitState.HALF_OPEN, now_ms)
    if len(circuit.probes) >= config.half_open_max_calls:
        return circuit, None
    lease_ms = min(request.lease_ms or config.probe_lease_ms, config.longest_lease_ms)
    probes = {**circuit.probes, permit_id: now_ms + lease_ms}
    circuit = replace(circuit, probes=probes, admitted=circuit.admitted + 1, drawn=max(circuit.drawn - 1, 0))
    return circuit, Permit(permit_id, circuit.gen, circuit.epoch, probe=True)


def _grant_call(
    circuit: Circuit, config: CircuitBreakerConfig, request: Request, now_ms: int
) -> tuple[Circuit, Permit | None]:
    if request.ticket != _ticket(circuit):
        circuit = fill_ramp(circuit, now_ms)
        # Where the operator says "closed", fresh calls are not refused; held tasks still leave along the ramp.
        paced = request.paced and circuit.override is Override.AUTO
        if paced and circuit.ramp_rate_mps and circuit.ramp_tokens < CALL:
            return circuit, None
        circuit = take(circuit, 1)
    lease_ms = max(request.lease_ms, config.longest_lease_ms)
    calls = {**circuit.calls, request.permit_id: now_ms + lease_ms}
    circuit = replace(circuit, calls=calls, admitted=circuit.admitted + 1)
    return circuit, Permit(request.permit_id, circuit.gen, circuit.epoch, probe=False)


def settle(
    circuit: Circuit, config: CircuitBreakerConfig, permit: Permit, report: Report, *, now_ms: int
) -> tuple[Circuit, Settlement]:
    """
    Take a finished call's report.

    A report counts once, and only while its permit is held.  It can change the
    state only in the epoch that gave the permit: a late success never closes
    and a late failure never extends.

    Returns:
        The circuit to store and what the report did.
    """
    before = circuit.effective_state
    if permit.id not in circuit.calls and permit.id not in circuit.probes:
        if circuit.gen:
            circuit = replace(circuit, stale=circuit.stale + 1)
        return circuit, Settlement(applied=False, state=before, retry_after_ms=_open_ms(circuit, now_ms))
    circuit = replace(circuit, calls=_without(circuit.calls, permit.id), probes=_without(circuit.probes, permit.id))
    slow = bool(config.slow_ms) and report.duration_ms >= config.slow_ms
    circuit = _count(circuit, report.outcome, now_ms, slow=slow)
    if report.outcome is not Outcome.IGNORED and (permit.gen, permit.epoch) == (circuit.gen, circuit.epoch):
        if circuit.state is CircuitState.CLOSED:
            circuit = _while_closed(circuit, config, report, now_ms, slow=slow)
        elif permit.probe and circuit.state is CircuitState.HALF_OPEN:
            # A question asked again after its epoch is answered with the present one, which may be open.
            circuit = _while_probing(circuit, config, report, now_ms, slow=slow)
        elif circuit.effective_state is CircuitState.CLOSED:
            # Let through by the operator's word: evidence for the ramp, not for the state.
            failed = report.outcome is Outcome.FAILURE
            circuit = (
                cut_ramp(circuit, least_mps=config.ramp_initial_mps, now_ms=now_ms) if failed else grow_ramp(circuit)
            )
    return circuit, Settlement(
        applied=True,
        state=circuit.effective_state,
        retry_after_ms=_open_ms(circuit, now_ms),
        transition=_transition(before, circuit),
    )


def _count(circuit: Circuit, outcome: Outcome, now_ms: int, *, slow: bool) -> Circuit:
    if outcome is Outcome.IGNORED:
        return replace(circuit, ignored=circuit.ignored + 1)
    circuit = replace(circuit, slow=circuit.slow + slow)
    if outcome is Outcome.FAILURE:
        return replace(circuit, failed=circuit.failed + 1, successes_in_a_row=0, last_failure_ms=now_ms)
    return replace(
        circuit,
        succeeded=circuit.succeeded + 1,
        successes_in_a_row=circuit.successes_in_a_row + 1,
        last_success_ms=now_ms,
    )


def _while_closed(
    circuit: Circuit, config: CircuitBreakerConfig, report: Report, now_ms: int, *, slow: bool
) -> Circuit:
    failed = report.outcome is Outcome.FAILURE
    circuit = replace(circuit, failures=circuit.failures + 1 if failed else 0)
    if config.failure_rate_ppm or config.slow_rate_ppm:
        recent = window.record(circuit.window, config, failed=failed, slow=slow, now_ms=now_ms)
        circuit = replace(circuit, window=recent)
    if _trips(circuit, config, now_ms):
        return _open(replace(circuit, tripped_at_ms=now_ms), config, report, now_ms)
    return cut_ramp(circuit, least_mps=config.ramp_initial_mps, now_ms=now_ms) if failed else grow_ramp(circuit)


def _trips(circuit: Circuit, config: CircuitBreakerConfig, now_ms: int) -> bool:
    if config.failure_limit and circuit.failures >= config.failure_limit:
        return True
    if not circuit.window:
        return False
    counts = window.count(circuit.window, config, now_ms=now_ms)
    if counts.calls < config.minimum_calls:
        return False
    return _reaches(counts.failed, counts.calls, config.failure_rate_ppm) or _reaches(
        counts.slow, counts.calls, config.slow_rate_ppm
    )


def _reaches(bad: int, calls: int, rate_ppm: int) -> bool:
    # Whole numbers on both sides: a rate is compared exactly.
    return rate_ppm > 0 and bad * 1_000_000 >= rate_ppm * calls


def _while_probing(
    circuit: Circuit, config: CircuitBreakerConfig, report: Report, now_ms: int, *, slow: bool
) -> Circuit:
    if report.outcome is Outcome.FAILURE or (slow and config.slow_rate_ppm):
        circuit = replace(circuit, failures=circuit.failures + 1, reopens=circuit.reopens + 1)
        return _open(circuit, config, report, now_ms)
    circuit = replace(circuit, probe_successes=circuit.probe_successes + 1)
    if circuit.probe_successes < config.success_threshold:
        return circuit
    circuit = _enter(replace(circuit, failures=0, reopens=0, tripped_at_ms=0), CircuitState.CLOSED, now_ms)
    return start_ramp(circuit, rate_mps=config.ramp_initial_mps, now_ms=now_ms)


def _open(circuit: Circuit, config: CircuitBreakerConfig, report: Report, now_ms: int) -> Circuit:
    open_ms = config.recovery_ms
    for _ in range(circuit.reopens):
        longer_ms = open_ms * config.backoff_permille // 1000
        # Many reopenings must not take many steps: not past the cap, and not where a step adds nothing.
        if longer_ms == open_ms or open_ms >= config.longest_open_ms:
            break
        open_ms = longer_ms
    # A Retry-After can only make the wait longer.
    open_ms = min(max(open_ms, report.retry_after_ms), config.longest_open_ms)
    circuit = _enter(circuit, CircuitState.OPEN, now_ms)
    return replace(circuit, opened_at_ms=now_ms, open_until_ms=now_ms + open_ms)


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
    circuit = _tidy(circuit, config, now_ms)
    count = 0
    if circuit.effective_state is CircuitState.CLOSED:
        if wanted == 0 and circuit.failures == 0:
            circuit = stop_ramp(circuit)
        elif wanted and not circuit.ramp_rate_mps:
            # Closed by the operator's word, or the store forgot: the held tasks must still not return as one wave.
            circuit = start_ramp(circuit, rate_mps=config.ramp_initial_mps, now_ms=now_ms)
        circuit = fill_ramp(circuit, now_ms)
        count = min(wanted, max(circuit.ramp_tokens, 0) // CALL)
        circuit = take(circuit, count)
    elif circuit.override is Override.AUTO and now_ms >= circuit.open_until_ms:
        on_the_way = circuit.drawn if 0 <= now_ms - circuit.drawn_ms < DRAWN_MS else 0
        count = max(min(wanted, config.half_open_max_calls - len(circuit.probes) - on_the_way), 0)
        if count:
            circuit = replace(circuit, drawn=on_the_way + count, drawn_ms=now_ms)
    return circuit, Draw(
        count=count,
        ticket=_ticket(circuit),
        state=circuit.effective_state,
        ramping=circuit.ramp_rate_mps > 0,
        transition=_transition(before, circuit),
    )


def force(
    circuit: Circuit, override: Override, *, ttl_ms: int, op_id: str, now_ms: int
) -> tuple[Circuit, Transition | None]:
    """
    Follow the operator's word until *ttl_ms* have passed; 0 means until the next word.
    """
    before = circuit.effective_state
    until_ms = now_ms + ttl_ms if ttl_ms else FOREVER_MS
    circuit = replace(
        circuit,
        gen=circuit.gen or op_id,
        epoch=circuit.epoch + 1,
        override=override,
        override_until_ms=0 if override is Override.AUTO else until_ms,
        changed_at_ms=now_ms,
    )
    return circuit, _transition(before, circuit)


def reset(circuit: Circuit, *, op_id: str, now_ms: int) -> tuple[Circuit, Transition | None]:
    """
    Close the circuit and clear everything it has counted; only its identity goes on.
    """
    fresh = Circuit(gen=circuit.gen or op_id, epoch=circuit.epoch + 1, changed_at_ms=now_ms)
    return fresh, _transition(circuit.effective_state, fresh)


def retry_after(circuit: Circuit, config: CircuitBreakerConfig, *, now_ms: int) -> int:
    """
    Milliseconds, > 0, until asking again can help.
    """
    if circuit.override is Override.FORCED_OPEN:
        endless = circuit.override_until_ms == FOREVER_MS
        left = config.recovery_ms if endless else circuit.override_until_ms - now_ms
    elif circuit.effective_state is CircuitState.CLOSED:
        # Refused by the ramp: the time to earn one start.
        left = -(-(CALL - circuit.ramp_tokens) // max(circuit.ramp_rate_mps, 1))
    elif circuit.state is CircuitState.OPEN:
        left = circuit.open_until_ms - now_ms
    else:
        left = min(min(circuit.probes.values(), default=now_ms) - now_ms, config.recovery_ms)
    return min(max(left, 1), config.longest_open_ms)


def _tidy(circuit: Circuit, config: CircuitBreakerConfig, now_ms: int) -> Circuit:
    """
    Do what time alone brings about: leases end, an override ends, a clock step is taken back.
    """
    circuit = bound_ramp(_bound_waits(circuit, config, now_ms), least_mps=config.ramp_initial_mps)
    if circuit.override is not Override.AUTO and now_ms >= circuit.override_until_ms:
        circuit = replace(circuit, override=Override.AUTO, override_until_ms=0, epoch=circuit.epoch + 1)
    calls = {permit: deadline for permit, deadline in circuit.calls.items() if deadline > now_ms}
    expired = circuit.expired + len(circuit.calls) - len(calls)
    # A worker that died mid-probe never reports: its lease frees the slot, and proves nothing.  One that
    # is only slow still may, as long as the epoch is the same.
    furthest_ms = now_ms + config.longest_lease_ms
    lapsed = {permit: furthest_ms for permit, deadline in circuit.probes.items() if deadline <= now_ms}
    probes = {permit: min(deadline, furthest_ms) for permit, deadline in circuit.probes.items() if permit not in lapsed}
    return replace(circuit, probes=probes, calls={**calls, **lapsed}, expired=expired)


def _bound_waits(circuit: Circuit, config: CircuitBreakerConfig, now_ms: int) -> Circuit:
    """
    Keep every wait within its own length from now, wherever the server's clock has stepped to.
    """
    if circuit.override is not Override.AUTO and circuit.override_until_ms != FOREVER_MS:
        override_ms = circuit.override_until_ms - circuit.changed_at_ms
        circuit = replace(circuit, override_until_ms=min(circuit.override_until_ms, now_ms + override_ms))
    open_ms = min(circuit.open_until_ms - circuit.opened_at_ms, config.longest_open_ms)
    return replace(
        circuit,
        changed_at_ms=min(circuit.changed_at_ms, now_ms),
        opened_at_ms=min(circuit.opened_at_ms, now_ms),
        open_until_ms=min(circuit.open_until_ms, now_ms + open_ms),
    )


def _enter(circuit: Circuit, state: CircuitState, now_ms: int) -> Circuit:
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


def _transition(before: CircuitState, circuit: Circuit) -> Transition | None:
    after = circuit.effective_state
    if before is after:
        return None
    return Transition(previous=before, current=after, epoch=circuit.epoch, failures=circuit.failures)


def _open_ms(circuit: Circuit, now_ms: int) -> int:
    return max(circuit.open_until_ms - now_ms, 0) if circuit.state is CircuitState.OPEN else 0


def _ticket(circuit: Circuit) -> str:
    return f"{circuit.gen}:{circuit.epoch}"


def _without(permits: Mapping[str, int], permit_id: str) -> Mapping[str, int]:
    return {permit: deadline for permit, deadline in permits.items() if permit != permit_id}
