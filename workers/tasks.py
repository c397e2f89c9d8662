"""
The application's tasks.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from omni_tasks import CircuitBreakerTask
from omni_tasks.gateways import (
    RETRYABLE_ERRORS,
    Article,
    GatewayConfig,
    GatewayInputError,
    generate_article_deepseek,
    generate_article_openai,
)
from workers.app import WRITE_ANYWHERE, WRITE_ARTICLE, app, settings, shown
from workers.articles import check_slug, claimed, folder_of, path_of, read_record, save_article
from workers.prompts import CONFIG_KEYS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery import Task
    from celery.result import AsyncResult

__all__ = ["write_article", "write_article_anywhere"]

GENERATE = {"openai": generate_article_openai, "deepseek": generate_article_deepseek}


class ArticleTask(CircuitBreakerTask):
    """
    A task whose messages do not show their prompt, however they are sent: by hand, or again by a retry.
    """

    def apply_async(
        self, args: Sequence[object] | None = None, kwargs: dict[str, object] | None = None, **options: Any
    ) -> AsyncResult:
        """
        Send a message.
        """
        return super().apply_async(args, kwargs, **{**shown(kwargs or {}), **options})


OPTIONS: dict[str, Any] = {
    "base": ArticleTask,
    "circuit": "ai_providers",
    "bind": True,
    # Real failures only.  Being held by an open circuit is not one: it takes no retry.
    "autoretry_for": RETRYABLE_ERRORS,
    "max_retries": settings.max_retries,
    "retry_backoff": 1,
    "retry_backoff_max": 30,
    "retry_jitter": True,
    # Writing an article twice costs a little, losing one is not allowed.
    "acks_late": True,
    "reject_on_worker_lost": True,
    "soft_time_limit": settings.soft_time_limit,
    "time_limit": settings.time_limit,
}


def _circuit_key(*_args: object, provider: object = settings.provider, **_more: object) -> object:
    """
    Find the circuit's key in a task's arguments: each provider has a circuit of its own.
    """
    return provider


@app.task(name=WRITE_ARTICLE, circuit_key=_circuit_key, **OPTIONS)
def write_article(  # noqa: PLR0913 - what a message says about an article
    self: Task,
    prompt: str,
    slug: str,
    variation: int = 0,
    *,
    provider: str = settings.provider,
    config: dict[str, object] | None = None,
    folder: str = "",
) -> dict[str, object]:
    """
    Have one article written by one provider, and put it into the folder of articles.

    While the provider's circuit is open the task is held at the gate, before it takes a process.

    Args:
        self: The task; its id is the article's trace id.

        prompt: What the article is about.

        slug: The file's name without ``.md``: 1-80 of ``a-z``, ``0-9`` and ``-``.

        variation: Another number asks for another article on the same prompt, 0-1,000,000.

        provider: Who writes it.

        config: Options of :class:`~omni_tasks.gateways.GatewayConfig` that are this article's own.

        folder: Below the folder of articles; ``""`` for that one itself.

    Returns:
        What was done, JSON-able: a line of the manifest.
    """
    return _write(self, prompt, slug, variation, (provider,), config, folder)


@app.task(name=WRITE_ANYWHERE, **OPTIONS)
def write_article_anywhere(  # noqa: PLR0913 - what a message says about an article
    self: Task,
    prompt: str,
    slug: str,
    variation: int = 0,
    *,
    providers: list[str] | tuple[str, ...] = settings.providers,
    config: dict[str, object] | None = None,
    folder: str = "",
) -> dict[str, object]:
    """
    Have one article written by the first of several providers that can: as :func:`write_article`.

    It is held when the circuits of all of them refuse, until the first of these can be tried.

    Args:
        self: The task.

        prompt: As above.

        slug: As above.

        variation: As above.

        providers: Who may write it, the preferred one first.

        config: As above; what only the preferred provider understands is not told to the others.

        folder: As above.
    """
    return _write(self, prompt, slug, variation, tuple(providers), config, folder)


def _write(  # noqa: PLR0913, PLR0917 - see above
    task: Task,
    prompt: str,
    slug: str,
    variation: int,
    providers: tuple[str, ...],
    config: dict[str, object] | None,
    folder: str,
) -> dict[str, object]:
    # Before the call: an article that cannot be saved need not be paid for.
    place = folder_of(settings.articles_dir, folder)
    check_slug(slug)
    generate = GENERATE.get(providers[0]) if providers else None
    if generate is None:
        raise GatewayInputError(f"provider must be one of {', '.join(GENERATE)}, got {str(providers[:1])[:40]}")
    # One at a time, and not again what is there: a message may come twice, also to two workers at once.
    with claimed(place, slug):
        path = path_of(place, slug)
        if path.exists():
            return {"slug": slug, "path": str(path), **read_record(place, slug)}
        article = generate(
            _config(config), prompt, trace_id=task.request.id, variation=variation, fallbacks=providers[1:]
        )
        record = {"slug": slug, "path": str(path), "variation": variation, **_history(task, article)}
        save_article(place, slug, article.text, record)
    return record


def _config(given: dict[str, object] | None) -> GatewayConfig:
    """
    Take over an article's own options; a message must not choose the address that gets the key.
    """
    wanted = given or {}
    if not set(wanted) <= set(CONFIG_KEYS):
        raise GatewayInputError(f"config may have {', '.join(CONFIG_KEYS)}")
    timeouts = {"timeout": settings.call_timeout, "connect_timeout": min(5.0, settings.call_timeout)}
    return GatewayConfig.of({**wanted, **timeouts})


def _history(task: Task, article: Article) -> dict[str, object]:
    """
    Tell who wrote the article, what it took and what the task has gone through.
    """
    request = task.request
    since_ms = str(getattr(request, "omni_held_since", None) or "")
    held = max(time.time() - int(since_ms) / 1000, 0.0) if since_ms.isdecimal() and int(since_ms) else 0.0
    told = {name: value for name, value in article.as_dict().items() if name != "text"}
    return {
        **told,
        "attempts": request.retries + article.attempts,
        "holds": getattr(request, "omni_holds", None) or 0,
        # From when it was first set aside to the end of the run that delivered.
        "held_seconds": round(held, 3),
    }
