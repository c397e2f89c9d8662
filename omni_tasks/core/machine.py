"""
The circuit's rules, as pure functions: how a call is let through, and what its report does.

Nothing here reads a clock or opens a socket: time arrives as *now_ms* and every
function returns a new value.  The Redis store states the same rules in Lua
(``store/lua/*.lua``); ``tests/contract`` holds both to one set of cases.

The only legal arrows, besides the operator's::

    CLOSED --trip--> OPEN --recovery timeout--> HALF_OPEN --close--> CLOSED
                      ^                             |
                      +-----------reopen------------+

A state change is visible to its caller by comparing the state before with the
state after, so no rule has to remember to announce itself.

What ends by itself is in :mod:`omni_tasks.core.waits`, the operator's words in
:mod:`omni_tasks.core.operate`, the held tasks' return in :mod:`omni_tasks.core.held`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from omni_tasks.core import durations, window
from omni_tasks.core.model import Admission, Circuit, CircuitState, Override, Permit, Request, Settlement
from omni_tasks.core.outcome import Outcome, Report
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.core.ramp import CALL, cut_ramp, fill_ramp, grow_ramp, is_easing, start_ramp, take
from omni_tasks.core.steps import adopt, enter, permit_key, ticket, transition
from omni_tasks.core.waits import left_open, open_time, retry_after, tidy
from omni_tasks.core.wire import Policy

__all__ = ["acquire", "settle"]


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
    circuit, policy = adopt(circuit, config)
    circuit, permit = _grant(tidy(circuit, policy, now_ms), policy, request, now_ms)
    if permit is None:
        circuit = replace(circuit, rejected=circuit.rejected + 1, held=circuit.held + request.paced)
    return circuit, Admission(
        permit=permit,
        state=circuit.effective_state,
        retry_after_ms=0 if permit else retry_after(circuit, config, now_ms=now_ms),
        transition=transition(before, circuit),
    )


def _grant(circuit: Circuit, policy: Policy, request: Request, now_ms: int) -> tuple[Circuit, Permit | None]:
    known = permit_key(circuit.epoch, request.permit_id)
    if known in circuit.calls or known in circuit.probes:
        # The same question again: its first answer got lost on the way.
        return circuit, Permit(request.permit_id, circuit.gen, circuit.epoch, known in circuit.probes)
    if circuit.override is Override.FORCED_OPEN:
        return circuit, None
    if circuit.effective_state is CircuitState.CLOSED:
        return _grant_call(circuit, policy, request, now_ms)
    if circuit.state is CircuitState.OPEN:
        if now_ms >= circuit.open_until_ms:
            circuit = enter(circuit, CircuitState.HALF_OPEN, now_ms)
        elif not request.health:
            return circuit, None
    if len(circuit.probes) >= policy.half_open_max_calls:
        return circuit, None
    lease_ms = min(request.lease_ms or policy.probe_lease_ms, policy.longest_lease_ms)
    probes = {**circuit.probes, permit_key(circuit.epoch, request.permit_id): now_ms + lease_ms}
    circuit = replace(circuit, probes=probes, admitted=circuit.admitted + 1, drawn=max(circuit.drawn - 1, 0))
    return circuit, Permit(request.permit_id, circuit.gen, circuit.epoch, probe=True)


def _grant_call(circuit: Circuit, policy: Policy, request: Request, now_ms: int) -> tuple[Circuit, Permit | None]:
    if request.ticket != ticket(circuit):
        circuit = fill_ramp(circuit, now_ms)
        # Where the operator says "closed", fresh calls are not refused; held tasks still leave along the ramp.
        paced = request.paced and circuit.override is Override.AUTO
        if paced and circuit.ramp_rate_mps and circuit.ramp_tokens < CALL:
            return circuit, None
        circuit = take(circuit, 1)
    if request.ticket == ticket(circuit) or not request.paced:
        # Who cannot wait may be the body of a task that was held for this circuit: it has no ticket here.
        circuit = replace(circuit, drawn=max(circuit.drawn - 1, 0))
    lease_ms = max(request.lease_ms, policy.longest_lease_ms)
    calls = {**circuit.calls, permit_key(circuit.epoch, request.permit_id): now_ms + lease_ms}
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
    before, policy = circuit.effective_state, config.policy.or_newer(circuit.policy)
    key = permit_key(permit.epoch, permit.id)
    if key not in circuit.calls and key not in circuit.probes:
        if circuit.gen:
            circuit = replace(circuit, stale=circuit.stale + 1)
        return circuit, Settlement(applied=False, state=before, retry_after_ms=left_open(circuit, now_ms))
    circuit = replace(circuit, calls=_without(circuit.calls, key), probes=_without(circuit.probes, key))
    circuit = _count(circuit, policy, report, now_ms)
    if report.outcome is not Outcome.IGNORED and (permit.gen, permit.epoch) == (circuit.gen, circuit.epoch):
        circuit = _decide(circuit, policy, permit, report, now_ms)
    return circuit, Settlement(
        applied=True,
        state=circuit.effective_state,
        retry_after_ms=left_open(circuit, now_ms),
        transition=transition(before, circuit),
    )


def _count(circuit: Circuit, policy: Policy, report: Report, now_ms: int) -> Circuit:
    if report.outcome is Outcome.IGNORED:
        return replace(circuit, ignored=circuit.ignored + 1)
    circuit = replace(circuit, slow=circuit.slow + _is_slow(policy, report))
    if report.duration_ms:
        circuit = replace(
            circuit,
            took_ms=circuit.took_ms + report.duration_ms,
            durations=durations.record(circuit.durations, report.duration_ms),
        )
    if report.outcome is Outcome.FAILURE:
        return replace(circuit, failed=circuit.failed + 1, successes_in_a_row=0, last_failure_ms=now_ms)
    return replace(
        circuit,
        succeeded=circuit.succeeded + 1,
        successes_in_a_row=circuit.successes_in_a_row + 1,
        last_success_ms=now_ms,
    )


def _is_slow(policy: Policy, report: Report) -> bool:
    return policy.slow_ms > 0 and report.duration_ms >= policy.slow_ms


def _decide(circuit: Circuit, policy: Policy, permit: Permit, report: Report, now_ms: int) -> Circuit:
    """
    What a report of the present epoch does to the state.
    """
    failed, slow = report.outcome is Outcome.FAILURE, _is_slow(policy, report)
    if circuit.state is CircuitState.CLOSED:
        return _while_closed(circuit, policy, report, now_ms, slow=slow)
    if not permit.probe:
        # Let through by the operator's word: evidence for the ramp, not for the state.
        return _pace(circuit, policy, now_ms, failed=failed)
    proved = not failed and not (slow and policy.slow_rate_ppm)
    if circuit.state is CircuitState.HALF_OPEN:
        return _while_probing(circuit, policy, report, now_ms, proved=proved)
    return _while_waiting(circuit, policy, report, now_ms, proved=proved)


def _while_closed(circuit: Circuit, policy: Policy, report: Report, now_ms: int, *, slow: bool) -> Circuit:
    failed = report.outcome is Outcome.FAILURE
    circuit = replace(circuit, failures=circuit.failures + 1 if failed else 0)
    if policy.failure_rate_ppm or policy.slow_rate_ppm:
        recent = window.record(circuit.window, policy, failed=failed, slow=slow, now_ms=now_ms)
        circuit = replace(circuit, window=recent)
    if not (failed and report.trip) and not _trips(circuit, policy, now_ms):
        return _pace(circuit, policy, now_ms, failed=failed)
    # Closed for too short a time to be called recovered: the back-off goes on where it was.
    unstable = max(now_ms - circuit.closed_at_ms, 0) < policy.stable_ms
    reopens = circuit.reopens + 1 if unstable else 0
    circuit = replace(circuit, tripped_at_ms=now_ms, trips=circuit.trips + 1, reopens=reopens)
    return _open(circuit, policy, report, now_ms)


def _pace(circuit: Circuit, policy: Policy, now_ms: int, *, failed: bool) -> Circuit:
    return cut_ramp(circuit, least_mps=policy.ramp_initial_mps, now_ms=now_ms) if failed else grow_ramp(circuit)


def _trips(circuit: Circuit, policy: Policy, now_ms: int) -> bool:
    if policy.failure_limit and circuit.failures >= policy.failure_limit and not is_easing(circuit, now_ms):
        return True
    if not circuit.window:
        return False
    counts = window.count(circuit.window, policy, now_ms=now_ms)
    if counts.calls < policy.minimum_calls:
        return False
    return _reaches(counts.failed, counts.calls, policy.failure_rate_ppm) or _reaches(
        counts.slow, counts.calls, policy.slow_rate_ppm
    )


def _reaches(bad: int, calls: int, rate_ppm: int) -> bool:
    # Whole numbers on both sides: a rate is compared exactly.
    return rate_ppm > 0 and bad * 1_000_000 >= rate_ppm * calls


def _while_probing(circuit: Circuit, policy: Policy, report: Report, now_ms: int, *, proved: bool) -> Circuit:
    if not proved:
        circuit = replace(circuit, failures=circuit.failures + 1, reopens=circuit.reopens + 1)
        return _open(circuit, policy, report, now_ms)
    circuit = replace(circuit, probe_successes=circuit.probe_successes + 1)
    if circuit.probe_successes < policy.success_threshold:
        return circuit
    circuit = replace(circuit, failures=0, tripped_at_ms=0, closed_at_ms=now_ms, reason="")
    circuit = enter(circuit, CircuitState.CLOSED, now_ms)
    return start_ramp(circuit, rate_mps=policy.ramp_initial_mps, now_ms=now_ms)


def _while_waiting(circuit: Circuit, policy: Policy, report: Report, now_ms: int, *, proved: bool) -> Circuit:
    """
    Take a health check's report: it may end the wait, but a real call must show that the dependency is back.
    """
    if proved:
        return replace(circuit, open_until_ms=min(circuit.open_until_ms, now_ms))
    # The wait goes on as it was: checks that fail must not prolong it.  The dependency's own word may.
    asked_ms = now_ms + min(report.retry_after_ms, policy.longest_open_ms)
    return replace(circuit, open_until_ms=max(circuit.open_until_ms, asked_ms))


def _open(circuit: Circuit, policy: Policy, report: Report, now_ms: int) -> Circuit:
    circuit = replace(enter(circuit, CircuitState.OPEN, now_ms), reason=report.reason, opened_at_ms=now_ms)
    return replace(circuit, open_until_ms=now_ms + open_time(circuit, policy, retry_after_ms=report.retry_after_ms))


def _without(permits: Mapping[str, int], key: str) -> Mapping[str, int]:
    return {permit: deadline for permit, deadline in permits.items() if permit != key}
