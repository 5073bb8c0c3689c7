"""Feature levels: what a mesh may use, so that peers of several versions of meshq can run it together.

A peer's software understands all levels up to its highest, LEVEL_KNOWN, and says so in its member record. The
mesh has one level, in the registry, which only an administrator raises (`meshq upgrade`), when every member
understands it: what belongs to a higher level is not written to any log or disk before. A peer that does not
understand the mesh's level stops, and does not start again: what it cannot read it must not vote on.

A new kind of entry, command or field in one comes with the level it belongs to, in this table. The levels of
one release are one: what is added before it is released joins the newest.
"""

from __future__ import annotations

from typing import Final

from meshq.errors import UsageError

BASE: Final = 1  # what meshes have that were made before there were levels
PLACES: Final = 2  # peers' weights and zones by their own word (PlacePeer)
CHANGES: Final = 2  # a change of a topic is named, so that a retry does not make it twice (SetTopic.change)
DEAD_LETTERS: Final = (
    2  # groups' max_deliver, reject, reset, redrive, delete (DEAD_LETTER, operations 4 to 7, ONLY_SETTINGS)
)
WITNESSES: Final = 2  # peers that vote and keep no records
MODES: Final = 2  # ordered and keyed groups (operations 8 and 9, Granted and Revoked)
RETENTION: Final = 2  # topics' retention (RETAIN, COMPACT, operations 10 and 11 of groups)
OUTBOXES: Final = 2  # producers' epochs go on with their sequences, for 30 days (epochs above 0)

FEATURES: Final = {
    BASE: "all that 0.1.0 began with",
    2: "weights and zones of peers, as each says of itself; changes of topics that a retry does not repeat; "
    "groups' dead letters, reset and deletion; ordered and keyed groups; outboxes; retention; witnesses",
}
LEVEL_KNOWN: Final = max(FEATURES)
LEVELS: Final = 1 << 16  # there are fewer


def check_in_use(level: int, needed: int, what: str) -> None:
    """Raises: UsageError, when a mesh of this level does not use what belongs to a higher one."""
    if level < needed:
        raise UsageError(f"{what} needs feature level {needed}, and this mesh has {level}: `meshq upgrade`")


def check_understood(level: int, highest: int = LEVEL_KNOWN) -> None:
    """Raises: UsageError, when software of that highest level has no business in a mesh of this one."""
    if level > highest:
        raise UsageError(
            f"this mesh uses features of level {level}, and this version of meshq knows those up to {highest}"
            ": install a newer meshq on this host, at least the version that the other peers have"
        )
