"""
Leaving a queue alone while its circuit is open (``omni_pause_queues``).

For a queue whose tasks all need one dependency: its messages stay in the broker,
instead of moving to the lot one by one.  Each worker pauses for itself, so a
worker that is gone leaves nothing behind; what it has fetched already comes to
the gate.  When the circuit may let a probe through the queue is consumed again,
and the gate decides as ever.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import bootsteps

from omni_tasks.core.model import CircuitState
from omni_tasks.integration.compat import consume_again
from omni_tasks.integration.install import Integration, integration_of

__all__ = ["PauseStep"]

logger = logging.getLogger(__name__)


class PauseStep(bootsteps.StartStopStep):
    """
    Starts and stops consuming the queues that are dedicated to a circuit.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        """
        Note which of the queues this worker serves; later it may have left some alone.
        """
        super().__init__(consumer, **kwargs)
        served = set(consumer.app.amqp.queues.consume_from)
        queues = integration_of(consumer.app).settings.pause_queues
        self._queues = {queue: circuit for queue, circuit in queues.items() if queue in served}
        self._paused: set[str] = set()
        self._entry: Any = None

    def start(self, consumer: Any) -> None:
        """
        Look at the circuits every ``omni_mover_interval`` seconds.
        """
        self.stop(consumer)
        integration = integration_of(consumer.app)
        if self._queues and integration.manager.enabled:
            interval = integration.settings.mover_interval
            self._entry = consumer.timer.call_repeatedly(interval, self._tick, (consumer, integration))

    def stop(self, consumer: Any) -> None:  # noqa: ARG002 - Celery's own signature
        """
        Leave the queues as they are.
        """
        entry, self._entry = self._entry, None
        if entry is not None:
            entry.cancel()

    def _tick(self, consumer: Any, integration: Integration) -> None:
        for queue, circuit in self._queues.items():
            try:
                self._set(consumer, queue, pause=_is_shut(integration, circuit))
            except Exception:
                # An exception that left a timer would be logged by Celery without a word about whose it is.
                logger.exception("Queue %s could not be paused or taken up again; trying again", queue)

    def _set(self, consumer: Any, queue: str, *, pause: bool) -> None:
        if pause == (queue in self._paused):
            return
        if pause:
            consumer.cancel_task_queue(queue)
            self._paused.add(queue)
        else:
            consume_again(consumer, queue)
            self._paused.discard(queue)
        logger.info("Queue %s %s", queue, "paused: its circuit is open" if pause else "is consumed again")


def _is_shut(integration: Integration, circuit: str) -> bool:
    metrics = integration.manager.get(circuit).get_metrics()
    # Where the store is away a worker knows nothing of the outage: the gate decides.
    return metrics.state is CircuitState.OPEN and metrics.retry_after > 0 and not metrics.degraded
