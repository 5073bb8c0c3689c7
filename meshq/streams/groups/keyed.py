"""The desk of a keyed group in one partition: as a queue's, but the records of one key are done in order.

A key is *busy* while any record of it is with a member. Records of a busy key wait, those of others pass them
by; once the last one is settled the key is free, and its next records go together, in order, to whoever has
room: that is how a key moves, and only when it is drained. (As the message groups of Amazon's SQS do.) If one
of them comes back, those behind it that are with the member are taken back with it, for they must not come
first.

Keys are not in the log but in the batches. A new leader reads the batches of what is out before it hands out
anything. Records without a key have no order among themselves.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Final

from meshq.batch import Buffer, read_header, read_placed
from meshq.entries import StoredBatch
from meshq.limits import GROUP_PENDING_MAX
from meshq.streams.groups.desk import RANGES_MAX, STOCK_BYTES, QueueDesk
from meshq.streams.groups.hands import Allotted, Hand, Member, Stock, Want
from meshq.streams.groups.intervals import Intervals
from meshq.streams.groups.words import Grant, Op, Open, Pass, Range, Redrive, Settle, Verdict

STOCKS: Final = 4  # so many times the bytes of a queue's desk may be in hand, to find other keys in
WAITING_MAX: Final = 1_024  # passed by, for their keys are busy; what is behind them waits too


@dataclass(slots=True, eq=False)
class KeyedDesk(QueueDesk):
    _keys: dict[int, bytes] = field(default_factory=dict)  # of what is out or back, and has one
    _out: dict[bytes, set[int]] = field(default_factory=dict)  # by key: what is with a member
    _back: dict[bytes, list[int]] = field(default_factory=dict)  # by key: what is to be handed out, in order
    _unknown: Intervals[bool] = field(default_factory=Intervals)  # out or back, and its key was not read yet
    _read: dict[int, list[bytes | None]] = field(
        default_factory=dict
    )  # keys of fresh batches, by base offset

    def __post_init__(self) -> None:
        QueueDesk.__post_init__(self)
        for runs in (self.state.leased.runs(), self.state.back.runs()):
            for first, end, _ in runs:
                self._unknown.set(first, end, True)
        self._unknown.remove(0, self.state.low)  # nobody can read it any more

    # ------------------------------------------------------------------------------- what happens
    def on_fetched(self, want: Want, batches: Iterable[StoredBatch]) -> None:
        if want != self._wanted or not self._unknown:
            QueueDesk.on_fetched(self, want, batches)
            return
        self._wanted = None
        for batch in batches:
            self._learn(batch.base_offset, _keys_of(batch.data))
            self._unknown.remove(batch.base_offset, batch.base_offset + batch.count)

    def on_applied(self, ops: Iterable[Op], index: int) -> list[Hand]:
        ops = tuple(ops)
        fresh = list(self._fresh)
        hands = QueueDesk.on_applied(self, ops, index)
        for op in ops:
            match op:
                case Pass():
                    self._on_passed(op.first, op.end, fresh)
                case Grant():
                    for first, end in op.ranges:
                        self._follow(first, end)
                case Settle():
                    for first, end, _ in op.ranges:
                        self._follow(first, end)
                case Open():
                    self._follow(0, self.state.next)
                case Redrive():
                    for first, end in op.ranges:
                        self._on_put_back(first, end)
                case _:
                    pass
        for op in ops:
            if isinstance(op, Settle) and op.verdict in (Verdict.NACK, Verdict.RELEASE):
                self._take_back_behind(op)
        return hands

    def on_expired(self) -> bool:
        void = QueueDesk.on_expired(self)
        self._unknown.remove(0, self.state.low)
        self._follow(0, self.state.low)
        return void

    def _on_passed(self, first: int, end: int, fresh: list[Stock]) -> None:
        self._unknown.set(first, end, True)
        for batch in fresh:
            if batch.base_offset < end and batch.end > first:
                self._learn(batch.base_offset, self._keys_in(batch))
                self._unknown.remove(max(batch.base_offset, first), min(batch.end, end))
        self._follow(first, end)  # it may not have counted: the partition began later by then
        self._mind_back(first, end)

    def _on_put_back(self, first: int, end: int) -> None:
        """Dead letters: of keys that may have gone on without them."""
        for start, stop, _ in self.state.back.runs(first, end):
            for offset in range(start, stop):
                if offset not in self._keys:
                    self._unknown.set(offset, offset + 1, True)

    def _on_reset(self) -> None:
        QueueDesk._on_reset(self)
        self._keys, self._out, self._back, self._read = {}, {}, {}, {}
        self._unknown = Intervals()

    def _take_back_behind(self, op: Settle) -> None:
        """What of the same keys is behind what came back, and with a member."""
        for first, end, _ in op.ranges:
            for offset in self._known(first, end):
                key = self._keys[offset]
                if offset not in self._back.get(key, ()):
                    continue
                for later in sorted(self._out.get(key, ())):
                    lease, held = self.state.leased.get(later), self._held.get(later)
                    if later > offset and lease is not None and held is not None and held.until != inf:
                        self._unseen.append((later, later + 1, lease.lease))

    # ----------------------------------------------------------------------------------- deciding
    def _hand_out(self) -> Iterable[Op]:
        """What is in hand, each key's records together, to whoever has most room."""
        room = {m.id: m.room() for m in self.members.values() if m.room()}
        if self._granting is not None or self._unknown or not room:
            return
        if len(self._read) > len(self._fresh):
            self._read = {b.base_offset: self._keys_in(b) for b in self._fresh}
        turn = _Turn(self, room)
        for batch in sorted(self._again, key=lambda b: b.base_offset):
            for offset in self._back_in(batch):
                turn.offer(batch, offset, self._keys.get(offset))
        start, upto = self.state.next, self.state.next
        for batch, offset, key in self._fresh_records():
            if not turn.room or len(turn.allotted) >= RANGES_MAX:
                break
            if turn.offer(batch, offset, key):
                upto = offset + 1
        self._granting = turn.allotted or None
        if upto > start:
            yield Pass(start, upto)
        by_member: dict[bytes, list[Range]] = {}
        for member, _, first, end in turn.allotted:
            by_member.setdefault(member.id, []).append((first, end))
        for member_id, ranges in by_member.items():
            yield Grant(member_id, tuple(ranges))
            self.members[member_id] = self.members.pop(member_id)

    def _fresh_records(self) -> Iterator[tuple[Stock, int, bytes | None]]:
        """As far as what is passed by may be kept."""
        waiting = sum(len(offsets) for offsets in self._back.values())
        most = min(GROUP_PENDING_MAX - self.state.pending, max(WAITING_MAX - waiting, 0))
        end = self.state.next + most
        for batch in self._fresh:
            keys = self._keys_in(batch)
            for offset in range(max(batch.base_offset, self.state.next), min(batch.end, end)):
                yield batch, offset, keys[offset - batch.base_offset]

    def _fetch(self) -> Want | None:
        if self._unknown:
            if self._wanted is None and self.members:
                first, end, _ = next(self._unknown.runs())
                self._wanted = Want(first, end, STOCK_BYTES, True)
                return self._wanted
            return None
        return QueueDesk._fetch(self)

    def _wants_more(self) -> bool:
        """Also when nothing of what is in hand can go: there may be other keys behind it."""
        if not self._fresh or self._granting is not None:
            return not self._fresh
        size = sum(len(batch.data) for batch in self._fresh)
        return self._in_hand_to() - self.state.next < WAITING_MAX and size < STOCKS * STOCK_BYTES

    def _first_due(self) -> Range | None:
        for first, end, at in self._due.runs():
            if at <= self.now:
                for offset in range(first, end):
                    if self._is_free(offset):
                        return offset, end
        return None

    def _is_due(self, batch: Stock) -> bool:
        return any(self._is_free(offset) for offset in self._back_in(batch) if self.is_due(offset))

    def _is_free(self, offset: int) -> bool:
        """Whether nothing of its key is with a member, or before it."""
        key = self._keys.get(offset)
        return key is None or (not self._out.get(key) and self.waiting_of(key)[:1] == [offset])

    def _back_in(self, batch: Stock) -> Iterator[int]:
        for first, end, _ in self.state.back.runs(batch.base_offset, batch.end):
            yield from range(first, end)

    def is_due(self, offset: int) -> bool:
        at = self._due.get(offset)
        return at is not None and at <= self.now

    def is_busy(self, key: bytes) -> bool:
        return bool(self._out.get(key))

    def waiting_of(self, key: bytes) -> list[int]:
        return self._back.get(key, [])

    # ------------------------------------------------------------------------------- how it is done
    def _keys_in(self, batch: Stock) -> list[bytes | None]:
        found = self._read.get(batch.base_offset)
        if found is None:
            found = self._read[batch.base_offset] = _keys_of(batch.data)
        return found

    def _learn(self, base: int, keys: list[bytes | None]) -> None:
        for offset, key in enumerate(keys, base):
            if key is not None and offset not in self._keys and self._unknown.get(offset):
                self._keys[offset] = key
        self._follow(base, base + len(keys))

    def _follow(self, first: int, end: int) -> None:
        """Where these are by the state, by key."""
        if self._unknown:
            for start, stop in list(self._settled_in(first, end)):
                self._unknown.remove(start, stop)
        for offset in self._known(first, end):
            key = self._keys[offset]
            if self.state.leased.get(offset) is not None:
                self._out.setdefault(key, set()).add(offset)
                self._drop_back(key, offset)
            elif self.state.back.get(offset) is not None:
                self._drop_out(key, offset)
                offsets = self._back.setdefault(key, [])
                if offset not in offsets:
                    insort(offsets, offset)
            else:
                self._drop_out(key, offset)
                self._drop_back(key, offset)
                del self._keys[offset]

    def _settled_in(self, first: int, end: int) -> Iterator[Range]:
        """What is neither out nor back there any more."""
        for start, stop in self.state.leased.gaps(first, end):
            yield from self.state.back.gaps(start, stop)

    def _known(self, first: int, end: int) -> list[int]:
        if end - first <= len(self._keys):
            return [offset for offset in range(first, end) if offset in self._keys]
        return sorted(offset for offset in self._keys if first <= offset < end)

    def _drop_out(self, key: bytes, offset: int) -> None:
        offsets = self._out.get(key)
        if offsets is not None:
            offsets.discard(offset)
            if not offsets:
                del self._out[key]

    def _drop_back(self, key: bytes, offset: int) -> None:
        offsets = self._back.get(key, [])
        i = bisect_left(offsets, offset)
        if i < len(offsets) and offsets[i] == offset:
            del offsets[i]
            if not offsets:
                del self._back[key]


