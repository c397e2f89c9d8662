"""
Sending prompts to the workers, and waiting for the articles.
"""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from celery.result import ResultSet
from celery.states import UNREADY_STATES
from kombu.exceptions import OperationalError
from kombu.utils.url import maybe_sanitize_url

from workers.app import MOST_PRIORITY, PRIORITIES, WRITE_ANYWHERE, WRITE_ARTICLE, settings, shown
from workers.articles import path_of
from workers.settings import REDIS_SCHEMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from celery import Celery
    from celery.result import AsyncResult
    from kombu.connection import Connection

    from workers.manifest import Manifest
    from workers.prompts import Prompt

__all__ = [
    "Order",
    "Plan",
    "Sent",
    "UnreachableError",
    "connected",
    "make_plan",
    "outcome",
    "send",
    "wait",
]

# Seconds for one connection attempt, and for one answer.
PATIENCE = 2.0


class UnreachableError(Exception):
    """
    The broker or the result backend does not answer.  One line, without its password.
    """


@dataclass(frozen=True)
class Order:
    """
    How articles are to be written.

    Attributes:
        providers: Who may write one that names nobody, the preferred one first.

        priority: ``"high"``, ``"normal"`` or ``"low"``.

        folder: Below the workers' folder of articles; ``""`` for that one itself.
    """

    providers: tuple[str, ...] = settings.providers
    priority: str = "normal"
    folder: str = ""

    def message(self, prompt: Prompt) -> tuple[str, dict[str, object]]:
        """
        Give the name and the arguments of a prompt's task.
        """
        first = prompt.provider or self.providers[0]
        others = [name for name in self.providers if name != first]
        kwargs: dict[str, object] = {"prompt": prompt.text, "slug": prompt.slug, "variation": prompt.variation}
        kwargs |= {"config": prompt.config} if prompt.config else {}
        kwargs |= {"folder": self.folder} if self.folder else {}
        if others:
            return WRITE_ANYWHERE, {**kwargs, "providers": [first, *others]}
        return WRITE_ARTICLE, {**kwargs, "provider": first}


@dataclass(frozen=True)
class Sent:
    """
    An article that was asked for.
    """

    slug: str
    result: AsyncResult


@dataclass
class Plan:
    """
    What is left to do for a file of prompts.

    Attributes:
        there: Articles that exist, by slug.

        waiting: Articles that were asked for before, and whose tasks have not ended.

        to_send: Prompts to send, each with its task's id.
    """

    there: list[str] = field(default_factory=list)
    waiting: list[Sent] = field(default_factory=list)
    to_send: list[tuple[Prompt, str]] = field(default_factory=list)


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


@contextmanager
def _answering(app: Celery) -> Iterator[None]:
    """
    Say in one line when the result backend does not answer.

    Raises:
        UnreachableError: It does not.
    """
    try:
        yield
    except (OperationalError, *getattr(app.backend, "connection_errors", ()), RuntimeError) as error:
        # RuntimeError is Celery's last word when the backend stays away.
        raise _unreachable(app.conf.result_backend, error) from None


def make_plan(app: Celery, prompts: Iterable[Prompt], folder: Path, book: Manifest, *, resend: bool) -> Plan:
    """
    Find out what is left to do, after whatever was done before.

    Args:
        app: The application.

        prompts: What is asked for.

        folder: Of the articles, as this machine sees it.

        book: Of that folder.

        resend: Whether to send again what was sent before and has not come.

    Raises:
        UnreachableError: The result backend does not answer.
    """
    plan = Plan()
    for prompt in prompts:
        slug = prompt.slug
        task_id = book.sent.get(slug)
        known = Sent(slug, app.AsyncResult(task_id)) if task_id else None
        if path_of(folder, slug).exists():
            plan.there.append(slug)
        elif known is not None and not resend and not book.has_failed(slug) and _is_under_way(app, known):
            plan.waiting.append(known)
        else:
            # What was about to be sent goes out under the same id: if it was sent after all, it is one task.
            again = None if known else book.sending.get(slug)
            plan.to_send.append((prompt, again or str(uuid.uuid4())))
    return plan


def _is_under_way(app: Celery, sent: Sent) -> bool:
    with _answering(app):
        return sent.result.state in UNREADY_STATES


def send(
    app: Celery, connection: Connection, prompts: Iterable[tuple[Prompt, str]], order: Order | None = None
) -> Iterator[Sent]:
    """
    Send one message per prompt.

    Args:
        app: The application.

        connection: To the broker.

        prompts: Each with its task's id.

        order: How the articles are to be written.

    Yields:
        Each article as soon as the broker has its message.
    """
    order = order or Order()
    number = PRIORITIES[order.priority]
    producer = app.amqp.Producer(connection)
    for prompt, task_id in prompts:
        name, kwargs = order.message(prompt)
        result = app.send_task(
            name,
            kwargs=kwargs,
            task_id=task_id,
            producer=producer,
            retry=False,
            priority=number if settings.redis_broker else MOST_PRIORITY - number,
            **shown(kwargs),
        )
        yield Sent(prompt.slug, result)


def wait(app: Celery, sent: Iterable[Sent], on_done: Callable[[Sent, object], None]) -> None:
    """
    Wait until every article is written or has failed for good.

    Args:
        app: The application.

        sent: The articles.

        on_done: Called with each article, and what its task returned or failed with.

    Raises:
        UnreachableError: The result backend went away; nothing is known of the rest.
    """
    awaited = {each.result.id: each for each in sent}

    def done(task_id: str, value: object) -> None:
        on_done(awaited[task_id], value)

    with _answering(app):
        ResultSet([each.result for each in awaited.values()], app=app).get(propagate=False, callback=done)


def outcome(value: object, task_id: str) -> tuple[str, dict[str, object]]:
    """
    Put what a task returned or failed with into a line of the manifest.

    Returns:
        ``"written"`` or ``"failed"``, and the details.
    """
    if not isinstance(value, BaseException):
        return "written", dict(value) if isinstance(value, dict) else {}
    return "failed", {
        "trace_id": task_id,
        "provider": getattr(value, "provider", None),
        "error": type(value).__name__,
        "reason": (str(value).splitlines() or [""])[0][:500],
    }


def _unreachable(url: str, error: BaseException) -> UnreachableError:
    """
    Put what happened into one line.
    """
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UnreachableError(f"{maybe_sanitize_url(url)} does not answer: {first_line.rstrip('.')}")
