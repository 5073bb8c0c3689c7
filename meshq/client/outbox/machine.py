"""The outbox's machine: what is queued, bound, sent, committed, parked.

    taken --on disk--> queued --numbered, on disk--> bound --sent, acknowledged--> committed, removed
                                                       |--refused for good--> parked
                                                       |--its id ended, certainly not stored--> bound anew

Two orders make it exactly once: a batch has its topic id, partition, producer id, epoch and sequence on disk
*before* it is first sent, so that any later run sends the very same bytes under the same number; and it is
removed only *after* its receipt came. Peers answer a repeat with its first receipt, for 30 days.

Every opening raises the epoch on disk before anything is sent, by a step drawn by chance, so that two copies
of one outbox are two epochs: whichever comes second with a number that the other used is told so, and stops
as a whole (`halted`) rather than taking the other's receipts for its own.

A refusal for good parks a batch: there to be looked at, sent again or dropped by whoever owns the data.
What stood behind it goes on under a fresh producer id. Refusals that may pass are waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Final, assert_never

import msgspec

from meshq.client.outbox import layout, words
from meshq.client.outbox.lanes import Entry, Lane, Topic, seal
from meshq.client.outbox.layout import BOUND, LANES, PARKED, QUEUE, STATE, TOPICS
from meshq.client.outbox.terms import Terms
from meshq.client.outbox.words import Effect, Event, Loaded, Parked, Persist, Put
from meshq.errors import (
    Fenced,
    MeshqError,
    OutboxFull,
    OutcomeUnknown,
    OutOfOrderSequence,
    SequenceConflict,
    StoreCorrupt,
    TooLarge,
    TopicGone,
    Unavailable,
    UnknownProducer,
)
from meshq.limits import MIB, OUTBOX_IDLE_MS, OUTBOX_TOPICS_MAX

if TYPE_CHECKING:
    import random

IN_FLIGHT_BYTES: Final = 32 * MIB  # of bound batches in memory; beyond it one a lane
MOVE_BYTES: Final = MIB  # of records that find their partitions, at a time
MARGIN_MS: Final = 3_600_000  # before the peers forget a producer nothing of it is sent any more
TOPIC_AGE_S: Final = 10.0
AGAIN_S: Final = 1.0
REFUSED_AGAIN_S: Final = 10.0
EPOCH_STEP: Final = 1 << 16
EPOCH_HIGH: Final = 1 << 31

_RENUMBERED = (Unavailable, UnknownProducer, OutOfOrderSequence)  # when certainly not stored
_COPIED = (Fenced, SequenceConflict)


@dataclass(slots=True)
class _Order:
    done: Callable[[], None]
    failed: Callable[[MeshqError], None] | None = None


class OutboxMachine:
    """`take` is a call, not an event: it answers at once with the record's number, or refuses."""

    def __init__(self, loaded: Loaded, terms: Terms, rng: random.Random) -> None:
        self.parked = dict(loaded.parked)
        self._state = loaded.state
        self._terms = terms
        self._rng = rng
        self._topics = {n: Topic(n, row, durable=True) for n, row in loaded.topics.items()}
        self._by_name = {t.row.name: t for t in self._topics.values()}
        self._lanes = dict(loaded.lanes)
        self._damaged = loaded.damaged
        self._loaded_bound = bool(loaded.bound)
        self.queued_records, self._queued_bytes = loaded.queued_records, loaded.queued_bytes
        self._bound_bytes = 0
        for key, row in loaded.bound:
            number, partition, order = layout.parse_place(key)
            lane = self._topic(number).lane(partition)
            lane.window[order] = Entry(order, row, (), sent_before=True, durable=True)
            self._bound_bytes += len(row.data)
        for number, partition in loaded.queued:
            self._topic(number).lane(partition).has_more = True
        self._effects: list[Effect] = []
        self._orders: dict[int, _Order] = {}
        self._tickets: dict[int, tuple[Lane, Entry]] = {}  # at most WINDOW a lane
        self._last = 0
        self._reading_parked = 0
        self._raised = False  # the epoch of this run is on disk
        self._connected = False
        self._taken: list[Put] = []  # until the turn ends
        self._taken_lanes: dict[Lane, int] = {}
        self._now, self._wall_ms = 0.0, 0

    # ------------------------------------------------------------------------------ what others ask
    @property
    def epoch(self) -> int:
        return self._state.epoch

    @property
    def halted(self) -> str:
        return self._state.halted

    @property
    def bytes_used(self) -> int:
        return self._queued_bytes + self._bound_bytes + sum(p.bytes for p in self.parked.values())

    @property
    def bound_records(self) -> int:
        return sum(e.row.count for lane in self._all_lanes() for e in lane.window.values())

    @property
    def has_bound(self) -> bool:
        return any(lane.window for lane in self._all_lanes())

    @property
    def is_writing(self) -> bool:
        """Whether something was taken or ordered that is not on disk."""
        return bool(self._orders or self._taken or self._reading_parked)

    def owner(self) -> tuple[bytes, bytes]:
        """The mesh it belongs to, and the key of the connection that its bound batches do."""
        return self._state.mesh_id, self._state.client_key

    def status(self) -> dict[str, Any]:
        waiting = {
            t.row.name: t.waiting_for
            for t in self._topics.values()
            if t.waiting_for and any(x.has_more or x.window for x in t.lanes.values())
        }
        return {
            "queued": self.queued_records,
            "sent": self.bound_records,
            "parked": sum(p.records for p in self.parked.values()),
            "bytes": self.bytes_used,
            "bytes_max": self._terms.bytes_max,
            "epoch": self._state.epoch,
            "halted": self._state.halted or None,
            "waiting_for": waiting,
        }

    def deadline(self) -> float:
        """When it next wants a Ticked."""
        if not self._connected or self._state.halted:
            return inf
        idle = (t for t in self._topics.values() if not t.asking and t.info is None and self._wants(t))
        return min((t.ask_at for t in idle), default=inf)

    # --------------------------------------------------------------------------------- what happens
    def start(self, *, now: float, wall_ms: int) -> list[Effect]:
        """The first orders: the epoch is raised, and what is damaged put aside."""
        self._look_at(now, wall_ms)
        state = self._state
        deletes = [(database, key) for database, key, _ in self._damaged]
        if state.epoch >= EPOCH_HIGH and not self._loaded_bound:
            deletes += self._begin_anew()
        state.epoch += self._rng.randrange(EPOCH_STEP) + 1 if state.epoch < EPOCH_HIGH else 1
        puts = [self._put_aside(*damaged) for damaged in self._damaged]
        self._damaged = []
        self._persist(puts, deletes, self._on_raised)
        return self._take_effects()

    def take(
        self, topic: str, value: bytes, key: bytes | None, headers: dict[str, bytes] | None, *, wall_ms: int
    ) -> int:
        """The number of a record that goes to disk when the turn ends.

        Raises: OutboxFull, Fenced, TooLarge.
        """
        if self._state.halted:
            raise Fenced(self._state.halted)
        known = self._by_name.get(topic)
        if known is not None and known.info is not None:
            limit, size = known.info.record_bytes_max, len(value) + len(key or b"")
            size += sum(len(k) + len(v) for k, v in (headers or {}).items())
            if size > limit:
                raise TooLarge(f"a record of {size} bytes is over the limit of {limit} of topic {topic}")
        if self.bytes_used + len(value) > self._terms.bytes_max:
            raise OutboxFull(
                f"the outbox holds {self.bytes_used:,} of the {self._terms.bytes_max:,} bytes it may: they "
                "wait for the mesh. Look with `meshq outbox show`, try again, or give it more"
            )
        known = known or self._new_topic(topic)
        return self._queue(known, layout.QueueRow(key, value, headers, wall_ms))

    def handle(self, event: Event, *, now: float, wall_ms: int) -> list[Effect]:
        self._look_at(now, wall_ms)
        match event:
            case words.TurnEnded():
                self._on_turn_ended()
            case words.Persisted():
                self._orders.pop(event.token).done()
            case words.NotPersisted():
                order = self._orders.pop(event.token)
                if order.failed is not None:
                    order.failed(event.error)
            case words.QueueRead():
                self._on_queue_read(event)
            case words.TopicHeard():
                self._on_topic(self._topics[event.topic], event.info)
            case words.TopicNotHeard():
                self._on_no_topic(self._topics[event.topic], event.error)
            case words.Committed():
                self._on_committed(event)
            case words.Failed():
                self._on_failed(event)
            case words.Doubted():
                if event.ticket in self._tickets:
                    self._tickets[event.ticket][0].topic.waiting_for = str(event.error)
            case words.RetryAsked():
                whole = [n for n in event.ids if self._is_whole(n)]
                self._reading_parked += len(whole)
                self._effects += [words.ReadParked(n) for n in whole]
            case words.ParkedRead():
                self._on_parked_read(event)
            case words.DropAsked():
                self._on_drop(event.ids)
            case words.ParkAsked():
                lost = UnknownProducer("the key it was sent under is lost: peers know it by that key alone")
                bound = [(x, e, True) for x in self._all_lanes() for e in x.window.values()]
                self._park_entries(bound, lost)
            case words.Connected():
                self._on_connected(event)
            case words.Ticked():
                self._pump_all()
            case _:
                assert_never(event)
        return self._take_effects()

    # --------------------------------------------------------------------------------------- taking
    def _queue(self, topic: Topic, row: layout.QueueRow) -> int:
        number = self._state.next_number
        self._state.next_number += 1
        lane = topic.lane_for(row.key)
        key = layout.place_key(topic.number, lane.partition, number)
        value = layout.encode(key, row)
        if not topic.durable:
            topic_key = layout.topic_key(topic.number)
            self._taken.append((TOPICS, topic_key, layout.encode(topic_key, topic.row)))
        self._taken.append((QUEUE, key, value))
        self._taken_lanes[lane] = self._taken_lanes.get(lane, 0) + 1
        lane.unsynced += 1
        self.queued_records += 1
        self._queued_bytes += len(key) + len(value)
        return number

    def _on_turn_ended(self, also: Sequence[tuple[bytes, bytes]] = (), *, fallible: bool = True) -> None:
        if not self._taken:
            return
        taken, self._taken = self._taken, []
        lanes, self._taken_lanes = self._taken_lanes, {}
        count = sum(lanes.values())
        end = self._state.next_number
        size = sum(len(k) + len(v) for d, k, v in taken if d == QUEUE)

        def done() -> None:
            for lane, more in lanes.items():
                lane.unsynced -= more
                lane.has_more = True
                lane.topic.durable = True
            self._effects.append(words.TellQueued(end - count, end))
            for topic in {lane.topic for lane in lanes}:
                self._pump(topic)

        def failed(error: MeshqError) -> None:
            for lane, more in lanes.items():
                lane.unsynced -= more
            self.queued_records -= count
            self._queued_bytes -= size
            self._effects.append(words.TellQueued(end - count, end, error))

        self._persist(taken, also, done, failed if fallible else None)

    # -------------------------------------------------------------------------------------- binding
    def _pump_all(self) -> None:
        for topic in self._topics.values():
            self._pump(topic)

    def _pump(self, topic: Topic) -> None:
        """Send, number and read what may be of this topic."""
        if not self._raised or not self._connected or self._state.halted:
            return
        for lane in list(topic.lanes.values()):
            self._pump_lane(lane)

    def _pump_lane(self, lane: Lane) -> None:
        for entry in list(lane.window.values()):
            if entry.durable and not entry.ticket and not entry.again:
                self._send(lane, entry)
        if lane.window and not lane.busy and all(e.again for e in lane.window.values()):
            self._number_anew(lane)
        if lane.busy or not lane.has_more or self._ask(lane.topic) is None:
            return
        topic = lane.topic
        if lane.partition >= topic.row.partitions:  # not known when it was taken, or there are fewer by now
            room_bytes = MOVE_BYTES
        else:
            room = lane.room() if not lane.window or self._bound_bytes < IN_FLIGHT_BYTES else 0
            room_bytes = min(room, 4) * self._terms.batch_bytes
        if room_bytes > 0:
            lane.busy = True
            self._effects.append(words.ReadQueue(topic.number, lane.partition, room_bytes))

    def _ask(self, topic: Topic) -> Topic | None:
        """The topic, if it is known well enough to bind; it is looked up where it is not, or not of late."""
        old = topic.info is None or self._now >= topic.known_at + TOPIC_AGE_S
        if old and not topic.asking and self._now >= topic.ask_at:
            topic.asking = True
            self._effects.append(words.WantTopic(topic.number, topic.row.name, topic.info is not None))
        return topic if topic.info is not None else None

    def _on_queue_read(self, event: words.QueueRead) -> None:
        topic = self._topics[event.topic]
        lane = topic.lane(event.partition)
        homeless = lane.partition >= topic.row.partitions
        if topic.info is None or (not homeless and lane.room() <= 0):
            lane.busy, lane.has_more = False, True  # things have changed since it was asked for
            self._pump_lane(lane)
            return
        lane.has_more = event.more
        numbers = [n for n, _ in (*event.rows, *event.damaged)]
        keys = [layout.place_key(topic.number, lane.partition, n) for n in numbers]
        deletes = [(QUEUE, key) for key in keys]
        puts: list[Put] = []
        for number, value in event.damaged:
            puts.append(self._put_aside(QUEUE, layout.place_key(topic.number, lane.partition, number), value))
        if homeless:
            self.queued_records -= len(event.damaged)
            self._queued_bytes -= sum(len(value) for _, value in event.damaged)
            self._move(lane, event.rows, puts, deletes)
        else:
            self.queued_records -= len(numbers)
            self._queued_bytes -= event.bytes
            self._bind(lane, event.rows, puts, deletes)

    def _move(
        self,
        lane: Lane,
        rows: Sequence[tuple[int, layout.QueueRow]],
        puts: list[Put],
        deletes: Sequence[tuple[bytes, bytes]],
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
            self._pump(topic)

        self._persist(puts, deletes, done)

    def _bind(
        self,
        lane: Lane,
        rows: Sequence[tuple[int, layout.QueueRow]],
        puts: list[Put],
        deletes: Sequence[tuple[bytes, bytes]],
    ) -> None:
        """Number what was read and write that down; it is sent when that is on disk, and not before."""
        info = lane.topic.info
        assert info is not None
        fitting = []
        for number, row in rows:
            size = len(row.value) + len(row.key or b"")
            size += sum(len(k) + len(v) for k, v in (row.headers or {}).items())
            if size > info.record_bytes_max:
                error = TooLarge(f"{size} bytes, and the topic's limit is {info.record_bytes_max}")
                sealed = seal([(number, row)], batch_bytes=1, codec="none")[0]
                puts.append(self._park(lane, sealed[1], [number], error, maybe_stored=False))
            else:
                fitting.append((number, row))
        where = layout.lane_key(info.topic_id, lane.partition)
        identity = self._lanes.get(where) or layout.LaneRow(self._state.producer_id)
        if lane.fresh:
            identity, lane.fresh = layout.LaneRow(self._rng.randbytes(16)), False
        made = []
        sealed_all = seal(fitting, batch_bytes=self._terms.batch_bytes, codec=self._terms.compression)
        for numbers, body in sealed_all:
            bound = layout.BoundRow(
                info.topic_id, info.version, identity.producer_id, self._state.epoch, identity.next_sequence,
                self._wall_ms, *body,
            )  # fmt: skip
            identity = layout.LaneRow(identity.producer_id, bound.sequence + bound.count)
            made.append(Entry(numbers[0], bound, numbers, sent_before=False))
        self._lanes[where] = identity
        self._write_entries(lane, made, [*puts, (LANES, where, layout.encode(where, identity))], deletes)

    def _write_entries(
        self, lane: Lane, entries: Sequence[Entry], puts: list[Put], deletes: Sequence[tuple[bytes, bytes]]
    ) -> None:
        for entry in entries:
            lane.window[entry.order] = entry
            self._bound_bytes += entry.bytes()
            key = layout.place_key(lane.topic.number, lane.partition, entry.order)
            puts.append((BOUND, key, layout.encode(key, entry.row)))

        def done() -> None:
            lane.busy = False
            for entry in entries:
                entry.durable = True
            self._pump(lane.topic)

        self._persist(puts, deletes, done)

    def _number_anew(self, lane: Lane) -> None:
        """All of the window is certainly not stored: under a fresh id, in its old order."""
        entries = list(lane.window.values())
        identities: dict[bytes, layout.LaneRow] = {}
        for entry in entries:
            where = layout.lane_key(entry.row.topic_id, lane.partition)
            identity = identities.get(where) or layout.LaneRow(self._rng.randbytes(16))
            entry.row = msgspec.structs.replace(
                entry.row, producer_id=identity.producer_id, epoch=self._state.epoch,
                sequence=identity.next_sequence, bound_ms=self._wall_ms,
            )  # fmt: skip
            identities[where] = replace_sequence(identity, entry.row)
            entry.again = entry.durable = entry.sent_before = False
            self._bound_bytes -= entry.bytes()
        self._lanes |= identities
        lane.fresh = False
        lane.busy = True
        rows: list[Put] = [(LANES, k, layout.encode(k, x)) for k, x in identities.items()]
        self._write_entries(lane, entries, rows, ())

    # -------------------------------------------------------------------------------------- sending
    def _send(self, lane: Lane, entry: Entry) -> None:
        valid_ms = entry.row.bound_ms + OUTBOX_IDLE_MS - MARGIN_MS - self._wall_ms
        if valid_ms <= 0:
            over = UnknownProducer("it was sent more than 30 days ago: its sequence is remembered no more")
            self._end(lane, entry, over, maybe_stored=entry.sent_before)
            return
        self._last += 1
        entry.ticket = self._last
        self._tickets[entry.ticket] = lane, entry
        name, sent_before = lane.topic.row.name, entry.sent_before
        self._effects.append(
            words.SendBound(entry.ticket, name, lane.partition, entry.row, sent_before, valid_ms / 1000)
        )

    def _on_committed(self, event: words.Committed) -> None:
        lane, entry = self._tickets.pop(event.ticket, (None, None))
        if lane is None or entry is None:
            return
        lane.proven = True
        lane.topic.waiting_for = ""
        key = self._forget(lane, entry)
        base = event.receipt.base_offset
        assert base is not None, "an outbox asks for a quorum"
        self._effects.append(
            words.TellCommitted(
                entry.numbers, lane.topic.row.name, lane.partition, base, event.receipt.copies
            )
        )
        self._persist([], [(BOUND, key)], lambda: None)
        self._pump_lane(lane)

    def _on_failed(self, event: words.Failed) -> None:
        lane, entry = self._tickets.pop(event.ticket, (None, None))
        if lane is None or entry is None:
            return
        entry.ticket = 0
        error, maybe_stored = event.error, isinstance(event.error, OutcomeUnknown)
        if maybe_stored and isinstance(error.__cause__, MeshqError):
            error = error.__cause__
        self._end(lane, entry, error, maybe_stored=maybe_stored)
        self._pump(lane.topic)

    def _end(self, lane: Lane, entry: Entry, error: MeshqError, *, maybe_stored: bool) -> None:
        """It will not be stored under the number it has."""
        lane.fresh = True
        if isinstance(error, _RENUMBERED) and not maybe_stored:
            entry.again = True
            return
        if isinstance(error, TopicGone):
            lane.topic.info = None
        self._park_entries([(lane, entry, maybe_stored)], error)
        if isinstance(error, _COPIED):
            self._halt(error)

    def _halt(self, error: MeshqError) -> None:
        """Somebody else uses these numbers. Nothing more is sent until the owner of the data has looked."""
        self._state.halted = (
            f"another copy of this outbox is in use ({type(error).__name__}: {error}). Find it; then in one "
            "of them `meshq outbox retry` sends what is parked, as an outbox of its own, or `drop` ends it"
        )
        others = [(lane, e, True) for lane in self._all_lanes() for e in lane.window.values()]
        self._park_entries(others, error)

    def _park_entries(self, entries: Sequence[tuple[Lane, Entry, bool]], error: MeshqError) -> None:
        puts, deletes = [], []
        for lane, entry, maybe_stored in entries:
            self._tickets.pop(entry.ticket, None)
            deletes.append((BOUND, self._forget(lane, entry)))
            puts.append(self._park(lane, entry.row.body(), entry.numbers, error, maybe_stored=maybe_stored))
        self._persist(puts, deletes, lambda: None)

    def _forget(self, lane: Lane, entry: Entry) -> bytes:
        """Out of the window; its key on disk."""
        del lane.window[entry.order]
        self._bound_bytes -= entry.bytes()
        return layout.place_key(lane.topic.number, lane.partition, entry.order)

    # -------------------------------------------------------------------------------------- parking
    def _park(
        self, lane: Lane, body: Any, numbers: Sequence[int], error: MeshqError, *, maybe_stored: bool
    ) -> Put:
        row = layout.ParkedRow(
            lane.topic.row.name, lane.partition, type(error).__name__, str(error), maybe_stored,
            self._wall_ms, *body,
        )  # fmt: skip
        put, parked = self._parked_put(row)
        self._effects.append(words.TellParked(numbers, parked, error))
        return put

    def _put_aside(self, database: bytes, key: bytes, value: bytes) -> Put:
        """A row that is not what was written: its bytes are kept, to be looked at."""
        topic, partition = "", 0
        if database in (QUEUE, BOUND) and len(key) == 16:
            number, partition, _ = layout.parse_place(key)
            topic = self._topics[number].row.name if number in self._topics else ""
        text = f"a row of {database.decode()} ({key.hex()}) does not match its checksum"
        row = layout.ParkedRow(
            topic, partition, StoreCorrupt.__name__, text, database == BOUND, self._wall_ms, None, 1, 0, 0,
            value,
        )  # fmt: skip
        put, parked = self._parked_put(row)
        self._effects.append(words.TellParked((), parked, StoreCorrupt(text)))
        return put

    def _parked_put(self, row: layout.ParkedRow) -> tuple[Put, Parked]:
        number = max(self.parked, default=0) + 1
        parked = self.parked[number] = Parked.of(number, row)
        key = layout.parked_key(number)
        return (PARKED, key, layout.encode(key, row)), parked

    def _is_whole(self, number: int) -> bool:
        return number in self.parked and self.parked[number].reason != StoreCorrupt.__name__

    def _on_parked_read(self, event: words.ParkedRead) -> None:
        self._reading_parked -= 1
        parked = self.parked.get(event.id)
        if parked is None:
            return
        topic = self._by_name.get(parked.topic) or self._new_topic(parked.topic)
        self._on_turn_ended()  # so that this is an order of its own
        del self.parked[event.id]
        for row in event.rows:
            self._queue(topic, row)
        self._on_turn_ended([(PARKED, layout.parked_key(event.id))], fallible=False)
        self._look_at_halt()

    def _on_drop(self, ids: Iterable[int]) -> None:
        known = [n for n in ids if self.parked.pop(n, None) is not None]
        self._persist([], [(PARKED, layout.parked_key(n)) for n in known], lambda: None)
        self._look_at_halt()

    def _look_at_halt(self) -> None:
        """Its owner has decided about all that was parked: it goes on, as an outbox of its own."""
        reasons = {p.reason for p in self.parked.values()}
        if self._state.halted and not reasons & {c.__name__ for c in _COPIED}:
            self._persist([], self._begin_anew(), self._pump_all)

    def _begin_anew(self) -> list[tuple[bytes, bytes]]:
        """Under another producer id in every lane; the rows that go with the old one."""
        gone = [(LANES, key) for key in self._lanes]
        self._lanes.clear()
        self._state.halted = ""
        self._state.producer_id = self._rng.randbytes(16)
        for lane in self._all_lanes():
            lane.fresh = False
        return gone

    # --------------------------------------------------------------------------------- topics, mesh
    def _on_raised(self) -> None:
        self._raised = True
        self._pump_all()

    def _on_connected(self, event: words.Connected) -> None:
        self._connected = True
        if self.owner() != (event.mesh_id, event.client_key):
            self._state.mesh_id, self._state.client_key = event.mesh_id, event.client_key
            self._persist([], [], self._pump_all)
        else:
            self._pump_all()

    def _on_topic(self, topic: Topic, info: Any) -> None:
        topic.asking, topic.info, topic.known_at, topic.waiting_for = False, info, self._now, ""
        if topic.row.partitions == info.partitions:
            self._pump(topic)
            return
        topic.row = layout.TopicRow(topic.row.name, info.partitions)
        key = layout.topic_key(topic.number)
        self._persist([(TOPICS, key, layout.encode(key, topic.row))], [], lambda: self._pump(topic))

    def _on_no_topic(self, topic: Topic, error: MeshqError) -> None:
        """What is known is kept while a peer cannot be asked."""
        topic.asking = False
        topic.waiting_for = str(error)
        topic.ask_at = self._now + (AGAIN_S if isinstance(error, Unavailable) else REFUSED_AGAIN_S)

    def _wants(self, topic: Topic) -> bool:
        return any(lane.has_more for lane in topic.lanes.values())

    def _new_topic(self, name: str) -> Topic:
        if len(self._topics) >= OUTBOX_TOPICS_MAX:
            raise OutboxFull(f"an outbox holds records of at most {OUTBOX_TOPICS_MAX} topics")
        number = max(self._topics, default=0) + 1
        topic = self._topics[number] = self._by_name[name] = Topic(number, layout.TopicRow(name))
        return topic

    def _topic(self, number: int) -> Topic:
        """Of a row that was loaded. Where the name is lost the records wait, and are seen to."""
        if number not in self._topics:
            lost = Topic(number, layout.TopicRow(""), durable=True, ask_at=inf)
            lost.waiting_for = "the row with the topic's name is damaged"
            self._topics[number] = lost
        return self._topics[number]

    def _all_lanes(self) -> list[Lane]:
        return [lane for topic in self._topics.values() for lane in topic.lanes.values()]

    # ------------------------------------------------------------------------------- how it is done
    def _persist(
        self,
        puts: Sequence[Put],
        deletes: Sequence[tuple[bytes, bytes]],
        done: Callable[[], None],
        failed: Callable[[MeshqError], None] | None = None,
    ) -> None:
        """One transaction, and what follows when it is on disk; the state as it is now goes with it."""
        self._last += 1
        self._orders[self._last] = _Order(done, failed)
        self._state.queued_bytes = self._queued_bytes
        state = (STATE, layout.STATE_KEY, layout.encode(layout.STATE_KEY, self._state))
        self._effects.append(Persist(self._last, [*puts, state], deletes, fallible=failed is not None))

    def _look_at(self, now: float, wall_ms: int) -> None:
        self._now = now
        self._wall_ms = self._state.wall_ms = max(self._state.wall_ms, wall_ms)

    def _take_effects(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects


def replace_sequence(identity: layout.LaneRow, row: layout.BoundRow) -> layout.LaneRow:
    """The lane behind this batch."""
    return layout.LaneRow(identity.producer_id, row.sequence + row.count)
