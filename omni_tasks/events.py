"""
The structured log: one JSON line an event, through the standard library's logger ``omni_tasks``.

===================================  ==================================================
event                                when
===================================  ==================================================
``circuit_breaker_init``             a process got to know a circuit (debug)
``circuit_breaker_open``             a circuit tripped or reopened
``circuit_breaker_half_open``        a circuit let its first probe through
``circuit_breaker_closed``           a circuit closed
``circuit_breaker_override``         an operator forced a circuit, or let it decide again
``circuit_breaker_reset``            an operator cleared a circuit
``circuit_breaker_alert``            the monitor found a circuit in trouble, once an episode
``circuit_breaker_recovered``        the trouble is over
``circuit_breaker_callback_failed``  a callback of the application's raised
``circuit_monitor_failed``           a tick of the monitor found the store away
``circuit_store_degraded``           a process lost the shared store and goes on alone
``circuit_store_recovered``          the shared store answers again
``omni_redis_url_unreachable``       a worker started while the shared store was away
===================================  ==================================================
"""

from __future__ import annotations

import logging
from typing import Any

import structlog

__all__ = ["log"]


def _make() -> Any:
    # Bound to our own chain: a library must not depend on, or change, the
    # application's structlog configuration.
    return structlog.wrap_logger(
        logging.getLogger("omni_tasks"),
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=False,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
    )


log = _make()
