"""
One plain sentence about what is happening.
"""

from __future__ import annotations

import math

from demo.moment import Chapter, Moment

__all__ = ["say"]


def say(moment: Moment) -> str:
    """
    Tell what is happening, in words that need no manual.
    """
    if moment.chapter is Chapter.START:
        return "Everything is being started."
    if moment.chapter is Chapter.END:
        return _end(moment)
    if moment.degraded:
        return "The shared store does not answer; each worker decides for itself, nothing fails for that."
    if moment.chapter is Chapter.WELL:
        return f"The provider is well; {articles(moment.queued)} {wait(moment.queued)} for a turn."
    return _outage(moment) if moment.provider_down else _recovery(moment)


def articles(count: int) -> str:
    """
    Count articles.
    """
    return "no article" if count == 0 else "1 article" if count == 1 else f"{count} articles"


def wait(count: int) -> str:
    """
    Agree with *count*.
    """
    return "waits" if count <= 1 else "wait"


def _outage(moment: Moment) -> str:
    waiting = moment.held + moment.queued
    match moment.circuit:
        case "open":
            return f"The provider is down; {articles(waiting)} {wait(waiting)}; {_next_probe(moment)}."
        case "half_open":
            return f"The provider is down; {articles(waiting)} {wait(waiting)}; one probe tries it."
        case _:
            counted = min(moment.failures, moment.failure_threshold)
            return f"The provider has just died: {counted} of the {moment.failure_threshold} failures that open the circuit."


def _recovery(moment: Moment) -> str:
    match moment.circuit:
        case "open":
            return f"The provider is well again, which the circuit cannot know yet; {_next_probe(moment)}."
        case "half_open":
            return "The provider is well again; one probe finds out."
        case _ if moment.held:
            held = articles(moment.held)
            return f"The circuit has closed; {held} {'is' if moment.held == 1 else 'are'} still held, more return each second."
        case _:
            return f"The circuit has closed; nothing is held any more, {moment.total - moment.done} to write."


def _next_probe(moment: Moment) -> str:
    if moment.retry_after <= 0:
        return "the next probe is due"
    return f"next probe in {math.ceil(moment.retry_after)} s"


def _end(moment: Moment) -> str:
    if moment.done == moment.total:
        return f"{articles(moment.total).capitalize()} written; the outage failed none of them."
    return f"{moment.done} of {articles(moment.total)} written, {moment.failed} failed."
