"""
The folder of articles: one file per slug, whole or not there.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

__all__ = [
    "ArticleNotSavedError",
    "SlugError",
    "check_slug",
    "claimed",
    "folder_of",
    "path_of",
    "read_record",
    "save_article",
]

# No dot and no slash: a slug can never leave the folder.
_SLUG = re.compile(r"[a-z0-9-]{1,80}", re.ASCII)
_FOLDER = re.compile(r"([A-Za-z0-9_-][A-Za-z0-9._-]{0,79}(/(?=[^/])|$)){0,8}", re.ASCII)

# Seconds between two looks at a lock that another process has.
_LOOK_AGAIN = 0.1


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


def folder_of(articles: Path, below: object) -> Path:
    """
    Find the folder that a message names *below* the folder of articles; ``""`` is that folder itself.

    Raises:
        SlugError: It is no such name, or leads elsewhere.
    """
    if not isinstance(below, str) or not _FOLDER.fullmatch(below):
        raise SlugError(f"folder must be names divided by slashes, without a dot in front, got {repr(below)[:100]}")
    return articles / below


def path_of(folder: Path, slug: str) -> Path:
    """
    Name an article's file.

    Raises:
        SlugError: The slug cannot name a file.
    """
    return folder / f"{check_slug(slug)}.md"


@contextmanager
def claimed(folder: Path, slug: str) -> Iterator[None]:
    """
    Let no other process of this machine write this article meanwhile; waits for one that does.

    The claim is a lock on a file: it ends with its process, however that ends.

    Raises:
        SlugError: The slug cannot name a file.
        ArticleNotSavedError: The folder cannot be written to.
    """
    path = path_of(folder, slug).with_name(f".{slug}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(path)
    except OSError as error:
        raise _not_saved(path, error) from error
    try:
        yield
    finally:
        # While it is still locked: whoever waits for it then finds another file, or none, and tries anew.
        # One that cannot be taken away is no trouble of the article's.
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(lock)


def _locked(path: Path) -> int:
    while True:
        lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            while not _lock(lock):
                time.sleep(_LOOK_AGAIN)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), path.stat()):
                    return lock
        except BaseException:
            # A time limit may end the waiting.
            os.close(lock)
            raise
        os.close(lock)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def save_article(folder: Path, slug: str, text: str, record: Mapping[str, object] | None = None) -> Path:
    """
    Write an article that is :func:`claimed`, in one step: a reader finds the old one, or the new one, whole.

    Args:
        folder: Where; made when it is missing.

        slug: The article's name.

        text: The article.

        record: What is known of it, JSON-able; kept beside it, and there before it is.

    Raises:
        SlugError: The slug cannot name a file.
        ArticleNotSavedError: The disk is full, the folder read-only, and the like.
    """
    path = path_of(folder, slug)
    try:
        if record is not None:
            _replace(_record_of(folder, slug), json.dumps(record))
        _replace(path, text.rstrip("\n"))
    except OSError as error:
        raise _not_saved(path, error) from error
    return path


def read_record(folder: Path, slug: str) -> dict[str, object]:
    """
    Read what is known of an article; nothing where it was written by hand.

    Raises:
        SlugError: The slug cannot name a file.
    """
    try:
        record = json.loads(_record_of(folder, slug).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _record_of(folder: Path, slug: str) -> Path:
    return folder / ".records" / f"{check_slug(slug)}.json"


def _replace(path: Path, text: str) -> None:
    # What a writer that was killed has left under this name is overwritten: there is one writer at a time.
    part = path.with_name(f".{path.stem}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        # A directory of that name, say, is not ours to remove.
        with suppress(IsADirectoryError, PermissionError):
            part.unlink(missing_ok=True)


def _not_saved(path: Path, error: OSError) -> ArticleNotSavedError:
    return ArticleNotSavedError(f"cannot write {path}: {error.strerror or type(error).__name__}")
