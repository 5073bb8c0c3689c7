"""Keys of a slot's state rows: one letter for what it is, then whose it is.

A  applied index          G  generations              P  a partition         Q  a producer
C  a group (groups/)      D  a partition to delete    E  a partition whose expired batches are to go
H, R  the replica's own (replication/saved.py)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from meshq.ids import PartitionKey, TopicId
from meshq.streams.applied import PartitionState
from meshq.streams.producers import ProducerKey

APPLIED: Final = b"A"
GENERATIONS: Final = b"G"
_LOCAL: Final = (APPLIED, b"D", b"E", b"H", b"R")  # rows that each replica has its own of
_PARTITION_ROW_BYTES: Final = 21


def is_shared(key: bytes) -> bool:
    """Whether a row is the same on every replica at the same index, and so part of a snapshot."""
    return bool(key) and key[:1] not in _LOCAL


def partition_of_row(key: bytes) -> PartitionKey | None:
    """Whose row it is, if it is a partition's."""
    return partition_of(key) if key[:1] == b"P" and len(key) == _PARTITION_ROW_BYTES else None


def partition_row(p: PartitionKey) -> bytes:
    return b"P" + p.topic_id + p.partition.to_bytes(4, "big")


def dropping_row(p: PartitionKey) -> bytes:
    return b"D" + p.topic_id + p.partition.to_bytes(4, "big")


def expired_row(p: PartitionKey) -> bytes:
    return b"E" + p.topic_id + p.partition.to_bytes(4, "big")


def producer_row(k: ProducerKey) -> bytes:
    return b"Q" + k.client_key + k.producer_id + k.topic_id + k.partition.to_bytes(4, "big")


def partition_of(row: bytes) -> PartitionKey:
    return PartitionKey(TopicId(row[1:17]), int.from_bytes(row[17:21], "big"))


def producer_of(row: bytes) -> ProducerKey:
    return ProducerKey(row[1:33], row[33:49], TopicId(row[49:65]), int.from_bytes(row[65:69], "big"))


_encoder = msgspec.msgpack.Encoder()


def applied_index(rows: Mapping[bytes, bytes]) -> int:
    """How far a slot's rows go: entries behind this index are to be applied again."""
    return msgspec.msgpack.decode(rows[APPLIED], type=int) if APPLIED in rows else 0


def partition_states(rows: Mapping[bytes, bytes]) -> list[tuple[PartitionKey, PartitionState]]:
    """The partitions that rows tell of, sorted: the same order on every replica."""
    return [
        (partition_of(key), msgspec.msgpack.decode(rows[key], type=PartitionState))
        for key in sorted(rows)
        if key[:1] == b"P"
    ]


def begun_rows(index: int, dropping: Iterable[PartitionKey]) -> list[tuple[bytes, bytes]]:
    """Rows of this replica alone where its state is replaced: the index that is at, what is to be deleted."""
    return [
        (APPLIED, _encoder.encode(index)),
        *((dropping_row(p), _encoder.encode(True)) for p in sorted(dropping)),
    ]
