"""
The log in a worker: which task and circuit a line is about, and Celery's own lines in the same format.
"""

from __future__ import annotations

import logging
from typing import Any

import structlog
from celery import signals

from omni_tasks import events
from omni_tasks.settings import ResilienceConfiguration

__all__ = ["Formatter", "follow_tasks", "use"]

#: Where a task's request keeps what has to be undone when the task ends.
_TOKENS = "_omni_log_tokens"


def use(settings: ResilienceConfiguration) -> None:
    """
    Write this process's log as *settings* say; before Celery sets up its own.
    """
    events.use_format(settings.log_format)
    if settings.log_celery:
        signals.after_setup_logger.connect(_reformat, dispatch_uid="omni-logs", weak=False)
        signals.after_setup_task_logger.connect(_reformat, dispatch_uid="omni-task-logs", weak=False)


def follow_tasks() -> None:
    """
    Say in every line that is written while a task runs which task that is.
    """
    signals.task_prerun.connect(_bind, dispatch_uid="omni-logs", weak=False)
    signals.task_postrun.connect(_unbind, dispatch_uid="omni-logs", weak=False)


def _bind(task_id: str, task: Any, **_kwargs: Any) -> None:
    circuit = getattr(task, "circuit", None)
    about = {"task_id": task_id, "task": task.name, **({"circuit": circuit} if circuit else {})}
    setattr(task.request, _TOKENS, structlog.contextvars.bind_contextvars(**about))


def _unbind(task: Any, **_kwargs: Any) -> None:
    tokens = task.request.__dict__.pop(_TOKENS, None)
    if tokens:
        structlog.contextvars.reset_contextvars(**tokens)


def _reformat(logger: logging.Logger, **_kwargs: Any) -> None:
    for handler in logger.handlers:
        handler.setFormatter(Formatter())


class Formatter(structlog.stdlib.ProcessorFormatter):
    """
    Writes any library's lines as the structured log's.
    """

    def __init__(self) -> None:
        """
        Go through the same steps as our own events.
        """
        super().__init__(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *events.STEPS],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, events.render],
        )

    def format(self, record: logging.LogRecord) -> str:
        """
        One line; our own events are one already.
        """
        if record.name == events.LOGGER:
            return record.getMessage()
        return super().format(record)
