"""
The book of one folder of articles: what was sent, and what became of it.

``manifest.jsonl`` is for the reader: a line for each article that was written or has failed;
of two lines about one article the later counts.  ``.sent.jsonl`` is for resuming: which task was
sent for which article.  Lines are only ever added, each in one piece, so that a process that
is killed leaves no more behind than a last line nobody can read.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Manifest", "ManifestError"]

MANIFEST, JOURNAL = "manifest.jsonl", ".sent.jsonl"


class ManifestError(Exception):
    """
    The book cannot be kept.  One line.
    """


class Manifest:
    """
    The book, open for one process at a time.

    Attributes:
        records: The last line about each article, by slug.

        sending: Tasks that were about to be sent, by slug; whether they were is not known.

        sent: Tasks that the broker has, or had, by slug.
    """

    def __init__(self, folder: Path) -> None:
        """
        Open the book of *folder*.

        Raises:
            ManifestError: It cannot be written to, or another process has it open.
        """
        self._path = folder / MANIFEST
        self.records: dict[str, dict[str, Any]] = {}
        self.sending: dict[str, str] = {}
        self.sent: dict[str, str] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._manifest, self._journal = (_open(folder / name) for name in (MANIFEST, JOURNAL))
        except OSError as error:
            raise ManifestError(f"cannot write {self._path}: {error.strerror}") from error
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ManifestError(f"{folder} is in use by another submit") from None
        for record in _read(folder / MANIFEST):
            self.records[str(record.get("slug"))] = record
        for line in _read(folder / JOURNAL):
            slug, task_id = str(line.get("slug")), str(line.get("task_id"))
            self.sending[slug] = task_id
            if line.get("state") == "sent":
                self.sent[slug] = task_id
            elif self.sent.get(slug) != task_id:
                self.sent.pop(slug, None)

    def __enter__(self) -> Self:
        """
        Use it for a block.
        """
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """
        Close the book.
        """
        self.close()

    def close(self) -> None:
        """
        Let others open it.
        """
        os.close(self._manifest)
        os.close(self._journal)

    def has_failed(self, slug: str) -> bool:
        """
        Whether the last that is known of an article is that its last task has failed.
        """
        record = self.records.get(slug, {})
        return record.get("state") == "failed" and record.get("trace_id") == self.sent.get(slug)

    def send(self, slug: str, task_id: str) -> None:
        """
        Note that a task is about to be sent.
        """
        self._add(self._journal, {"slug": slug, "task_id": task_id, "state": "sending"})

    def has_sent(self, slug: str, task_id: str) -> None:
        """
        Note that the broker has a task.
        """
        self.sent[slug] = task_id
        self._add(self._journal, {"slug": slug, "task_id": task_id, "state": "sent"})

    def record(self, slug: str, state: str, details: Mapping[str, object]) -> None:
        """
        Note what became of an article: ``"written"`` or ``"failed"``.
        """
        line = {"slug": slug, "state": state, "at": datetime.now(UTC).isoformat(timespec="milliseconds"), **details}
        self.records[slug] = line
        self._add(self._manifest, line)

    def _add(self, descriptor: int, line: Mapping[str, object]) -> None:
        data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        try:
            written = os.write(descriptor, data)
        except OSError as error:
            raise ManifestError(f"cannot write {self._path}: {error.strerror}") from error
        if written != len(data):
            raise ManifestError(f"cannot write {self._path}: the disk is full")


def _open(path: Path) -> int:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o644)
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        # The last line of a process that was killed, or of a full disk: it stays one that nobody reads.
        os.write(descriptor, b"\n")
    return descriptor


def _read(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for raw in file:
            try:
                line = json.loads(raw)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line
