"""What an outbox knows of its topics and partitions while it runs.

A *lane* is one partition of one topic: its records wait on disk in the order they were taken, and a few of
its batches are bound, in the order of their sequences. Lanes go on independently, so that a partition whose
leader is away holds up no other.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from meshq import batch as batches
from meshq.batch import Body, RawRecord
from meshq.client.checking import BATCH_ROOM_BYTES, record_bytes
from meshq.client.outbox.layout import UNASSIGNED, BoundRow, QueueRow, TopicRow
from meshq.limits import BATCH_RECORDS_MAX
from meshq.messages import TopicInfo

WINDOW: Final = 8  # batches of a lane that are bound; one until the first of them was committed
STICKY_RECORDS: Final = 1_024  # without a key, before the next partition's turn


@dataclass(slots=True, eq=False)
class Entry:
    """A bound batch. `numbers`: of its records; none when an earlier run took them."""

    order: int
    row: BoundRow
    numbers: Sequence[int]
    sent_before: bool
    durable: bool = False  # it is on disk as it is here: it may be sent
    ticket: int = 0  # it is being sent
    again: bool = False  # certainly not stored, and its id ended: to be numbered anew

    def bytes(self) -> int:
        return len(self.row.data)


@dataclass(slots=True, eq=False)
class Lane:
    topic: Topic
    partition: int
    has_more: bool = False  # records on disk that were not read
    unsynced: int = 0  # records on their way to disk
    busy: bool = False  # it is being read, or what was read is being bound (or moved)
    window: dict[int, Entry] = field(default_factory=dict)  # in order, at most WINDOW
    proven: bool = False  # something of it was committed in this run
    fresh: bool = False  # its producer id has ended

    @property
    def is_homeless(self) -> bool:
        """Its records wait for a partition: none was known when they were taken, or there are fewer now."""
        return self.partition >= self.topic.row.partitions

    def room(self) -> int:
        """How many more batches may be bound."""
        if (self.fresh and self.window) or any(e.again for e in self.window.values()):
            return 0
        return (WINDOW if self.proven else 1) - len(self.window)


@dataclass(slots=True, eq=False)
class Topic:
    number: int
    row: TopicRow
    durable: bool = False
    info: TopicInfo | None = None  # as heard in this run
    asking: bool = False
    ask_at: float = 0.0
    known_at: float = 0.0
    waiting_for: str = ""  # what was last said to what waits
    lanes: dict[int, Lane] = field(default_factory=dict)
    sticky: int = 0
    sticky_records: int = 0

    @property
    def is_idle(self) -> bool:
        """Nothing of it is here, or on its way to disk."""
        used = any(x.has_more or x.unsynced or x.busy or x.window for x in self.lanes.values())
        return self.durable and not self.asking and not used and bool(self.row.name)

    def lane(self, partition: int) -> Lane:
        found = self.lanes.get(partition)
        if found is None:
            found = self.lanes[partition] = Lane(self, partition)
        return found

    def lane_for(self, key: bytes | None) -> Lane:
        """Where a record waits that is taken now: behind those whose partition is not known yet, if any."""
        homeless = self.lanes.get(UNASSIGNED)
        if not self.row.partitions or (
            homeless is not None and (homeless.has_more or homeless.busy or homeless.unsynced)
        ):
            return self.lane(UNASSIGNED)
        return self.lane(self.partition_of(key))

    def partition_of(self, key: bytes | None) -> int:
        if key is not None:
            return zlib.crc32(key) % self.row.partitions
        self.sticky_records += 1
        if self.sticky_records > STICKY_RECORDS:
            self.sticky, self.sticky_records = self.sticky + 1, 1
        return self.sticky % self.row.partitions


def seal(
    rows: Sequence[tuple[int, QueueRow]], *, batch_bytes: int, codec: str
) -> list[tuple[list[int], Body]]:
    """Records of one lane as batches, in order, and the numbers of the records in each."""
    made: list[tuple[list[int], Body]] = []
    numbers: list[int] = []
    records: list[RawRecord] = []
    base_ms, size = 0, 0

    def end() -> None:
        if records:
            made.append((list(numbers), batches.seal(records, base_timestamp_ms=base_ms, codec=codec)))
        numbers.clear()
        records.clear()

    for number, row in rows:
        encoded = record_bytes(row.value, row.key, row.headers)[1]
        if records and (
            size + encoded > min(batch_bytes, BATCH_ROOM_BYTES) or len(records) >= BATCH_RECORDS_MAX
        ):
            end()
        if not records:
            base_ms, size = row.timestamp_ms, 0
        numbers.append(number)
        records.append(RawRecord(row.key, row.value, row.headers, max(0, row.timestamp_ms - base_ms)))
        size += encoded
    end()
    return made
