"""
One plain sentence about what is happening.
"""

from __future__ import annotations

import math

from demo.moment import Chapter, Moment

__all__ = ["say"]


def say(moment: Moment) -> str:
    """
    Tell what is happening, in words that need no manual, in at most 63 characters.
    """
    if moment.chapter is Chapter.END:
        return _end(moment)
    if moment.degraded:
        return "The shared store is away; each worker decides for itself."
    if moment.circuit is None:
        return "The circuit cannot be seen at the moment."
    if moment.chapter is Chapter.WELL:
        return f"The provider is well; {_articles(moment.queued)} {_wait(moment.queued)} for a turn."
    return _outage(moment) if moment.provider_down else _recovery(moment)


def _outage(moment: Moment) -> str:
    waiting = moment.held + moment.queued
    match moment.circuit:
        case "open":
            return f"The provider is down; {_articles(waiting)} {_wait(waiting)}; next probe {_soon(moment)}."
        case "half_open":
            return f"The provider is down; {_articles(waiting)} {_wait(waiting)}; a probe tries it."
        case _:
            counted = min(moment.failures, moment.failure_threshold)
            return f"The provider has just died; {counted} of {moment.failure_threshold} failures counted."


def _recovery(moment: Moment) -> str:
    match moment.circuit:
        case "open":
            return f"The provider is back; nobody knows until a probe {_soon(moment)}."
        case "half_open":
            return "The provider is back; a probe finds out."
        case _ if moment.held:
            return f"The circuit is closed; {_articles(moment.held)} still held, returning."
        case _:
            return f"Nothing is held any more; {_articles(moment.total - moment.done - moment.failed)} to go."


def _end(moment: Moment) -> str:
    if moment.done == moment.total:
        return f"{_articles(moment.total).capitalize()} written; the outage failed none of them."
    return f"{moment.done} of {_articles(moment.total)} written, {moment.failed} failed."


def _soon(moment: Moment) -> str:
    return f"in {math.ceil(moment.retry_after)} s" if moment.retry_after > 0 else "now"


def _articles(count: int) -> str:
    return "no article" if count == 0 else "1 article" if count == 1 else f"{count} articles"


def _wait(count: int) -> str:
    return "waits" if count <= 1 else "wait"
