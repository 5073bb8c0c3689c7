"""Keys. Big-endian numbers, so that LMDB's order of bytes is the order of slots, indexes and offsets.

    meta      name                                             format, mesh, disk, boot epoch, turn
    log       slot u16 | index u64                             an encoded entry
    rows      slot u16 | row key                               a row of the slot's state
    aside     slot u16 | key                                   a row of a snapshot that is not whole yet
    payloads  topic id 16 | partition u32 | base offset u64
              | timestamp ms u64 | count u32                   a batch

A batch's metadata stands in its key, so that the value is the producer's bytes with no prefix and no copy.
The batch that holds an offset is the last one whose base offset is not above it: one seek and one step back.

`append=True` is not used: keys grow within a slot or a partition, never along a whole database.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from meshq.batch import Buffer
from meshq.ids import PartitionKey, Slot

FORMAT: Final = 1  # raised when an older version could not read what this one writes

META_FORMAT: Final = b"format"
META_MESH: Final = b"mesh"
META_DISK: Final = b"disk"
META_BOOT: Final = b"boot"
META_TURN: Final = b"turn"  # see apply.pass_freed_on

_SLOT = struct.Struct(">H")
_LOG = struct.Struct(">HQ")
_PAYLOAD = struct.Struct(">16sIQQI")
_PAYLOAD_SEEK = struct.Struct(">16sIQ")
_U64 = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What a payload's key says of its batch."""

    base_offset: int
    timestamp_ms: int
    count: int

    @property
    def end(self) -> int:
        return self.base_offset + self.count


def log_key(slot: Slot, index: int) -> bytes:
    return _LOG.pack(slot, index)


def parse_log_key(key: Buffer) -> tuple[Slot, int]:
    slot, index = _LOG.unpack(key)
    return Slot(slot), index


def row_key(slot: Slot, key: bytes) -> bytes:
    return _SLOT.pack(slot) + key


def parse_row_key(key: bytes) -> tuple[Slot, bytes]:
    return Slot(_SLOT.unpack_from(key)[0]), key[_SLOT.size :]


def payload_key(partition: PartitionKey, base_offset: int, timestamp_ms: int, count: int) -> bytes:
    return _PAYLOAD.pack(partition.topic_id, partition.partition, base_offset, timestamp_ms, count)


def payload_seek(partition: PartitionKey, offset: int) -> bytes:
    """Sorts before every batch of the partition whose base offset is at or above this one."""
    return _PAYLOAD_SEEK.pack(partition.topic_id, partition.partition, offset)


def parse_payload_key(partition: PartitionKey, key: Buffer) -> BatchKey | None:
    """What the key says, or None when it is of another partition."""
    topic_id, number, base_offset, timestamp_ms, count = _PAYLOAD.unpack(key)
    if topic_id != partition.topic_id or number != partition.partition:
        return None
    return BatchKey(base_offset, timestamp_ms, count)


def pack_u64(value: int) -> bytes:
    return _U64.pack(value)


def parse_u64(value: Buffer) -> int:
    number: int = _U64.unpack(value)[0]
    return number
