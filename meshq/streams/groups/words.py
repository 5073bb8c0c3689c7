"""What a GROUP entry says: things that happened to one group in one partition, in order.

Everything is decided by the slot's leader and judged once more when the entry is applied, against the state
that the log itself has made: an acknowledgement counts only for a lease that stands there. So entries of two
leaders cannot contradict each other, and no leader has to know what its predecessor had under way.

A *lease* is named by the index of the entry that granted it: no two are ever the same.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec

Range = tuple[int, int]  # [first, end)
Leased = tuple[int, int, int]  # [first, end), the lease under which they were handed out

ONLY_SETTINGS: Final = -1  # in the place of an Open's start
LEADER: Final = b""  # in the place of a member: the leader itself, whose word needs no lease of its own


class Mode(IntEnum):
    QUEUE = 1  # any record to any member
    ORDERED = 2  # a partition is with one member
    KEYED = 3  # as QUEUE, but the records of one key are with one member at a time, in order


class Verdict(IntEnum):
    ACK = 0  # done
    NACK = 1  # again, after the delay
    RELEASE = 2  # again, and this time does not count: nobody has looked at it
    REJECT = 4  # never again: a dead letter (3 is EXTEND, which is no end)


class Open(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The group begins at `start`, if it is not there; if it is, it goes on with these settings.

    With a negative `start` (ONLY_SETTINGS) it begins nowhere: who wants other settings must not make a group
    again whose deletion is ahead of that in the log.
    """

    mode: int
    ack_wait_ms: int
    max_deliver: int  # handed out so often, a record that comes back is a dead letter; 0: no limit
    start: int


class Grant(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """These records go to this member, each one under a lease of its own."""

    member: bytes
    ranges: tuple[Range, ...]


class Settle(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The end of leases. `member` has to hold them, unless it is the LEADER."""

    verdict: int
    member: bytes
    ranges: tuple[Leased, ...]
    delay_ms: int = 0
    reason: str = ""  # of a REJECT


class Bury(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """These records are dead letters from here on. The entry that says so brings them (letters.py)."""

    ranges: tuple[Range, ...]


class Reset(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The group goes on at `start`: no lease stands any more, and what came back is as if it had not. Counts
    only while nothing is dying, and behind the reset that whoever asks has seen (`since`): asked for again
    because its answer was lost, it is known by its name, and one that was long under way undoes none that
    came after it."""

    start: int
    name: bytes = b""
    since: bytes = b""  # the name of the one before; empty: none


class Redrive(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Dead letters are put back: those at [since, end) of the dead-letter partition, which are of these
    records. Counts only where the letters below `since` have been put back and no others, and no reset has
    come since the last one that was seen.
    """

    since: int
    end: int
    ranges: tuple[Range, ...]
    reset: bytes = b""


class Delete(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """There is no such group any more."""


class Assign(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Ordered groups: the partition goes to this member, if it is nobody's, under the entry's index."""

    member: bytes


class Pass(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Keyed groups: these records, the next ones, are taken up, each for when its key is free. What of them
    is granted is granted behind this."""

    first: int
    end: int


class Told(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Members were told that so many records in all had expired before the group was through with them."""

    expired: int


class Lapse(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """What was dying and has expired cannot be moved to the dead letters any more."""


Op = Open | Grant | Settle | Bury | Reset | Redrive | Delete | Assign | Pass | Told | Lapse


class GroupBody(msgspec.Struct, frozen=True, array_like=True):
    """A GROUP entry's body."""

    topic_id: bytes
    partition: int
    group: str
    ops: tuple[Op, ...]


def bytes_of(op: Op) -> int:
    """At most so many of an entry."""
    match op:
        case Reset():
            return 64 + len(op.name) + len(op.since)
        case Settle():
            return 64 + 28 * len(op.ranges) + 4 * len(op.reason)
        case Grant() | Bury() | Redrive():
            return 64 + 19 * len(op.ranges)
        case _:
            return 64


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(GroupBody)


def encode_group(body: GroupBody) -> bytes:
    return _encoder.encode(body)


def decode_group(body: bytes) -> GroupBody:
    return _decoder.decode(body)
