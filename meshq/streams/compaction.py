"""Compaction: of the records of a key only the last one is kept.

A *pass* goes over a partition once: it learns which keys are in what came since the last pass (the dirty
part) and where each is last, then takes the partition slice by slice, from its beginning, and leaves out what
has a successor. What is left of a slice stands in one new batch for all its offsets, so a partition keeps its
offsets, and what is kept keeps its own. Slices in which nothing is left out stay as they are, unless they
are crumbs of earlier passes: those are swept together, or a partition would consist of nothing but empty
batches in the end.

A record with a key and an empty value is a *tombstone*: there is no such thing any more. It leaves itself
when it is old enough for everybody to have read it, and not before what it is about has left: slices are
taken in order, so whatever came before it has.

The leader makes the new batches; a COMPACT entry brings them to all, so that replicas are equal to the byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from meshq.batch import KeptRecord, frame_compacted, read_header, read_placed
from meshq.entries import StoredBatch
from meshq.limits import COMPACT_KEYS_MAX, COMPACTED_COUNT_MAX, KIB

SLICE_BYTES: Final = 256 * KIB  # of the batches taken at a time; a single one may be larger
CRUMB_BYTES: Final = SLICE_BYTES // 4  # so small together, neighbours become one


class CompactBody(msgspec.Struct, frozen=True, array_like=True):
    """A COMPACT entry's body: the batches of [first, first + count), `freed` bytes of them, become this one.

    `clean`: with this one a pass is through, up to that offset; 0: it goes on.
    """

    topic_id: bytes
    partition: int
    first: int
    count: int
    timestamp_ms: int  # the newest of the batches it is for
    freed: int
    clean: int
    data: bytes


class Slice(NamedTuple):
    """A batch in place of those of [first, end)."""

    first: int
    end: int
    timestamp_ms: int
    freed: int
    data: bytes


class Latest:
    """Where each key is last, in what is dirty; as far as so many keys go."""

    def __init__(self, start: int) -> None:
        self.end = start  # learned up to here
        self.full = False
        self.offsets: dict[bytes, int] = {}  # COMPACT_KEYS_MAX, and what one batch adds

    def learn(self, batch: StoredBatch) -> None:
        """Raises: RemoteProtocolError."""
        for place, record in read_placed(batch.data):
            if record.key is not None and batch.base_offset + place >= self.end:
                self.offsets[record.key] = batch.base_offset + place
        self.end = batch.base_offset + batch.count
        self.full = len(self.offsets) >= COMPACT_KEYS_MAX


def slice_of(batches: Sequence[StoredBatch], upto: int) -> list[StoredBatch]:
    """Of these, which are to be taken together: whole ones, before `upto`."""
    taken: list[StoredBatch] = []
    size = count = 0
    for batch in batches:
        size, count = size + len(batch.data), count + batch.count
        over = size > SLICE_BYTES or count > COMPACTED_COUNT_MAX
        if batch.base_offset + batch.count > upto or (taken and over):
            break
        taken.append(batch)
    return taken


def compact(
    batches: Sequence[StoredBatch], latest: Mapping[bytes, int], *, tombstones_before_ms: int | None
) -> Slice | None:
    """What is left of these batches, neighbours; None: they stay as they are.

    tombstones_before_ms: those appended before leave; None: nobody knows what time it is

    Raises: RemoteProtocolError when one cannot be read.
    """
    first, last = batches[0], batches[-1]
    base_ms = read_header(first.data).base_timestamp_ms
    kept: list[KeptRecord] = []
    left_out = 0
    for batch in batches:
        shift_ms = read_header(batch.data).base_timestamp_ms - base_ms
        for place, r in read_placed(batch.data):
            offset = batch.base_offset + place
            earlier_ms = r.earlier_ms if isinstance(r, KeptRecord) else 0
            appended_ms = batch.timestamp_ms - earlier_ms
            over = tombstones_before_ms is not None and not r.value and appended_ms < tombstones_before_ms
            if r.key is not None and (over or latest.get(r.key, -1) > offset):
                left_out += 1
                continue
            kept.append(
                KeptRecord(
                    r.key, r.value, r.headers, r.delta_ms + shift_ms, offset - first.base_offset,
                    last.timestamp_ms - appended_ms,
                )
            )  # fmt: skip
    freed = sum(len(b.data) for b in batches)
    crumbs = len(batches) > 1 and freed < CRUMB_BYTES
    if not left_out and not crumbs:
        return None
    end = last.base_offset + last.count
    data = frame_compacted(kept, count=end - first.base_offset, base_timestamp_ms=base_ms)
    return Slice(first.base_offset, end, last.timestamp_ms, freed, data)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(CompactBody)


def encode_compact(body: CompactBody) -> bytes:
    return _encoder.encode(body)


def decode_compact(body: bytes) -> CompactBody:
    return _decoder.decode(body)
