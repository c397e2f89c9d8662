"""
The folder of articles: one file per slug, whole or not there.
"""

from __future__ import annotations

import os
import re
import uuid
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ArticleNotSavedError", "SlugError", "check_slug", "save_article"]

# No dot and no slash: a slug can never leave the folder.
_SLUG = re.compile(r"[a-z0-9-]{1,80}", re.ASCII)


class SlugError(ValueError):
    """
    A slug that cannot be a file's name.
    """

    # Says nothing about the provider, so no circuit counts it.
    circuit_outcome: ClassVar[str] = "ignored"


class ArticleNotSavedError(Exception):
    """
    The article is there and the disk does not take it.
    """

    circuit_outcome: ClassVar[str] = "ignored"


def check_slug(slug: object) -> str:
    """
    Give *slug* back when it can name an article: 1-80 of ``a-z``, ``0-9`` and ``-``.

    Raises:
        SlugError: It cannot.
    """
    if not isinstance(slug, str) or not _SLUG.fullmatch(slug):
        # At most a line of it: the slug comes from a message and may be anything.
        raise SlugError(f"slug must be 1-80 characters of a-z, 0-9 and -, got {repr(slug)[:100]}")
    return slug


def save_article(folder: Path, slug: str, text: str) -> Path:
    """
    Write an article in one step: a reader finds the old one, or the new one, whole.

    Raises:
        SlugError: The slug cannot name a file.
        ArticleNotSavedError: The disk is full, the folder read-only, and the like.
    """
    path = folder / f"{check_slug(slug)}.md"
    # One name per writer: two runs of a task must not share a half-written file.
    part = folder / f".{slug}.{uuid.uuid4().hex}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("x", encoding="utf-8") as file:
                file.write(text.rstrip("\n") + "\n")
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ArticleNotSavedError(f"cannot write {path}: {reason}") from error
    return path
