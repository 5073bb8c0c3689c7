"""The slots this peer has a replica of: each one a replicated log and the stream it means.

Publishing: the stream judges the batch (sequence, offset), the replica gives it a place and takes care that a
majority has it on disk; when that is so the stream applies it, and only then is there a receipt. State rows
follow within a second (`checkpoint`): what they miss after a crash, the log's tail says again.

A slot begins with the configuration that genesis gives it, the same on every peer. A peer that is not in it
has no replica until a leader writes to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from meshq.batch import BatchHeader, Buffer
from meshq.entries import Entry, EntryKind, PayloadKey
from meshq.errors import DiskFull, MeshqError, OutcomeUnknown, Overloaded
from meshq.ids import SYSTEM_SLOT, PartitionKey, PeerId, Ref, Slot, TopicId
from meshq.limits import KIB, LOG_ENTRIES_KEPT, PENDING_BYTES_MAX
from meshq.peer.core.disk import Disk
from meshq.peer.core.events import DeletePayloads, Effect, ReadSlotLog
from meshq.replication import words
from meshq.replication.machine import Replica
from meshq.replication.quorum import Config, Node
from meshq.replication.saved import hard_row, replica_row, restored
from meshq.replication.state import Settings
from meshq.replication.words import Item, Position, Role
from meshq.streams.producers import BatchReceipt
from meshq.streams.publish import encode_publish, payload_key_of, payload_of
from meshq.streams.slot import EMPTY, Dropped, PartitionState, SlotStream, Stored

if TYPE_CHECKING:
    import random

CHECKPOINT_S = 1.0
CHECKPOINT_ENTRIES = 1_024
REPLICA = Settings(memory_bytes=256 * KIB)  # times the number of slots: what followers lack is read from disk


@dataclass(slots=True, eq=False)
class Host:
    """`leads`: it serves as the slot's leader, and its stream knows all that was decided before."""

    slot: Slot
    replica: Replica
    stream: SlotStream
    checkpointed: int = 0  # applied index of the last rows handed to the disk
    leads: bool = False
    wake: float = inf


