"""The slots this peer has a replica of: each one a replicated log and the stream it means.

Publishing: the stream judges the batch (sequence, offset), the replica gives it a place and takes care that a
majority has it on disk; when that is so the stream applies it, and only then is there a receipt. State rows
follow within a second (`checkpoint`): what they miss after a crash, the log's tail says again.

A slot begins with the configuration that genesis gives it, the same on every peer. A peer that is not in it
has no replica until a leader writes to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from meshq.batch import BatchHeader, Buffer
from meshq.entries import Entry, EntryKind, PayloadKey
from meshq.errors import DiskFull, MeshqError, OutcomeUnknown, Overloaded, StoreCorrupt
from meshq.ids import SYSTEM_SLOT, PartitionKey, PeerId, Ref, Slot, TopicId
from meshq.limits import (
    LOG_BYTES_MAX,
    LOG_ENTRIES_KEPT,
    LOG_ENTRIES_MAX,
    PENDING_BYTES_MAX,
    REPLICA_MEMORY_BYTES,
)
from meshq.peer.core.disk import Disk
from meshq.peer.core.events import DeletePayloads, Effect, PayloadsRead, ReadSlotLog
from meshq.peer.core.receiving import Incoming, Receiving
from meshq.peer.core.sending import Sending
from meshq.replication import words
from meshq.replication.machine import Replica
from meshq.replication.quorum import Config, Node
from meshq.replication.saved import hard_row, replica_row, restored, snapshot_row
from meshq.replication.state import Settings
from meshq.replication.words import GENESIS, Item, Position, Role
from meshq.streams.groups.table import GroupApplied
from meshq.streams.producers import BatchReceipt
from meshq.streams.publish import encode_publish, payload_key_of, payload_of
from meshq.streams.slot import EMPTY, Dropped, PartitionState, SlotStream, Stored, begun_rows

if TYPE_CHECKING:
    import random

CHECKPOINT_S = 1.0
CHECKPOINT_ENTRIES = 1_024
ENTRY_BYTES = 40  # of an entry on disk, beside its body
REPLICA = Settings(memory_bytes=REPLICA_MEMORY_BYTES)


@dataclass(frozen=True, slots=True)
class Tail:
    """Entries behind a slot's state, dense and sound. `damage`: why there are no more, although the log goes
    on to `last_index`; `lost` is where payloads of what is behind the damage are.
    """

    items: Sequence[Item] = ()
    last_index: int = 0
    damage: StoreCorrupt | None = None
    lost: tuple[PayloadKey, ...] = ()


@dataclass(slots=True, eq=False)
class Host:
    """`leads`: it serves as the slot's leader, and its stream knows all that was decided before."""

    slot: Slot
    replica: Replica
    stream: SlotStream
    checkpointed: int = 0  # applied index of the last rows handed to the disk
    leads: bool = False
    wake: float = inf
    incoming: Incoming | None = None  # a snapshot on its way here
    touched: dict[PartitionKey, int] = field(default_factory=dict)  # up to where snapshots brought batches
    marks: deque[tuple[int, int]] = field(default_factory=deque)  # (applied index, log bytes up to it)
    log_bytes: int = 0  # that were applied since the start
    is_emptied: bool = False  # a write that leaves nothing of it is on its way
    damaged_below: int = 0  # entries below are unreadable: not to be kept for others
    members: Config | None = None  # that were last told of

    @property
    def is_replaced(self) -> bool:
        """Whether what is in memory of its state is about to be another on disk."""
        return self.incoming is not None and self.incoming.installing


