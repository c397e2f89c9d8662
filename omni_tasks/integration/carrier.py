"""
Carriers: how a message is read and put back, byte for byte, on a broker that is not Redis.

There are two kinds of kombu transports: AMQP (:mod:`omni_tasks.integration.amqp`)
and those that kombu makes look like it (:mod:`omni_tasks.integration.virtual`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kombu.message import Message

__all__ = ["Carrier", "Parcel"]


@dataclass(frozen=True, slots=True)
class Parcel:
    """
    One received message, ready to wait in a store.

    Attributes:
        queue: The queue it was received from, and goes back to.

        copy: Identifies this copy: equal for the same message delivered again, different for any other.

        priority: 0 leaves first, 9 last.

        content: The message; only its carrier reads it.
    """

    queue: str
    copy: str
    priority: int
    content: bytes


class Carrier(Protocol):
    """
    Reads and publishes raw messages.
    """

    def pack(self, message: Message, headers: Mapping[str, Any]) -> Parcel:
        """
        Take a received message apart, with our own *headers* added.

        Raises:
            ParkingError: It cannot be told which queue it came from.
        """

    def headers_of(self, content: bytes) -> dict[str, Any]:
        """
        The headers of a packed message.
        """

    def send(self, parcels: Sequence[tuple[str, bytes]], headers: Mapping[str, Any]) -> set[str]:
        """
        Put packed messages into queues, durably, with *headers* added.

        Args:
            parcels: Pairs of queue and packed message.

            headers: Our own.

        Returns:
            Queues that are not there: what was meant for them was sent nowhere.

        Raises:
            ParkingError: The broker did not answer for all of them; any of them may have arrived.
        """
