"""
The mover: brings held tasks back, at the pace their circuit sets.

Every worker runs one, from the timer of its consumer.  They need no leader:
how many tasks may go is decided in the circuit's store, and each move is atomic
in the broker, so two movers divide the work and never double it.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import redis
from celery import Celery, bootsteps

from omni_tasks import signals
from omni_tasks.core.model import CircuitState
from omni_tasks.errors import ConfigurationError, ParkingError
from omni_tasks.integration.holding import HoldingQueues
from omni_tasks.integration.install import Integration, integration_of
from omni_tasks.integration.lot import Lot
from omni_tasks.integration.parking import give_up_what_waits, park_what_waits

__all__ = ["MoverStep", "let_others_follow", "move_held_tasks"]

logger = logging.getLogger(__name__)

#: Every so many looks a mover also looks at circuits that hold nothing, to end their ramps.
_SWEEP_LOOKS = 10

#: Seconds between two looks while a circuit ramps.  Its bucket holds what is earned in 0.2 s: where a look comes later,
#: starts are lost.  And what leaves at one look meets the dependency as one burst.  A look that took longer itself is
#: not hurried, for the worker's loop waits meanwhile.
_RAMP_INTERVAL = 0.05

#: Held tasks per circuit whose revokes are looked up in one go.
_LOOKED_AT = 200

#: Held tasks per tick and circuit that leave where resilience has been switched off.
_UNGUARDED_AT_ONCE = 20

#: Held tasks that leave after one that did without their circuit.
_FOLLOWERS = 2


def move_held_tasks(integration: Integration, *, sweep: bool = False) -> int:
    """
    Move as many held tasks as their circuits allow now.

    Args:
        integration: The application's.

        sweep: Whether to also ask for circuits that hold nothing, so that their ramps can end: the configured
            ones, and those of keys that this worker has seen with a ramp.

    Returns:
        How many were moved.

    Raises:
        ParkingError: The broker did not take some; those of other circuits have been seen to all the same.
    """
    moved, trouble = 0, []
    also = (*integration.manager.configured(), *integration.ramping) if sweep else ()
    circuits = dict.fromkeys([*integration.lot.holding(), *also])
    for circuit, held in integration.lot.counts(circuits).items():
        try:
            moved += _let_go(integration, circuit, held, sweep=sweep)
        except ParkingError as error:
            # As where the queue of its tasks is gone: that is not the other circuits' trouble.
            trouble.append(error)
    if trouble:
        raise trouble[0]
    return moved


def _let_go(integration: Integration, circuit: str, held: int, *, sweep: bool) -> int:
    """
    Move as many of one circuit's held tasks as it allows.
    """
    manager, lot = integration.manager, integration.lot
    if not manager.enabled:
        # Nobody holds tasks any more: those that wait leave, in handfuls.
        return lot.unpark(circuit, min(held, _UNGUARDED_AT_ONCE), "")
    breaker = manager.find(circuit)
    if breaker is None:
        return _return_strays(integration, circuit, held) if sweep else 0
    moved = _let_go_unpaid(integration, circuit, sweep=sweep) if held else 0
    answer = breaker.draw(held)
    (integration.ramping.add if answer.ramping else integration.ramping.discard)(circuit)
    # While the store is away the answer is this process's own circuit's, which knows nothing:
    # held stays held.  Asking goes on all the same, or nobody would notice the store's return.
    if not answer.count or manager.degraded:
        return moved
    probing = answer.state is not CircuitState.CLOSED
    if probing and isinstance(lot, HoldingQueues):
        moved += lot.unpark_unwanted(circuit, integration.revoked.among, soon=True)
    if probing and isinstance(lot, Lot | HoldingQueues) and _good_probes(integration.app):
        best = functools.partial(_best_probes, integration, answer.count)
        count = lot.unpark_if(circuit, best, among=_LOOKED_AT, ticket=answer.ticket)
    else:
        # Along the ramp they queue up with new tasks, and with those of other circuits.
        count = lot.unpark(circuit, answer.count, answer.ticket, first=probing)
    signals.task_released.send(sender=circuit, count=count)
    return moved + count


def _let_go_unpaid(integration: Integration, circuit: str, *, sweep: bool) -> int:
    """
    Move the tasks that nobody waits for any more: those whose time is over, and the revoked ones among the first.
    """
    # While nobody can be told how they ended they would fill the workers' prefetch.
    lot, may = integration.lot, integration.states.answers
    if isinstance(lot, HoldingQueues):
        return lot.unpark_unwanted(circuit, integration.revoked.among, soon=False) if sweep and may() else 0
    if not isinstance(lot, Lot):
        # There they leave in their turn.
        return 0
    moved = lot.unpark_due(circuit, may=may)
    if sweep and integration.revoked.any() and may():
        # A revoked one must not be what the circuit waits for as its probe.
        moved += lot.unpark_if(circuit, integration.revoked.among, among=_LOOKED_AT)
    return moved


def _good_probes(app: Celery) -> set[str]:
    """
    The names of the tasks that say they are good probes.
    """
    return {name for name, task in app.tasks.items() if getattr(task, "good_probe", False)}


def _best_probes(integration: Integration, count: int, tasks: Sequence[Mapping[str, Any]]) -> list[bool]:
    """
    Pick *count* of the first held tasks: good probes before others, else in their order.
    """
    good = _good_probes(integration.app)
    order = sorted(range(len(tasks)), key=lambda at: tasks[at].get("task") not in good)
    chosen = set(order[:count])
    return [at in chosen for at in range(len(tasks))]


def let_others_follow(integration: Integration, circuit: str, name: str) -> int:
    """
    Let a few held tasks go after one of theirs that succeeded although their circuit is not closed.

    It had somebody else to ask, and so have they.  Each success lets two more go, so the rate doubles
    as long as it lasts; the first failure ends it.

    Args:
        integration: The application's.

        circuit: That they are held for.

        name: Of the task.

    Returns:
        How many were moved.
    """
    breaker, lot = integration.manager.find(circuit), integration.lot
    if breaker is None or breaker.get_metrics().state is CircuitState.CLOSED:
        # A closed circuit lets them go at its own pace.
        return 0
    if isinstance(lot, Lot):
        count = lot.unpark_if(circuit, functools.partial(_first_of, name), among=_LOOKED_AT)
    else:
        count = lot.unpark(circuit, _FOLLOWERS, "")
    signals.task_released.send(sender=circuit, count=count)
    return count


def _first_of(name: str, tasks: Sequence[Mapping[str, Any]]) -> list[bool]:
    """
    Pick the first tasks of that name.
    """
    chosen = [at for at, task in enumerate(tasks) if task.get("task") == name][:_FOLLOWERS]
    return [at in chosen for at in range(len(tasks))]


def _return_strays(integration: Integration, circuit: str, held: int) -> int:
    # Not at every tick: where only this worker does not know the circuit yet, another holds them again.
    if circuit not in integration.strays:
        integration.strays.add(circuit)
        logger.warning("Circuit %r is not configured any more; the tasks it holds return in handfuls", circuit)
    return integration.lot.unpark(circuit, min(held, _UNGUARDED_AT_ONCE), "")


class MoverStep(bootsteps.StartStopStep):
    """
    Starts the mover with the worker's consumer, and again with every new connection.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        """
        Prepare; nothing is connected yet.
        """
        super().__init__(consumer, **kwargs)
        self._entry: Any = None
        self._ticks, self._look_ticks = 0, 1
        self._hurried = False
        self._failing = False

    def start(self, consumer: Any) -> None:
        """
        Look at the lot every ``omni_mover_interval`` seconds, and more often while a circuit ramps.
        """
        self.stop(consumer)
        integration = integration_of(consumer.app)
        integration.consumer = consumer
        try:
            _ = integration.lot
        except ConfigurationError:
            # Only with resilience off: the start is refused otherwise.
            return
        interval = integration.settings.mover_interval
        self._look_ticks = max(round(interval / _RAMP_INTERVAL), 1)
        self._entry = consumer.timer.call_repeatedly(interval / self._look_ticks, self._tick, (integration,))

    def stop(self, consumer: Any) -> None:  # noqa: ARG002 - Celery's own signature
        """
        Leave the lot alone.
        """
        entry, self._entry = self._entry, None
        if entry is not None:
            entry.cancel()

    def shutdown(self, consumer: Any) -> None:
        """
        See to what could not be held; the pool has ended by now.
        """
        give_up_what_waits(integration_of(consumer.app))

    def _tick(self, integration: Integration) -> None:
        self._ticks += 1
        if self._ticks % self._look_ticks and not self._hurried:
            return
        began = time.monotonic()
        # An exception that left a timer would be logged by Celery at every tick.
        try:
            park_what_waits(integration)
            move_held_tasks(integration, sweep=self._ticks % (self._look_ticks * _SWEEP_LOOKS) == 0)
        except (redis.RedisError, OSError, ParkingError) as error:
            if not self._failing:
                logger.error("Held tasks cannot be moved: %s; going on trying", error)  # noqa: TRY400 - one line
            self._failing = True
        except Exception:
            logger.exception("The mover failed; going on trying")
        else:
            if self._failing:
                logger.warning("Held tasks can be moved again")
            self._failing = False
        self._hurried = bool(integration.ramping) and time.monotonic() < began + _RAMP_INTERVAL