@dataclass(slots=True, eq=False)
class _Turn:
    """Who gets what in one proposal. Records are offered in order."""

    desk: KeyedDesk
    room: dict[bytes, int]  # that is left, of members who have any
    allotted: list[Allotted] = field(default_factory=list)
    _chosen: dict[bytes, bytes] = field(default_factory=dict)  # by key: who gets it
    _given: dict[bytes, int] = field(default_factory=dict)  # by key: how many of those that are back
    _stuck: set[bytes] = field(default_factory=set)  # keys of which nothing more may go

    def offer(self, batch: Stock, offset: int, key: bytes | None) -> bool:
        member = self._taker(offset, key)
        if member is None:
            if key is not None:
                self._stuck.add(key)
            return False
        if offset < self.desk.state.next and key is not None:
            self._given[key] = self._given.get(key, 0) + 1
        if key is not None:
            self._chosen[key] = member.id
        self._give(member, batch, offset)
        return True

    def _taker(self, offset: int, key: bytes | None) -> Member | None:
        is_back = offset < self.desk.state.next
        if not self.room or (is_back and not self.desk.is_due(offset)):
            return None
        if key is None:
            return self.desk.members[max(self.room, key=lambda m: self.room[m])]
        if key in self._stuck or self.desk.is_busy(key):
            return None
        waiting, given = self.desk.waiting_of(key), self._given.get(key, 0)
        comes_next = waiting[given : given + 1] == [offset] if is_back else given == len(waiting)
        if not comes_next:
            return None
        chosen = self._chosen.get(key)
        if chosen is None:
            chosen = max(self.room, key=lambda m: self.room[m])
        return self.desk.members[chosen] if chosen in self.room else None

    def _give(self, member: Member, batch: Stock, offset: int) -> None:
        self.room[member.id] -= 1
        if not self.room[member.id]:
            del self.room[member.id]
        member.records += 1
        last = self.allotted[-1] if self.allotted else None
        if last is not None and last.member is member and last.batch is batch and last.end == offset:
            self.allotted[-1] = last._replace(end=offset + 1)
        else:
            self.allotted.append(Allotted(member, batch, offset, offset + 1))


def _keys_of(data: Buffer) -> list[bytes | None]:
    keys: list[bytes | None] = [None] * read_header(data).count
    for place, record in read_placed(data):
        keys[place] = record.key
    return keys
