"""The slots this peer has a replica of: each one a replicated log and the stream it means.

Publishing: the stream judges the batch (sequence, offset), the replica gives it a place and takes care that a
majority has it on disk; when that is so the stream applies it, and only then is there a receipt.

`Slots` takes what replicas order to whom it concerns: `saving` (this peer's disk), `sending` and `receiving`
(snapshots); `hosting` makes the replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from meshq.batch import BatchHeader, Buffer
from meshq.entries import Entry, EntryKind
from meshq.errors import DiskFull, MeshqError, OutcomeUnknown, StoreError
from meshq.ids import SYSTEM_SLOT, PartitionKey, PeerId, Ref, Slot, TopicId
from meshq.peer.core.disk import Disk
from meshq.peer.core.events import Effect, PayloadsDeleted, PayloadsRead, ReadPayloads, ReadSlotLog
from meshq.peer.core.hosts import Host, Hosting, Tail
from meshq.peer.core.pacing import Pacing
from meshq.peer.core.receiving import Receiving
from meshq.peer.core.room import no_room
from meshq.peer.core.saving import Saving
from meshq.peer.core.sending import Sending
from meshq.replication import words
from meshq.replication.generations import generation_of
from meshq.replication.quorum import Config, Node
from meshq.replication.saved import hard_row, snapshot_row
from meshq.replication.words import GENESIS, Item, Position, Role
from meshq.streams.groups.letters import Letters
from meshq.streams.groups.table import GroupApplied
from meshq.streams.groups.words import GroupBody
from meshq.streams.producers import BatchReceipt
from meshq.streams.publish import encode_publish
from meshq.streams.slot import (
    EMPTY,
    Compacted,
    Dropped,
    Moved,
    PartitionState,
    Retained,
    SlotStream,
    Stored,
    begun_rows,
)

if TYPE_CHECKING:
    import random

ENTRY_BYTES = 40  # of an entry on disk, beside its body


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
    on_retained: Callable[[Retained], None] = field(init=False)
    on_compacted: Callable[[Compacted], None] = field(init=False)
    on_written: Callable[[Host], None] = field(init=False)  # what was compacted
    on_lost: Callable[[Host, MeshqError], None] = field(init=False)  # what was proposed, not decided
    system: SlotStream = field(init=False)  # what the system slot's log means
    hosts: dict[Slot, Host] = field(default_factory=dict)  # bounded by the mesh's number of slots
    supports: set[PeerId] = field(default_factory=set)
    full: set[PeerId] = field(default_factory=set)  # that said so: no room for records
    barred: set[PeerId] = field(default_factory=set)  # that said so: their disks were rolled back
    supported_by: set[PeerId] = field(default_factory=set)
    damaged: int = 0
    frozen: bool = False  # this disk was rolled back
    now: float = 0.0
    wall_ms: int = 0
    pacing: Pacing = field(init=False)  # of copies on their way to a new home
    sending: Sending = field(init=False)
    receiving: Receiving = field(init=False)
    hosting: Hosting = field(init=False)
    saving: Saving = field(init=False)
    _soon: list[tuple[Host, words.Event]] = field(default_factory=list)  # of this turn
    _dirty: dict[Host, None] = field(default_factory=dict)  # proposed to in this turn
    _wake: float = inf

    def __post_init__(self) -> None:
        self.sending = Sending(self)
        self.receiving = Receiving(self)
        self.hosting = Hosting(self)
        self.saving = Saving(self)

    # -------------------------------------------------------------------------------------- members
    def mind(self, host: Host) -> None:
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
        hard, term = host.replica.hard, host.replica.term
        until = max(index, hard.repair_until)
        self._clear(host, words.Hard(term, hard.vote, until, repair_term=term), config)

    def begin_again(self, host: Host) -> None:
        """What was decided here is not what the slot's new generation has: term and vote stay, no more."""
        self._clear(host, words.Hard(host.replica.term, host.replica.hard.vote), Config(()))

    def _clear(self, host: Host, hard: words.Hard, config: Config) -> None:
        if not host.replica.is_quiet or host.is_emptied or host.is_replaced:
            return
        gone = {*host.stream.partitions, *host.stream.dropping, *host.touched}
        row = snapshot_row(words.SnapshotMeta(GENESIS, config, host.replica.log.last_timestamp_ms))
        rows = (hard_row(hard), row, *begun_rows(0, gone))
        host.is_emptied = True

        def done() -> None:
            if host.slot == SYSTEM_SLOT:
                raise StoreError(
                    "the registry went on without what this copy had of it: start this peer again"
                )
            self.hosting.restore(host.slot, dict(rows), tail=Tail(), aside={}, now=self.now)
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
        refusal = no_room(self, host, len(payload))
        if refusal is not None:
            return refusal
        entry = self._propose(host, EntryKind.PUBLISH, encode_publish(body, payload), payload)
        host.stream.on_proposed(entry, body, ref)
        return entry.index

    def bury(self, slot: Slot, partition: PartitionKey, letters: Letters, moved: GroupBody) -> int:
        """Append letters to this partition of the same slot, led here, with the end of the records they are
        of; the entry's index. Raises: DiskFull, Overloaded, NotOwner.
        """
        host = self.hosts[slot]
        refusal = no_room(self, host, len(letters.data))
        if refusal is not None:
            raise refusal
        body = host.stream.letters(partition, letters.count, letters.crc, moved)
        entry = self._propose(host, EntryKind.DEAD_LETTER, encode_publish(body, letters.data), letters.data)
        host.stream.on_proposed(entry, body, None)
        return entry.index

    def drop_topic(self, topic_id: TopicId) -> bool:
        """The registry deleted this topic: log it in every slot led here that holds some of it. False: not in
        all of them, as some are being handed over; whoever leads those then has to.
        """
        held = [h for h in self.hosts.values() if h.leads and h.stream.holds(topic_id)]
        ready = [h for h in held if not h.replica.is_handing_over]
        for host in ready:
            self._propose(host, EntryKind.DROP_TOPIC, topic_id)
        return len(ready) == len(held)

    def _propose(self, host: Host, kind: EntryKind, body: bytes, payload: Buffer = b"") -> Entry:
        self._dirty[host] = None
        return host.replica.propose(kind, body, payload, wall_ms=self.wall_ms)

    def append(self, slot: Slot, kind: EntryKind, body: bytes) -> Entry:
        """An entry without a payload. Raises: NotOwner, TooLarge."""
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
        host.replica.transfer(to, now=self.now)
        self._dirty[host] = None

    def recover(self, host: Host, left: Collection[Node], *, draw: int, unheld: bool) -> None:
        """Go on alone, because a person says that all nodes but these are gone. Raises: UsageError."""
        host.replica.recover(left, draw=draw, wall_ms=self.wall_ms, unheld=unheld)
        self._dirty[host] = None

    def soon(self, host: Host, event: words.Event) -> None:
        """In this turn, when what the replica ordered before has been carried out."""
        self._soon.append((host, event))

    def hand_over(self) -> int:
        """Give every slot led here to another voter that is level, one with room for records if there is one;
        how many there still are to give.
        """
        left = 0
        for host in list(self.hosts.values()):
            replica = host.replica
            replica.set_may_lead(False)
            if replica.role is not Role.LEADER:
                continue
            match, last = replica.match(), replica.last.index
            there = self.supported_by - self.barred
            voters = [n for n in replica.config.voters if n not in replica.config.witnesses]
            others = [n for n in voters if n != self.me and n.peer in there]
            others = [n for n in others if n.peer not in self.full] or others
            if others:
                left += 1
                best = max(others, key=lambda n: match.get(n, 0))
                if not replica.is_handing_over and match.get(best, 0) + 256 >= last:
                    replica.transfer(best, now=self.now)
                    self._dirty[host] = None
        return left

    def flush(self) -> None:
        """Hand on what was proposed in this turn."""
        self.saving.flush()
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
            host = self.hosting.begin_one(slot, self.now)
        if host.stream.dropping and not host.replica.log.last.index:
            return  # it begins again: what was here goes first, or what comes now would go with it
        if isinstance(message, words.InstallSnapshot) and self._is_of_another_generation(host, message):
            self.begin_again(host)
            return
        self.tell(host, words.Received(frm, message))

    @staticmethod
    def _is_of_another_generation(host: Host, message: words.InstallSnapshot) -> bool:
        """Whether batches are here that came with a snapshot of an older one: they may be other ones."""
        newer = generation_of(message.term) > generation_of(host.replica.log.last.term)
        return (
            newer and bool(host.touched) and host.incoming is not None and host.incoming.meta != message.meta
        )

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
        if not self._decides(host, event.to):
            self.pacing.spent(sum(len(item.payload) for item in event.items))
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

    def on_payloads_deleted(self, event: PayloadsDeleted) -> None:
        host = self.hosts.get(event.slot)
        if host is not None:
            if host.deleting.get(event.partition, -1) == event.below:
                del host.deleting[event.partition]
            host.stream.on_payloads_deleted(event.partition, event.below)

    # --------------------------------------------------------------------------- what replicas order
    def _carry_out(self, host: Host, effects: list[words.Effect]) -> None:
        for effect in effects:
            match effect:
                case words.Persist():
                    self.saving.on_order(host, effect)
                case words.Send():
                    self.send(effect.to, host.slot, effect.message)
                case words.Commit():
                    self._apply(host, effect.items)
                case words.TellRole():
                    self._on_role(host, effect)
                case words.ReadLog():
                    self._read_log(host, effect)
                case words.TakenBack():
                    self.refuse_waiting(host, self.saving.failing.get(host, DiskFull("the disk is full")))
                case words.Damaged():
                    self.damaged += 1
                case words.Diverged():
                    self.count("copies_diverged")
                    self.begin_again(host)
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
        self.mind(host)

    def _read_log(self, host: Host, effect: words.ReadLog) -> None:
        log, before = host.replica.log, effect.from_index - 1
        prev = log.position(before) or Position(before, log.term_at(before) or 0, b"")
        read = ReadSlotLog(host.slot, effect.to, prev, effect.bytes_max)
        self.pace(host, effect.to, read)

    def pace(self, host: Host, to: Node, read: ReadSlotLog | ReadPayloads) -> None:
        """Read for a copy when its turn comes; for one that decides at once, for records wait for it."""
        what = (host.slot, to, type(read))
        self.pacing.when_due(
            what, lambda: self.out.append(read), lambda: self._decides(host, to), now=self.now
        )

    @staticmethod
    def _decides(host: Host, node: Node) -> bool:
        config = host.replica.config
        return node in config.voters or node in config.outgoing

    def _apply(self, host: Host, items: tuple[Item, ...]) -> None:
        match = host.replica.copies() if host.leads else {}
        gone = False  # payloads can be deleted, once that is saved
        for entry, payload in items:
            applied = host.stream.apply(entry)
            host.log_bytes += len(entry.body) + ENTRY_BYTES
            stored = applied.stored if isinstance(applied, Moved) else applied
            if isinstance(stored, Stored) and host.replica.is_witness:
                host.kept.on_stored(stored.partition, stored.base_offset + stored.count)
            if isinstance(applied, Dropped | Retained | Compacted):
                gone = True
                if isinstance(applied, Retained) and host.leads:
                    self.on_retained(applied)
                elif isinstance(applied, Compacted) and host.leads:
                    self.on_compacted(applied)
            elif isinstance(applied, Stored) and host.leads:
                copies = sum(index >= entry.index for index in match.values())
                self.on_stored(applied, payload, copies)
            elif isinstance(applied, GroupApplied) and host.leads:
                self.on_group(applied)
            elif isinstance(applied, Moved) and host.leads:
                self.on_group(applied.group)
                copies = sum(index >= entry.index for index in match.values())
                self.on_stored(applied.stored, payload, copies)
        self.saving.on_applied(host, now=gone)

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
        self.pacing.tick(now=self.now)
        if self.now >= self._wake:
            for host in list(self.hosts.values()):
                if self.now >= host.wake:
                    self.tell(host, words.Ticked())
            self._wake = min((h.wake for h in self.hosts.values()), default=inf)
        self.saving.tick()

    def wake_at(self, at: float) -> None:
        self._wake = min(self._wake, at)

    def wake(self) -> float:
        """When a tick is due; perhaps too early, never too late."""
        return min(self._wake, self.pacing.wake())

    # ---------------------------------------------------------------------------------------- facts
    def led(self) -> Iterator[Host]:
        return (h for h in self.hosts.values() if h.leads)

    def copies(self, slot: Slot, index: int) -> int:
        """How many nodes are known to have this entry on disk."""
        return sum(match >= index for match in self.hosts[slot].replica.copies().values())

    def partition(self, slot: Slot, partition: PartitionKey) -> PartitionState:
        host = self.hosts.get(slot)
        return host.stream.partitions.get(partition, EMPTY) if host else EMPTY

    def was_rewritten(self, slot: Slot, entry: Entry) -> bool:
        """Whether compaction may have put another batch, or one of others, in place of this entry's."""
        return slot in self.hosts and self.hosts[slot].stream.was_rewritten(entry)

    def has_gone(self, slot: Slot, entry: Entry) -> bool:
        """Whether the payload of this entry is not kept any more."""
        return slot in self.hosts and self.hosts[slot].stream.has_gone(entry)

    def written(self) -> int:
        """Slots that hold records."""
        return sum(bool(h.stream.partitions) for h in self.hosts.values())

    def topics_held(self) -> set[TopicId]:
        return {t for h in self.hosts.values() if h.leads for t in h.stream.topics()}
