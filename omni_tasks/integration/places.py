"""
Which place an application's held tasks wait in: decided here, by its broker and ``omni_parking``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis
from celery import Celery
from kombu.transport import pyamqp, virtual

from omni_tasks.errors import ConfigurationError
from omni_tasks.integration.amqp import AmqpCarrier
from omni_tasks.integration.broker import broker_url, open_client
from omni_tasks.integration.eta import EtaQueue
from omni_tasks.integration.held import Parking
from omni_tasks.integration.holding import HoldingQueues
from omni_tasks.integration.ledger import Ledger
from omni_tasks.integration.lot import Lot
from omni_tasks.integration.store_lot import StoreLot
from omni_tasks.integration.virtual import VirtualCarrier
from omni_tasks.settings import ResilienceConfiguration, redacted
from omni_tasks.store.connect import connect
from omni_tasks.store.url import parse

__all__ = ["open_parking", "visibility_timeout"]

#: kombu's default, in seconds: when an unacknowledged message is given to another worker.
_VISIBILITY_TIMEOUT = 3600.0


def open_parking(app: Celery, settings: ResilienceConfiguration, consumer: Callable[[], Any]) -> Parking:
    """
    The place where the held tasks of *app* wait.  No connection is made yet.

    Args:
        app: The application.

        settings: Its own.

        consumer: Returns the worker's consumer, or ``None`` where none runs.

    Raises:
        ConfigurationError: Its tasks could not be held with these settings.
    """
    options = app.conf.broker_transport_options or {}
    # A copy may come back once the timeout has passed, and its worker may be slow to fall silent.
    remember = 2 * visibility_timeout(app) + 60
    if broker_url(app) is not None:
        if settings.parking == "store":
            raise ConfigurationError("omni_parking", "store", '"broker" where the broker is Redis: the lot is there')
        prefix = f"{options.get('global_keyprefix', '')}{settings.key_prefix}"
        return Lot(open_client(app, timeout=max(settings.store_timeout, 1.0)), prefix=prefix, remember=remember)
    carrier, client = _carrier(app, consumer), _client(settings)
    ledger = Ledger(client, prefix=settings.key_prefix, remember=remember)
    if settings.parking == "store":
        return StoreLot(client, carrier, ledger, prefix=settings.key_prefix)
    if isinstance(carrier, AmqpCarrier):
        quorum = app.conf.get("task_default_queue_type") == "quorum"
        return HoldingQueues(carrier, ledger, prefix=settings.key_prefix, quorum=quorum)
    return EtaQueue(carrier, ledger, longest=visibility_timeout(app) / 3)


def visibility_timeout(app: Celery) -> float:
    """
    Seconds after which the broker gives an unacknowledged message to another worker.
    """
    options = app.conf.broker_transport_options or {}
    return float(options.get("visibility_timeout", _VISIBILITY_TIMEOUT))


def _carrier(app: Celery, consumer: Callable[[], Any]) -> AmqpCarrier | VirtualCarrier:
    connection = app.connection_for_write()
    transport = connection.get_transport_cls()
    if issubclass(transport, pyamqp.Transport):
        return AmqpCarrier(app, consumer)
    if issubclass(transport, virtual.Transport):
        return VirtualCarrier(app)
    shown = redacted(str(connection.as_uri()))
    raise ConfigurationError("broker_url", shown, "amqp:// or one of kombu's virtual transports")


def _client(settings: ResilienceConfiguration) -> redis.Redis:
    if settings.redis_url is None:
        # The child that runs a task and the parent that asks for it would each have a circuit of their own.
        raise ConfigurationError("omni_redis_url", None, "set where the broker is not Redis: circuits are shared there")
    if parse(settings.redis_url).kind == "cluster":
        # What is known of held tasks is in several keys that one script changes together.
        raise ConfigurationError(
            "omni_redis_url", redacted(settings.redis_url), "no cluster where the broker is not Redis"
        )
    return connect(settings.redis_url, timeout=settings.store_timeout)
