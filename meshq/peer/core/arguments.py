"""Arguments of administrative requests, as they come: anything at all."""

from __future__ import annotations

from meshq.errors import UsageError
from meshq.messages import Ask


def text_of(message: Ask, name: str, default: str | None = None) -> str:
    """Raises: UsageError."""
    value = message.args.get(name, default)
    if not isinstance(value, str):
        raise UsageError(f"`{message.what}` needs `{name}`, a text")
    return value


def number_of(message: Ask, name: str, default: int, most: int) -> int:
    """From 1 to `most`. Raises: UsageError."""
    value = message.args.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise UsageError(f"`{name}` must be a number from 1 to {most}")
    return value
