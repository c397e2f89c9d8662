"""
The nouns of the state machine.  Every time is in integer milliseconds of the store's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = [
    "ACTIONS",
    "FOREVER_MS",
    "Admission",
    "Circuit",
    "CircuitState",
    "Draw",
    "LogRecord",
    "Override",
    "Permit",
    "Request",
    "Settlement",
    "Transition",
    "Word",
]

#: The end of an override that has none, Unix ms.  Also the largest number a store reads: all that is
#: larger was never written by us, and Lua counts exactly up to 2**53 only.
FOREVER_MS = 10**14


class CircuitState(StrEnum):
    """
    What the circuit does with the next call.

    The values are stored in Redis and are part of the wire format: rename one
    and every store must migrate.
    """

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Override(StrEnum):
    """
    The operator's word.  It is checked first, in the same atomic step as the rest.
    """

    AUTO = "auto"
    FORCED_OPEN = "forced_open"
    FORCED_CLOSED = "forced_closed"


#: What a log calls the operator's words.  Twin: ``store/lua/force.lua``.
ACTIONS = {
    Override.AUTO: "auto",
    Override.FORCED_OPEN: "force_open",
    Override.FORCED_CLOSED: "force_close",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """
    That the operator speaks, whatever he says.

    Attributes:
        op_id: New for every word.  The same again, with no other in between, changes nothing.

        actor: Who speaks, for the log.

        reason: Why, for the log.
    """

    op_id: str
    actor: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circuit:
    """
    Everything the store keeps about one circuit.

    The field names are the field names of the Redis hash; *calls* and *probes*
    are the two sorted sets beside it, ``epoch:permit id`` -> lease deadline.

    Attributes:
        gen: Names this incarnation; new after the state was lost.  ``(gen, epoch)`` never repeats.

        epoch: Grows by one with every transition and every word of the operator.

        override_until_ms: When the operator's word ends, ``FOREVER_MS`` for one without an end.  A word
            whose end got lost has ended: it must not hold the circuit for good.

        tripped_at_ms: When the circuit last left closed by itself; 0 while it is closed.

        failures: Consecutive counted failures; back to 0 with a success while closed, and on closing.

        closed_at_ms: When probes closed the circuit last; 0 before they have.

        reason: What the failure that opened the circuit gave as its reason; ``""`` while closed.

        reopens: Openings since the circuit was last stable, but for the first; the back-off's exponent.

        probe_successes: Successful probes in this epoch.

        window: The recent calls, as :mod:`omni_tasks.core.window` writes them; empty unless a rate rule is on.

        drawn: Held tasks sent out, the last at *drawn_ms*, that have not asked for their permit yet.

        drawn_ms: When held tasks were sent out last, as probes or along the ramp.

        ramp_rate_mps: Calls per second the ramp allows, in thousandths.  0 when no ramp is on.

        ramp_tokens: Starts the ramp has in hand, in millionths of a call.

        ramp_ceiling_mps: The last rate that proved too fast, scaled down; 0 when none has yet.

        held: Refusals of paced calls; *rejected* includes them.

        trips: Times it left closed by itself.

        took_ms: Sum of the durations of successes and failures, as far as they were measured.

        durations: How many took how long, as :mod:`omni_tasks.core.durations` writes it.

        policy: The newest configuration that has used the circuit, as :class:`omni_tasks.core.policy.Policy`
            writes it; empty where none has a version.

        last_op: The operator's last word by its id, and what it was answered: it is followed once.

        quiet: What it says to busy processes, see :mod:`omni_tasks.core.quiet`; a store sets it whenever it writes.
    """

    gen: str = ""
    epoch: int = 0
    state: CircuitState = CircuitState.CLOSED
    override: Override = Override.AUTO
    override_until_ms: int = 0
    opened_at_ms: int = 0
    open_until_ms: int = 0
    changed_at_ms: int = 0
    tripped_at_ms: int = 0
    closed_at_ms: int = 0
    reason: str = ""
    failures: int = 0
    reopens: int = 0
    probe_successes: int = 0
    window: str = ""
    drawn: int = 0
    drawn_ms: int = 0
    ramp_rate_mps: int = 0
    ramp_tokens: int = 0
    ramp_filled_ms: int = 0
    ramp_cut_ms: int = 0
    ramp_ceiling_mps: int = 0
    admitted: int = 0
    succeeded: int = 0
    failed: int = 0
    ignored: int = 0
    expired: int = 0
    stale: int = 0
    slow: int = 0
    rejected: int = 0
    held: int = 0
    opened: int = 0
    half_opened: int = 0
    trips: int = 0
    successes_in_a_row: int = 0
    last_failure_ms: int = 0
    last_success_ms: int = 0
    took_ms: int = 0
    durations: str = ""
    policy: str = ""
    last_op: str = ""
    quiet: str = ""
    calls: Mapping[str, int] = field(default_factory=dict)
    probes: Mapping[str, int] = field(default_factory=dict)

    @property
    def effective_state(self) -> CircuitState:
        """
        The state as callers meet it: the operator's word before the machine's own.
        """
        if self.override is Override.FORCED_OPEN:
            return CircuitState.OPEN
        if self.override is Override.FORCED_CLOSED:
            return CircuitState.CLOSED
        return self.state


@dataclass(frozen=True, slots=True)
class Permit:
    """
    The right to run one call.

    Attributes:
        id: Unique for every attempt; settling it twice counts once.

        gen: The circuit's incarnation that gave it.

        epoch: The circuit's epoch that gave it.

        probe: Whether it was given while half open.

        local: Given by the process's own breaker, because the shared store was away.
    """

    id: str
    gen: str
    epoch: int
    probe: bool
    local: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """
    The question "may this call run now?".

    Attributes:
        permit_id: A new id for every attempt.

        lease_ms: The call's own hard time limit with a margin; 0 for the circuit's lease.

        paced: Whether the ramp may refuse it.  Tasks wait well; a plain call would fail.

        ticket: ``gen:epoch`` of the :class:`Draw` that already paid for this start, or ``""``.

        health: Whether this is a health check, which may ask the dependency also while the circuit waits.

        here: Whether this process itself will report how the call ended.
    """

    permit_id: str
    lease_ms: int = 0
    paced: bool = False
    ticket: str = ""
    health: bool = False
    here: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """
    A change of state that *this* call caused.  One caller in the cluster gets it.

    Attributes:
        reason: Why the circuit is open, where the failure that opened it has said so.
    """

    previous: CircuitState
    current: CircuitState
    epoch: int
    failures: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord:
    """
    One entry of a circuit's log.

    Attributes:
        at_ms: When, Unix ms, the store's clock.

        kind: ``"transition"`` or ``"operator"``.

        previous: The state before a transition, as callers met it; ``None`` in the operator's records.

        current: The state after it.

        epoch: The circuit's epoch after a transition.

        failures: Counted failures in a row at a transition.

        reason: Why the circuit opened, or why the operator has spoken; ``""`` when nobody said.

        action: ``"force_open"``, ``"force_close"``, ``"auto"`` or ``"reset"``; ``""`` for a transition.

        actor: Who has spoken, as he called himself; ``""`` when he did not.

        ttl_ms: How long the operator's word holds, ms; 0 until the next one.
    """

    at_ms: int
    kind: str
    previous: CircuitState | None = None
    current: CircuitState | None = None
    epoch: int = 0
    failures: int = 0
    reason: str = ""
    action: str = ""
    actor: str = ""
    ttl_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """
    The answer to a :class:`Request`.

    Attributes:
        permit: The permit to settle, or ``None`` when the call is refused or only watched.

        state: The state after the question was answered.

        retry_after_ms: Milliseconds until asking again can help: > 0 when refused, else 0.

        transition: What this question changed, or ``None``.

        watched: Whether the circuit would have refused, but only watches: the call runs without a permit.

        crowded: Whether nothing was decided, because as many keys as may be have a circuit and this one has none.
    """

    permit: Permit | None
    state: CircuitState
    retry_after_ms: int = 0
    transition: Transition | None = None
    watched: bool = False
    crowded: bool = False

    @property
    def refused(self) -> bool:
        """
        Whether the call must not run.
        """
        return self.permit is None and not self.watched


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """
    What a report did.

    Attributes:
        applied: Whether the permit was still held; a second report of one permit is not applied.

        state: The state after the report.

        retry_after_ms: Milliseconds the circuit stays open from now; 0 unless it is open.

        transition: What this report changed, or ``None``.
    """

    applied: bool
    state: CircuitState
    retry_after_ms: int = 0
    transition: Transition | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """
    How many held tasks may go back to their queues now.

    Attributes:
        count: Starts paid for, >= 0.

        ticket: ``gen:epoch``, to be carried by the tasks that go; valid in that epoch only.

        state: The state now.

        ramping: Whether the circuit still limits the rate of starts.

        transition: What this question changed (an override that ran out), or ``None``.
    """

    count: int
    ticket: str
    state: CircuitState
    ramping: bool
    transition: Transition | None = None
