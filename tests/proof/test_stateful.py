"""
The Redis scripts walk in step with the pure machine, and what must always hold does, after every single step.

``OMNI_STATEFUL_STEPS`` is the number of steps: 5,000 by default, the same ones every time; 100,000 every night, and
whenever it is set the steps are new ones.  The numbers I1-I18 are those of the invariants the checks state.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from omni_tasks.core import durations, held, machine, operate
from omni_tasks.core.model import (
    ACTIONS,
    FOREVER_MS,
    Admission,
    Circuit,
    CircuitState,
    LogRecord,
    Override,
    Permit,
    Request,
    Transition,
    Word,
)
from omni_tasks.core.outcome import Outcome, Report
from omni_tasks.core.policy import CircuitBreakerConfig
from omni_tasks.core.quiet import Told, marked, tally
from omni_tasks.core.steps import permit_key
from omni_tasks.core.wire import Policy
from omni_tasks.store.redis import RedisStore
from omni_tasks.store.schema import circuit_keys
from tests.proof.patched import stored_permits
from tests.support.clock import Clock

T = TypeVar("T")

DEFAULT_STEPS = 5_000
STEPS_PER_WALK = 50

LEGAL = {("closed", "open"), ("open", "half_open"), ("half_open", "closed"), ("half_open", "open")}

#: What a report that is not of the current epoch may change: nothing that decides about the next call.
REPORTED = {
    *("calls", "probes", "succeeded", "failed", "ignored", "stale", "slow"),
    *("successes_in_a_row", "last_failure_ms", "last_success_ms", "took_ms", "durations", "quiet"),
}

CONFIGS = st.builds(
    CircuitBreakerConfig,
    name=st.just("stateful {x}:y"),
    failure_threshold=st.sampled_from([1, 2, 3]),
    recovery_timeout=st.sampled_from([0.5, 2.0]),
    half_open_max_calls=st.sampled_from([1, 2, 3]),
    success_threshold=st.sampled_from([1, 2]),
    probe_lease=st.sampled_from([0.3, 5.0]),
    call_lease=st.sampled_from([5.0, 60.0]),
    backoff_factor=st.sampled_from([1.0, 1.5, 2.0]),
    max_recovery_timeout=st.sampled_from([4.0, 3600.0]),
    ramp_initial_rate=st.sampled_from([1.0, 50.0]),
    failure_rate_threshold=st.sampled_from([None, 0.5, 1 / 3]),
    slow_call_duration=st.just(0.1),
    slow_call_rate_threshold=st.sampled_from([None, 0.5]),
    minimum_calls=st.sampled_from([1, 2, 5]),
    window_calls=st.sampled_from([5, 10]),
    window_seconds=st.sampled_from([None, 0.5, 7.0]),
    jitter=st.sampled_from([0.0, 0.0, 0.5]),
    stable_seconds=st.sampled_from([0.0, 1.0, 60.0]),
    version=st.sampled_from([0, 0, 1, 2]),
)

#: How many steps were made in which state with which verb.
Seen = Counter[tuple[str, str]]


class Walk(RuleBasedStateMachine):
    """
    A circuit on a real server, its model beside it, and one clock for both.
    """

    def __init__(self, client: redis.Redis, seen: Seen) -> None:
        """
        Walk on *client*, counting into *seen*.
        """
        super().__init__()
        self.client, self.seen = client, seen
        self.prefix = f"stateful-{uuid.uuid4().hex[:12]}"
        self.clock = Clock()
        self.store = RedisStore(client, prefix=self.prefix, now_ms=self.clock)
        self.config = CircuitBreakerConfig(name="unused")
        self.model = self.before = Circuit()
        self.requests: list[Request] = []
        self.permits: list[Permit] = []
        self.reports: list[tuple[Permit, Report]] = []
        self.epochs: set[tuple[str, int]] = set()
        self.words: list[tuple[Override | None, int, Word]] = []
        self.log: list[LogRecord] = []
        self.asked = 0
        # With only some of its keys lost, a circuit's account cannot come out even.
        self.whole = True

    @initialize(configs=st.lists(CONFIGS, min_size=1, max_size=2))
    def configure(self, configs: list[CircuitBreakerConfig]) -> None:
        """
        Begin with a circuit nobody has used, and processes of one configuration or two.
        """
        self.configs, self.config = configs, configs[0]
        self.keys = circuit_keys(self.prefix, self.config.name)

    # Verbs

    @precondition(lambda self: len(self.configs) > 1)
    @rule()
    def another_process(self) -> None:
        """
        The next verbs are those of a process with the other configuration.
        """
        self.config = self.configs[self.config is self.configs[0]]

    @rule(lease=st.sampled_from([0, 0, 50, 10_000]), flags=st.sets(st.sampled_from(["paced", "paid", "health"])))
    def acquire(self, lease: int, flags: set[str]) -> None:
        """
        A new call asks.
        """
        ticket = f"{self.model.gen}:{self.model.epoch}" if "paid" in flags else ""
        asked = Request(
            permit_id=f"p{self._number()}",
            lease_ms=lease,
            paced="paced" in flags,
            ticket=ticket,
            health="health" in flags,
        )
        self._acquire(asked)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def acquire_again(self, data: st.DataObject) -> None:
        """
        A caller whose answer got lost asks again.
        """
        request = data.draw(st.sampled_from(self.requests[-8:]))
        key = permit_key(self.model.epoch, request.permit_id)
        held = {**self.model.calls, **self.model.probes}.get(key, 0) > self.clock.now_ms
        probe = key in self.model.probes
        answer = self._acquire(request)
        if held and answer.permit and answer.permit.epoch == self.before.epoch:
            # I8: the question again, while its permit is held and nothing has happened since.
            assert (answer.permit.id, answer.permit.probe) == (request.permit_id, probe)
            assert self.model.admitted == self.before.admitted
        else:
            assert not held or self.model.epoch > self.before.epoch

    @precondition(lambda self: self.permits)
    @rule(
        data=st.data(),
        outcome=st.sampled_from([Outcome.SUCCESS, Outcome.FAILURE, Outcome.FAILURE, Outcome.IGNORED]),
        wait=st.sampled_from([0, 0, 3000, 10**7]),
        took=st.sampled_from([0, 99, 100]),
        trip=st.sampled_from([False, False, False, True]),
    )
    def settle(self, data: st.DataObject, outcome: Outcome, wait: int, took: int, trip: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        """
        Some call of any age ends.
        """
        permit = data.draw(st.sampled_from(self.permits))
        self.permits.remove(permit)
        self._settle(permit, Report(outcome, wait, took, trip=trip, reason="billing" if trip else ""))

    @precondition(lambda self: self.permits)
    @rule(outcome=st.sampled_from([Outcome.SUCCESS, Outcome.FAILURE]))
    def settle_newest(self, outcome: Outcome) -> None:
        """
        The newest call ends.
        """
        self._settle(self.permits.pop(), Report(outcome))

    @precondition(lambda self: self.reports)
    @rule(data=st.data())
    def settle_again(self, data: st.DataObject) -> None:
        """
        A caller whose answer got lost reports again.
        """
        permit, report = data.draw(st.sampled_from(self.reports[-8:]))
        if permit_key(permit.epoch, permit.id) not in {**self.model.calls, **self.model.probes}:
            # I8: nothing is counted twice.
            assert not self._settle(permit, report)

    @rule(wanted=st.sampled_from([0, 1, 5, 1000]))
    def draw(self, wanted: int) -> None:
        """
        The mover asks how many held tasks may go.
        """
        self._begin("draw")
        self.model, expected = self._marked(held.draw(self.model, self.config, wanted=wanted, now_ms=self.clock.now_ms))
        assert self.store.draw(self.config, wanted) == expected
        self._note(expected.transition)
        self._check_arrow(lapsed=True)
        self._check_waits()

    @rule(data=st.data(), took_ms=st.lists(st.sampled_from([0, 5, 6, 60_001]), max_size=3), running=st.integers(0, 2))
    def tell(self, data: st.DataObject, took_ms: list[int], running: int) -> None:
        """
        A process tells of calls it let in while the circuit said that it was quiet: now, or long ago.
        """
        gen, epoch = data.draw(st.sampled_from(sorted(self.epochs | {("lost", 1)})))
        self._begin("tally")
        told = Told(
            gen=gen,
            epoch=epoch,
            running={f"p{self._number()}": 0 for _ in range(running)},
            succeeded=len(took_ms),
            took_ms=sum(took_ms),
            durations=durations.written(filter(None, took_ms)),
        )
        self.model = marked(tally(self.model, self.config, told, now_ms=self.clock.now_ms), self.config)
        assert self.store.tally(self.config, told) == (gen == self.before.gen)
        if gen == self.before.gen:
            self.permits.extend(Permit(permit_id, gen, epoch, probe=False) for permit_id in told.running)
        # I2, I7, I13: it moves nothing.
        for name in ("state", "epoch", "override", "open_until_ms", "failures", "probe_successes", "window"):
            assert getattr(self.model, name) == getattr(self.before, name)

    @rule(
        override=st.sampled_from([*Override, None]),
        ttl_ms=st.sampled_from([0, 100, 5000]),
        rarely=st.integers(0, 3),
    )
    def operate(self, override: Override | None, ttl_ms: int, rarely: int) -> None:
        """
        The operator speaks, seldom, and takes it back soon.
        """
        if self.model.override is not Override.AUTO and rarely:
            self._force(Override.AUTO, 0)
        elif rarely == 0:
            self._reset() if override is None else self._force(override, ttl_ms)

    @precondition(lambda self: self.words)
    @rule()
    def operate_again(self) -> None:
        """
        An operator whose answer got lost says his last word again.
        """
        override, ttl_ms, word = self.words[-1]
        if self.model.last_op.endswith(f" {word.op_id}"):
            # I8, I13: nothing happens, and nothing is logged, a second time.
            self._begin("operator")
            now = self.clock.now_ms
            if override is None:
                _, expected = operate.reset(self.model, word, now_ms=now)
                assert self.store.reset(self.config, word) == expected
            else:
                _, expected = operate.force(self.model, override, word, ttl_ms=ttl_ms, now_ms=now)
                assert self.store.force(self.config, override, word, ttl_ms=ttl_ms) == expected

    # The world

    @rule(data=st.data(), off=st.sampled_from([-1, 0, 0, 1]))
    def advance_to_an_edge(self, data: st.DataObject, off: int) -> None:
        """
        Time passes until something ends, or 1 ms less or more.
        """
        circuit, now = self.model, self.clock.now_ms
        ends = {circuit.open_until_ms, circuit.drawn_ms + held.DRAWN_MS, *circuit.calls.values()}
        ends |= {*circuit.probes.values(), circuit.override_until_ms if circuit.override_until_ms < FOREVER_MS else 0}
        if self.config.window_ms:
            width = -(-self.config.window_ms // 10)
            ends |= {(now // width + 1) * width, (now // width + 10) * width}
        ahead = sorted(end for end in ends if end > now)
        if ahead:
            self._begin("time")
            self.clock.advance(max(data.draw(st.sampled_from(ahead)) + off - now, 0))

    @rule(step=st.sampled_from([1, 50, 299, 300, 499, 500, 501, 2000, 60_000, -1, -50, -5000, -3_600_000]))
    def step_clock(self, step: int) -> None:
        """
        The server's clock steps, back too.
        """
        self._begin("time")
        self.clock.advance(step)

    @rule(
        lost=st.sampled_from([(0,), (1,), (2,), (0, 1, 2, 3), (0, 1, 2, 3)]),
        happens=st.integers(0, 4),
        overwritten=st.booleans(),
    )
    def lose(self, lost: tuple[int, ...], happens: int, overwritten: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
        """
        Keys get lost, seldom; what somebody has written in their place is no hindrance.
        """
        if happens:
            return
        self._begin("loss")
        self.client.delete(*(self.keys[number] for number in lost))
        if overwritten:
            for number in lost:
                self.client.set(self.keys[number], "something else")
        if 3 in lost:
            self.log.clear()
        if 0 in lost:
            self.model = Circuit(calls=self.model.calls, probes=self.model.probes)
            # A permit's id is new for every attempt, so no question is asked again in another incarnation.
            self.requests.clear()
        self.model = replace(
            self.model,
            calls={} if 1 in lost else self.model.calls,
            probes={} if 2 in lost else self.model.probes,
        )
        self.whole = len(lost) == len(self.keys)

    @rule(off=st.sampled_from([-1, 0, 0, 1]))
    def run_until_it_probes(self, off: int) -> None:
        """
        The dependency fails for long enough.
        """
        # The walk alone is seldom patient enough to find a probe.
        for _ in range(self.policy.failure_limit + 1):
            permit = self._acquire(Request(permit_id=f"p{self._number()}")).permit
            if self.model.state is CircuitState.OPEN:
                self.clock.advance(max(self.model.open_until_ms + off - self.clock.now_ms, 0))
            elif permit and not permit.probe:
                self._settle(permit, Report(Outcome.FAILURE))

    # What must always hold

    @invariant()
    def redis_equals_the_model(self) -> None:
        """
        Every stored field parses and is the model's, within bounds; reading it changes no byte.
        """
        # I1, I15, I16
        dumps = [self.client.dump(key) for key in self.keys]
        reading = self.store.read([self.config])[0]
        assert self.store.log(self.config) == self.log
        assert [self.client.dump(key) for key in self.keys] == dumps
        assert asdict(reading.circuit) == asdict(replace(self.model, calls={}, probes={}))
        for key, permits in zip(self.keys[1:3], (self.model.calls, self.model.probes), strict=True):
            if self.client.type(key) != b"string":
                assert stored_permits(self.client, key) == permits
        if self.client.type(self.keys[0]) != b"string":
            stored: Any = self.client.hgetall(self.keys[0])
            assert len(stored) <= len(fields(Circuit)) - 2
            assert sum(map(len, [*stored, *stored.values()])) <= 1536

    @invariant()
    def probes_are_limited(self) -> None:
        """
        No more probes are out than may be.
        """
        # I6
        live = sum(deadline > self.clock.now_ms for deadline in self.model.probes.values())
        assert live <= max(config.half_open_max_calls for config in self.configs)

    @invariant()
    def permits_are_accounted_for(self) -> None:
        """
        Every permit that was given is somewhere.
        """
        # I17
        c = self.model
        outstanding = len(c.calls) + len(c.probes)
        if self.whole:
            assert c.admitted == c.succeeded + c.failed + c.ignored + c.expired + outstanding
        assert c.rejected >= c.held
        assert sum(durations.counts(c.durations)) <= c.succeeded + c.failed

    def teardown(self) -> None:
        """
        I10: wherever the walk ended, a call runs again within the longest wait and the longest lease.
        """
        if self.model.override is not Override.AUTO:
            self._force(Override.AUTO, 0)
        longest = self.policy
        deadline_ms = self.clock.now_ms + longest.longest_open_ms + longest.longest_lease_ms
        answer = self._acquire(Request(permit_id="last"))
        while answer.permit is None:
            self.clock.advance(answer.retry_after_ms)
            assert self.clock.now_ms <= deadline_ms
            answer = self._acquire(Request(permit_id="last"))
        self.client.delete(*self.keys)

    # How each verb is checked

    def _acquire(self, request: Request) -> Admission:
        self._begin("acquire")
        now = self.clock.now_ms
        self.model, expected = self._marked(machine.acquire(self.model, self.config, request, now_ms=now))
        answer = self.store.acquire(self.config, request)
        assert answer == expected
        self._note(answer.transition)
        before = self.before
        known = permit_key(before.epoch, request.permit_id) in {**before.calls, **before.probes}
        if before.override is Override.AUTO and before.state is CircuitState.OPEN and not known | request.health:
            # I5
            assert answer.refused or not before.opened_at_ms <= now < before.open_until_ms
        if answer.refused:
            # I12
            assert 0 < answer.retry_after_ms <= self.policy.longest_open_ms
            assert self.model.rejected == before.rejected + 1
            assert self.model.held == before.held + request.paced
        else:
            assert answer.retry_after_ms == 0
        if request not in self.requests:
            self.requests.append(request)
        if answer.permit and answer.permit not in self.permits:
            self.permits.append(answer.permit)
        self._check_arrow(lapsed=True)
        self._check_waits()
        return answer

    def _settle(self, permit: Permit, report: Report) -> bool:
        self._begin("settle")
        before = self.before
        self.model, expected = self._marked(
            machine.settle(self.model, self.config, permit, report, now_ms=self.clock.now_ms)
        )
        answer = self.store.settle(self.config, permit, report)
        assert answer == expected
        self._note(answer.transition)
        self.reports.append((permit, report))
        key = permit_key(permit.epoch, permit.id)
        known = key in before.calls or key in before.probes
        assert answer.applied == known
        current = known and (permit.gen, permit.epoch) == (before.gen, before.epoch)
        if not current or report.outcome is Outcome.IGNORED:
            # I7, I18
            after = asdict(self.model)
            assert {name for name, value in asdict(before).items() if value != after[name]} <= REPORTED
        assert key not in {**self.model.calls, **self.model.probes}
        self._check_arrow(lapsed=False)
        return answer.applied

    def _force(self, override: Override, ttl_ms: int) -> None:
        self._begin("operator")
        word = self._word(override, ttl_ms)
        self.model, expected = self._marked(
            operate.force(self.model, override, word, ttl_ms=ttl_ms, now_ms=self.clock.now_ms)
        )
        assert self.store.force(self.config, override, word, ttl_ms=ttl_ms) == expected
        self._note(expected)
        # I2: the operator's word is one step of the epoch.
        assert (self.model.state, self.model.epoch) == (self.before.state, self.before.epoch + 1)
        self._note_epoch()

    def _reset(self) -> None:
        self._begin("operator")
        word = self._word(None, 0)
        self.model, expected = self._marked(operate.reset(self.model, word, now_ms=self.clock.now_ms))
        assert self.store.reset(self.config, word) == expected
        self._note(expected)
        assert self.model.epoch == self.before.epoch + 1
        self.whole = True
        self._note_epoch()

    def _note(self, transition: Transition | None) -> None:
        # I13, I21: exactly the transitions that were answered, and the operator's words, are logged.
        if transition:
            self.log.append(LogRecord(at_ms=self.clock.now_ms, kind="transition", **asdict(transition)))

    def _word(self, override: Override | None, ttl_ms: int) -> Word:
        number = self._number()
        word = Word(op_id=f"op {number}", actor=f"actor {number}", reason="" if number % 2 else "why")
        self.words.append((override, ttl_ms, word))
        action = ACTIONS[override] if override else "reset"
        self.log.append(
            LogRecord(
                at_ms=self.clock.now_ms,
                kind="operator",
                action=action,
                actor=word.actor,
                reason=word.reason,
                ttl_ms=ttl_ms,
            )
        )
        return word

    @property
    def policy(self) -> Policy:
        """
        What decides now.
        """
        return self.config.policy.or_newer(self.model.policy)

    def _check_arrow(self, *, lapsed: bool) -> None:
        # I2, I3
        before, after = self.before, self.model
        moved = before.state is not after.state
        assert not moved or (before.state.value, after.state.value) in LEGAL
        lifted = before.override is not after.override
        assert not lifted or (lapsed and after.override is Override.AUTO)
        if before.gen == after.gen:
            assert after.epoch == before.epoch + moved + lifted
        self._note_epoch()

    def _note_epoch(self) -> None:
        # I3
        name = (self.model.gen, self.model.epoch)
        if name != (self.before.gen, self.before.epoch):
            assert not self.model.gen or name not in self.epochs
        self.epochs.add(name)

    def _check_waits(self) -> None:
        # I11: whatever the clock did, what is left of any wait is at most its own longest.
        now, c = self.clock.now_ms, self.model
        assert c.open_until_ms - now <= self.policy.longest_open_ms
        assert all(deadline - now <= self.policy.longest_lease_ms for deadline in c.probes.values())
        assert c.changed_at_ms <= now

    def _marked(self, answer: tuple[Circuit, T]) -> tuple[Circuit, T]:
        # What a store does whenever it writes.
        return marked(answer[0], self.config), answer[1]

    def _begin(self, verb: str) -> None:
        self.before = self.model
        self.seen[self.model.state.value, verb] += 1

    def _number(self) -> int:
        self.asked += 1
        return self.asked


@pytest.mark.timeout(1800)
def test_the_scripts_keep_the_invariants_in_step_with_the_model(redis_client: redis.Redis) -> None:
    """
    Over thousands of verbs, repetitions, clock steps and lost keys the scripts answer as the model and break no rule.
    """
    steps = int(os.environ.get("OMNI_STATEFUL_STEPS", DEFAULT_STEPS))
    seen: Seen = Counter()
    # It takes whatever makes a machine; its annotation knows classes only.
    make: Any = lambda: Walk(redis_client, seen)  # noqa: E731 - a def would have no such annotation
    run_state_machine_as_test(
        make,
        settings=settings(
            # Some walks end before their last step.
            max_examples=-(-steps // (STEPS_PER_WALK * 3 // 4)),
            stateful_step_count=STEPS_PER_WALK,
            derandomize="OMNI_STATEFUL_STEPS" not in os.environ,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
    print(f"{seen.total():,} steps: {dict(sorted(seen.items()))}")  # noqa: T201 - the figure of the nightly run
    assert seen.total() >= steps
    if steps >= DEFAULT_STEPS:
        # Every verb was tried in every state, or the run has shown little.
        assert {
            (state.value, verb) for state in CircuitState for verb in ("acquire", "settle", "tally", "draw", "operator")
        } <= {*seen}
