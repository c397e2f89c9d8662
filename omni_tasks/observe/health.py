"""
Health checks: a circuit that is due for a probe is probed by its own callable, not by a user's task.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future, wait
from dataclasses import replace

from omni_tasks.breaker import CircuitBreaker
from omni_tasks.core.model import CircuitState, Override, Permit
from omni_tasks.core.outcome import IGNORED, Outcome, judge
from omni_tasks.events import log
from omni_tasks.observe.families import Look
from omni_tasks.observe.lane import Lane

__all__ = ["HealthChecks", "is_due"]

#: Reason of a circuit whose provider asked for fewer calls.
RATE_LIMIT = "rate_limit"

#: Looks that come late must not come too late: so many intervals before the wait ends a check is made.
_AHEAD = 1.5

#: Share of a probe's lease that its check may take: what is left is for the report.
_SHARE = 0.9


def is_due(look: Look) -> bool:
    """
    Whether to probe the circuit now.

    That is before its wait ends, if the next look would come after that: else a
    user's task would be the first to find out.  A provider that refuses the
    account is asked at every look: somebody may have paid.  One that limits the
    rate has said itself when to come back, and its wait must not end sooner.
    """
    circuit, config = look.reading.circuit, look.config
    if config.health_check is None or circuit.override is not Override.AUTO:
        return False
    if circuit.state is CircuitState.OPEN and circuit.reason == RATE_LIMIT:
        return False
    if circuit.state is CircuitState.OPEN:
        return bool(look.blocked) or _ends_soon(look)
    return circuit.state is CircuitState.HALF_OPEN and look.reading.probes < config.half_open_max_calls


def _ends_soon(look: Look) -> bool:
    left = (look.reading.circuit.open_until_ms - look.reading.now_ms) / 1000
    return left <= look.config.monitor_interval * _AHEAD


def _longer_by(look: Look) -> int:
    """
    How long a circuit waits on, in ms from now, when its check fails: 0 for no longer than it does.

    Else a user's task would be the next to find out.  Not for ever, though: the
    check itself may be what is broken.
    """
    lasts = look.metrics.time_since_trip >= look.config.max_recovery_timeout
    return 0 if lasts or not _ends_soon(look) else look.config.policy.recovery_ms


class HealthChecks:
    """
    The checks of one process: each circuit's in a lane of its own.
    """

    def __init__(self) -> None:
        """
        Begin without any.
        """
        self._lanes: dict[str, Lane] = {}

    def run(self, due: Iterable[tuple[CircuitBreaker, Look]], *, patience: float) -> None:
        """
        Probe each circuit with its check.

        Args:
            due: Circuits that are due and have a check, as they were read.

            patience: Seconds this waits for them; what is slower goes on by itself, up to its deadline.
        """
        begun: list[Future[None]] = []
        for breaker, look in due:
            lane = self._lanes.setdefault(breaker.key, Lane(f"omni-health-{breaker.key}"))
            try:
                begun.append(lane.start(_Probe(breaker, _longer_by(look))))
            except TimeoutError:
                # The one before hangs in spite of its deadline: one thread is enough to find that out.
                continue
        wait(begun, timeout=patience)


class _Probe:
    """
    One check, on a probe's permit.
    """

    def __init__(self, breaker: CircuitBreaker, longer_by_ms: int) -> None:
        self._breaker, self._longer_by_ms = breaker, longer_by_ms

    def __call__(self) -> None:
        breaker = self._breaker
        admission = breaker.acquire(health=True)
        permit = admission.permit
        if permit is None:
            return
        if not permit.probe:
            # Closed in the meantime.
            breaker.settle(permit, IGNORED)
            return
        self._run(permit)

    def _run(self, permit: Permit) -> None:
        breaker = self._breaker
        config, started = breaker.config, time.monotonic()
        error: BaseException | None = None
        try:
            Lane(f"omni-check-{breaker.key}").run(self._check, within=config.probe_lease * _SHARE)
        except BaseException as caught:  # noqa: BLE001 - whatever it raises says that the dependency is down
            error = caught
        report = judge(config, error, duration=time.monotonic() - started)
        if error is not None and report.outcome is not Outcome.SUCCESS:
            # The circuit's rules are about calls; a check that raises has no other meaning.
            longer_by_ms = max(report.retry_after_ms, self._longer_by_ms)
            report = replace(report, outcome=Outcome.FAILURE, retry_after_ms=longer_by_ms)
        settlement = breaker.settle(permit, report)
        log.info(
            "circuit_health_check",
            component=breaker.key,
            outcome=report.outcome.value,
            reason=f"{type(error).__name__}: {error}" if error else None,
            state=settlement.state.value,
        )

    def _check(self) -> None:
        # A check that is itself guarded by the circuit runs on the probe's permit.
        with self._breaker.holding():
            if self._breaker.config.health_check is not None:
                self._breaker.config.health_check()
