"""
A way to fetch from Redis that leaves a trace of what it took.

kombu waits with ``BRPOP``, and notes in ``unacked`` what it has received.  A
worker that is killed between the two loses the message, whatever its
``acks_late`` says; where the worker is busy, that is most of the time.  Here a
script takes and notes in one step, so what a killed worker had in hand comes
back after the ``visibility_timeout``::

    app.conf.broker_transport = "omni_tasks.integration.fetch:Transport"

No command of Redis waits for several lists without taking.  ``BLMOVE`` of a
list's end to the same end waits for one and changes nothing: we wait for one
list in turn, shortly where there are several, and look at all.

Source:
    ``kombu.transport.redis.Channel`` (5.7, 5.6): ``_brpop_start``,
    ``_brpop_read``; ``QoS.append``, ``QoS.restore_by_tag``.
"""

from __future__ import annotations

import time
from importlib import resources
from queue import Empty
from typing import Any

from kombu.transport import redis

__all__ = ["Channel", "Transport"]

#: How long one list is waited for where there are several, in seconds.
GLANCE = 0.1

#: kombu's has no types.
_Channel: Any = redis.Channel

_FETCH = (resources.files("omni_tasks.integration") / "lua" / "fetch.lua").read_text(encoding="utf-8")


class Channel(_Channel):
    """
    A channel that takes and notes in one step.  Needs Redis 6.2 or newer.
    """

    #: Whether the last look found nothing.
    _found_nothing = False

    #: Whether what was asked last is to wait.
    _waits = False

    #: Whether somebody wants messages that are never acknowledged: a note of them would stay for ever.
    _notes_nothing = False

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:  # noqa: FBT001 - kombu's own signature
        """
        Consume *queue*.
        """
        self._notes_nothing = self._notes_nothing or no_ack
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def _brpop_start(self, timeout: float | None = None) -> None:
        queues = self._queue_cycle.consume(len(self.active_queues))
        if self._notes_nothing or not queues:
            super()._brpop_start(timeout)
            return
        if timeout is None:
            timeout = self.brpop_timeout
        lists = [self._q_for_pri(queue, step) for step in self.priority_steps for queue in queues]
        keys = [f"{self.global_keyprefix}{key}" for key in (self.unacked_key, self.unacked_index_key, *lists)]
        connection = self.client.connection
        self._in_poll = connection
        # Of kombu's own watch over a server that does not answer.
        self._brpop_sent_at = time.monotonic()
        self._waits, self._found_nothing = self._found_nothing, False
        if self._waits:
            # Next time another queue's turn.
            self._queue_cycle.rotate(queues[0])
            seconds = min(GLANCE, timeout) if len(lists) > 1 else timeout
            connection.send_command("BLMOVE", keys[2], keys[2], "RIGHT", "RIGHT", seconds)
        else:
            connection.send_command("EVAL", _FETCH, len(keys), *keys, time.time())

    def _brpop_read(self, **options: Any) -> Any:
        if not self._waits:
            try:
                # The script answers as BRPOP does.
                return super()._brpop_read(**options)
            except Empty:
                self._found_nothing = True
                raise
        self._waits = False
        try:
            self.client.parse_response(self.client.connection, "BLMOVE", **options)
        except self.connection_errors:
            self.client.connection.disconnect()
            raise
        finally:
            self._in_poll = None
        raise Empty


class Transport(redis.Transport):
    """
    kombu's Redis transport, but for how a worker fetches.
    """

    Channel = Channel
