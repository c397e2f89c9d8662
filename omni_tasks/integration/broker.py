"""
What must be known of kombu's Redis transport to set a message aside, and nothing else.

kombu keeps a queue as one list per priority, pushes on the left and pops on
the right; a message on the list is the JSON of ``Message._raw``.

Source:
    ``kombu.transport.redis.Channel`` (5.7): ``_put``, ``_q_for_pri``,
    ``_brpop_read``, ``_do_restore_message``.
"""

from __future__ import annotations

import ssl
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import redis
from celery import Celery
from kombu.message import Message
from kombu.utils.json import dumps

from omni_tasks.errors import ConfigurationError
from omni_tasks.integration.fetch import Transport
from omni_tasks.integration.virtual import queue_of, raw_of
from omni_tasks.settings import redacted
from omni_tasks.store.connect import connect

__all__ = ["Destination", "broker_url", "destination_of", "envelope_of", "open_client", "was_redelivered"]

_SCHEMES = ("redis", "rediss")

#: How redis-py spells in a URL what the ssl module has constants for.
_TLS_WORDS: Mapping[object, str] = {ssl.CERT_NONE: "none", ssl.CERT_OPTIONAL: "optional", ssl.CERT_REQUIRED: "required"}


@dataclass(frozen=True, slots=True)
class Destination:
    """
    Where a held message goes back to.

    Attributes:
        key: The Redis list of its queue and priority.

        queue: The queue it was received from.

        priority: kombu's: 0 is served first, 9 last.
    """

    key: str
    queue: str
    priority: int


def broker_url(app: Celery) -> str | None:
    """
    The broker's URL as redis-py reads it, or ``None`` when the broker is not Redis.

    TLS options are put into the URL, whether they came from the broker's own or
    from ``broker_use_ssl``: a client that verifies differently than the broker's
    could not reach the lot.
    """
    connection = app.connection_for_write()
    uri = str(connection.as_uri(include_password=True))
    if uri.startswith("redis+socket://"):
        return uri.replace("redis+socket://", "unix://", 1).replace("?virtual_host=", "?db=", 1)
    scheme, _, rest = uri.partition("://")
    if scheme not in _SCHEMES:
        if not issubclass(connection.get_transport_cls(), Transport):
            return None
        # The scheme is what the transport was named by.
        uri = f"redis://{rest}"
    if not connection.ssl:
        return uri
    options = connection.ssl if isinstance(connection.ssl, Mapping) else {}
    return f"rediss://{rest}?{urlencode({name: _TLS_WORDS.get(value, value) for name, value in options.items()})}"


def open_client(app: Celery, *, timeout: float) -> redis.Redis:
    """
    A client of the broker's own server: there the lot is as durable as the queues, and a move is atomic.

    Raises:
        ConfigurationError: The broker is not Redis.
    """
    url = broker_url(app)
    if url is None:
        shown = redacted(str(app.connection_for_write().as_uri()))
        raise ConfigurationError("broker_url", shown, "a redis:// or rediss:// URL (tasks are held in Redis)")
    return connect(url, timeout=timeout)


def destination_of(message: Message) -> Destination:
    """
    Find the list a message came from.

    Raises:
        ParkingError: It cannot be told which queue that was.
    """
    channel, queue = message.channel, queue_of(message)
    priority = channel.priority(channel._get_message_priority({"properties": message.properties}, reverse=False))  # noqa: SLF001 - see above
    key = channel._q_for_pri(queue, priority)  # noqa: SLF001 - see above
    return Destination(key=f"{channel.global_keyprefix}{key}", queue=queue, priority=priority)


def envelope_of(message: Message, headers: Mapping[str, Any], filled_later: Sequence[str]) -> list[str]:
    """
    The message as it will be put back, cut at the headers that the server fills in.

    Args:
        message: As received.

        headers: Our own, ``omni_*``.

        filled_later: Our own headers whose values, whole numbers or text without quotes, come
            between the pieces.

    Returns:
        One piece more than *filled_later* has names, in that order.
    """
    seams = [uuid.uuid4().hex for _ in filled_later]
    # Whatever order our headers came in, they go out in this one.
    text = dumps(raw_of(message, {**headers, **dict(zip(filled_later, seams, strict=True))}))
    pieces = []
    for seam in seams:
        piece, text = text.split(seam)
        pieces.append(piece)
    return [*pieces, text]


def was_redelivered(message: Message) -> bool:
    """
    Whether kombu has put this copy back on its queue after somebody had received it.
    """
    info: Mapping[str, Any] = message.delivery_info or {}
    return bool((message.headers or {}).get("redelivered") or info.get("redelivered"))
