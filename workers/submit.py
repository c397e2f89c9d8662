"""
Sending prompts to the workers, and waiting for the articles.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery.result import ResultSet
from kombu.exceptions import OperationalError
from kombu.utils.url import maybe_sanitize_url

from workers.app import WRITE_ARTICLE
from workers.settings import REDIS_SCHEMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from celery import Celery
    from celery.result import AsyncResult
    from kombu.connection import Connection

    from workers.prompts import Prompt

__all__ = ["Sent", "UnreachableError", "connected", "send", "wait"]

# Seconds for one connection attempt, and for one answer.
PATIENCE = 2.0


class UnreachableError(Exception):
    """
    The broker or the result backend does not answer.  One line, without its password.
    """


@dataclass(frozen=True)
class Sent:
    """
    An article that was asked for.
    """

    slug: str
    result: AsyncResult


@contextmanager
def connected(app: Celery, url: str) -> Iterator[Connection]:
    """
    Connect to the broker or the backend at *url*, now, or say at once that it does not work.

    Raises:
        UnreachableError: At the start, or when the connection breaks later.
    """
    # Celery would go on trying for a long time, which is right for a worker and wrong for a person.
    options = {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE}
    redis = url.partition("://")[0] in REDIS_SCHEMES
    made = app.connection_for_write(url, connect_timeout=PATIENCE, transport_options=options if redis else None)
    with made as connection:
        try:
            connection.connect()
            yield connection
        except (OperationalError, *connection.connection_errors) as error:
            raise _unreachable(url, error) from None


def send(app: Celery, connection: Connection, prompts: Iterable[Prompt]) -> Iterator[Sent]:
    """
    Send one message per prompt.

    Yields:
        Each article as soon as the broker has its message.
    """
    producer = app.amqp.Producer(connection)
    for prompt in prompts:
        named = {"slug": prompt.slug, "variation": prompt.variation}
        result = app.send_task(
            WRITE_ARTICLE,
            kwargs={"prompt": prompt.text, **named},
            producer=producer,
            retry=False,
            # What Flower and the logs show of a task: not the prompt.
            argsrepr="()",
            kwargsrepr=repr({"prompt": "...", **named}),
        )
        yield Sent(prompt.slug, result)


def wait(app: Celery, sent: Iterable[Sent], on_done: Callable[[str, BaseException | None], None]) -> None:
    """
    Wait until every article is written or has failed for good.

    Args:
        app: The application.

        sent: The articles.

        on_done: Called with each article's slug, and what it failed with or ``None``.

    Raises:
        UnreachableError: The result backend went away; nothing is known of the rest.
    """
    slugs = {each.result.id: each.slug for each in sent}

    def done(task_id: str, value: object) -> None:
        on_done(slugs[task_id], value if isinstance(value, BaseException) else None)

    try:
        ResultSet([each.result for each in sent], app=app).get(propagate=False, callback=done)
    except (OperationalError, *getattr(app.backend, "connection_errors", ()), RuntimeError) as error:
        # RuntimeError is Celery's last word when the backend stays away.
        raise _unreachable(app.conf.result_backend, error) from None


def _unreachable(url: str, error: BaseException) -> UnreachableError:
    """
    Put what happened into one line.
    """
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UnreachableError(f"{maybe_sanitize_url(url)} does not answer: {first_line.rstrip('.')}")
