"""The desks of the groups led here: what they decide is proposed, what is applied goes to members.

    operations of a turn ──> one GROUP entry ──> applied ──> Settled, HandOut
                 desk <── commits, fetches, leases whose time is over

What a turn comes to is proposed once a group and partition, whatever came together: the log has an entry for
a batch of acknowledgements, never for one. Who may join, and at which desk, is not decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Final

from meshq.entries import EntryKind
from meshq.errors import MeshqError, NotOwner, Overloaded, Unavailable
from meshq.ids import PartitionKey, Ref, Session, Slot
from meshq.limits import GROUP_OPS_BYTES_MAX
from meshq.messages import Expired, ExpiredItem, HandItem, HandOut, Settled
from meshq.peer.core.context import Context
from meshq.peer.core.events import BatchesFetched, FetchBatches, SeekTime
from meshq.peer.core.leases import Leases
from meshq.peer.core.parts import Asker, Burial, Desk, Part, Refused, entries_of
from meshq.peer.core.slots import Slots
from meshq.streams.applied import Retained, Stored
from meshq.streams.delivery import Fetch
from meshq.streams.groups.desk import QueueDesk
from meshq.streams.groups.hands import Hand, Member, Stock
from meshq.streams.groups.keyed import KeyedDesk
from meshq.streams.groups.ordered import OrderedDesk
from meshq.streams.groups.ordered_state import OrderedState
from meshq.streams.groups.table import GroupApplied, GroupKey
from meshq.streams.groups.words import GroupBody, Mode, Op, Reset, Settle, Told, bytes_of, encode_group

if TYPE_CHECKING:
    import random

    from meshq.batch import Buffer

GROUPS: Final = "group"  # in the place of a door: who a fetch or a look-up by time is for
PUSH_ITEMS: Final = 64
POSTPONED_S: Final = 0.05
PUSH_BYTES: Final = 1024 * 1024


@dataclass
class Desks:
    """`on_opened(part)`: it has a desk now. `on_failed(part, error)`: it will have none, or not any more."""

    ctx: Context
    slots: Slots
    rng: random.Random
    on_opened: Callable[[Part], None]
    on_failed: Callable[[Part, MeshqError], None]
    leases: Leases = field(init=False)
    bury: Callable[[Part], None] = field(init=False)  # what is dying there (burying.py)
    parts: dict[GroupKey, Part] = field(default_factory=dict)  # GROUPS_PER_SLOT_MAX a slot
    burials: dict[GroupKey, Burial] = field(default_factory=dict)  # proposed: they outlive their parts
    _of_partition: dict[PartitionKey, dict[GroupKey, None]] = field(default_factory=dict)
    stirred: dict[GroupKey, None] = field(default_factory=dict)
    _settled: dict[Session, list[tuple[int, Refused]]] = field(default_factory=dict)  # of this turn
    _hands: list[tuple[GroupKey, Hand]] = field(default_factory=list)  # of this turn
    _postponed: dict[GroupKey, None] = field(default_factory=dict)
    wake_at: float = inf  # when a tick is due, if nothing else calls for one

    def __post_init__(self) -> None:
        self.leases = Leases(self.ctx, self.stir)

    def begin(self, key: GroupKey, slot: Slot) -> Part:
        """With a desk, if the log knows the group. Raises: NotOwner."""
        if not self.slots.hosts[slot].leads:
            raise NotOwner(f"slot {slot} is not led here", retry_after_ms=50)
        part = self.parts[key] = Part(key, slot, burial=self.burials.get(key))
        self._of_partition.setdefault(key.partition, {})[key] = None
        if self.slots.hosts[slot].stream.groups.get(key) is not None:
            self._make_desk(part)
        return part

    def drop(self, part: Part) -> None:
        self.parts.pop(part.key, None)
        if isinstance(part.desk, OrderedDesk):
            self.leases.drop(part.key, part.desk)
        self.stirred.pop(part.key, None)
        of_partition = self._of_partition.get(part.key.partition, {})
        of_partition.pop(part.key, None)
        if not of_partition:
            self._of_partition.pop(part.key.partition, None)

    def add(self, part: Part, op: Op, asker: Asker | None = None) -> None:
        """To be proposed in this turn. `asker` is answered when it counts, or cannot be known to.

        Raises: Overloaded, but not for what the leader itself has to say.
        """
        size = bytes_of(op)
        if asker is not None and part.size + size > GROUP_OPS_BYTES_MAX:
            raise Overloaded("as much is to be said of this group's records as may", retry_after_ms=100)
        part.size += size
        if asker is not None:
            part.asked.append((asker, len(part.ops)))
        part.ops.append(op)
        self.stir(part.key)

    def stir(self, key: GroupKey) -> None:
        """Something about it has changed: have it looked at before this turn ends."""
        self.stirred[key] = None

    def stir_all(self, member: Member) -> None:
        """It has room again: wherever it takes part something may wait for that."""
        for key in member.keys:
            self.stir(key)

    def answer(self, session: Session, request: int, refused: Refused) -> None:
        self._settled.setdefault(session, []).append((request, refused))

    def of_partition(self, partition: PartitionKey) -> list[Part]:
        return [self.parts[key] for key in self._of_partition.get(partition, ())]

    def _make_desk(self, part: Part) -> Desk:
        state = self.slots.hosts[part.slot].stream.groups.get(part.key)
        assert state is not None
        end = self.slots.partition(part.slot, part.key.partition).end
        if isinstance(state, OrderedState):
            part.desk = self.leases.make_desk(part.key, state, end)
        else:
            kind = KeyedDesk if state.mode == Mode.KEYED else QueueDesk
            part.desk = kind(state, end, self.ctx.now, self.rng)
        self.stir(part.key)
        return part.desk

    # -------------------------------------------------------------------------------- what happens
    def on_applied(self, applied: GroupApplied) -> None:
        burial = self.burials.get(applied.key)
        if burial is not None and burial.index == applied.index:
            del self.burials[applied.key]
        part = self.parts.get(applied.key)
        if part is None:
            return
        desk = part.desk
        if desk is None:
            if self.slots.hosts[part.slot].stream.groups.get(part.key) is None:
                return  # it was behind a deletion in the log, and is not what begins the group again
            desk = self._make_desk(part)
            self.on_opened(part)
        if part.burial is not None and part.burial.index == applied.index:
            part.burial = None
        desk.now = self.ctx.now
        full = [m for m in desk.members.values() if not m.room()]
        judged = zip(applied.body.ops, applied.refused, strict=True)
        ops = [op for op, refused in judged if not (refused and isinstance(op, Reset))]
        self._hands += [(part.key, hand) for hand in desk.on_applied(ops, applied.index)]
        self.take_notices(part)
        if part.proposed and part.proposed[0][0] == applied.index:
            for asker, place in part.proposed.popleft()[1]:
                refused, op = applied.refused[place], applied.body.ops[place]
                if refused is None and isinstance(op, Settle):  # the group is gone
                    refused = tuple((first, end) for first, end, _ in op.ranges)
                if callable(asker):
                    asker(list(refused or ()))
                else:
                    self.answer(*asker, list(refused or ()))
        if self.slots.hosts[part.slot].stream.groups.get(part.key) is not desk.state:
            self.on_failed(part, Unavailable(f"group {part.key.group!r} was deleted", retry_after_ms=50))
            return
        for member in full:
            if member.room():
                self.stir_all(member)
        self.stir(part.key)

    def take_notices(self, part: Part) -> None:
        if isinstance(part.desk, OrderedDesk) and part.desk.notices:
            self.leases.take_notices(part.key, part.desk)

    def on_refused(self, slot: Slot, error: MeshqError) -> None:
        """Nothing of what was under way in this slot came into its log, or nobody knows."""
        self.burials = {key: b for key, b in self.burials.items() if b.slot != slot}
        for part in [p for p in self.parts.values() if p.slot == slot]:
            self.refuse(part, error)
            if part.desk is None and part.seek is None:
                self.on_failed(part, error)

    def refuse(self, part: Part, error: MeshqError) -> None:
        asked = [x for _, askers in part.proposed for x, _ in askers] + [x for x, _ in part.asked]
        for asker in asked:
            if callable(asker):
                asker(error)
            else:
                self.ctx.fail(*asker, error)
        part.ending = False
        part.proposed.clear()
        part.ops.clear()
        part.size = 0
        part.asked.clear()
        part.told = part.lapsed = 0
        part.burial = self.burials.get(part.key)  # what is in the log goes on, whoever asks no more
        if part.desk is not None:
            part.desk.now = self.ctx.now
            part.desk.on_refused()
            for member in part.desk.members.values():
                self.stir_all(member)
        self.stir(part.key)

    def on_retained(self, retained: Retained) -> None:
        for part in self.of_partition(retained.partition):
            if part.desk is not None:
                if part.desk.on_expired():
                    part.want = None
                self.stir(part.key)

    def on_stored(self, stored: Stored, payload: Buffer) -> None:
        for key in self._of_partition.get(stored.partition, ()):
            part = self.parts[key]
            if part.desk is not None:
                base = stored.base_offset
                part.desk.on_stored(Stock(base, base + stored.count, stored.timestamp_ms, payload))
                self.stir(key)

    def is_awaited(self, read: FetchBatches | SeekTime) -> bool:
        partition = read.fetch.partition if isinstance(read, FetchBatches) else read.partition
        return partition in self._of_partition

    def on_fetched(self, event: BatchesFetched) -> None:
        f = event.fetch
        part = self.parts.get(GroupKey(f.partition, f.sub[0][1].decode()))
        if part is None or part.desk is None or part.want is None:
            return
        want = part.want
        if (f.offset, f.end) != (want.offset, want.end):
            return
        if isinstance(event.batches, MeshqError):
            self.ctx.count("corrupt_reads")
            self.on_failed(part, event.batches)
            return
        part.desk.now, part.want = self.ctx.now, None
        part.desk.on_fetched(want, event.batches)
        self.stir(part.key)

    # ------------------------------------------------------------------------------------ each turn
    def tick(self) -> None:
        self.leases.tick()
        if self.ctx.now < self.wake_at:
            return
        self.wake_at = inf
        self.stirred.update(self._postponed)
        self._postponed.clear()
        for key, part in self.parts.items():
            at = part.wake()
            if at <= self.ctx.now:
                self.stir(key)
            else:
                self.wake_at = min(self.wake_at, at)

    def propose(self) -> None:
        """What this turn has come to, of what was `stirred`."""
        stirred, self.stirred = list(self.stirred), {}
        for key in stirred:
            part = self.parts.get(key)
            if part is not None:
                self._take(part)

    def _take(self, part: Part) -> None:
        if self.slots.hosts[part.slot].replica.is_handing_over:
            self._postponed[part.key] = None  # it proposes nothing: the next leader will, or this one again
            self.wake_at = min(self.wake_at, self.ctx.now + POSTPONED_S)
            return
        desk, own = part.desk, list[Op]()
        if desk is not None:
            desk.now = self.ctx.now
            self.bury(part)
            more, want = desk.take()
            self.take_notices(part)
            own = [*more, *self._tell_expired(part, desk)]
            if want is not None:
                part.want = want
                ref = ((GROUPS, part.key.group.encode()), 0)
                fetch = Fetch(ref, part.key.partition, want.offset, want.end, want.bytes_max)
                self.ctx.out.append(FetchBatches(fetch))
            self.wake_at = min(self.wake_at, part.wake())
        if part.ops or own:
            self._append(part, own)
        elif part.seek is None and not part.proposed and (desk.is_idle if desk else not part.opening):
            self.drop(part)

    def _append(self, part: Part, own: list[Op]) -> None:
        """What was asked for, and behind that what the desk decided itself."""
        (topic_id, number), group = part.key
        entries = entries_of(part.ops, part.asked, own)
        part.ops, part.asked, part.size = [], [], 0
        while entries:
            ops, asked = entries[0]
            try:
                body = encode_group(GroupBody(topic_id, number, group, tuple(ops)))
                entry = self.slots.append(part.slot, EntryKind.GROUP, body)
            except MeshqError as e:
                part.asked = [x for _, others in entries for x in others]
                self.on_failed(part, e)
                return
            entries.popleft()
            part.proposed.append((entry.index, asked))
            self.ctx.count("group_entries")

    def _tell_expired(self, part: Part, desk: Desk) -> list[Op]:
        """Of records that nobody will be handed any more, each member that is there hears; if none is, the
        first one that comes. That they were told is noted behind them: told twice is better than never.
        """
        state = desk.state
        before = max(state.told, part.told)
        if state.expired <= before or not desk.members:
            return []
        part.told = state.expired
        topic_id, number = part.key.partition
        item = ExpiredItem(topic_id, number, state.expired - before, state.low)
        for member in desk.members.values():
            session, sub = member.ref
            self.ctx.send(session, Expired(sub, [item]))
        return [Told(state.expired)]

    def flush(self) -> None:
        if self.leases.words:
            self.leases.flush()
        for session, results in self._settled.items():
            for i in range(0, len(results), 1_024):
                self.ctx.send(session, Settled(results[i : i + 1_024]))
        self._settled.clear()
        if not self._hands:
            return
        by_ref: dict[Ref, list[tuple[GroupKey, Hand]]] = {}
        for key, hand in self._hands:
            by_ref.setdefault(hand.member.ref, []).append((key, hand))
        self._hands.clear()
        for (session, sub), hands in by_ref.items():
            self._push(session, sub, hands)

    def _push(self, session: Session, sub: int, hands: list[tuple[GroupKey, Hand]]) -> None:
        items: list[HandItem] = []
        payloads: list[Buffer] = []
        size = 0
        for key, hand in hands:
            if items and (len(items) >= PUSH_ITEMS or size + len(hand.batch.data) > PUSH_BYTES):
                self.ctx.send(session, HandOut(sub, items), tuple(payloads))
                items, payloads, size = [], [], 0
            topic_id, number = key.partition
            base, at = hand.batch.base_offset, hand.batch.timestamp_ms
            items.append(HandItem(topic_id, number, base, at, hand.lease, list(hand.ranges)))
            payloads.append(hand.batch.data)
            size += len(hand.batch.data)
        self.ctx.count("batches_handed", len(hands))
        self.ctx.send(session, HandOut(sub, items), tuple(payloads))
