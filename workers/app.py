"""
The Celery application: ``celery -A workers worker`` and ``celery -A workers beat``.

Articles have queues of their own, one for each provider and one for those that may go to
any, so that a backlog of them does not stand in front of the monitor's ticks, nor one
provider's in front of another's.  A worker without ``-Q`` serves them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from celery.signals import worker_init
from kombu.entity import Exchange, Queue

from omni_tasks import ConfigurationError, init_app
from workers.settings import PROVIDER_NAMES, Settings

__all__ = [
    "ANYWHERE_QUEUE",
    "PRIORITIES",
    "WRITE_ANYWHERE",
    "WRITE_ARTICLE",
    "app",
    "make_app",
    "queue_of",
    "settings",
    "shown",
]

ANYWHERE_QUEUE = "articles"
DEFAULT_QUEUE = "celery"

#: An article of one provider's, and one that passes to the next provider when the first is down.
WRITE_ARTICLE = "workers.write_article"
WRITE_ANYWHERE = "workers.write_article_anywhere"

# Seconds.  A day to look at an article's result; the article itself is a file.
RESULT_EXPIRES = 24 * 3600

# Seconds that a second request to end gives the articles under way.
LAST_WORDS = 10.0

#: What a message's priority is called in words; in a Redis small numbers go first, in RabbitMQ large ones.
PRIORITIES = {"high": 0, "normal": 3, "low": 9}
MOST_PRIORITY = 9


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
        task_queues=[_queue(name) for name in (DEFAULT_QUEUE, ANYWHERE_QUEUE, *map(queue_of, PROVIDER_NAMES))],
        task_routes=(_route,),
        result_expires=RESULT_EXPIRES,
        # An article takes seconds: a worker that hoards messages only delays them.
        worker_prefetch_multiplier=1,
        worker_send_task_events=True,
        # SIGTERM lets the articles under way finish; after a second one they have this long.
        worker_soft_shutdown_timeout=LAST_WORDS,
        broker_connection_retry_on_startup=True,
    )
    if settings.redis_broker:
        made.conf.broker_transport_options = {"visibility_timeout": settings.visibility_timeout}
    if urlsplit(settings.broker_url).scheme == "redis":
        # What a worker has fetched when it is killed comes again, too.
        made.conf.broker_transport = "omni_tasks.integration.fetch:Transport"
    # The monitor asks a provider for its models before it lets an article find out.  OMNI_CIRCUITS takes its place.
    checks = {name: {"health_check": f"omni_tasks.gateways.health:{name}"} for name in settings.providers}
    init_app(made, circuits={f"ai_providers:{name}": check for name, check in checks.items()})
    return made


def queue_of(provider: str) -> str:
    """
    Name the queue of the articles that only *provider* may write.
    """
    return f"{ANYWHERE_QUEUE}.{provider}"


def shown(kwargs: Mapping[str, object]) -> dict[str, str]:
    """
    Give the options of a message that say what Flower and the logs show of it: neither prompt nor words to the model.
    """
    hidden = {name: "..." for name in ("prompt", "config") if kwargs.get(name) is not None}
    return {"argsrepr": "(...)", "kwargsrepr": repr({**kwargs, **hidden})}


def _queue(name: str) -> Queue:
    """
    Make a queue that gets its own messages only: left out, exchange and key would be the default queue's.
    """
    return Queue(name, Exchange(name), routing_key=name, max_priority=MOST_PRIORITY)


def _route(name: str, _args: Any, kwargs: Any, _options: Any, **_more: Any) -> dict[str, str] | None:
    """
    Find an article's queue; everything else goes to the default one.
    """
    if name == WRITE_ANYWHERE:
        return {"queue": ANYWHERE_QUEUE}
    provider = (kwargs or {}).get("provider", settings.provider)
    return {"queue": queue_of(provider)} if name == WRITE_ARTICLE and provider in PROVIDER_NAMES else None


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


@worker_init.connect(weak=False)
def _check_keys(sender: Any, **_kwargs: Any) -> None:
    """
    Refuse to work without a key: every article would fail for it.
    """
    if sender.app is not app:
        return
    from omni_tasks.gateways import PROVIDERS, GatewayConfig  # noqa: PLC0415 - takes half a second; sending needs none

    try:
        for name in settings.providers:
            GatewayConfig().resolved(PROVIDERS[name])
    except ConfigurationError as error:
        # A signal's receiver cannot raise, but it can end the process.
        raise SystemExit(f"workers: {error}") from None
