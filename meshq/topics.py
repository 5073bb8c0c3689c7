"""Topic names and patterns.

A topic is words of `[A-Za-z0-9_-]` joined by dots. A pattern is the same with `*` for exactly one word and a
final `#` for the rest, zero or more words (as in RabbitMQ, but `#` only at the end, so that containment stays
simple). Names whose first word begins with `_` are meshq's own: a wildcard never reaches them, only a pattern
that spells that word out.
"""

from __future__ import annotations

import re

from meshq.errors import UsageError
from meshq.limits import TOPIC_BYTES_MAX

_TOPIC = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)
_PATTERN = re.compile(r"(([A-Za-z0-9_-]+|\*)\.)*([A-Za-z0-9_-]+|\*|#)", re.ASCII)
_DEAD = re.compile(r"_dead\.([A-Za-z0-9_-]+)\.(.+)", re.ASCII)
_PREFIX = re.compile(r"([A-Za-z0-9_-]+\.)*[A-Za-z0-9_-]*", re.ASCII)


def check_topic(name: str) -> str:
    """Return the name; raise UsageError when it is not a topic's name."""
    if len(name) > TOPIC_BYTES_MAX or not _TOPIC.fullmatch(name):
        raise UsageError(
            f"{name[:300]!r} is not a topic: words of letters, digits, _ and - joined by dots, "
            f"at most {TOPIC_BYTES_MAX} bytes"
        )
    return name


def check_pattern(pattern: str) -> str:
    """Return the pattern; raise UsageError when it is not one."""
    if len(pattern) > TOPIC_BYTES_MAX or not _PATTERN.fullmatch(pattern):
        raise UsageError(
            f"{pattern[:300]!r} is not a pattern: a topic in which a word may be * (any one word) "
            f"and the last may be # (any rest), at most {TOPIC_BYTES_MAX} bytes"
        )
    return pattern


def is_internal(name: str) -> bool:
    return name.startswith("_")


def dead_letters_of(topic: str, group: str) -> str:
    """The topic of a group's dead letters. Raises: UsageError where that is too long for a name."""
    name = f"_dead.{group}.{topic}"
    if len(name) > TOPIC_BYTES_MAX:
        raise UsageError(
            f"the dead letters of group {group!r} would be in {name!r}, which is longer than the "
            f"{TOPIC_BYTES_MAX} bytes a topic's name may have: take a shorter name for the group"
        )
    return name


def source_of(name: str) -> tuple[str, str] | None:
    """Whose dead letters are in the topic of this name, if any are: topic and group."""
    found = _DEAD.fullmatch(name)
    return (found[2], found[1]) if found else None


def matches(pattern: str, topic: str) -> bool:
    """Whether the topic is one the pattern means. `a.#` means `a` too; `#` alone means no `_` topic."""
    wanted, rest = _split_rest(pattern)
    words = topic.split(".")
    if is_internal(topic) and wanted[:1] != words[:1]:
        return False
    if rest:
        words = words[: len(wanted)]
    return len(words) == len(wanted) and all(w in ("*", x) for w, x in zip(wanted, words, strict=True))


def contains(outer: str, inner: str) -> bool:
    """Whether every topic `inner` means is one `outer` means too (both patterns; a topic is a pattern)."""
    if is_internal(inner) and outer.split(".")[0] != inner.split(".")[0]:
        return False
    outer_words, outer_rest = _split_rest(outer)
    inner_words, inner_rest = _split_rest(inner)
    if inner == "#":
        inner_words = ["*"]  # a topic has at least one word
    if inner_rest and not outer_rest:
        return False
    if len(inner_words) < len(outer_words) or (not outer_rest and len(inner_words) != len(outer_words)):
        return False
    return all(o in ("*", i) for o, i in zip(outer_words, inner_words, strict=False))


def contains_prefix(outer: str, prefix: str) -> bool:
    """Whether every topic that begins with this (as a ZeroMQ subscription means it) is one `outer` means.

    A prefix ends in the middle of a word, so only a pattern ending in `#` can contain one, and only when the
    words it spells out are whole in the prefix: `a.#` contains `a.` and `a.b`, not `a` (it begins `ab` too).
    What no topic can begin with is contained in nothing.
    """
    fixed, rest = _split_rest(outer)
    if not rest or not _PREFIX.fullmatch(prefix):
        return False
    *whole, _begun = prefix.split(".")
    if is_internal(prefix) and (not whole or not fixed or fixed[0] != whole[0]):
        return False
    if prefix == "" or len(fixed) > len(whole) + 1:
        return False
    # The begun word may go on in any way, so that only * stands for it.
    if len(fixed) > len(whole) and fixed[-1] != "*":
        return False
    return all(o in ("*", w) for o, w in zip(fixed, whole, strict=False))


def _split_rest(pattern: str) -> tuple[list[str], bool]:
    """The words before a final `#`, and whether there is one."""
    words = pattern.split(".")
    return (words[:-1], True) if words[-1] == "#" else (words, False)
