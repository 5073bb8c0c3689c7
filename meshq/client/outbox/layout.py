"""Keys and rows of an outbox, each row with a checksum of its own.

    state   "state"                                  who it is: epoch, numbers, the wall clock seen last
    topics  topic u32                                name, and what was last heard of it
    queue   topic u32 | partition u32 | number u64   a record that waits
    lanes   topic id 16 | partition u32              producer id and next sequence
    bound   topic u32 | partition u32 | order u64    a batch with id, epoch and sequence; perhaps sent
    parked  id u64                                   what the mesh refused for good, and why

Records are numbered as they are taken. A record whose topic was never heard of waits in the partition
UNASSIGNED. LMDB has no checksums, so a value is a CRC-32 over key and content, then the content.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final, TypeVar

import msgspec

from meshq.batch import Body
from meshq.errors import StoreCorrupt

FORMAT: Final = 1
PLACE_BYTES: Final = 16  # of a key of `queue` or `bound`
UNASSIGNED: Final = 0xFFFF_FFFF
STATE, TOPICS, QUEUE, LANES, BOUND, PARKED = b"state", b"topics", b"queue", b"lanes", b"bound", b"parked"
DATABASES: Final = (STATE, TOPICS, QUEUE, LANES, BOUND, PARKED)
STATE_KEY: Final = b"state"


class StateRow(msgspec.Struct, array_like=True, kw_only=True):
    format: int = FORMAT
    mesh_id: bytes = b""
    client_key: bytes = b""  # whose connection the bound batches belong to
    producer_id: bytes
    epoch: int = 0
    next_number: int = 1
    queued_bytes: int = 0
    wall_ms: int = 0  # the latest that was seen: a clock that is set back makes nothing younger
    halted: str = ""  # why nothing is sent any more


class TopicRow(msgspec.Struct, array_like=True, frozen=True):
    name: str
    partitions: int = 0  # 0: never heard of


class QueueRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    key: bytes | None
    value: bytes
    headers: dict[str, bytes] | None
    timestamp_ms: int

    def size(self) -> int:
        """Bytes that count against the topic's `record_bytes_max`."""
        headers = sum(len(k) + len(v) for k, v in self.headers.items()) if self.headers else 0
        return len(self.value) + len(self.key or b"") + headers


class LaneRow(msgspec.Struct, array_like=True, frozen=True):
    producer_id: bytes
    next_sequence: int = 0


class BoundRow(msgspec.Struct, array_like=True, frozen=True):
    topic_id: bytes
    version: int  # of the topic, when it was bound
    producer_id: bytes
    epoch: int
    sequence: int
    bound_ms: int
    codec: int
    count: int
    base_timestamp_ms: int
    body_bytes: int
    data: bytes

    def body(self) -> Body:
        return Body(self.codec, self.count, self.base_timestamp_ms, self.body_bytes, self.data)


class ParkedRow(msgspec.Struct, array_like=True, frozen=True):
    """`maybe_stored`: an earlier sending of it may have been. Damaged rows have no codec but their bytes."""

    topic: str
    partition: int
    reason: str  # the error's name
    text: str
    maybe_stored: bool
    parked_ms: int
    codec: int | None
    count: int
    base_timestamp_ms: int
    body_bytes: int
    data: bytes


Row = StateRow | TopicRow | QueueRow | LaneRow | BoundRow | ParkedRow
R = TypeVar("R", StateRow, TopicRow, QueueRow, LaneRow, BoundRow, ParkedRow)

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type, msgspec.msgpack.Decoder[object]] = {
    kind: msgspec.msgpack.Decoder(kind)
    for kind in (StateRow, TopicRow, QueueRow, LaneRow, BoundRow, ParkedRow)
}
_QUEUE = struct.Struct(">IIQ")
_LANE = struct.Struct(">16sI")
_CRC = struct.Struct(">I")


def encode(key: bytes, row: Row) -> bytes:
    content = _encoder.encode(row)
    return _CRC.pack(zlib.crc32(content, zlib.crc32(key))) + content


def decode(kind: type[R], key: bytes, value: bytes) -> R:
    """Raises: StoreCorrupt when it is not what was written under this key."""
    content = memoryview(value)[4:]
    if len(value) < 4 or _CRC.pack(zlib.crc32(content, zlib.crc32(key))) != value[:4]:
        raise StoreCorrupt(f"a row of the outbox ({key.hex()}) is not what was written: its disk damaged it")
    try:
        return _decoders[kind].decode(content)  # type: ignore[return-value]
    except msgspec.MsgspecError as e:
        raise StoreCorrupt(f"a row of the outbox ({key.hex()}) cannot be read: {e}") from None


def place_key(topic: int, partition: int, number: int) -> bytes:
    """Of `queue` and `bound`."""
    return _QUEUE.pack(topic, partition, number)


def parse_place(key: bytes) -> tuple[int, int, int]:
    topic, partition, number = _QUEUE.unpack(key)
    return topic, partition, number


def lane_key(topic_id: bytes, partition: int) -> bytes:
    return _LANE.pack(topic_id, partition)


def topic_key(topic: int) -> bytes:
    return topic.to_bytes(4, "big")


def parked_key(number: int) -> bytes:
    return number.to_bytes(8, "big")
