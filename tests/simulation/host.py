"""A host: one support machine, a copy of each slot, a disk; the shell that carries effects out.

This is what the peer's shell does, with a disk and a network that can be broken. What differs between a
schedule drawn at random and a script read from a file (who delivers, when a sync ends, when time passes) is
the `Environment`'s.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from meshq.entries import EntryKind
from meshq.ids import PeerId, Slot
from meshq.replication.machine import Replica
from meshq.replication.mirrors import Mirrors
from meshq.replication.quorum import Config, Node, decode_config
from meshq.replication.settings import Settings
from meshq.replication.support import (
    Beat,
    LeadsOnly,
    Led,
    PeerRestarted,
    SendBeat,
    Support,
    SupportEffect,
    SupportSettings,
)
from meshq.replication.window import Log
from meshq.replication.words import (
    Commit,
    Damaged,
    Diverged,
    Effect,
    Event,
    Hard,
    Item,
    LeaderGone,
    LogRead,
    Message,
    Persist,
    Persisted,
    ReadFailed,
    ReadLog,
    ReadReady,
    ReadSnapshot,
    Role,
    Send,
    SnapshotMeta,
    SnapshotRead,
    SnapshotStored,
    StoreSnapshot,
    SupportGiven,
    SupportGot,
    TellConfig,
    TellRole,
)
from tests.simulation.disk import NOBODY, Applied, Apply, Disk, Image, Op, Trim, Wrong, pack_state
from tests.simulation.mirrored import Mirrored
from tests.simulation.oracle import Oracle


def peer_of(number: int) -> PeerId:
    return PeerId(number.to_bytes(16, "big"))


def number_of(peer: PeerId) -> int:
    return int.from_bytes(peer, "big")


def node_of(number: int, disk: int = 0) -> Node:
    return Node(peer_of(number), bytes([disk]))


def configs_at(leader: Replica, index: int) -> list[Config]:
    """By which a leader can have decided this entry: the one that held there, or one appended since."""
    history = leader._state.configs.history
    before = max((i for i, _ in history if i <= index), default=history[0][0])
    return [config for i, config in history if i >= before]


@dataclass(slots=True)
class Copy:
    """One slot on one host, while the process runs."""

    slot: int
    node: Node
    replica: Replica
    applied: Applied
    next_offset: int = 0  # at a leader: of the record that comes next
    timer: float = float("inf")  # when the environment will look at its deadline
    snapshot: tuple[SnapshotMeta, bytes] | None = None  # what is being sent
    live: bool = True
    leads: bool = False  # and serves, as it was told
    mirrors: Mirrors = field(default_factory=Mirrors)
    mirrored: Mirrored = field(default_factory=Mirrored)
    receipts: deque[int] = field(default_factory=deque)  # of decided entries, with mirrors or a witness
    _members: tuple[Config, frozenset[PeerId]] = (NOBODY, frozenset())

    def peers(self) -> frozenset[PeerId]:
        """Of its members. Beats ask for them, and those are a third of all events."""
        config = self.replica.config
        if self._members[0] is not config:
            self._members = config, frozenset(n.peer for n in config.nodes())
        return self._members[1]


class Environment(Protocol):
    oracle: Oracle
    now: float
    keep_entries: int  # entries behind which the log is trimmed
    piece_bytes: int  # of a snapshot
    mirrors: tuple[float, int]  # how long they are waited for, and who is level

    def send(self, host: Host, copy: Copy, to: Node, message: Message) -> None: ...
    def send_beat(self, host: Host, peer: PeerId, beat: Beat) -> None: ...
    def want_sync(self, host: Host) -> None: ...
    def answer(self, host: Host, copy: Copy, event: Event) -> None: ...
    def set_timer(self, host: Host, copy: Copy) -> None: ...
    def on_committed(self, host: Host, copy: Copy, items: tuple[Item, ...], news: int) -> None: ...
    def deciding_configs(self, copy: Copy, index: int) -> list[Config]: ...
    def tell(self, host: Host, slot: int, what: object) -> None: ...


@dataclass
class Host:
    env: Environment
    number: int
    rng: random.Random
    settings: Settings
    support_settings: SupportSettings = field(default_factory=SupportSettings)
    rate: float = 1.0  # its clock's seconds in a second
    ahead_s: float = 0.0
    wall_ahead_ms: int = 0
    disk: Disk = field(default_factory=Disk)
    disk_number: int = 0
    epoch: int = 0
    up: bool = False
    rolled_back: bool = False
    full: bool = False
    copies: list[Copy] = field(default_factory=list)
    support: Support = field(init=False)
    partners: tuple[PeerId, ...] = ()
    boots: int = 0  # how often it started: what belongs to an earlier process is void

    @property
    def peer(self) -> PeerId:
        return peer_of(self.number)

    @property
    def node(self) -> Node:
        return node_of(self.number, self.disk_number)

    def local(self, t: float) -> float:
        return t * self.rate + self.ahead_s

    def wall_ms(self) -> int:
        return int(self.env.now * 1_000) + self.wall_ahead_ms

    # ------------------------------------------------------------------------------------ start and end
    def start(self) -> None:
        self.boots += 1
        self.epoch += 1
        self.up = True
        self.full = False
        self.support = Support(
            epoch=self.epoch,
            now=self.local(self.env.now),
            led=self.led,
            believed=self.believed,
            settings=self.support_settings,
        )
        self.copies = []
        for slot in sorted(self.disk.images):
            self.copies.append(self._load(slot))
        self.on_support(self.support.on_partners(self.partners))

    def crash(self, keep: int = 0) -> None:
        self.disk.crash(keep)
        self.up = False
        for copy in self.copies:
            copy.live = False
        self.copies = []

    def wipe(self) -> None:
        """It is down, and its disk is replaced: another node of the same peer, which knows nothing."""
        self.disk_number += 1
        self.rolled_back = False
        self.epoch = self.disk_number << 32
        self.disk.images = {slot: Image() for slot in self.disk.images}

    def _load(self, slot: int) -> Copy:
        """A replica from what is on disk, as the peer's shell makes it."""
        image, node = self.disk.images[slot], self.node
        self.env.oracle.check_state(slot, node, image.applied)
        applied = image.applied.position
        behind = self._scan(image)
        repair_until, good = 0, image.last_index
        if behind:
            repair_until, good = image.last_index, min(behind) - 1
        items = image.items[applied.index - image.start.index : good - image.start.index]
        terms: list[tuple[int, int]] = []
        for item in image.items[: applied.index - image.start.index]:
            if not terms or terms[-1][1] != item.entry.term:
                terms.append((item.entry.index, item.entry.term))
        log = Log(
            image.start, base=applied, terms=terms, items=items, timestamp_ms=image.applied.timestamp_ms
        )
        configs = [c for c in image.configs() if c[0] <= good]
        partial = image.partial and (image.partial[0], len(image.partial[1]))
        replica = Replica(
            Slot(slot),
            node,
            hard=image.hard,
            log=log,
            configs=configs,
            applied=applied.index,
            rng=self.rng,
            now=self.local(self.env.now),
            settings=self.settings,
            ahead=tuple(peer_of((self.number - i - 1) % 6) for i in range((self.number + slot) % 3)),
            supports=self.support.given(),
            supported_by=self.support.got(),
            frozen=self.rolled_back,
            repair_until=repair_until,
            partial=partial,
        )
        copy = Copy(
            slot, node, replica, image.applied,
            mirrors=Mirrors(*self.env.mirrors), mirrored=Mirrored(*self.env.mirrors),
        )  # fmt: skip
        self.env.set_timer(self, copy)
        return copy

    def _scan(self, image: Image) -> set[int]:
        """Damage behind what is applied has to be repaired; before it, the log is let go of. A witness's is
        mended: nobody else may have what it keeps.
        """
        applied = image.applied.position
        if self.peer not in self.env.oracle.witnesses and any(i <= applied.index for i in image.damaged):
            image.trim(applied)
        return {i for i in image.damaged if i > applied.index}

    def rebuild(self, slot: int) -> Copy:
        """The disk refused a write of this slot: it begins again from what is there."""
        self.disk.refuse(slot)
        for place, copy in enumerate(self.copies):
            if copy.slot == slot:
                copy.live = False
                self.copies[place] = self._load(slot)
                return self.copies[place]
        raise KeyError(slot)

    def copy(self, slot: int) -> Copy:
        return next(c for c in self.copies if c.slot == slot)

    # ----------------------------------------------------------------------------------------- effects
    def handle(self, copy: Copy, event: Event) -> None:
        now = self.env.now
        effects = copy.replica.handle(event, now=now * self.rate + self.ahead_s, wall_ms=self.wall_ms())
        if effects:
            self.carry_out(copy, effects)
        if copy.receipts:
            self.give_receipts(copy)
        self.env.set_timer(self, copy)

    def flush(self, copy: Copy) -> None:
        self.carry_out(copy, copy.replica.flush(now=self.local(self.env.now), wall_ms=self.wall_ms()))
        if copy.receipts:
            self.give_receipts(copy)
        self.env.set_timer(self, copy)

    def carry_out(self, copy: Copy, effects: list[Effect]) -> None:
        env, slot = self.env, copy.slot
        for e in effects:
            kind = type(e)
            if kind is Send:
                image = self.disk.images[slot]
                config = copy.replica.config
                env.oracle.on_send(slot, copy.node, e.to, image, config, e.message, self.rolled_back)
                env.send(self, copy, e.to, e.message)
            elif kind is Persist:
                env.oracle.on_persist(slot, copy.node, copy.replica.config, e)
                if copy.replica.role is Role.LEADER:
                    env.oracle.on_change(slot, copy.replica, e)
                if self.full and any(i.payload for i in e.items):
                    self.rebuild(slot)
                    return
                self.write(slot, e)
            elif kind is Commit:
                self._apply(copy, e.items)
            elif kind is TellRole:
                env.oracle.on_role(slot, copy.node, copy.replica, e)
                copy.leads = e.role is Role.LEADER and e.serves
                if e.serves:
                    copy.next_offset = copy.applied.count
            elif kind is ReadLog:
                env.answer(self, copy, self._read_log(copy, e))
            elif kind is ReadSnapshot:
                env.answer(self, copy, self._read_snapshot(copy, e))
            elif kind is StoreSnapshot:
                self.write(slot, e)
            elif kind is ReadReady:
                env.oracle.on_read_over(slot, e.refs, e.index, copy.replica)
            elif kind is ReadFailed:
                env.oracle.on_read_over(slot, e.refs, None)
            elif kind is Diverged:
                env.tell(self, slot, e)
                if self._begin_again(copy):
                    return
                continue
            else:
                assert kind is TellConfig or kind is Damaged, e
            env.tell(self, slot, e)

    def _begin_again(self, copy: Copy) -> bool:
        """Nothing stays but term and vote; when nothing is on its way to disk, or the next time."""
        if not copy.replica.is_quiet or any(s == copy.slot for _, s, _ in self.disk.queue):
            return False
        hard = self.disk.images[copy.slot].hard
        self.disk.images[copy.slot] = Image((0, NOBODY), Hard(hard.term, hard.vote))
        self.rebuild(copy.slot)
        return True

    def recover(self, copy: Copy, left: set[Node], draw: int) -> None:
        """A person said that all others are gone for good."""
        r = copy.replica
        before = r.last.term if r.is_stale else r.term
        unheld = r.is_stale and r.config.has_majority(left)
        r.recover(left, draw=draw, wall_ms=self.wall_ms(), unheld=unheld)
        self.env.oracle.on_recover(copy.slot, copy.node, self.disk.images[copy.slot], copy.replica, before)
        self.flush(copy)

    def write(self, slot: int, op: Op) -> None:
        if self.disk.write(self.env.now, slot, op):
            self.env.want_sync(self)

    def _apply(self, copy: Copy, items: tuple[Item, ...]) -> None:
        image = self.disk.images[copy.slot]
        configs = self.env.deciding_configs(copy, items[-1].entry.index)
        term = copy.replica.term
        news = self.env.oracle.on_commit(copy.slot, copy.node, term, configs, image, items)
        begin = copy.applied.position.index
        if items[0].entry.index != begin + 1:
            raise Wrong(f"entry {items[0].entry.index} is handed on after {begin}")
        states = self.env.oracle.of(copy.slot, term).states
        if copy.applied != states[begin]:
            raise Wrong(f"n{self.number} has another state of slot {copy.slot} at entry {begin}")
        applied = states[begin + len(items)]  # the entries are the same, as was just checked
        config = None
        for item in items:
            if item.entry.kind is EntryKind.CONFIG:
                config = (item.entry.index, decode_config(item.entry.body))
        copy.applied = applied
        r = copy.replica
        alone = len(r.config.voters) == 1 and r.config.learners
        if r.role is Role.LEADER and (alone or r.config.witnesses):
            copy.receipts += [i.entry.index for i in items if i.entry.kind is EntryKind.PUBLISH]
        self.write_applied(copy.slot, applied, config)
        self.env.on_committed(self, copy, items, news)

    def give_receipts(self, copy: Copy) -> None:
        """Tell the clients of what is decided and, where a single voter decides, mirrored."""
        r = copy.replica
        if r.role is not Role.LEADER:
            copy.receipts.clear()
            return
        match, supports = r.copies(), r._state.supports
        copy.mirrors.look(r.config, match, r.commit_index, supports, now=self.local(self.env.now))
        now = self.local(self.env.now)
        copy.mirrored.look(r.config, match, r.commit_index, supports, now)
        while copy.receipts and copy.mirrors.have(match, copy.receipts[0]):
            index = copy.receipts.popleft()
            if without := copy.mirrored.without(index):
                raise Wrong(f"slot {copy.slot}: the receipt for {index} does not wait for {without}")
            on = sorted(n for n, have in match.items() if have >= index)
            self.env.oracle.on_receipt(copy.slot, r.term, index, on)
            self.env.tell(self, copy.slot, f"receipt for {index}, on {len(on)} disks")
        if copy.receipts and not copy.mirrored.without(copy.receipts[0]):
            raise Wrong(f"slot {copy.slot}: the receipt for {copy.receipts[0]} waits for nobody")

    def write_applied(self, slot: int, applied: Applied, config: object) -> None:
        self.write(slot, Apply(applied, config))

    def _read_log(self, copy: Copy, e: ReadLog) -> LogRead:
        image = self.disk.images[copy.slot]
        begin = e.from_index - image.start.index - 1
        if begin < 0 or e.from_index > image.last_index:
            return LogRead(e.to, image.start, ())
        items: list[Item] = []
        size = 0
        for item in image.items[begin:]:
            if item.entry.index in image.damaged or (items and size > e.bytes_max):
                break
            items.append(item)
            size += len(item.payload) + len(item.entry.body)
        if not items and not copy.replica.is_witness:  # unreadable: who lacks it gets the state instead
            self.write(copy.slot, Trim(image.applied.position))
        return LogRead(e.to, image.position(e.from_index - 1), tuple(items))

    def _read_snapshot(self, copy: Copy, e: ReadSnapshot) -> SnapshotRead:
        image = self.disk.images[copy.slot]
        position = e.position
        if e.meta is None or copy.snapshot is None or copy.snapshot[0] != e.meta:
            meta = SnapshotMeta(image.applied.position, image.config[1], image.applied.timestamp_ms)
            copy.snapshot = (meta, pack_state(image.applied))
            position = 0
        meta, data = copy.snapshot
        end = position + self.env.piece_bytes
        return SnapshotRead(e.to, meta, position, data[position:end], end >= len(data))

    # -------------------------------------------------------------------------------------------- disk
    def on_synced(self, done: list[tuple[int, Op]]) -> None:
        """Tell every slot what is durable now, once."""
        tokens: dict[int, int] = {}
        for slot, op in done:
            kind = type(op)
            if kind is Persist:
                tokens[slot] = op.token
            elif kind is StoreSnapshot:
                if slot in tokens:
                    self.handle(self.copy(slot), Persisted(tokens.pop(slot)))
                self._on_snapshot_stored(self.copy(slot), op)
            elif kind is Trim:
                replica = self.copy(slot).replica
                if op.start.index > replica.log.start.index:
                    replica.trim(op.start)
            else:
                self._maybe_trim(slot)
        for slot, token in tokens.items():
            self.handle(self.copy(slot), Persisted(token))

    def _on_snapshot_stored(self, copy: Copy, op: StoreSnapshot) -> None:
        if op.done:
            copy.applied = self.disk.images[copy.slot].applied
            self.env.oracle.check_state(copy.slot, copy.node, copy.applied)
            copy.snapshot = None
            if copy.node in op.meta.config.witnesses and not self.rolled_back:  # then it counts for nothing
                self.env.oracle.on_let_go(copy.slot, copy.node, op.meta.config, op.meta.last)
        self.handle(copy, SnapshotStored(op.meta, op.position + len(op.data), op.done))
        if op.done:
            self.check_configs(copy)

    def check_configs(self, *copies: Copy) -> None:
        """The configuration that holds is the newest in the log, committed or not."""
        if self.up and not self.disk.queue:
            for copy in copies or self.copies:
                here, there = copy.replica.config, self.disk.images[copy.slot].configs()[-1][1]
                if here != there and not self.disk.images[copy.slot].damaged:
                    raise Wrong(
                        f"n{self.number} acts by another configuration of slot {copy.slot} than it has"
                    )

    def _maybe_trim(self, slot: int) -> None:
        image = self.disk.images[slot]
        keep = self.env.keep_entries
        at = image.applied.position.index
        replica = self.copy(slot).replica
        if replica.is_witness:
            upto = min(at, replica.everywhere)
            if upto - image.start.index > keep // 4:
                self.let_go(self.copy(slot), upto)
        elif at - image.start.index > 2 * keep:
            self.write(slot, Trim(image.position(at - keep)))

    def let_go(self, copy: Copy, upto: int) -> None:
        """A witness's log and payloads go together."""
        image = self.disk.images[copy.slot]
        if upto > image.start.index:
            position = image.position(upto)
            self.env.oracle.on_let_go(copy.slot, copy.node, copy.replica.config, position)
            self.write(copy.slot, Trim(position))

    # ------------------------------------------------------------------------------------------ support
    def led(self, peer: PeerId) -> Led:
        """What this host leads of the slots that are there too."""
        return tuple(
            [
                (Slot(c.slot), c.replica.term)
                for c in self.copies
                if c.replica.role is Role.LEADER and peer in c.peers()
            ]
        )

    def believed(self, peer: PeerId) -> Led:
        return tuple(
            [
                (Slot(c.slot), c.replica.term)
                for c in self.copies
                if c.replica.leader is not None and c.replica.leader.peer == peer
            ]
        )

    def on_support(self, effects: list[SupportEffect]) -> None:
        for e in effects:
            kind = type(e)
            if kind is SendBeat:
                self.env.send_beat(self, e.peer, e.beat)
                continue
            self.env.tell(self, -1, e)
            if kind is SupportGiven or kind is SupportGot:
                for copy in list(self.copies):
                    self.handle(copy, e)
            elif kind is PeerRestarted:
                self._forget_leader(e.peer, frozenset())
            else:
                assert kind is LeadsOnly
                self._forget_leader(e.peer, e.slots)

    def _forget_leader(self, peer: PeerId, leads: frozenset[tuple[int, int]]) -> None:
        for copy in list(self.copies):
            leader, term = copy.replica.leader, copy.replica.term
            if leader is not None and leader.peer == peer and (copy.slot, term) not in leads:
                self.handle(copy, LeaderGone(peer, term))

    def is_stalled(self) -> bool:
        since = self.disk.since
        return since is not None and (self.env.now - since) * self.rate > self.support_settings.stall_s
