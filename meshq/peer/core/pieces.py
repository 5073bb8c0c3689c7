"""A snapshot in pieces: first a slot's state rows, in the order of their keys, then batches by partition.

A position in it is one number of 63 bits, (part, offset): part 0 is the rows, and the offset counts them;
part k is the k-th partition in the order of keys, and the offset is the partition's own. So either side can
go on from a position after any break, and a follower that has the first offsets of a partition says a later
position than the one behind the piece it got.
"""

from __future__ import annotations

import zlib
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from meshq.batch import HEADER_BYTES, Buffer, read_header
from meshq.entries import Payload, StoredBatch
from meshq.errors import RemoteProtocolError
from meshq.ids import PartitionKey, TopicId
from meshq.limits import SNAPSHOT_PARTITIONS_MAX
from meshq.messages import U32, U63, Id16
from meshq.streams.rows import is_shared

OFFSET_BITS: Final = 42  # 4.4e12 records of a partition
OFFSET_MAX: Final = (1 << OFFSET_BITS) - 1  # beyond it a slot is not sent; no partition comes there
ROWS_MAX: Final = 65_536  # in one piece; more: `RemoteProtocolError`
BATCHES_MAX: Final = 4_096  # in one piece; more: `RemoteProtocolError`
ROW_KEY_MAX: Final = 480  # with what the store puts before it, below LMDB's 511


class _Rows(Struct, frozen=True, array_like=True, tag=0):
    next: U63
    rows: Annotated[list[tuple[Annotated[bytes, Meta(min_length=1, max_length=ROW_KEY_MAX)], bytes]],
                    Meta(max_length=ROWS_MAX)]  # fmt: skip


class _Batch(Struct, frozen=True, array_like=True):
    topic_id: Id16
    partition: U32
    base_offset: U63
    timestamp_ms: U63
    data: bytes


class _Batches(Struct, frozen=True, array_like=True, tag=1):
    """`part` is the last batch's."""

    next: U63
    part: U32
    batches: Annotated[list[_Batch], Meta(max_length=BATCHES_MAX)]


class RowsPiece(Struct, frozen=True):
    next: int
    rows: list[tuple[bytes, bytes]]


class BatchesPiece(Struct, frozen=True):
    next: int
    part: int
    payloads: list[Payload]


def position_of(part: int, offset: int) -> int:
    """Raises: ValueError for what a position cannot say."""
    if part > SNAPSHOT_PARTITIONS_MAX or offset > OFFSET_MAX:
        raise ValueError(f"part {part}, offset {offset} is beyond what a snapshot can hold")
    return part << OFFSET_BITS | offset


def part_of(position: int) -> tuple[int, int]:
    return position >> OFFSET_BITS, position & OFFSET_MAX


def encode_rows(rows: list[tuple[bytes, bytes]], *, then: int) -> bytes:
    return _encoder.encode(_Rows(then, rows))


def encode_batches(batches: list[StoredBatch], *, part: int, then: int) -> bytes:
    plain = [
        _Batch(b.partition.topic_id, b.partition.partition, b.base_offset, b.timestamp_ms, b.data)
        for b in batches
    ]
    return _encoder.encode(_Batches(then, part, plain))


def decode_piece(data: Buffer) -> RowsPiece | BatchesPiece:
    """A piece whose batches are sound. Raises: RemoteProtocolError."""
    try:
        piece = _decoder.decode(data)
    except msgspec.MsgspecError as e:
        raise RemoteProtocolError(f"a piece of a snapshot that cannot be read: {e}") from None
    if isinstance(piece, _Rows):
        if not all(is_shared(key) for key, _ in piece.rows):
            raise RemoteProtocolError("a snapshot with a row that is each replica's own")
        return RowsPiece(piece.next, piece.rows)
    return BatchesPiece(piece.next, piece.part, [_payload(b) for b in piece.batches])


def _payload(b: _Batch) -> Payload:
    partition = PartitionKey(TopicId(b.topic_id), b.partition)
    return sound_payload(partition, b.base_offset, b.timestamp_ms, b.data)


def sound_payload(partition: PartitionKey, base_offset: int, timestamp_ms: int, data: bytes) -> Payload:
    """A batch that came from another peer, to be stored. Raises: RemoteProtocolError."""
    header = read_header(data)
    if zlib.crc32(memoryview(data)[HEADER_BYTES:]) != header.body_crc:
        raise RemoteProtocolError("a batch whose checksum does not match")
    return Payload(partition, base_offset, header.count, timestamp_ms, data)


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[_Rows | _Batches] = msgspec.msgpack.Decoder(_Rows | _Batches)
