"""From rows to what the machine begins with, and to records of a lane. Damage is found here, row by row.

What cannot be read is put aside and told; the good part is kept. Only a damaged `state` is the end of it:
without its numbers nothing could be sent safely.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from meshq.batch import Body, frame, read_records
from meshq.client.outbox import layout
from meshq.client.outbox.layout import (
    BOUND,
    LANES,
    PARKED,
    QUEUE,
    STATE,
    STATE_KEY,
    TOPICS,
    BoundRow,
    LaneRow,
    ParkedRow,
    QueueRow,
    StateRow,
    TopicRow,
)  # fmt: skip
from meshq.client.outbox.words import Loaded, Parked, QueueRead
from meshq.errors import StoreCorrupt, StoreError


class Reader(Protocol):
    """One consistent view of the rows."""

    def rows(self, database: bytes, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """From this key on, in the order of keys."""
        ...

    def count(self, database: bytes) -> int: ...


def load(reader: Reader) -> Loaded | None:
    """What an outbox holds; None when it is new. Raises: StoreCorrupt, StoreError."""
    found = dict(reader.rows(STATE)).get(STATE_KEY)
    if found is None:
        if any(reader.count(d) for d in layout.DATABASES):
            raise StoreCorrupt("the outbox does not say who it is: its first row is gone")
        return None
    state = layout.decode(StateRow, STATE_KEY, found)
    if state.format > layout.FORMAT:
        raise StoreError(f"the outbox was written by a newer meshq (format {state.format}): upgrade meshq")
    loaded = Loaded(state, queued_records=reader.count(QUEUE), queued_bytes=state.queued_bytes)
    if not loaded.queued_records:
        loaded.queued_bytes = 0
    for key, value in reader.rows(TOPICS):
        try:
            loaded.topics[int.from_bytes(key, "big")] = layout.decode(TopicRow, key, value)
        except StoreCorrupt:
            loaded.damaged.append((TOPICS, key, value))
    for key, value in reader.rows(LANES):
        try:
            loaded.lanes[key] = layout.decode(LaneRow, key, value)
        except StoreCorrupt:
            loaded.damaged.append((LANES, key, value))
    for key, value in reader.rows(BOUND):
        try:
            loaded.bound.append((key, layout.decode(BoundRow, key, value)))
        except StoreCorrupt:
            loaded.damaged.append((BOUND, key, value))
    loaded.parked = load_parked(reader)
    loaded.queued = list(_queued_lanes(reader))
    return loaded


def load_parked(reader: Reader) -> dict[int, Parked]:
    parked: dict[int, Parked] = {}
    for key, value in reader.rows(PARKED):
        number = int.from_bytes(key, "big")
        try:
            parked[number] = Parked.of(number, layout.decode(ParkedRow, key, value))
        except StoreCorrupt as e:
            name = StoreCorrupt.__name__
            parked[number] = Parked(number, "", 0, 1, len(value), name, str(e), True, 0)
    return parked


def _queued_lanes(reader: Reader) -> Iterator[tuple[int, int]]:
    """A seek for each lane, however many records wait."""
    start = b""
    while (found := next(reader.rows(QUEUE, start), None)) is not None:
        topic, partition, _ = layout.parse_place(found[0])
        yield topic, partition
        start = layout.place_key(topic, partition, (1 << 64) - 1)
        if (last := next(reader.rows(QUEUE, start), None)) is not None and last[0] == start:
            start += b"\0"


def read_queue(reader: Reader, topic: int, partition: int, bytes_max: int) -> QueueRead:
    """The first records of a lane."""
    rows: list[tuple[int, QueueRow]] = []
    damaged: list[tuple[int, bytes]] = []
    size, more = 0, False
    prefix = layout.place_key(topic, partition, 0)[:8]
    for key, value in reader.rows(QUEUE, prefix):
        if key[:8] != prefix:
            break
        if size >= bytes_max:
            more = True
            break
        number = int.from_bytes(key[8:], "big")
        size += len(key) + len(value)
        try:
            rows.append((number, layout.decode(QueueRow, key, value)))
        except StoreCorrupt:
            damaged.append((number, value))
    return QueueRead(topic, partition, rows, damaged, size, more)


def read_parked(reader: Reader, number: int) -> list[QueueRow]:
    """The records of a parked batch, as they were taken. Raises: StoreCorrupt."""
    key = layout.parked_key(number)
    found = next(reader.rows(PARKED, key), None)
    if found is None or found[0] != key:
        return []
    row = layout.decode(ParkedRow, key, found[1])
    if row.codec is None:
        raise StoreCorrupt("its bytes are damaged: they can only be looked at, or dropped")
    body = Body(row.codec, row.count, row.base_timestamp_ms, row.body_bytes, row.data)
    return [
        QueueRow(r.key, r.value, r.headers, row.base_timestamp_ms + r.delta_ms)
        for r in read_records(frame(body))
    ]


def verify(reader: Reader) -> list[bytes]:
    """The keys of every queued row that is not what was written; the other rows are looked at on opening."""
    bad = []
    for key, value in reader.rows(QUEUE):
        try:
            layout.decode(QueueRow, key, value)
        except StoreCorrupt:
            bad.append(key)
    return bad