@dataclass
class Slots:
    """`genesis(slot)`: what it begins with. `send(to, slot, message)`: to another node. `on_role(host)`: who
    leads has changed. `on_stored`: a batch is committed, with the number of peers that have it on disk.
    """

    me: Node
    out: list[Effect]
    disk: Disk
    rng: random.Random
    genesis: Callable[[Slot], Config]
    send: Callable[[Node, Slot, words.Message], None]
    on_role: Callable[[Host], None]
    on_stored: Callable[[Stored, Buffer, int], None] = field(init=False)
    on_refused: Callable[[Ref, MeshqError], None] = field(init=False)
    system: SlotStream = field(init=False)  # what the system slot's log means
    hosts: dict[Slot, Host] = field(default_factory=dict)  # bounded by the mesh's number of slots
    supports: set[PeerId] = field(default_factory=set)
    supported_by: set[PeerId] = field(default_factory=set)
    damaged: int = 0
    now: float = 0.0
    wall_ms: int = 0
    _dirty: dict[Host, None] = field(default_factory=dict)  # proposed to in this turn
    _failing: dict[Host, MeshqError] = field(default_factory=dict)
    _checkpoint_at: float = 0.0
    _wake: float = inf

    # -------------------------------------------------------------------------------------- restart
    def restore(self, slot: Slot, rows: Mapping[bytes, bytes], *, tail: Iterable[Item], now: float) -> None:
        """A slot as the disk has it; `tail` are the entries behind the rows' applied index, with payloads.

        Raises: StoreCorrupt.
        """
        stream = self._stream(slot)
        stream.restore(rows.items())
        hard, log, configs = restored(rows, self.genesis(slot), tail)
        self._add(slot, stream, now, hard=hard, log=log, configs=configs)
        for partition in stream.dropping:
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
            **state,  # type: ignore[arg-type]
        )
        host = self.hosts[slot] = Host(slot, replica, stream, stream.applied_index)
        self._mind(host)
        return host

    def _mind(self, host: Host) -> None:
        """When it wants to be ticked."""
        host.wake = host.replica.deadline()
        self._wake = min(self._wake, host.wake)

    # ----------------------------------------------------------------------------------- publishing
    def publish(
        self,
        slot: Slot,
        partition: PartitionKey,
        header: BatchHeader,
        payload: Buffer,
        *,
        client_key: bytes,
        ref: Ref,
    ) -> BatchReceipt | MeshqError | None:
        """Append a checked batch to a slot led here. None: `on_stored` will name `ref`, or `on_refused`."""
        host = self.hosts[slot]
        timestamp_ms = max(self.wall_ms, host.replica.log.last_timestamp_ms)
        body = host.stream.judge(partition, header, client_key, ref, timestamp_ms=timestamp_ms)
        if body is None or isinstance(body, BatchReceipt | MeshqError):
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
        return None

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

    def flush(self) -> None:
        """Hand on what was proposed in this turn."""
        while self._dirty:
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
        self._carry_out(host, host.replica.handle(event, now=self.now, wall_ms=self.wall_ms))

    def tell_all(self, event: words.Event) -> None:
        for host in list(self.hosts.values()):
            self.tell(host, event)

    def on_peer_linked(self, peer: PeerId) -> None:
        for host in list(self.hosts.values()):
            if host.replica.role is Role.LEADER:
                for node in host.replica.config.nodes():
                    if node.peer == peer:
                        self.tell(host, words.PeerLinked(node))

    def on_supported(self, event: words.SupportGiven | words.SupportGot) -> None:
        if isinstance(event, words.SupportGiven):
            (self.supports.add if event.given else self.supports.discard)(event.peer)
        else:
            (self.supported_by.add if event.got else self.supported_by.discard)(event.peer)
        self.tell_all(event)

    def on_log_read(self, slot: Slot, event: words.LogRead) -> None:
        if slot in self.hosts:
            self.tell(self.hosts[slot], event)

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
                    self.out.append(ReadSlotLog(host.slot, effect.to, effect.from_index, effect.bytes_max))
                case words.TakenBack():
                    self._refuse_waiting(host, self._failing.get(host, DiskFull("the disk is full")))
                case words.Damaged():
                    self.damaged += 1
                case words.ReadReady() | words.ReadFailed():
                    index = effect.index if isinstance(effect, words.ReadReady) else None
                    for done in effect.refs:
                        done(index)  # type: ignore[operator]
                case words.TellConfig():
                    pass
                case words.ReadSnapshot() | words.StoreSnapshot():
                    pass
        self._mind(host)

    def _persist(self, host: Host, effect: words.Persist) -> None:
        payloads = tuple(p for p in (payload_of(i.entry, i.payload) for i in effect.items) if p is not None)
        self.disk.submit(
            host.slot,
            entries=tuple(i.entry for i in effect.items),
            payloads=payloads,
            rows=(hard_row(effect.hard),) if effect.hard else (),
            truncate_from=effect.truncate_from,
            dropped=tuple(_keys(effect.dropped)),
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
            if isinstance(applied, Dropped):
                for partition in applied.partitions:
                    self.out.append(DeletePayloads(host.slot, partition))
            elif isinstance(applied, Stored) and host.leads:
                copies = sum(index >= entry.index for index in match.values())
                self.on_stored(applied, payload, copies)
        if host.stream.applied_index - host.checkpointed >= CHECKPOINT_ENTRIES:
            self._checkpoint(host)

    def _on_role(self, host: Host, effect: words.TellRole) -> None:
        leads = effect.role is Role.LEADER and effect.serves
        if host.leads and not leads:
            host.leads = False
            self._refuse_waiting(host, OutcomeUnknown("the slot has another leader now: ask again"))
        host.leads = leads
        self.on_role(host)

    def _refuse_waiting(self, host: Host, error: MeshqError) -> None:
        for ref in host.stream.on_append_failed():
            self.on_refused(ref, error)

    # --------------------------------------------------------------------------------- housekeeping
    def tick(self) -> None:
        if self.now >= self._wake:
            for host in list(self.hosts.values()):
                if self.now >= host.wake:
                    self.tell(host, words.Ticked())
            self._wake = min((h.wake for h in self.hosts.values()), default=inf)
        if self.now >= self._checkpoint_at:
            self._checkpoint_at = self.now + CHECKPOINT_S
            self.checkpoint_all()

    def wake(self) -> float:
        """When a tick is due; perhaps too early, never too late."""
        return self._wake

    def checkpoint_all(self) -> None:
        for host in self.hosts.values():
            if host.stream.is_dirty or host.stream.applied_index > host.checkpointed:
                self._checkpoint(host)

    def _checkpoint(self, host: Host) -> None:
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
        """The first entry to keep, or 0: as many as are kept for all, and whatever somebody still lacks."""
        if host.slot == SYSTEM_SLOT:
            return 0  # the log is the registry
        log = host.replica.log
        keep_from = applied - LOG_ENTRIES_KEPT + 1
        if host.replica.role is Role.LEADER:
            keep_from = min([keep_from, *(m + 1 for m in host.replica.match().values())])
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
        return {p.topic_id for h in self.hosts.values() if h.leads for p in h.stream.partitions}


def _keys(items: Collection[Item]) -> Iterator[PayloadKey]:
    for item in items:
        key = payload_key_of(item.entry)
        if key is not None:
            yield key
