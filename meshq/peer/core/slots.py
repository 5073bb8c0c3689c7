"""The slots this peer has a replica of: each one a replicated log and the stream it means.

Publishing: the stream judges the batch (sequence, offset), the replica gives it a place and takes care that a
majority has it on disk; when that is so the stream applies it, and only then is there a receipt.

`Slots` takes what replicas order to whom it concerns: `saving` (this peer's disk), `applying` (what is
decided), `sending` and `receiving` (snapshots); `hosting` makes replicas, `emptying` has them begin again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from meshq.batch import BatchHeader, Buffer
from meshq.entries import Entry, EntryKind
from meshq.errors import DiskFull, MeshqError, OutcomeUnknown
from meshq.ids import PartitionKey, PeerId, Ref, Slot, TopicId
from meshq.peer.core.applying import Applying
from meshq.peer.core.disk import Disk
from meshq.peer.core.emptying import Emptying
from meshq.peer.core.events import Effect, PayloadsDeleted, PayloadsRead, ReadPayloads, ReadSlotLog
from meshq.peer.core.hosts import Host, Hosting
from meshq.peer.core.pacing import Pacing
from meshq.peer.core.receiving import Receiving
from meshq.peer.core.room import no_room
from meshq.peer.core.saving import Saving
from meshq.peer.core.sending import Sending
from meshq.replication import words
from meshq.replication.generations import generation_of
from meshq.replication.quorum import Config, Node
from meshq.replication.words import Position, Role
from meshq.streams.applied import EMPTY, PartitionState
from meshq.streams.groups.letters import Letters
from meshq.streams.groups.words import GroupBody
from meshq.streams.producers import BatchReceipt
from meshq.streams.publish import encode_publish
from meshq.streams.slot import SlotStream

if TYPE_CHECKING:
    import random

    from meshq.peer.core.reactions import Reactions


@dataclass
class Slots:
    """`genesis(slot)`: what it begins with. `send(to, slot, message)`: to another node. `react`: hears what
    others have to be told.
    """

    me: Node
    out: list[Effect]
    disk: Disk
    rng: random.Random
    genesis: Callable[[Slot], Config]
    send: Callable[[Node, Slot, words.Message], None]
    react: Reactions
    count: Callable[[str], None]
    pacing: Pacing  # of copies on their way to a new home
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
    sending: Sending = field(init=False)
    receiving: Receiving = field(init=False)
    hosting: Hosting = field(init=False)
    saving: Saving = field(init=False)
    applying: Applying = field(init=False)
    emptying: Emptying = field(init=False)
    _soon: list[tuple[Host, words.Event]] = field(default_factory=list)  # of this turn
    _dirty: dict[Host, None] = field(default_factory=dict)  # proposed to in this turn
    _wake: float = inf

    def __post_init__(self) -> None:
        self.sending = Sending(self)
        self.receiving = Receiving(self)
        self.hosting = Hosting(self)
        self.saving = Saving(self)
        self.applying = Applying(self)
        self.emptying = Emptying(self)

    # -------------------------------------------------------------------------------------- members
    def mind(self, host: Host) -> None:
        """When it wants to be ticked."""
        host.wake = host.replica.deadline() if not host.is_emptied else inf
        if host.wake < self._wake:
            self._wake = host.wake

    def freeze(self) -> None:
        """This disk was rolled back or cloned: nothing here promises or leads any more."""
        self.frozen = True
        for host in list(self.hosts.values()):
            host.replica.freeze()
            self.tell(host, words.Ticked())

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

    def flush(self) -> None:
        """Hand on what was proposed in this turn."""
        if self.saving.refused:
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
            self.emptying.begin_again(host)
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
                    self.applying.apply(host, effect.items)
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
                    self.emptying.begin_again(host)
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
            self.react.on_members()
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

    def _on_role(self, host: Host, effect: words.TellRole) -> None:
        leads = effect.role is Role.LEADER and effect.serves
        if host.leads and not leads:
            host.leads = False
            self.refuse_waiting(host, OutcomeUnknown("the slot has another leader now: ask again"))
        host.leads = leads
        if effect.role is not Role.LEADER:
            self.sending.on_role(host)
        self.react.on_role(host)

    def refuse_waiting(self, host: Host, error: MeshqError) -> None:
        for ref in host.stream.on_append_failed():
            self.react.on_refused(ref, error)
        self.react.on_lost(host, error)

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
        return min(self._wake, self.pacing.wake()) if self.pacing.waiting else self._wake

    # ---------------------------------------------------------------------------------------- facts
    def led(self) -> Iterator[Host]:
        return (h for h in self.hosts.values() if h.leads)

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
