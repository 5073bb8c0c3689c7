"""Who takes part in an ordered group, as one peer sees it: the members that its assignment is made from.

A member is there from its first Join until it leaves, or until it has been silent for as long as it said
itself: its connection may break meanwhile, and nobody else gets what it has. What counts is its own word, the
heartbeat that its credit carries; whether some host is believed dead does not come into it.

A new leader knows only who holds what (from the log). They count as members, heard of just now; for a moment
nothing is taken from them, because the others have yet to come and the share of each would be too large.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Final

from meshq.streams.groups.assignment import assign
from meshq.streams.groups.hands import Member
from meshq.streams.groups.table import GroupKey

GATHERING_S: Final = 1.0  # a new leader takes from no holder before


@dataclass(slots=True, eq=False)
class _Seat:
    timeout: float
    heard: float
    member: Member | None = None  # its newest connection

    def until(self) -> float:
        heard = self.heard if self.member is None else max(self.heard, self.member.heard)
        return heard + self.timeout


@dataclass(slots=True, eq=False)
class Roster:
    """Of one group and topic. `partitions()`: how many there are now; 0: not known just now. `changed(key)`:
    have that desk look.
    """

    partitions: Callable[[], int]
    changed: Callable[[GroupKey], None]
    desks: dict[GroupKey, None] = field(default_factory=dict)
    gathering_until: float = -inf
    _seats: dict[bytes, _Seat] = field(default_factory=dict)  # ORDERED_MEMBERS_MAX
    _table: list[bytes] | None = None
    _count: int = 0  # of partitions, as last known

    def __len__(self) -> int:
        return len(self._seats)

    def __contains__(self, member: bytes) -> bool:
        return member in self._seats

    def join(self, member: Member, timeout: float, now: float) -> None:
        seat = self._seats.get(member.id)
        if seat is None:
            seat = self._seats[member.id] = _Seat(timeout, now)
            self._change()
        member.heard, member.was_silent = max(member.heard, now), False
        seat.member, seat.timeout = member, timeout

    def expect(self, member: bytes, timeout: float, now: float) -> None:
        """It holds a partition of which this peer has become the leader."""
        if member not in self._seats:
            self._seats[member] = _Seat(timeout, now)
            self.gathering_until = now + GATHERING_S
            self._change()

    def leave(self, member: Member) -> None:
        """For good; unless it is a former connection of somebody who is here again."""
        seat = self._seats.get(member.id)
        if seat is not None and seat.member in (member, None):
            del self._seats[member.id]
            self._change()

    def look(self, now: float) -> None:
        """Let go of who has been silent for too long."""
        gone = [m for m, seat in self._seats.items() if seat.until() <= now]
        for member in gone:
            seat = self._seats.pop(member)
            if seat.member is not None:
                seat.member.was_silent = True
        if gone:
            self._change()

    def on_stall(self, seconds: float) -> None:
        """This peer itself did not run for so long: what it did not hear then says nothing of anybody."""
        for seat in self._seats.values():
            seat.heard = seat.until() - seat.timeout + seconds

    def deadline(self) -> float:
        return min((seat.until() for seat in self._seats.values()), default=inf)

    def member_for(self, partition: int) -> bytes:
        """Whose it should be; nobody's: empty."""
        count = self.partitions() or self._count
        if count != self._count:  # there are more: each desk's share is another
            self._count = count
            self._change()
        if self._table is None:
            self._table = assign(self._seats, count)
        return self._table[partition] if partition < len(self._table) else b""

    def _change(self) -> None:
        self._table = None
        for key in self.desks:
            self.changed(key)
