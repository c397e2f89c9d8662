"""
The mover: brings held tasks back, at the pace their circuit sets.

Every worker runs one, from the timer of its consumer.  They need no leader:
how many tasks may go is decided in the circuit's store, and each move is atomic
in the broker, so two movers divide the work and never double it.
"""

from __future__ import annotations

import logging
from typing import Any

import redis
from celery import bootsteps

from omni_tasks import signals
from omni_tasks.integration.broker import broker_url
from omni_tasks.integration.install import Integration, integration_of

__all__ = ["MoverStep", "move_held_tasks"]

logger = logging.getLogger(__name__)

#: Every so many ticks a mover also looks at circuits that hold nothing, to end their ramps.
_SWEEP_TICKS = 10

#: Held tasks per tick and circuit that leave where resilience has been switched off.
_UNGUARDED_AT_ONCE = 20


def move_held_tasks(integration: Integration, *, sweep: bool = False) -> int:
    """
    Move as many held tasks as their circuits allow now.

    Args:
        integration: The application's.

        sweep: Whether to also ask for circuits that hold nothing, so that their ramps can end.

    Returns:
        How many were moved.
    """
    moved = 0
    manager, lot = integration.manager, integration.lot
    for circuit, held in lot.counts(manager.keys()).items():
        if not held and not sweep:
            continue
        if not manager.enabled:
            # Nobody holds tasks any more: those that wait leave, in handfuls.
            moved += lot.unpark(circuit, min(held, _UNGUARDED_AT_ONCE), "")
            continue
        answer = manager.get(circuit).draw(held)
        # While the store is away the answer is this process's own circuit's, which knows nothing:
        # held stays held.  Asking goes on all the same, or nobody would notice the store's return.
        if answer.count and not manager.degraded:
            count = lot.unpark(circuit, answer.count, answer.ticket)
            signals.task_released.send(sender=circuit, count=count)
            moved += count
    return moved


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
        self._ticks = 0
        self._failing = False

    def start(self, consumer: Any) -> None:
        """
        Look at the lot every ``omni_mover_interval`` seconds.
        """
        self.stop(consumer)
        integration = integration_of(consumer.app)
        integration.consumer = consumer
        if broker_url(consumer.app) is None:
            # Only with resilience off: the start is refused otherwise.
            return
        self._entry = consumer.timer.call_repeatedly(integration.settings.mover_interval, self._tick, (integration,))

    def stop(self, consumer: Any) -> None:  # noqa: ARG002 - Celery's own signature
        """
        Leave the lot alone.
        """
        entry, self._entry = self._entry, None
        if entry is not None:
            entry.cancel()

    def _tick(self, integration: Integration) -> None:
        # An exception that left a timer would be logged by Celery at every tick.
        self._ticks += 1
        try:
            move_held_tasks(integration, sweep=self._ticks % _SWEEP_TICKS == 0)
        except (redis.RedisError, OSError) as error:
            if not self._failing:
                logger.error("Held tasks cannot be moved: %s; going on trying", error)  # noqa: TRY400 - one line
            self._failing = True
        except Exception:
            logger.exception("The mover failed; going on trying")
        else:
            if self._failing:
                logger.warning("Held tasks can be moved again")
            self._failing = False
