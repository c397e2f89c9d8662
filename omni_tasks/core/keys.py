"""
Circuits per key: ``"ai_providers:openai"`` is the circuit of the key ``openai``, configured by ``ai_providers``.

The first colon separates the two, so a key may hold colons and a circuit with
keys of its own may not.
"""

from __future__ import annotations

__all__ = ["LONGEST_KEY", "SEPARATOR", "key_text", "split_key"]

SEPARATOR = ":"

#: Longest key in characters.
LONGEST_KEY = 200


def split_key(name: str) -> tuple[str, str]:
    """
    Take a circuit's name, or its key in the manager, apart.

    Returns:
        The circuit and the key; the key is ``""`` where the name has none.
    """
    circuit, _, key = name.partition(SEPARATOR)
    return (circuit, key) if circuit and key else (name, "")


def key_text(value: object) -> str | None:
    """
    The key as it is written in names.

    Args:
        value: What an application gave: text or a whole number.

    Returns:
        1-200 printable characters, or ``None`` when *value* is no key.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    if isinstance(value, int) and value.bit_length() > LONGEST_KEY * 4:
        # More digits than a key has room for, and perhaps than Python writes.
        return None
    # The base's own: an enumeration's member may print its name instead.
    text = str.__str__(value) if isinstance(value, str) else int.__repr__(value)
    return text if 0 < len(text) <= LONGEST_KEY and text.isprintable() else None
