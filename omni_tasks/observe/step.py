"""
The exporter within a worker, where ``omni_exporter_port`` asks for it.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps

from omni_tasks.events import log
from omni_tasks.integration.install import integration_of
from omni_tasks.observe.exporter import Exporter
from omni_tasks.observe.metrics import CircuitCollector

__all__ = ["ExporterStep"]


class ExporterStep(bootsteps.StartStopStep):  # type: ignore[misc] # Celery ships no types
    """
    Starts the exporter in the worker's main process: its children export nothing.
    """

    # After the pool: what is forked before has no part in it.
    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        """
        Prepare; nothing listens yet.
        """
        super().__init__(worker, **kwargs)
        self._exporter: Exporter | None = None

    def start(self, worker: Any) -> None:
        """
        Listen; a port that is taken is told, and the worker goes on.
        """
        integration = integration_of(worker.app)
        settings = integration.settings
        if settings.exporter_port is None:
            return
        # With resilience off there may be no place where tasks are held.
        collector = CircuitCollector(integration.manager, integration.lot if settings.enable_resilience else None)
        try:
            self._exporter = Exporter(collector, host=settings.exporter_host, port=settings.exporter_port)
        except OSError as error:
            # Several workers on one machine: one of them exports for all.
            log.warning("circuit_exporter_not_started", port=settings.exporter_port, reason=str(error))
            return
        self._exporter.start()

    def stop(self, worker: Any) -> None:  # noqa: ARG002 - Celery's own signature
        """
        Listen no more.
        """
        exporter, self._exporter = self._exporter, None
        if exporter is not None:
            exporter.close()
