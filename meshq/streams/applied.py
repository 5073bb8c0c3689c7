"""What a slot's committed log adds up to for a partition, and what applying an entry did."""

from __future__ import annotations

import msgspec

from meshq.entries import Payload
from meshq.ids import PartitionKey, Ref
from meshq.streams.groups.table import GroupApplied


class PartitionState(msgspec.Struct, frozen=True, array_like=True):
    """Offsets in [low, end) are committed and readable."""

    low: int = 0
    end: int = 0
    bytes: int = 0  # payload bytes stored
    timestamp_ms: int = 0  # of the newest batch
    cuts: tuple[tuple[int, int], ...] = ()  # (generation, end when it began), the newest CUTS_MAX
    clean: int = 0  # of the records of a key before this offset only the last is left
    clean_bytes: int = 0  # stored when that was so
    rewritten: int = 0  # batches before this offset may be others than their entries brought


EMPTY = PartitionState()
CUTS_MAX = 8  # of a partition, and generations of a slot that are remembered; the oldest are forgotten


class Stored(msgspec.Struct, frozen=True):
    """A batch is committed: `refs` wait for its receipt, readers may have it."""

    partition: PartitionKey
    base_offset: int
    count: int
    timestamp_ms: int
    index: int
    refs: tuple[Ref, ...]


class Dropped(msgspec.Struct, frozen=True):
    """The slot's partitions of a deleted topic are gone; their payloads can be deleted."""

    partitions: tuple[PartitionKey, ...]


class Moved(msgspec.Struct, frozen=True):
    """Records of a group are dead letters now."""

    group: GroupApplied
    stored: Stored


class Retained(msgspec.Struct, frozen=True):
    """The records [first, low) of a partition have expired."""

    partition: PartitionKey
    first: int
    low: int


class Compacted(msgspec.Struct, frozen=True):
    """One batch, to be written in place of those of a partition that begin in [first, end)."""

    partition: PartitionKey
    first: int
    end: int
    payload: Payload
    index: int  # of the entry that says so


Applied = Stored | Dropped | Retained | GroupApplied | Moved | Compacted
