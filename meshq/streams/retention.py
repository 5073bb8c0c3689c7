"""Retention: which of a partition's oldest records have expired.

By age (the time the leader appended them, never a producer's), by bytes and by count. The leader looks at
the oldest batches, decides, and says so in the slot's log (a RETAIN entry: the partition begins here now), so
that all replicas forget the same records whatever their clocks say. An entry counts only on top of the
beginning it was decided on: of two leaders' words about the same records the second one says nothing.

Count is exact to the record. Age and bytes take whole batches: a batch goes when its youngest record is too
old, and while what is behind it is still as much as may be kept. The newest batch stays, or a topic whose
batches are larger than its limit would hold nothing at all; only age takes that one too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from meshq.entries import Mark
from meshq.messages import Retain


class RetainBody(msgspec.Struct, frozen=True, array_like=True):
    """A RETAIN entry's body. `size`: bytes of the batches that end by `low` and did not by `first`."""

    topic_id: bytes
    partition: int
    first: int  # where it begins until then
    low: int
    size: int


class Cut(NamedTuple):
    """The records before `low` have expired; so many bytes of whole batches go with them."""

    low: int
    size: int


def exceeds(retain: Retain, *, low: int, end: int, size: int) -> bool:
    """Whether a partition of so many records and bytes has more than may be kept, whatever their age."""
    return 0 < retain.records < end - low or 0 < retain.bytes < size


def cut(
    retain: Retain, oldest: Sequence[Mark], *, low: int, end: int, size: int, now_ms: int | None
) -> Cut | None:
    """What has expired of a partition [low, end) of `size` bytes, as far as its `oldest` batches show.

    `oldest` begins with the batch that holds `low`. `now_ms` is None when nobody knows what time it is.
    """
    upto, freed = low, 0
    for mark in oldest:
        too_old = bool(retain.age_ms) and now_ms is not None and mark.timestamp_ms + retain.age_ms <= now_ms
        too_much = 0 < retain.bytes < size - freed and mark.end < end
        too_many = retain.records > 0 and mark.end <= end - retain.records
        if not (too_old or too_much or too_many):
            break
        upto, freed = mark.end, freed + mark.size
    if oldest and retain.records and upto < end - retain.records:
        upto = min(end - retain.records, oldest[-1].end)
    return Cut(upto, freed) if upto > low else None


def empty_before(oldest: Sequence[Mark], *, low: int, end: int, size: int) -> Cut | None:
    """What of a partition [low, end) of `size` bytes had expired before it came here: batches from `low` on
    that are stored as empty. How large they were is not known: as large as others.
    """
    upto = low
    for mark in oldest:
        if mark.size or mark.base_offset > upto:
            break
        upto = mark.end
    return Cut(upto, size * (upto - low) // (end - low)) if upto > low else None


def due_ms(retain: Retain, oldest: Mark) -> int | None:
    """When this batch will be too old; None: never."""
    return oldest.timestamp_ms + retain.age_ms if retain.age_ms else None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(RetainBody)


def encode_retain(body: RetainBody) -> bytes:
    return _encoder.encode(body)


def decode_retain(body: bytes) -> RetainBody:
    return _decoder.decode(body)
