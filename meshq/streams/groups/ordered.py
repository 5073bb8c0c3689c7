"""The desk of an ordered group in one partition, at the leader: whose it is, and how it goes to another.

    nobody's ──Assign──> held ──the roster wants another──> asked for ──its release, or its time is over──┐
       ^                  └──────────────its holder left, or was silent for too long─────────────────────>┤
       └──────────────────────────────────────────────────────────────────────────────────────────────────┘

Asked for it back, the holder finishes what it has begun, commits that and gives the partition back; the next
one is granted it by the same entry of the log. Only this one partition stands still meanwhile. A holder that
does not give it back in time loses it, and its lease tells it from whoever has it then.

Records are pushed as any reader's are (streams/delivery.py): the desk says from when and until when.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from meshq.entries import StoredBatch
from meshq.streams.groups.hands import Hand, Member, Stock, Want
from meshq.streams.groups.intervals import OFFSETS_END
from meshq.streams.groups.ordered_state import OrderedState
from meshq.streams.groups.roster import Roster
from meshq.streams.groups.words import LEADER, Assign, Leased, Op, Settle, Verdict


class Began(NamedTuple):
    """The partition is this member's: to be told, then pushed from `offset` on."""

    member: Member
    lease: int
    offset: int
    attempts: int


class Asked(NamedTuple):
    """Nothing more is pushed under this lease; its holder is to finish and give it back."""

    member: Member
    lease: int


class Over(NamedTuple):
    """The lease has ended."""

    member: Member
    lease: int


Notice = Began | Asked | Over


@dataclass(slots=True, eq=False)
class OrderedDesk:
    """As QueueDesk to whoever calls. `notices`: what members are to be told, taken by the caller."""

    state: OrderedState
    end: int
    now: float
    partition: int
    roster: Roster
    members: dict[bytes, Member] = field(default_factory=dict)  # connected, by id; GROUP_MEMBERS_MAX
    notices: list[Notice] = field(default_factory=list)
    _lease: int = 0  # that the notices tell of
    _holder: bytes = b""
    _asked_until: float = inf  # the lease is asked for, until then
    _pending: bool = False  # what was proposed will change whose it is
    _returned: bool = False  # by its holder, in this turn

    def __post_init__(self) -> None:
        self._holder, self._lease = self.state.holder, self.state.lease
        if self._holder:
            self.roster.expect(self._holder, self.state.ack_wait_ms / 1000, self.now)

    # ------------------------------------------------------------------------------------- members
    def on_join(self, member: Member, timeout: float) -> int:
        """It takes part, perhaps again. The lease it has; 0: none. Whoever calls goes on pushing under it."""
        self.members[member.id] = member
        self.roster.join(member, timeout, self.now)
        if self.state.holder != member.id:
            return 0
        if self._asked_until < inf:
            self.notices.append(Asked(member, self.state.lease))
        return self.state.lease

    def on_leave(self, member: Member, *, for_good: bool) -> None:
        """`for_good`: it gives up what it holds. Else it may be back, and its lease runs on."""
        if self.members.get(member.id) is member:
            del self.members[member.id]
        if for_good:
            self.roster.leave(member)

    def settle(
        self, member: Member, verdict: Verdict, ranges: Sequence[Leased], delay_ms: int | None
    ) -> Settle:
        """What a member says: done up to there, or the partition given back. To be proposed."""
        if verdict == Verdict.RELEASE and any(self._is_lease(member, lease) for _, _, lease in ranges):
            self._returned = True
        return Settle(verdict, member.id, tuple(ranges))

    # ------------------------------------------------------------------------------- what happens
    def on_stored(self, batch: Stock) -> None:
        self.end = batch.end

    def on_expired(self) -> bool:
        """Its reader is told like any other; whoever is granted it next begins behind what is gone."""
        return False

    def on_fetched(self, want: Want, batches: Iterable[StoredBatch]) -> None:
        """It fetches nothing."""

    def on_applied(self, ops: Iterable[Op], index: int) -> list[Hand]:
        """What was proposed counts; told is what has come of it."""
        if any(
            isinstance(op, Assign) or (isinstance(op, Settle) and op.verdict != Verdict.ACK) for op in ops
        ):
            self._pending = False
        if (self.state.holder, self.state.lease) != (self._holder, self._lease):
            self._tell_change()
        return []

    def _tell_change(self) -> None:
        former = self.members.get(self._holder)
        if former is not None:
            self.notices.append(Over(former, self._lease))
        self._holder, self._lease, self._asked_until = self.state.holder, self.state.lease, inf
        holder = self.members.get(self._holder)
        if holder is not None:
            self.notices.append(Began(holder, self._lease, self.state.next, self.state.tries))

    def on_refused(self) -> None:
        """None of what was proposed came into the log, or nobody knows: all of it again."""
        self._pending = self._returned = False

    # ----------------------------------------------------------------------------------- deciding
    def take(self) -> tuple[tuple[Op, ...], Want | None]:
        """What to propose. Nothing is ever to be fetched."""
        self.roster.look(self.now)
        returned, self._returned = self._returned, False
        if self._pending:
            return (), None
        target = self.roster.member_for(self.partition)
        ops = (Assign(target),) if target else ()
        if not self.state.holder or returned:
            self._pending = bool(ops)
            return ops, None
        if self._is_lost():
            self._pending = True
            every = ((self.state.next, OFFSETS_END, self.state.lease),)
            return (Settle(Verdict.RELEASE, LEADER, every), *ops), None
        if (
            target != self.state.holder
            and self._asked_until == inf
            and self.now >= self.roster.gathering_until
        ):
            self._ask()
        return (), None

    def _is_lost(self) -> bool:
        """Whether the lease ends without its holder's word."""
        return self.state.holder not in self.roster or self._asked_until <= self.now

    def _ask(self) -> None:
        self._asked_until = self.now + self.state.ack_wait_ms / 1000
        holder = self.members.get(self.state.holder)
        if holder is not None:
            self.notices.append(Asked(holder, self.state.lease))

    def _is_lease(self, member: Member, lease: int) -> bool:
        return (self.state.holder, self.state.lease) == (member.id, lease)

    def deadline(self) -> float:
        """When `take` has something to say that nothing else calls for."""
        if self._pending:
            return self.roster.deadline()
        gathering = self.roster.gathering_until
        return min(self._asked_until, self.roster.deadline(), gathering if gathering > self.now else inf)

    @property
    def is_idle(self) -> bool:
        """Nobody is here, and it is nobody's: the state says all there is."""
        return not (self.members or self.roster or self.state.holder or self._pending)
