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

from collections.abc import Iterable, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, Final, assert_never

from meshq.client.outbox import layout, words
from meshq.client.outbox.binding import Binding
from meshq.client.outbox.lanes import Entry, Lane, Topic
from meshq.client.outbox.layout import LANES, TOPICS
from meshq.client.outbox.ledger import Ledger
from meshq.client.outbox.parking import Parking
from meshq.client.outbox.taking import Taking
from meshq.client.outbox.terms import Terms
from meshq.client.outbox.topics import Topics
from meshq.client.outbox.words import Effect, Event, Loaded, Parked
from meshq.errors import (
    Fenced,
    MeshqError,
    OutboxFull,
    OutcomeUnknown,
    OutOfOrderSequence,
    SequenceConflict,
    TooLarge,
    TopicGone,
    Unavailable,
    UnknownProducer,
)
from meshq.limits import MIB, OUTBOX_IDLE_MS

if TYPE_CHECKING:
    import random

    from meshq.messages import TopicInfo

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


class OutboxMachine:
    """`take` is a call, not an event: it answers at once with the record's number, or refuses."""

    def __init__(self, loaded: Loaded, terms: Terms, rng: random.Random) -> None:
        self._terms, self._rng = terms, rng
        self._ledger = Ledger(loaded)
        self._parking = Parking(self._ledger, loaded.parked)
        self._binding = Binding(self._ledger, self._parking, loaded, terms, rng, self._pump)
        self._topics = Topics(loaded.topics)
        self._taking = Taking(self._ledger, self._pump)
        self._damaged = loaded.damaged
        for key, row in loaded.bound:
            number, partition, order = layout.parse_place(key)
            lane = self._topics.of(number).lane(partition)
            lane.window[order] = Entry(order, row, (), sent_before=True, durable=True)
            self._ledger.bound_bytes += len(row.data)
        for number, partition in loaded.queued:
            self._topics.of(number).lane(partition).has_more = True
        self._tickets: dict[int, tuple[Lane, Entry]] = {}  # at most WINDOW a lane
        self._raised = False  # the epoch of this run is on disk
        self._connected = False

    # ------------------------------------------------------------------------------ what others ask
    @property
    def parked(self) -> dict[int, Parked]:
        return self._parking.batches

    @property
    def halted(self) -> str:
        return self._ledger.state.halted

    @property
    def queued_records(self) -> int:
        return self._ledger.queued_records

    @property
    def bound_records(self) -> int:
        return sum(e.row.count for lane in self._topics.lanes() for e in lane.window.values())

    @property
    def bytes_used(self) -> int:
        return self._ledger.queued_bytes + self._ledger.bound_bytes + self._parking.bytes

    @property
    def is_writing(self) -> bool:
        """Whether something was taken or ordered that is not on disk."""
        return self._ledger.is_writing or self._taking.has_taken or self._parking.is_reading

    def owner(self) -> tuple[bytes, bytes]:
        """The mesh it belongs to, and the key of the connection that its bound batches do."""
        return self._ledger.state.mesh_id, self._ledger.state.client_key

    def status(self) -> dict[str, Any]:
        waiting = {
            t.row.name: t.waiting_for
            for t in self._topics.all()
            if t.waiting_for and any(x.has_more or x.window for x in t.lanes.values())
        }
        return {
            "queued": self.queued_records,
            "sent": self.bound_records,
            "parked": self._parking.records,
            "bytes": self.bytes_used,
            "bytes_max": self._terms.bytes_max,
            "epoch": self._ledger.state.epoch,
            "halted": self.halted or None,
            "waiting_for": waiting,
        }

    def deadline(self) -> float:
        """When it next wants a Ticked."""
        if not self._may_send:
            return inf
        idle = (t for t in self._topics.all() if not t.asking and t.info is None)
        return min((t.ask_at for t in idle if any(x.has_more for x in t.lanes.values())), default=inf)

    # --------------------------------------------------------------------------------- what happens
    def start(self, *, now: float, wall_ms: int) -> list[Effect]:
        """The first orders: the epoch is raised, and what is damaged put aside."""
        self._ledger.look_at(now, wall_ms)
        state = self._ledger.state
        deletes = [(database, key) for database, key, _ in self._damaged]
        if state.epoch >= EPOCH_HIGH and not self.bound_records:
            state.epoch = 0
            deletes += self._begin_anew()
        state.epoch += self._rng.randrange(EPOCH_STEP) + 1 if state.epoch < EPOCH_HIGH else 1
        puts = []
        for database, key, value in self._damaged:
            place = layout.parse_place(key) if len(key) == layout.PLACE_BYTES else None
            name = self._topics.of(place[0]).row.name if place is not None else ""
            puts.append(self._parking.put_aside(database, key, value, name))
        if any(database == LANES for database, _, _ in self._damaged):
            # Where a lane's sequence stood is lost: what goes on there is another producer.
            state.producer_id = self._rng.randbytes(16)
        self._damaged = []
        self._ledger.persist(puts, deletes, self._on_raised)
        return self._ledger.take_effects()

    def take(
        self, topic: str, value: bytes, key: bytes | None, headers: dict[str, bytes] | None, *, wall_ms: int
    ) -> int:
        """Its number; it goes to disk when the turn ends. Raises: OutboxFull, Fenced, TooLarge."""
        if self.halted:
            raise Fenced(self.halted)
        row = layout.QueueRow(key, value, headers, wall_ms)
        known, size = self._topics.get(topic), row.size()
        if known is not None and known.info is not None and size > known.info.record_bytes_max:
            limit = known.info.record_bytes_max
            raise TooLarge(f"a record of {size} bytes is over the limit of {limit} of topic {topic}")
        if self.bytes_used + size > self._terms.bytes_max:
            raise OutboxFull(
                f"the outbox holds {self.bytes_used:,} of the {self._terms.bytes_max:,} bytes it may: they "
                "wait for the mesh. Look with `meshq outbox show`, try again, or give it more"
            )
        return self._taking.take(known or self._topics.new(topic), row)

    def handle(self, event: Event, *, now: float, wall_ms: int) -> list[Effect]:
        self._ledger.look_at(now, wall_ms)
        match event:
            case words.TurnEnded():
                self._taking.end_turn()
            case words.Persisted():
                self._ledger.on_persisted(event.token)
            case words.NotPersisted():
                self._ledger.on_not_persisted(event.token, event.error)
            case words.QueueRead():
                self._on_queue_read(event)
            case words.TopicHeard():
                self._on_topic(self._topics.of(event.topic), event.info)
            case words.TopicNotHeard():
                self._on_no_topic(self._topics.of(event.topic), event.error)
            case words.Committed():
                self._on_committed(event)
            case words.Failed():
                self._on_failed(event)
            case words.Doubted():
                if event.ticket in self._tickets:
                    self._tickets[event.ticket][0].topic.waiting_for = str(event.error)
            case words.RetryAsked():
                self._parking.read(event.ids)
            case words.ParkedRead():
                self._on_parked_read(event)
            case words.DropAsked():
                self._on_drop(event.ids)
            case words.ParkAsked():
                self._park_all(UnknownProducer("the key it was sent under is lost: peers know it by that"))
            case words.Connected():
                self._on_connected(event)
            case words.Ticked():
                self._pump_all()
            case _:
                assert_never(event)
        return self._ledger.take_effects()

    # ------------------------------------------------------------------------------ what may go on
    @property
    def _may_send(self) -> bool:
        return self._raised and self._connected and not self.halted

    def _pump_all(self) -> None:
        for topic in self._topics.all():
            self._pump(topic)

    def _pump(self, topic: Topic) -> None:
        """Send, number and read what may be of this topic."""
        for lane in list(topic.lanes.values()):
            self._pump_lane(lane)

    def _pump_lane(self, lane: Lane) -> None:
        if not self._may_send:
            return
        for entry in list(lane.window.values()):
            if entry.durable and not entry.ticket and not entry.again:
                self._send(lane, entry)
        if lane.window and not lane.busy and all(e.again for e in lane.window.values()):
            self._binding.number_anew(lane)
        topic = lane.topic
        if lane.busy or not lane.has_more or not self._knows(topic):
            return
        room = lane.room() if not lane.window or self._ledger.bound_bytes < IN_FLIGHT_BYTES else 0
        size = MOVE_BYTES if lane.is_homeless else min(room, 4) * self._terms.batch_bytes
        if size > 0:
            lane.busy = True
            self._ledger.effects.append(words.ReadQueue(topic.number, lane.partition, size))

    def _knows(self, topic: Topic) -> bool:
        """Whether it is known well enough to bind; it is looked up where it is not, or not of late."""
        now = self._ledger.now
        old = topic.info is None or now >= topic.known_at + TOPIC_AGE_S
        if old and not topic.asking and now >= topic.ask_at:
            topic.asking = True
            wanted = words.WantTopic(topic.number, topic.row.name, topic.info is not None)
            self._ledger.effects.append(wanted)
        return topic.info is not None

    def _on_queue_read(self, event: words.QueueRead) -> None:
        lane = self._topics.of(event.topic).lane(event.partition)
        room = lane.is_homeless or lane.room() > 0
        if self._may_send and lane.topic.info is not None and room:
            self._binding.on_read(lane, event)
        else:
            lane.busy, lane.has_more = False, True  # things have changed since it was asked for
            self._pump_lane(lane)

    # -------------------------------------------------------------------------------------- sending
    def _send(self, lane: Lane, entry: Entry) -> None:
        valid_ms = entry.row.bound_ms + OUTBOX_IDLE_MS - MARGIN_MS - self._ledger.wall_ms
        if valid_ms <= 0:
            over = UnknownProducer("it was bound more than 30 days ago: its sequence is remembered no more")
            self._end(lane, entry, over, maybe_stored=entry.sent_before)
            return
        entry.ticket = self._ledger.draw_number()
        self._tickets[entry.ticket] = lane, entry
        name, before = lane.topic.row.name, entry.sent_before
        self._ledger.effects.append(
            words.SendBound(entry.ticket, name, lane.partition, entry.row, before, valid_ms / 1000)
        )

    def _on_committed(self, event: words.Committed) -> None:
        if (found := self._tickets.pop(event.ticket, None)) is None:
            return
        lane, entry = found
        lane.proven = True
        lane.topic.waiting_for = ""
        base = event.receipt.base_offset
        assert base is not None, "an outbox asks for a quorum"
        name, copies = lane.topic.row.name, event.receipt.copies
        self._ledger.effects.append(words.TellCommitted(entry.numbers, name, lane.partition, base, copies))
        self._ledger.persist([], [self._binding.forget(lane, entry)])
        self._pump_lane(lane)

    def _on_failed(self, event: words.Failed) -> None:
        if (found := self._tickets.pop(event.ticket, None)) is None:
            return
        lane, entry = found
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
        self._park([(lane, entry, maybe_stored)], error)
        if isinstance(error, _COPIED):
            self._halt(error)

    def _halt(self, error: MeshqError) -> None:
        """Somebody else uses these numbers. Nothing more is sent until the owner of the data has looked."""
        self._ledger.state.halted = (
            f"another copy of this outbox is in use ({type(error).__name__}: {error}). Find it; then in one "
            "of them `meshq outbox retry` sends what is parked, as an outbox of its own, or `drop` ends it"
        )
        self._park_all(error)

    # -------------------------------------------------------------------------------------- parking
    def _park_all(self, error: MeshqError) -> None:
        """What is bound, whatever became of it."""
        bound = [(lane, e, True) for lane in self._topics.lanes() for e in lane.window.values()]
        self._park(bound, error)

    def _park(self, entries: Sequence[tuple[Lane, Entry, bool]], error: MeshqError) -> None:
        puts, deletes = [], []
        for lane, entry, maybe_stored in entries:
            self._tickets.pop(entry.ticket, None)
            lane.fresh = True
            deletes.append(self._binding.forget(lane, entry))
            where = lane.topic.row.name, lane.partition, entry.row.body(), entry.numbers
            puts.append(self._parking.park(*where, error, maybe_stored=maybe_stored))
        self._ledger.persist(puts, deletes)

    def _on_parked_read(self, event: words.ParkedRead) -> None:
        parked = self._parking.on_read(event.id)
        if parked is None or not event.rows:
            return
        topic = self._topics.get(parked.topic) or self._topics.new(parked.topic)
        self._taking.end_turn()  # so that this is an order of its own
        for row in event.rows:
            self._taking.take(topic, row)
        self._taking.end_turn(self._parking.drop([event.id]), fallible=False)
        self._look_at_halt()

    def _on_drop(self, ids: Iterable[int]) -> None:
        self._ledger.persist([], self._parking.drop(ids))
        self._look_at_halt()

    def _look_at_halt(self) -> None:
        """Its owner has decided about all that was parked: it goes on, as an outbox of its own."""
        reasons = {p.reason for p in self.parked.values()}
        if self.halted and not reasons & {c.__name__ for c in _COPIED}:
            self._ledger.persist([], self._begin_anew(), self._pump_all)

    def _begin_anew(self) -> Sequence[tuple[bytes, bytes]]:
        """Under another producer id in every lane; the rows that go with the old one."""
        self._ledger.state.halted = ""
        self._ledger.state.producer_id = self._rng.randbytes(16)
        for lane in self._topics.lanes():
            lane.fresh = False
        return self._binding.begin_anew()

    # --------------------------------------------------------------------------------- topics, mesh
    def _on_raised(self) -> None:
        self._raised = True
        self._pump_all()

    def _on_connected(self, event: words.Connected) -> None:
        self._connected = True
        if self.owner() == (event.mesh_id, event.client_key):
            self._pump_all()
        else:
            self._ledger.state.mesh_id, self._ledger.state.client_key = event.mesh_id, event.client_key
            self._ledger.persist([], [], self._pump_all)

    def _on_topic(self, topic: Topic, info: TopicInfo) -> None:
        topic.asking, topic.info, topic.known_at, topic.waiting_for = False, info, self._ledger.now, ""
        if topic.row.partitions == info.partitions:
            self._pump(topic)
            return
        topic.row = layout.TopicRow(topic.row.name, info.partitions)
        key = layout.topic_key(topic.number)
        put = TOPICS, key, layout.encode(key, topic.row)
        self._ledger.persist([put], [], lambda: self._pump(topic))

    def _on_no_topic(self, topic: Topic, error: MeshqError) -> None:
        """What is known is kept while a peer cannot be asked."""
        topic.asking = False
        topic.waiting_for = str(error)
        wait = AGAIN_S if isinstance(error, Unavailable) else REFUSED_AGAIN_S
        topic.ask_at = self._ledger.now + wait
