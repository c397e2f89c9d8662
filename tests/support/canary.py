"""
Looking for words that must not be there: in a Redis, and in what workers tell of their tasks.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
from typing import Any, Self

import redis
from celery import Celery

__all__ = ["Listener", "dump"]

#: How each type of key is read as a whole.
READERS: dict[bytes, tuple[str, tuple[Any, ...]]] = {
    b"string": ("GET", ()),
    b"hash": ("HGETALL", ()),
    b"list": ("LRANGE", (0, -1)),
    b"set": ("SMEMBERS", ()),
    b"zset": ("ZRANGE", (0, -1, "WITHSCORES")),
    b"stream": ("XRANGE", ("-", "+")),
}


def dump(store: redis.Redis) -> list[tuple[str, str]]:
    """
    Read everything there is: each key's name and its value as text, with what is packed in base64 unpacked as well.
    """
    found = []
    # redis-py does not say what commands by name return.
    client: Any = store
    for key in client.scan_iter(count=1000):
        reader = READERS.get(client.execute_command("TYPE", key))
        if reader is not None:
            command, arguments = reader
            value = client.execute_command(command, key, *arguments)
            found.append((key.decode(errors="replace"), _unpacked(repr(value))))
    return found


def _unpacked(text: str) -> str:
    words = re.findall(r"[A-Za-z0-9+/]{16,}={0,2}", text)
    return " ".join([text, *map(_decoded, words)])


def _decoded(word: str) -> str:
    try:
        return base64.b64decode(word).decode(errors="replace")
    except binascii.Error:
        return ""


class Listener:
    """
    Hears everything that workers tell of their tasks, which is what Flower shows.
    """

    def __init__(self, app: Celery) -> None:
        """
        Listen for the block.
        """
        self.events: list[str] = []
        self._app = app
        self._receiver: Any = None
        self._hears = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        """
        Begin to listen.
        """
        self._thread.start()
        # A receiver hears nothing of what was said before it had its queue.
        assert self._hears.wait(30)
        return self

    def __exit__(self, *_exception: object) -> None:
        """
        Listen no more.
        """
        self._receiver.should_stop = True
        self._thread.join(5)

    def _listen(self) -> None:
        def hear(event: dict[str, Any]) -> None:
            self.events.append(repr(event))

        with self._app.connection() as connection:
            self._receiver = self._app.events.Receiver(connection, handlers={"*": hear})
            self._receiver.on_consume_ready = lambda *_, **__: self._hears.set()
            # In one go: its queue is deleted whenever it stops to listen, with what was told meanwhile.
            self._receiver.capture(limit=None, timeout=None, wakeup=False)
