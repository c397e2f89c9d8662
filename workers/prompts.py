"""
A file of prompts: one a line, or JSON lines.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workers.articles import SlugError, check_slug
from workers.settings import PROVIDER_NAMES

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CONFIG_KEYS", "BadLine", "Prompt", "PromptFile", "read_prompts"]

# Characters.  Longer is a file without line ends, not a prompt.
LONGEST_PROMPT = 100_000
# As many as the gateway takes.
MOST_VARIATIONS = 1_000_000

#: Of the gateways' options those that an article may have of its own: neither addresses nor keys.
CONFIG_KEYS = ("model", "temperature", "max_tokens", "system_prompt", "api", "stream", "circuit_per_model")

_KEYS = ("prompt", "slug", "variation", "provider", "config")


@dataclass(frozen=True)
class Prompt:
    """
    One article to ask for.

    Attributes:
        text: The prompt.

        slug: The article's name; unique in the file.

        variation: 0-1,000,000.

        provider: Who is to write it; ``None`` leaves that to whoever sends it.

        config: Options of the gateway's that are this article's own.
    """

    text: str
    slug: str
    variation: int = 0
    provider: str | None = None
    config: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class BadLine:
    """
    A line that asks for nothing sensible.

    Attributes:
        line: Its number, from 1.

        reason: What is wrong with it; never quotes the prompt.
    """

    line: int
    reason: str


@dataclass(frozen=True)
class PromptFile:
    """
    What a file asks for, and the lines that could not be read.
    """

    prompts: tuple[Prompt, ...]
    bad: tuple[BadLine, ...]


class _BadLineError(ValueError):
    """
    The line under way cannot be read.
    """


def read_prompts(path: Path) -> PromptFile:
    """
    Read a file of prompts: JSON lines when its name ends in ``.jsonl``, else one prompt a line.

    Blank lines are skipped.  A slug that is not given is always the same for the
    same prompt on the same line.

    Raises:
        OSError: The file cannot be read.
    """
    as_json = path.suffix.lower() == ".jsonl"
    prompts: dict[str, Prompt] = {}
    bad: list[BadLine] = []
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = _decode(raw, first=number == 1)
                if not line:
                    continue
                prompt = _json_prompt(line, number) if as_json else Prompt(_text(line), _make_slug(line, number))
            except _BadLineError as error:
                bad.append(BadLine(number, str(error)))
                continue
            if prompts.setdefault(prompt.slug, prompt) is not prompt:
                bad.append(BadLine(number, f"slug {prompt.slug!r} is taken by a line above"))
    return PromptFile(tuple(prompts.values()), tuple(bad))


def _decode(raw: bytes, *, first: bool) -> str:
    """
    Read a line's bytes; the first may start with a byte order mark.
    """
    try:
        return raw.decode("utf-8-sig" if first else "utf-8").strip()
    except UnicodeDecodeError:
        raise _BadLineError("not UTF-8 text") from None


def _text(value: object) -> str:
    """
    Check a prompt.
    """
    if not isinstance(value, str) or not value.strip():
        raise _BadLineError("prompt must be text that is not empty")
    if len(value) > LONGEST_PROMPT:
        raise _BadLineError(f"prompt must be at most {LONGEST_PROMPT} characters, got {len(value)}")
    if any(unicodedata.category(each) in {"Cc", "Cs"} and each not in "\t\n\r" for each in value):
        raise _BadLineError("prompt must be text, got control characters in it")
    return value


def _json_prompt(line: str, number: int) -> Prompt:
    """
    Read one JSON line.
    """
    try:
        read = json.loads(line)
    except (ValueError, RecursionError):
        raise _BadLineError("not JSON") from None
    if not isinstance(read, dict):
        raise _BadLineError('must be an object such as {"prompt": "..."}')
    for key in read:
        if key not in _KEYS:
            raise _BadLineError(f"key {key[:40]!r} is not one of {', '.join(_KEYS)}")
    text = _text(read.get("prompt"))
    variation = read.get("variation", 0)
    if type(variation) is not int or not 0 <= variation <= MOST_VARIATIONS:
        raise _BadLineError(f"variation must be a whole number from 0 to {MOST_VARIATIONS}")
    provider, config = read.get("provider"), read.get("config", {})
    if provider is not None and provider not in PROVIDER_NAMES:
        raise _BadLineError(f"provider must be one of {', '.join(PROVIDER_NAMES)}")
    # What the options are is checked where the article is written: the gateway knows.
    if not isinstance(config, dict) or not set(config) <= set(CONFIG_KEYS):
        raise _BadLineError(f"config must be an object with any of {', '.join(CONFIG_KEYS)}")
    try:
        slug = check_slug(read["slug"]) if "slug" in read else _make_slug(text, number)
    except SlugError as error:
        raise _BadLineError(str(error)) from None
    return Prompt(text, slug, variation, provider, config)


def _make_slug(text: str, number: int) -> str:
    """
    Make a name of the line's number and a digest, so that two files do not overwrite each other's articles.

    Not of the prompt's words: names go into logs and results, where a prompt must not be.
    """
    return f"article-{number:04d}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
