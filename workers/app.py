"""
The Celery application: ``celery -A workers worker`` and ``celery -A workers beat``.

Articles have a queue of their own, so that a backlog of them does not stand in
front of the monitor's ticks.  A worker without ``-Q`` serves both.
"""

from __future__ import annotations

from celery import Celery
from kombu.entity import Exchange, Queue

from omni_tasks import ConfigurationError, init_app
from workers.settings import Settings

__all__ = ["ARTICLES_QUEUE", "WRITE_ARTICLE", "app", "make_app", "settings"]

ARTICLES_QUEUE = "articles"
DEFAULT_QUEUE = "celery"
WRITE_ARTICLE = "workers.write_article"

# Seconds.  A day to look at an article's result; the article itself is a file.
RESULT_EXPIRES = 24 * 3600


def make_app(settings: Settings) -> Celery:
    """
    Build the application; nothing connects yet.
    """
    made = Celery("workers", include=["workers.tasks"])
    made.conf.update(
        broker_url=settings.broker_url,
        result_backend=settings.result_backend,
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_default_queue=DEFAULT_QUEUE,
        task_queues=[_queue(DEFAULT_QUEUE), _queue(ARTICLES_QUEUE)],
        task_routes={WRITE_ARTICLE: {"queue": ARTICLES_QUEUE}},
        result_expires=RESULT_EXPIRES,
        # An article takes seconds: a worker that hoards messages only delays them.
        worker_prefetch_multiplier=1,
        worker_send_task_events=True,
        broker_connection_retry_on_startup=True,
    )
    if settings.redis_broker:
        made.conf.broker_transport_options = {"visibility_timeout": settings.visibility_timeout}
    init_app(made)
    return made


def _queue(name: str) -> Queue:
    """
    Make a queue that gets its own messages only: left out, exchange and key would be the default queue's.
    """
    return Queue(name, Exchange(name), routing_key=name)


def _start() -> tuple[Settings, Celery]:
    """
    Read the environment; a wrong value ends the process with one line.
    """
    try:
        found = Settings.from_environment()
        return found, make_app(found)
    except ConfigurationError as error:
        # Celery's command line would print a traceback for any other exception.
        raise SystemExit(f"workers: {error}") from None


settings, app = _start()
