"""
Article-like text, the same for the same prompt.
"""

from __future__ import annotations

import random
from typing import Final

_OPENINGS: Final = (
    "Some questions are best asked on a slow morning, and this is one of them.",
    "It is easy to walk past the subject every day and never see it.",
    "Ask three people about it and you will hear four good stories.",
    "The short answer fits on a postcard; the long one is more fun.",
    "Long before anybody wrote it down, people knew it by heart.",
)
_MIDDLES: Final = (
    "Look closely and a pattern appears: small steps, repeated with patience, do most of the work.",
    "What seems like luck is often preparation that nobody happened to be watching.",
    "The details differ from place to place, yet the idea behind them hardly changes.",
    "A little order at the start saves a great deal of hurry at the end.",
    "Those who have done it for years say that the tools matter less than the attention.",
    "There are exceptions, of course, and they tend to be the most charming part.",
    "Every rule here was once somebody's mistake, kindly passed on.",
    "It rewards those who come back a second time with better questions.",
)
_ENDINGS: Final = (
    "That is all there is to it, and it is plenty.",
    "Try it once this week; the rest will follow by itself.",
    "Keep what is useful, and pass the remainder on.",
    "And if it rains tomorrow, so much the better.",
)
_PARAGRAPHS: Final = 3
_SENTENCES_PER_PARAGRAPH: Final = 3


def write(prompt: str, instructions: str = "") -> str:
    """
    Compose a short article in Markdown.

    Args:
        prompt: What the article is about; its text is the title.

        instructions: How it is to be written; other instructions give another article.

    Returns:
        A title line, then three paragraphs of three sentences and a closing one.
    """
    # Not a secret, only a shuffle that is the same on every run.
    chooser = random.Random(instructions + prompt)  # noqa: S311
    sentences = iter(chooser.sample(_MIDDLES, len(_MIDDLES)))
    paragraphs = []
    for number in range(_PARAGRAPHS):
        lead = [chooser.choice(_OPENINGS)] if number == 0 else []
        paragraphs.append(" ".join(lead + [next(sentences) for _ in range(_SENTENCES_PER_PARAGRAPH - len(lead))]))
    title = prompt.strip().rstrip(".") or "Untitled"
    return "\n\n".join([f"# {title}", *paragraphs, chooser.choice(_ENDINGS)]) + "\n"
