"""
The application's tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from omni_tasks import CircuitBreakerTask
from omni_tasks.gateways import (
    GatewayConfig,
    ProviderBadResponse,
    ProviderRateLimited,
    ProviderUnavailable,
    generate_article_openai,
)
from workers.app import WRITE_ARTICLE, app, settings
from workers.articles import check_slug, save_article

if TYPE_CHECKING:
    from celery import Task

__all__ = ["write_article"]


@app.task(
    name=WRITE_ARTICLE,
    base=CircuitBreakerTask,
    circuit="ai_providers",
    bind=True,
    # Real failures only.  Being held by the open circuit is not one: it takes no retry.
    autoretry_for=(ProviderUnavailable, ProviderRateLimited, ProviderBadResponse),
    max_retries=settings.max_retries,
    retry_backoff=1,
    retry_backoff_max=30,
    retry_jitter=True,
    # Writing an article twice costs a little, losing one is not allowed.
    acks_late=True,
    reject_on_worker_lost=True,
    soft_time_limit=settings.soft_time_limit,
    time_limit=settings.time_limit,
)
def write_article(self: Task, prompt: str, slug: str, variation: int = 0) -> dict[str, str | int | None]:
    """
    Have one article written and put it into the folder of articles.

    Args:
        self: The task; its id is the article's trace id.

        prompt: What the article is about.

        slug: The file's name without ``.md``: 1-80 of ``a-z``, ``0-9`` and ``-``.

        variation: Another number asks for another article on the same prompt, 0-1,000,000.

    Returns:
        What was done, JSON-able; ``holds`` is how often the open circuit made the task wait, >= 0.
    """
    # Before the call: an article that cannot be saved need not be paid for.
    check_slug(slug)
    config = GatewayConfig(timeout=settings.call_timeout, connect_timeout=min(5.0, settings.call_timeout))
    article = generate_article_openai(config, prompt, trace_id=self.request.id, variation=variation)
    path = save_article(settings.articles_dir, slug, article.text)
    return {
        "slug": slug,
        "path": str(path),
        "provider": article.provider,
        "model": article.model,
        "holds": getattr(self.request, "omni_holds", None) or 0,
        "trace_id": article.trace_id,
        "prompt_tokens": article.prompt_tokens,
        "completion_tokens": article.completion_tokens,
    }
