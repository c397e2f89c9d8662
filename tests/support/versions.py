"""
What the tests must know of the Celery they run on; ``make versions`` runs them on each.
"""

from __future__ import annotations

import celery

__all__ = ["GREENLETS_CAN_BE_TERMINATED", "OUTLIVES_ITS_BROKER", "RECONNECTS"]

_CELERY = (celery.VERSION.major, celery.VERSION.minor)

#: Whether the gevent pool implements ``revoke(terminate=True)``.
GREENLETS_CAN_BE_TERMINATED = _CELERY >= (5, 5)

#: Whether a prefork worker hears of its children after it has lost its connection to Redis.
RECONNECTS = _CELERY >= (5, 6)

#: Whether a prefork worker with Gossip goes on while its broker is away, and hears of its children meanwhile.
OUTLIVES_ITS_BROKER = _CELERY >= (5, 7)