@dataclass
class Slots:
    """`genesis(slot)`: what it begins with. `send(to, slot, message)`: to another node. `on_role(host)`: who
    leads has changed. `on_members()`: who keeps copies has. `on_stored`: a batch is committed, with the
    number of peers that have it on disk. `on_group`: an entry about a group is.
    """

    me: Node
    out: list[Effect]
    disk: Disk
    rng: random.Random
    genesis: Callable[[Slot], Config]
    send: Callable[[Node, Slot, words.Message], None]
    on_role: Callable[[Host], None]
    on_members: Callable[[], None]
    count: Callable[[str], None]
    on_stored: Callable[[Stored, Buffer, int], None] = field(init=False)
    on_refused: Callable[[Ref, MeshqError], None] = field(init=False)
    on_group: Callable[[GroupApplied], None] = field(init=False)
    on_lost: Callable[[Host, MeshqError], None] = field(init=False)  # what was proposed, not decided
    system: SlotStream = field(init=False)  # what the system slot's log means
    hosts: dict[Slot, Host] = field(default_factory=dict)  # bounded by the mesh's number of slots
    supports: set[PeerId] = field(default_factory=set)
    supported_by: set[PeerId] = field(default_factory=set)
    damaged: int = 0
    frozen: bool = False  # this disk was rolled back
    now: float = 0.0
    wall_ms: int = 0
    sending: Sending = field(init=False)
    receiving: Receiving = field(init=False)
    _soon: list[tuple[Host, words.Event]] = field(default_factory=list)  # of this turn
    _dirty: dict[Host, None] = field(default_factory=dict)  # proposed to in this turn
    _failing: dict[Host, MeshqError] = field(default_factory=dict)
    _checkpoint_at: float = 0.0
    _wake: float = inf

    def __post_init__(self) -> None:
        self.sending = Sending(self)
        self.receiving = Receiving(self)

    # -------------------------------------------------------------------------------------- restart
    def restore(
        self,
        slot: Slot,
        rows: Mapping[bytes, bytes],
        *,
        tail: Tail,
        aside: Mapping[bytes, bytes],
        now: float,
    ) -> None:
        """A slot as the disk has it; `tail` are the entries behind the rows' applied index, with payloads,
        `aside` what is there of a snapshot. What is damaged is cut off and comes again from another copy.

        Raises: StoreCorrupt, where this is the only copy too.
        """
        stream = self._stream(slot)
        stream.restore(rows.items())
        hard, log, configs = restored(rows, self.genesis(slot), tail.items)
        if tail.damage is not None:
            if configs[-1][1].nodes() == {self.me}:
                raise tail.damage
            self.damaged += 1
            self.disk.submit(slot, dropped=tail.lost, done=lambda: None, failed=lambda _: None)
        until = tail.last_index if tail.damage is not None else 0
        incoming, touched = self.receiving.restore(aside)
        partial = (incoming.meta, incoming.position) if incoming is not None else None
        host = self._add(
            slot, stream, now, hard=hard, log=log, configs=configs, partial=partial, repair_until=until
        )
        host.incoming, host.touched = incoming, touched
        for partition in sorted(stream.dropping):
            self.out.append(DeletePayloads(slot, partition))

    def begin(self, slots: Iterable[Slot], *, now: float) -> None:
        """Take part in the slots that genesis gave to this node, as far as the disk has none of them."""
        for slot in slots:
            if slot not in self.hosts and self.me in self.genesis(slot).nodes():
                self._begin(slot, now)

    def _begin(self, slot: Slot, now: float) -> Host:
        hard, log, configs = restored({}, self.genesis(slot), ())
        return self._add(slot, self._stream(slot), now, hard=hard, log=log, configs=configs)

    def _stream(self, slot: Slot) -> SlotStream:
        return self.system if slot == SYSTEM_SLOT else SlotStream(slot)

    def _add(self, slot: Slot, stream: SlotStream, now: float, **state: object) -> Host:
        replica = Replica(
            slot,
            self.me,
            applied=stream.applied_index,
            rng=self.rng,
            now=now,
            settings=REPLICA,
            supports=self.supports,
            supported_by=self.supported_by,
            frozen=self.frozen,
            **state,  # type: ignore[arg-type]
        )
        host = self.hosts[slot] = Host(slot, replica, stream, stream.applied_index)
        self._mind(host)
        return host

    def _mind(self, host: Host) -> None:
        """When it wants to be ticked."""
        host.wake = host.replica.deadline() if not host.is_emptied else inf
        self._wake = min(self._wake, host.wake)

    def freeze(self) -> None:
        """This disk was rolled back or cloned: nothing here promises or leads any more."""
        self.frozen = True
        for host in list(self.hosts.values()):
            host.replica.freeze()
            self.tell(host, words.Ticked())

    def empty(self, host: Host, index: int, config: Config) -> None:
        """This node is out, by this configuration, committed at this index: delete what is here, and begin as
        a node that never was a member.

        Term and vote stay. No vote leaves before the log has come to `index` again: added once more, it would
        pass configurations in which it was a voter, and whom it elected then would not know what was decided.
        """
        if not host.replica.is_quiet or host.is_emptied or host.is_replaced:
            return
        gone = {*host.stream.partitions, *host.stream.dropping, *host.touched}
        vote = host.replica.hard.vote
        hard = words.Hard(host.replica.term, vote, max(index, host.replica.hard.repair_until))
        row = snapshot_row(words.SnapshotMeta(GENESIS, config, host.replica.log.last_timestamp_ms))
        rows = (hard_row(hard), row, *begun_rows(0, gone))
        host.is_emptied = True

        def done() -> None:
            self.restore(host.slot, dict(rows), tail=Tail(), aside={}, now=self.now)
            self.count("slots_emptied")
            self.on_role(self.hosts[host.slot])

        def failed(_: MeshqError) -> None:
            host.is_emptied = False

        self.disk.submit(host.slot, rows=rows, replace=(), clear_aside=b"", done=done, failed=failed)

    # ----------------------------------------------------------------------------------- publishing
    def publish(
        self,
        slot: Slot,
        partition: PartitionKey,
        header: BatchHeader,
        payload: Buffer,
        *,
        client_key: bytes,
        ref: Ref | None,
    ) -> BatchReceipt | MeshqError | int:
        """Append a checked batch to a slot led here; the entry's index. `on_stored` will name `ref`, or
        `on_refused`.
        """
        host = self.hosts[slot]
        timestamp_ms = max(self.wall_ms, host.replica.log.last_timestamp_ms)
        body = host.stream.judge(partition, header, client_key, ref, timestamp_ms=timestamp_ms)
        if isinstance(body, BatchReceipt | MeshqError | int):
            return body
        if len(payload) > self.disk.room_bytes:
            return DiskFull(
                "this peer's disk is at its watermark: delete topics, add space or raise `store_bytes_max`",
                retry_after_ms=1_000,
            )
        if self.disk.pending_bytes + len(payload) > PENDING_BYTES_MAX:
            return Overloaded("this peer has as much waiting for its disk as it may", retry_after_ms=50)
        entry = self._propose(host, EntryKind.PUBLISH, encode_publish(body, payload), payload)
        host.stream.on_proposed(entry, body, ref)
        return entry.index

    def drop_topic(self, topic_id: TopicId) -> None:
        """The registry deleted this topic: log it in every slot led here that holds some of it."""
        for host in self.hosts.values():
            if host.leads and host.stream.holds(topic_id):
                self._propose(host, EntryKind.DROP_TOPIC, topic_id)

    def _propose(self, host: Host, kind: EntryKind, body: bytes, payload: Buffer = b"") -> Entry:
        self._dirty[host] = None
        return host.replica.propose(kind, body, payload, wall_ms=self.wall_ms)

    def append(self, slot: Slot, kind: EntryKind, body: bytes) -> Entry:
        """An entry without a payload. Raises: NotOwner."""
        return self._propose(self.hosts[slot], kind, body)

    def read(self, slot: Slot, done: Callable[[int | None], None]) -> None:
        """Linearizable: `done` gets the index up to which the applied state may be read, or None when this
        peer lost the lead over it. Raises: NotOwner, Overloaded.
        """
        host = self.hosts[slot]
        host.replica.read(done)
        self._dirty[host] = None

    def change(self, slot: Slot, target: Config) -> None:
        """Raises: NotOwner, UsageError."""
        host = self.hosts[slot]
        host.replica.propose_config(target, wall_ms=self.wall_ms)
        self._dirty[host] = None

    def transfer(self, slot: Slot, to: Node) -> None:
        """Raises: NotOwner, UsageError."""
        host = self.hosts[slot]
        host.replica.transfer(to)
        self._dirty[host] = None

    def soon(self, host: Host, event: words.Event) -> None:
        """In this turn, when what the replica ordered before has been carried out."""
        self._soon.append((host, event))

    def hand_over(self) -> int:
        """Give every slot led here to another voter that is level; how many there still are to give."""
        left = 0
        for host in list(self.hosts.values()):
            replica = host.replica
            replica.set_may_lead(False)
            if replica.role is not Role.LEADER:
                continue
            match, last = replica.match(), replica.last.index
            others = [n for n in replica.config.voters if n != self.me and n.peer in self.supported_by]
            if others:
                left += 1
                best = max(others, key=lambda n: match.get(n, 0))
                if not replica.is_handing_over and match.get(best, 0) + 256 >= last:
                    replica.transfer(best)
                    self._dirty[host] = None
        return left

    def flush(self) -> None:
        """Hand on what was proposed in this turn."""
        while self._dirty or self._soon:
            soon, self._soon = self._soon, []
            for host, event in soon:
                self.tell(host, event)
            dirty, self._dirty = list(self._dirty), {}
            for host in dirty:
                self._carry_out(host, host.replica.flush(now=self.now, wall_ms=self.wall_ms))

    # --------------------------------------------------------------------------------- what happens
    def on_message(self, frm: Node, slot: Slot, message: words.Message) -> None:
        """From a node of this slot. A slot that is not here is begun when its leader writes to it."""
        host = self.hosts.get(slot)
        if host is None:
            if not isinstance(message, words.AppendEntries | words.InstallSnapshot):
                return
            host = self._begin(slot, self.now)
        self.tell(host, words.Received(frm, message))

    def tell(self, host: Host, event: words.Event) -> None:
        if host.is_emptied or self.hosts.get(host.slot) is not host:
            return
        self._carry_out(host, host.replica.handle(event, now=self.now, wall_ms=self.wall_ms))

    def tell_all(self, event: words.Event) -> None:
        for host in list(self.hosts.values()):
            self.tell(host, event)

    def on_peer_linked(self, peer: PeerId) -> None:
        for host in list(self.hosts.values()):
            if host.replica.role is Role.LEADER:
                for node in sorted(host.replica.config.nodes()):
                    if node.peer == peer:
                        self.tell(host, words.PeerLinked(node))

    def on_supported(self, event: words.SupportGiven | words.SupportGot) -> None:
        if isinstance(event, words.SupportGiven):
            (self.supports.add if event.given else self.supports.discard)(event.peer)
        else:
            (self.supported_by.add if event.got else self.supported_by.discard)(event.peer)
        self.tell_all(event)

    def on_log_read(self, slot: Slot, event: words.LogRead, *, damaged: bool = False) -> None:
        host = self.hosts.get(slot)
        if host is None:
            return
        if damaged and host.replica.role is Role.LEADER:
            # Who lacks it gets the state instead, and what is in the log before that is not kept.
            self.damaged += 1
            host.damaged_below = host.stream.applied_index + 1
        self.tell(host, event)

    def on_rows_read(self, slot: Slot, to: Node | None, rows: Mapping[bytes, bytes]) -> None:
        """Raises: StoreCorrupt."""
        host = self.hosts[slot]
        if to is None:
            self.receiving.on_rows(host, rows)
        else:
            self.sending.on_rows(host, to, rows)

    def on_payloads_read(self, event: PayloadsRead) -> None:
        self.sending.on_payloads(self.hosts[event.slot], event.to, event.batches, event.complete)

    def on_payloads_deleted(self, slot: Slot, partition: PartitionKey) -> None:
        if slot in self.hosts:
            self.hosts[slot].stream.on_payloads_deleted(partition)

    # --------------------------------------------------------------------------- what replicas order
    def _carry_out(self, host: Host, effects: list[words.Effect]) -> None:
        for effect in effects:
            match effect:
                case words.Persist():
                    self._persist(host, effect)
                case words.Send():
                    self.send(effect.to, host.slot, effect.message)
                case words.Commit():
                    self._apply(host, effect.items)
                case words.TellRole():
                    self._on_role(host, effect)
                case words.ReadLog():
                    self._read_log(host, effect)
                case words.TakenBack():
                    self.refuse_waiting(host, self._failing.get(host, DiskFull("the disk is full")))
                case words.Damaged():
                    self.damaged += 1
                case words.ReadReady() | words.ReadFailed():
                    index = effect.index if isinstance(effect, words.ReadReady) else None
                    for done in effect.refs:
                        done(index)  # type: ignore[operator]
                case words.TellConfig():
                    pass  # the newest appended one holds, decided or not: looked at below
                case words.ReadSnapshot():
                    self.sending.on_order(host, effect)
                case words.StoreSnapshot():
                    self.receiving.on_order(host, effect)
        if host.replica.config is not host.members:
            host.members = host.replica.config
            self.on_members()
        self._mind(host)

    def _read_log(self, host: Host, effect: words.ReadLog) -> None:
        log, before = host.replica.log, effect.from_index - 1
        prev = log.position(before) or Position(before, log.term_at(before) or 0, b"")
        self.out.append(ReadSlotLog(host.slot, effect.to, prev, effect.bytes_max))

    def _persist(self, host: Host, effect: words.Persist) -> None:
        # While a snapshot takes the log's place on disk, what is said of that log is out of date.
        items = () if host.is_replaced else effect.items
        dropped = () if host.is_replaced else tuple(_keys(effect.dropped))
        clear_aside, aside = self.receiving.give_up(host, dropped)
        self.disk.submit(
            host.slot,
            entries=tuple(i.entry for i in items),
            payloads=tuple(p for p in (payload_of(i.entry, i.payload) for i in items) if p is not None),
            rows=(hard_row(effect.hard),) if effect.hard else (),
            truncate_from=None if host.is_replaced else effect.truncate_from,
            dropped=dropped,
            clear_aside=clear_aside,
            aside=aside,
            done=lambda: self.tell(host, words.Persisted(effect.token)),
            failed=lambda error: self._on_persist_failed(host, error),
        )

    def _on_persist_failed(self, host: Host, error: MeshqError) -> None:
        """Once for all that a slot had under way, when everybody's has been taken back."""
        if host in self._failing:
            return
        self._failing[host] = error

        def settle() -> None:
            self.tell(host, words.PersistFailed())
            del self._failing[host]

        self.disk.when_settled(settle)

    def _apply(self, host: Host, items: tuple[Item, ...]) -> None:
        match = host.replica.match() if host.leads else {}
        for entry, payload in items:
            applied = host.stream.apply(entry)
            host.log_bytes += len(entry.body) + ENTRY_BYTES
            if isinstance(applied, Dropped):
                for partition in applied.partitions:
                    self.out.append(DeletePayloads(host.slot, partition))
            elif isinstance(applied, Stored) and host.leads:
                copies = sum(index >= entry.index for index in match.values())
                self.on_stored(applied, payload, copies)
            elif isinstance(applied, GroupApplied) and host.leads:
                self.on_group(applied)
        if host.stream.applied_index - host.checkpointed >= CHECKPOINT_ENTRIES:
            self._checkpoint(host)

    def _on_role(self, host: Host, effect: words.TellRole) -> None:
        leads = effect.role is Role.LEADER and effect.serves
        if host.leads and not leads:
            host.leads = False
            self.refuse_waiting(host, OutcomeUnknown("the slot has another leader now: ask again"))
        host.leads = leads
        if effect.role is not Role.LEADER:
            self.sending.on_role(host)
        self.on_role(host)

    def refuse_waiting(self, host: Host, error: MeshqError) -> None:
        for ref in host.stream.on_append_failed():
            self.on_refused(ref, error)
        self.on_lost(host, error)

    # --------------------------------------------------------------------------------- housekeeping
    def tick(self) -> None:
        self.receiving.tick()
        if self.now >= self._wake:
            for host in list(self.hosts.values()):
                if self.now >= host.wake:
                    self.tell(host, words.Ticked())
            self._wake = min((h.wake for h in self.hosts.values()), default=inf)
        if self.now >= self._checkpoint_at:
            self._checkpoint_at = self.now + CHECKPOINT_S
            self.checkpoint_all()

    def wake_at(self, at: float) -> None:
        self._wake = min(self._wake, at)

    def wake(self) -> float:
        """When a tick is due; perhaps too early, never too late."""
        return self._wake

    def checkpoint_all(self) -> None:
        for host in self.hosts.values():
            if host.stream.is_dirty or host.stream.applied_index > host.checkpointed:
                self._checkpoint(host)

    def _checkpoint(self, host: Host) -> None:
        if host.is_replaced or host.is_emptied:
            return
        self.receiving.clean(host)
        log, applied = host.replica.log, host.stream.applied_index
        keep_from = self._trim_to(host, applied)
        before = keep_from - 1
        there = log.position(before) or Position(before, log.term_at(before) or 0, b"")
        start = there if keep_from else log.start
        rows = (*host.stream.take_rows(), replica_row(log, applied, host.replica.settled_config, start=start))
        host.checkpointed = applied

        def done() -> None:
            if keep_from:
                host.replica.trim(start)

        self.disk.submit(
            host.slot,
            rows=rows,
            trim_below=keep_from or None,
            done=done,
            failed=lambda _: host.stream.mark_again(key for key, _ in rows),
        )

    def _trim_to(self, host: Host, applied: int) -> int:
        """The first entry to keep, or 0. Few are kept for nobody; for followers that lack them, and for one
        that a snapshot is on its way to, as many as a bound allows: beyond it they get a snapshot.
        """
        if host.slot == SYSTEM_SLOT:
            return 0  # the log is the registry
        log = host.replica.log
        keep_from = applied - LOG_ENTRIES_KEPT + 1
        if host.replica.role is Role.LEADER:
            lacking = [m + 1 for m in host.replica.match().values()]
            keep_from = max(min([keep_from, *lacking]), applied - LOG_ENTRIES_MAX + 1)
        host.marks.append((applied, host.log_bytes))
        while host.marks[0][1] < host.log_bytes - LOG_BYTES_MAX:
            keep_from = max(keep_from, host.marks.popleft()[0] + 1)
        while len(host.marks) > 1 and host.marks[1][0] < keep_from:
            host.marks.popleft()
        keep_from = min(max(keep_from, host.damaged_below), applied + 1)
        return keep_from if keep_from > log.first_index else 0

    # ---------------------------------------------------------------------------------------- facts
    def led(self) -> Iterator[Host]:
        return (h for h in self.hosts.values() if h.leads)

    def copies(self, slot: Slot, index: int) -> int:
        """How many nodes are known to have this entry on disk."""
        return sum(match >= index for match in self.hosts[slot].replica.match().values())

    def partition(self, slot: Slot, partition: PartitionKey) -> PartitionState:
        host = self.hosts.get(slot)
        return host.stream.partitions.get(partition, EMPTY) if host else EMPTY

    def written(self) -> int:
        """Slots that hold records."""
        return sum(bool(h.stream.partitions) for h in self.hosts.values())

    def topics_held(self) -> set[TopicId]:
        return {t for h in self.hosts.values() if h.leads for t in h.stream.topics()}


def _keys(items: Collection[Item]) -> Iterator[PayloadKey]:
    for item in items:
        key = payload_key_of(item.entry)
        if key is not None:
            yield key
