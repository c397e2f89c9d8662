"""
A way to fetch from Redis that leaves a trace of what it took.

kombu waits with ``BRPOP``, and notes in ``unacked`` what it has received.  A
worker that is killed between the two loses the message, whatever its
``acks_late`` says; where the worker is busy, that is most of the time.  Here a
script takes and notes in one step, so what a killed worker had in hand comes
back after the ``visibility_timeout``::

    app.conf.broker_transport = "omni_tasks.integration.fetch:Transport"

A script cannot wait, and no command waits for a list without taking from it.
So a channel that found nothing rests for a moment before it looks again: with
a ``BRPOP`` of a list that is never there, whose end the worker's event loop
hears as it hears kombu's.

Source:
    ``kombu.transport.redis.Channel`` (5.4 to 5.7): ``_brpop_start``,
    ``_brpop_read``; ``QoS.append``, ``QoS.restore_by_tag``;
    ``MultiChannelPoller.get``.
"""

from __future__ import annotations

import logging
import time
from importlib import resources
from queue import Empty
from typing import Any

from kombu.transport import redis

__all__ = ["Channel", "Transport"]

logger = logging.getLogger(__name__)

#: How long a channel rests after it has found nothing, in seconds; the server's own clock makes it up to 0.2.
REST = 0.1

#: Seconds between two looks for what nobody has acknowledged in time, as kombu's in a worker with an event loop.
RESTORE_INTERVAL = 10.0

#: kombu's has no types.
_Channel: Any = redis.Channel

_FETCH = (resources.files("omni_tasks.integration") / "lua" / "fetch.lua").read_text(encoding="utf-8")


class Channel(_Channel):
    """
    A channel that takes and notes in one step.
    """

    #: Whether the question under way looks for a message; else it is a rest, or kombu's own.
    _looks = False

    #: Whether the last look found nothing.
    _is_to_rest = False

    _restored_monotonic = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """
        Consume nothing yet.
        """
        #: Queues whose messages nobody acknowledges, as those of replies: a note of them would stay for ever.
        self._unnoted: set[str] = set()
        super().__init__(*args, **kwargs)

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:  # noqa: FBT001 - kombu's own signature
        """
        Consume *queue*.
        """
        (self._unnoted.add if no_ack else self._unnoted.discard)(queue)
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def _brpop_start(self, *args: Any, **kwargs: Any) -> None:
        queues = self._queue_cycle.consume(len(self.active_queues))
        self._looks = False
        if not queues or not self.ack_emulation or not self._unnoted.isdisjoint(queues):
            super()._brpop_start(*args, **kwargs)
            return
        self._in_poll = self.client.connection
        # For kombu's own watch over a server that does not answer.
        self._brpop_sent_at = time.monotonic()
        if self._is_to_rest:
            self._is_to_rest = False
            self._in_poll.send_command("BRPOP", f"{self.global_keyprefix}{self.unacked_key}:never", REST)
            return
        self._looks = True
        lists = [self._q_for_pri(queue, step) for step in self.priority_steps for queue in queues]
        keys = [f"{self.global_keyprefix}{key}" for key in (self.unacked_key, self.unacked_index_key, *lists)]
        self._in_poll.send_command("EVAL", _FETCH, len(keys), *keys, time.time())

    def _brpop_read(self, **options: Any) -> Any:
        try:
            # The script answers as BRPOP does.
            return super()._brpop_read(**options)
        except Empty:
            self._is_to_rest = self._looks
            if self._looks:
                self._restore_now_and_then()
            raise

    def _restore_now_and_then(self) -> None:
        # Without an event loop kombu looks for what is overdue when nothing came at all for a second or two.  Here an
        # answer comes more often than that.
        now = time.monotonic()
        if now - self._restored_monotonic >= RESTORE_INTERVAL:
            self._restored_monotonic = now
            try:
                self.connection.cycle.maybe_restore_messages()
            except self.ResponseError as error:
                # As by a server that is full, or only reads; it is no reason to stop.
                logger.warning("Cannot look for what is overdue: %s", error)


class Transport(redis.Transport):
    """
    kombu's Redis transport, but for how a worker fetches.
    """

    Channel = Channel
