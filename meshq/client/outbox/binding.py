"""From records that wait to batches that may be sent: numbered, and the numbers on disk first.

A batch keeps what it was bound with for good, so that any later run sends the same bytes under the same
number. Only one that was certainly not stored is ever numbered anew, under an id that was never used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from meshq.client.outbox import layout
from meshq.client.outbox.lanes import Entry, Lane, Topic, seal
from meshq.client.outbox.layout import BOUND, LANES, QUEUE, LaneRow, QueueRow
from meshq.client.outbox.ledger import Ledger
from meshq.client.outbox.parking import Parking
from meshq.client.outbox.terms import Terms
from meshq.client.outbox.words import Loaded, Put, QueueRead
from meshq.errors import TooLarge

if TYPE_CHECKING:
    import random

Deletes = Sequence[tuple[bytes, bytes]]


class Binding:
    """`on_done` hears of a topic whose lanes have something new on disk."""

    def __init__(
        self,
        ledger: Ledger,
        parking: Parking,
        loaded: Loaded,
        terms: Terms,
        rng: random.Random,
        on_done: Callable[[Topic], None],
    ) -> None:
        self._ledger, self._parking, self._terms, self._rng = ledger, parking, terms, rng
        self._rows = dict(loaded.lanes)  # topics times partitions
        self._on_done = on_done

    def on_read(self, lane: Lane, event: QueueRead) -> None:
        """What was read of a lane is numbered, or finds its partition; it leaves the queue with that."""
        topic, ledger = lane.topic, self._ledger
        lane.has_more = event.more
        numbers = [n for n, _ in (*event.rows, *event.damaged)]
        deletes = [(QUEUE, layout.place_key(topic.number, lane.partition, n)) for n in numbers]
        puts: list[Put] = []
        for number, value in event.damaged:
            key = layout.place_key(topic.number, lane.partition, number)
            puts.append(self._parking.put_aside(QUEUE, key, value, topic.row.name))
        if lane.is_homeless:
            ledger.queued_records -= len(event.damaged)
            ledger.queued_bytes -= sum(len(value) + layout.PLACE_BYTES for _, value in event.damaged)
            self._move(lane, event.rows, puts, deletes)
        else:
            ledger.queued_records -= len(numbers)
            ledger.queued_bytes -= event.bytes
            self._bind(lane, event.rows, puts, deletes)

    def number_anew(self, lane: Lane) -> None:
        """All of the window is certainly not stored: under a fresh id, in its old order."""
        entries = list(lane.window.values())
        identities: dict[bytes, LaneRow] = {}
        for entry in entries:
            where = layout.lane_key(entry.row.topic_id, lane.partition)
            identity = identities.get(where) or LaneRow(self._rng.randbytes(16))
            entry.row = msgspec.structs.replace(
                entry.row, producer_id=identity.producer_id, epoch=self._ledger.state.epoch,
                sequence=identity.next_sequence, bound_ms=self._ledger.wall_ms,
            )  # fmt: skip
            identities[where] = _behind(entry.row)
            entry.again = entry.durable = entry.sent_before = False
            self._ledger.bound_bytes -= entry.bytes()
        self._rows |= identities
        lane.fresh, lane.busy = False, True
        self.write(lane, entries, [(LANES, k, layout.encode(k, x)) for k, x in identities.items()], ())

    def forget(self, lane: Lane, entry: Entry) -> tuple[bytes, bytes]:
        """Out of the window; the row to delete."""
        del lane.window[entry.order]
        self._ledger.bound_bytes -= entry.bytes()
        return BOUND, layout.place_key(lane.topic.number, lane.partition, entry.order)

    def begin_anew(self) -> Deletes:
        """No lane has an id any more; the rows to delete."""
        gone = [(LANES, key) for key in self._rows]
        self._rows.clear()
        return gone

    def write(self, lane: Lane, entries: Sequence[Entry], puts: list[Put], deletes: Deletes) -> None:
        """Into the window, and on disk; they may be sent when that is done, and not before."""
        for entry in entries:
            lane.window[entry.order] = entry
            self._ledger.bound_bytes += entry.bytes()
            key = layout.place_key(lane.topic.number, lane.partition, entry.order)
            puts.append((BOUND, key, layout.encode(key, entry.row)))

        def done() -> None:
            lane.busy = False
            for entry in entries:
                entry.durable = True
            self._on_done(lane.topic)

        self._ledger.persist(puts, deletes, done)

    def _move(
        self, lane: Lane, rows: Sequence[tuple[int, QueueRow]], puts: list[Put], deletes: Deletes
    ) -> None:
        """Records whose partition was not known find it."""
        topic = lane.topic
        targets = set()
        for number, row in rows:
            target = topic.lane(topic.partition_of(row.key))
            targets.add(target)
            key = layout.place_key(topic.number, target.partition, number)
            puts.append((QUEUE, key, layout.encode(key, row)))

        def done() -> None:
            lane.busy = False
            for target in targets:
                target.has_more = True
            self._on_done(topic)

        self._ledger.persist(puts, deletes, done)

    def _bind(
        self, lane: Lane, rows: Sequence[tuple[int, QueueRow]], puts: list[Put], deletes: Deletes
    ) -> None:
        info = lane.topic.info
        assert info is not None
        fitting = [(n, row) for n, row in rows if row.size() <= info.record_bytes_max]
        for number, row in rows:
            if row.size() > info.record_bytes_max:
                error = TooLarge(f"{row.size()} bytes, and the topic's limit is {info.record_bytes_max}")
                _, body = seal([(number, row)], batch_bytes=1, codec="none")[0]
                put = self._parking.park(info.name, lane.partition, body, [number], error, maybe_stored=False)
                puts.append(put)
        where = layout.lane_key(info.topic_id, lane.partition)
        identity = self._rows.get(where) or LaneRow(self._ledger.state.producer_id)
        if lane.fresh:
            identity, lane.fresh = LaneRow(self._rng.randbytes(16)), False
        made = []
        codec = self._terms.compression
        for numbers, body in seal(fitting, batch_bytes=self._terms.batch_bytes, codec=codec):
            bound = layout.BoundRow(
                info.topic_id, info.version, identity.producer_id, self._ledger.state.epoch,
                identity.next_sequence, self._ledger.wall_ms, *body,
            )  # fmt: skip
            identity = _behind(bound)
            made.append(Entry(numbers[0], bound, numbers, sent_before=False))
        self._rows[where] = identity
        self.write(lane, made, [*puts, (LANES, where, layout.encode(where, identity))], deletes)


def _behind(row: layout.BoundRow) -> LaneRow:
    """The lane behind this batch."""
    return LaneRow(row.producer_id, row.sequence + row.count)
