"""The desk of a queue group in one partition, at the leader: who gets what, and what was not done in time.

Records are handed out in three steps, so that a member never works on what is not its own: the leader has the
batches in hand (straight from a commit, or fetched), proposes who gets which records, and pushes them when
that is committed. One such proposal is under way at a time; whatever comes meanwhile goes into the next one,
so it is large when there is much to do, and quick when there is little.

Nothing here survives the leader: deadlines begin anew at the next one, with the whole duration. A lease whose
time is over is given back by a proposal like any other, so an acknowledgement that comes first still counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import ceil, inf
from typing import TYPE_CHECKING, NamedTuple

from meshq.entries import StoredBatch
from meshq.limits import GROUP_PENDING_MAX, MIB
from meshq.streams.groups.backoff import redelivery_delay_ms
from meshq.streams.groups.hands import Allotted, Hand, Member, Stock, Want
from meshq.streams.groups.intervals import Intervals
from meshq.streams.groups.state import GroupState
from meshq.streams.groups.words import LEADER, Grant, Leased, Op, Open, Range, Redrive, Reset, Settle, Verdict

if TYPE_CHECKING:
    import random

STOCK_BYTES: int = MIB  # batches in hand for one desk; a single one may be larger
RANGES_MAX = 1_024  # in one proposal; the rest goes into the next one


class _Held(NamedTuple):
    """Until when records are leased; inf: their return is proposed. `size`: bytes of each."""

    until: float
    member: bytes
    size: float


@dataclass(slots=True, eq=False)
class QueueDesk:
    """`take` after anything happened. `end` is the high watermark; whoever calls has set `now`."""

    state: GroupState
    end: int
    now: float
    rng: random.Random
    members: dict[bytes, Member] = field(default_factory=dict)  # by id, in turn; GROUP_MEMBERS_MAX
    due_at: float = inf  # nothing falls due before
    _held: Intervals[_Held] = field(default_factory=Intervals)  # exactly what the state has leased
    _due: Intervals[float] = field(default_factory=Intervals)  # exactly what the state has back
    _fresh: deque[Stock] = field(default_factory=deque)  # dense, from the first record not handed out
    _again: list[Stock] = field(default_factory=list)  # batches of which records are back
    _wanted: Want | None = None  # under way
    _granting: list[Allotted] | None = None  # proposed
    _left: dict[bytes, None] = field(default_factory=dict)  # members whose records are to be given back
    _unseen: list[Leased] = field(default_factory=list)  # granted to members that went meanwhile

    def __post_init__(self) -> None:
        wait = self.now + self.state.ack_wait_ms / 1000
        for first, end, x in self.state.leased.runs():
            self._hold(first, end, _Held(wait, x.member, 0.0))
        self._mind_back(0, self.state.next)

    # ------------------------------------------------------------------------------------- members
    def on_join(self, member: Member) -> None:
        """It takes part, perhaps again; what it holds already counts against its room."""
        if self.members.get(member.id) is member:
            return
        self.members[member.id] = member
        self._left.pop(member.id, None)
        for first, end, x in self._held.runs():
            if x.member == member.id:
                self._count(x, end - first)

    def on_leave(self, member: Member, *, for_good: bool) -> None:
        """`for_good`: it does not want what it holds. Else it may be back, and its leases run on."""
        if self.members.get(member.id) is member:
            for first, end, x in self._held.runs():
                if x.member == member.id:
                    self._count(x, first - end)
            del self.members[member.id]
            if for_good:
                self._left[member.id] = None
        if not self.members:
            self._fresh.clear()
            self._again.clear()

    def settle(
        self,
        member: Member,
        verdict: Verdict,
        ranges: Sequence[Leased],
        delay_ms: int | None,
        reason: str = "",
    ) -> Settle:
        """What a member says of its records, to be proposed. No delay: as long as is usual."""
        if delay_ms is None:
            attempts = [x.attempts for first, _, _ in ranges if (x := self.state.leased.get(first))]
            delay_ms = redelivery_delay_ms(max(attempts, default=1), self.rng)
        return Settle(verdict, member.id, tuple(ranges), delay_ms, reason)

    def extend(self, member: Member, ranges: Sequence[Leased]) -> tuple[Range, ...]:
        """Leases that begin anew. What is refused: another's, over, or about to be given back."""
        until, refused = self.now + self.state.ack_wait_ms / 1000, []
        for first, end, lease in ranges:
            good = [
                (s, e, held.size)
                for start, stop, x in self.state.leased.runs(first, end)
                if x.lease == lease and x.member == member.id
                for s, e, held in self._held.runs(start, stop)
                if held.until != inf
            ]
            at = first
            for s, e, size in good:
                self._held.set(s, e, _Held(until, member.id, size))
                if at < s:
                    refused.append((at, s))
                at = e
            if at < end:
                refused.append((at, end))
        return tuple(refused)

    # ------------------------------------------------------------------------------- what happens
    def on_stored(self, batch: Stock) -> None:
        """A batch was committed: kept in hand if it is what comes next, and somebody is there."""
        level = self._wanted is None and batch.base_offset == self._in_hand_to()
        self.end = batch.end
        if level and self.members and sum(len(b.data) for b in self._fresh) < STOCK_BYTES:
            self._fresh.append(batch)

    def on_fetched(self, want: Want, batches: Iterable[StoredBatch]) -> None:
        if want != self._wanted:
            return
        self._wanted = None
        for b in batches:
            stock = Stock(b.base_offset, b.base_offset + b.count, b.timestamp_ms, b.data)
            if want.again:
                self._again.append(stock)
            elif stock.base_offset <= self._in_hand_to() < stock.end:
                self._fresh.append(stock)

    def on_expired(self) -> bool:
        """The partition begins later now: whether what is being fetched is void."""
        low = self.state.low
        self._due.remove(0, low)
        while self._fresh and self._fresh[0].end <= self.state.next:
            self._fresh.popleft()
        void = self._wanted is not None and self._wanted.offset < low
        if void:
            self._wanted = None
        return void

    def on_applied(self, ops: Iterable[Op], index: int) -> list[Hand]:
        """What was proposed counts; what is to be pushed now."""
        ops = tuple(ops)
        for op in ops:
            if isinstance(op, Settle):
                for first, end, _ in op.ranges:
                    self._let_go(first, end)
            elif isinstance(op, Open):  # with fewer deliveries, some that were back are not any more
                for first, end in list(self.state.back.gaps(0, self.state.next)):
                    self._due.remove(first, end)
            elif isinstance(op, Redrive):
                for first, end in op.ranges:
                    self._mind_back(first, end)
            elif isinstance(op, Reset):
                self._on_reset()
        return self._on_granted(index) if any(isinstance(op, Grant) for op in ops) else []

    def on_unseen(self, ranges: Iterable[Leased]) -> None:
        """They were handed out, and did not arrive."""
        self._unseen += ranges

    def _on_reset(self) -> None:
        """Nothing is out, and what is in hand is not what comes next. A grant under way is judged as any."""
        for first, end, held in list(self._held.runs()):
            self._count(held, first - end)
        self._held, self._due = Intervals(), Intervals()
        self._fresh.clear()
        self._again.clear()
        self._unseen.clear()
        self._wanted = None

    def on_refused(self) -> None:
        """None of what was proposed came into the log: all of it again."""
        for member, _, first, end in self._granting or ():
            member.records -= end - first
        self._granting = None
        lost = [(s, e, x) for s, e, x in self._held.runs() if x.until == inf]
        for first, end, x in lost:
            self._held.set(first, end, x._replace(until=self.now))
            self.due_at = self.now

    def _on_granted(self, index: int) -> list[Hand]:
        allotted, self._granting = self._granting or [], None
        until = self.now + self.state.ack_wait_ms / 1000
        hands = []
        for member, batch, first, end in allotted:
            member.records -= end - first
            size = len(batch.data) / (batch.end - batch.base_offset)
            got = [(s, e, x.attempts) for s, e, x in self.state.leased.runs(first, end) if x.lease == index]
            for start, stop, _ in got:
                self._due.remove(start, stop)
                self._hold(start, stop, _Held(until, member.id, size))
            there = self.members.get(member.id)
            if there is not None and got:  # none: the group was reset meanwhile
                hands.append(Hand(there, batch, tuple(got), index))
            else:
                self._unseen += [(s, e, index) for s, e, _ in got]
        while self._fresh and self._fresh[0].end <= self.state.next:
            self._fresh.popleft()
        return hands

    # ----------------------------------------------------------------------------------- deciding
    def take(self) -> tuple[tuple[Op, ...], Want | None]:
        """What to propose, and what to fetch."""
        back = [*self._give_back_unseen(), *self._give_back_left(), *self._give_back_late()]
        if self._granting is None:
            self._again = [b for b in self._again if self._is_due(b)]
        return (*back, *self._hand_out()), self._fetch()

    def deadline(self) -> float:
        """When `take` has something to say that nothing else calls for."""
        return self.due_at

    @property
    def is_idle(self) -> bool:
        """Nobody is here, and nothing is out: the state says all there is."""
        out = self._held or self._granting or self._left or self._unseen or self.state.dying
        return not (self.members or out)

    def _give_back_unseen(self) -> Iterable[Op]:
        found, self._unseen = self._unseen, []
        yield from self._returned(found, Verdict.RELEASE, 0)

    def _give_back_left(self) -> Iterable[Op]:
        for member in list(self._left):
            found = [
                (s, e, x.lease)
                for start, stop, held in self._held.runs()
                if held.member == member and held.until != inf
                for s, e, x in self.state.leased.runs(start, stop)
            ]
            if len(found) <= RANGES_MAX:
                del self._left[member]
            yield from self._returned(found[:RANGES_MAX], Verdict.NACK, 0)

    def _give_back_late(self) -> Iterable[Op]:
        """Leases whose time is over, by attempts, for the wait depends on them."""
        if self.now < self.due_at:
            return
        late: dict[int, list[Leased]] = {}
        count = 0
        for start, stop, held in self._held.runs():
            if held.until <= self.now and count < RANGES_MAX:
                self._doubt(held)
                for s, e, x in self.state.leased.runs(start, stop):
                    late.setdefault(x.attempts, []).append((s, e, x.lease))
                    count += 1
        for attempts, found in late.items():
            yield from self._returned(found, Verdict.NACK, redelivery_delay_ms(attempts, self.rng))
        self._wind()

    def _doubt(self, held: _Held) -> None:
        """Whoever said nothing at all since it was handed these is stuck, or gone. What else it were handed
        would be lost to it too, one delivery of each, while others could do it.
        """
        member = self.members.get(held.member)
        if member is not None and held.until - member.heard > self.state.ack_wait_ms / 1000 + 0.001:
            member.was_silent = True

    def _returned(self, found: Sequence[Leased], verdict: Verdict, delay_ms: int) -> Iterable[Op]:
        for first, end, _ in found:
            for s, e, held in list(self._held.runs(first, end)):
                self._held.set(s, e, held._replace(until=inf))
        if found:
            yield Settle(verdict, LEADER, tuple(found), delay_ms)

    def _hand_out(self) -> Iterable[Op]:
        """What is in hand, shared out evenly among those with room."""
        if self._granting is not None:
            return
        pieces = self._pieces()
        takers = deque(m for m in self.members.values() if m.room())
        if not pieces or not takers:
            return
        share = ceil(sum(end - first for _, first, end in pieces) / len(takers))
        left = {m.id: min(share, m.room()) for m in takers}
        allotted: list[Allotted] = []
        for batch, first, end in pieces:
            while first < end and takers:
                member = takers[0]
                stop = min(end, first + left[member.id])
                allotted.append(Allotted(member, batch, first, stop))
                left[member.id] -= stop - first
                member.records += stop - first
                first = stop
                if not left[member.id]:
                    takers.popleft()
        self._granting = allotted
        # In the order of the records: a fresh one counts only right behind those before it.
        for member_id, its in groupby(allotted, lambda a: a.member.id):
            yield Grant(member_id, tuple((a.first, a.end) for a in its))
            self.members[member_id] = self.members.pop(member_id)  # the next turn begins with another one

    def _pieces(self) -> list[tuple[Stock, int, int]]:
        """Records that may be handed out, with the batches they are in; those that came back first."""
        pieces = [
            (batch, first, end)
            for batch in self._again
            for first, end, at in self._due.runs(batch.base_offset, batch.end)
            if at <= self.now
        ]
        room, at = GROUP_PENDING_MAX - self.state.pending, self.state.next
        for batch in self._fresh:
            stop = min(batch.end, at + room)
            if stop <= at:
                break
            pieces.append((batch, at, stop))
            room, at = room - (stop - at), stop
        return pieces[:RANGES_MAX]

    def _fetch(self) -> Want | None:
        if self._wanted is not None or not any(m.room() for m in self.members.values()):
            return None
        at = self._in_hand_to()
        due = self._first_due()
        if due is not None and not self._again and self._granting is None:
            self._wanted = Want(*due, STOCK_BYTES, True)
        elif self._wants_more() and at < self.end and self.state.pending < GROUP_PENDING_MAX:
            self._wanted = Want(at, self.end, STOCK_BYTES, False)
        return self._wanted

    def _wants_more(self) -> bool:
        """Of records that were not handed out yet."""
        return not self._fresh

    def _first_due(self) -> Range | None:
        return next(((s, e) for s, e, when in self._due.runs() if when <= self.now), None)

    def _is_due(self, batch: Stock) -> bool:
        return any(at <= self.now for _, _, at in self._due.runs(batch.base_offset, batch.end))

    # ------------------------------------------------------------------------------- how it is done
    def _in_hand_to(self) -> int:
        return self._fresh[-1].end if self._fresh else self.state.next

    def _hold(self, first: int, end: int, held: _Held) -> None:
        self._held.set(first, end, held)
        self.due_at = min(self.due_at, held.until)
        self._count(held, end - first)

    def _let_go(self, first: int, end: int) -> None:
        """Of what is held here, what the state has no longer leased; and what came back."""
        for start, stop in list(self.state.leased.gaps(first, end)):
            for s, e, held in list(self._held.runs(start, stop)):
                self._count(held, s - e)
                self._held.remove(s, e)
        self._mind_back(first, end)

    def _mind_back(self, first: int, end: int) -> None:
        for start, stop, back in self.state.back.runs(first, end):
            at = self.now + back.delay_ms / 1000
            for s, e in list(self._due.gaps(start, stop)):
                self._due.set(s, e, at)
                self.due_at = min(self.due_at, at)

    def _count(self, held: _Held, records: int) -> None:
        member = self.members.get(held.member)
        if member is not None:
            member.records += records
            member.bytes += records * held.size

    def _wind(self) -> None:
        times = [x.until for _, _, x in self._held.runs()]
        times += [at for _, _, at in self._due.runs() if at > self.now]
        self.due_at = min(times, default=inf)
