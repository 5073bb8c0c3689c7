"""One group in one partition, as the log tells it: a cursor, and what is between it and the end.

Below `next` every record has been handed out at least once, at `next` and above none. Of those below, the
ones that are leased, the ones that came back and the ones that are dying are listed, as runs; everything else
is done. So a million records that wait cost nothing, acknowledged ones cost nothing, and what is listed is
bounded by what may be in flight (GROUP_PENDING_MAX). The cursor (`floor`) is the first one listed, or `next`.

A record is *dying* when it was handed out as often as it may be and came back, or was rejected: nobody gets
it any more, and its leader has yet to move it to the dead letters. Only that entry (Bury) ends it, so a
leader that sees a record dying knows that it can be moved, whatever else is on its way.

Durations are kept, never points in time: a new leader begins each one anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from meshq.limits import GROUP_REASONS_MAX
from meshq.streams.groups.intervals import Intervals
from meshq.streams.groups.rewound import Rewound
from meshq.streams.groups.standing import Standing
from meshq.streams.groups.words import (
    LEADER,
    Bury,
    Grant,
    Lapse,
    Op,
    Open,
    Pass,
    Range,
    Redrive,
    Reset,
    Settle,
    Verdict,
)

MAX_DELIVER, REJECTED = "max_deliver", "rejected"  # why it is dying, when nobody gave a reason
GRAVES_MAX = 256  # runs; the lowest is forgotten


class Lease(NamedTuple):
    member: bytes
    lease: int  # index of the entry that granted it
    attempts: int  # this one included


class Back(NamedTuple):
    """To be handed out again. `delay_ms` from when it came back."""

    attempts: int
    delay_ms: int


class Dying(NamedTuple):
    """To be moved to the dead letters."""

    attempts: int
    reason: str


class GroupState(Standing):
    """Of a queue or keyed group. `next`: every record below was handed out at least once."""

    __slots__ = (
        "_reasons", "back", "buried", "dying", "graves", "leased", "letters", "redelivered", "redriven",
        "rewound",
    )  # fmt: skip

    def __init__(self, opened: Open) -> None:
        super().__init__(opened)
        self.leased: Intervals[Lease] = Intervals()
        self.back: Intervals[Back] = Intervals()
        self.dying: Intervals[Dying] = Intervals()  # changed by `_die` and `_end_dying`
        self._reasons: Counter[str] = Counter()  # of those, why how many are; GROUP_REASONS_MAX, and two more
        self.redelivered = 0  # handed out a second time or later
        self.buried = 0  # moved to the dead letters
        self.redriven = 0  # dead letters below this offset of theirs were put back
        self.letters = 0  # where the dead letters end
        self.rewound = Rewound()  # of these, which a reset has made void
        self.graves: Intervals[bool] = Intervals()  # which, of late: who acknowledges one too late is told

    @property
    def floor(self) -> int:
        """Every record below is acknowledged, or a dead letter."""
        firsts = (self.leased.first, self.back.first, self.dying.first, self.next)
        return min(x for x in firsts if x is not None)

    @property
    def pending(self) -> int:
        """Records handed out and not done."""
        return self.leased.count + self.back.count + self.dying.count

    def expire(self, low: int) -> None:
        """Records before `low` are not there any more. What is out may still be acknowledged."""
        self.low = low
        gone = list(self.back.runs(0, low))
        for first, end, _ in gone:
            self.back.remove(first, end)
        self.expired += sum(end - first for first, end, _ in gone) + max(low - self.next, 0)
        self.next = max(self.next, low)

    def _on_settings(self) -> None:
        for first, end, back in list(self.back.runs()):
            self._take_back(first, end, back)

    def _apply(self, op: Op, index: int) -> tuple[Range, ...]:
        match op:
            case Grant():
                return tuple(r for r in op.ranges if not self._grant(op.member, *r, index))
            case Settle():
                return tuple(r for x in op.ranges for r in self._settle(op, *x))
            case Bury():
                return tuple(r for r in op.ranges if not self._bury(*r))
            case Lapse():
                self._lapse()
                return ()
            case Redrive():
                return () if self._redrive(op) else ((op.since, op.end),)
            case Pass():
                return () if self._pass(op.first, op.end) else ((op.first, op.end),)
            case _:
                return ()  # here each record has its own lease

    def _reset(self, op: Reset) -> tuple[Range, ...]:
        if self.dying:  # handed out again, such a record would be done and a dead letter
            return tuple((first, end) for first, end, _ in self.dying.runs())
        self.reset = op.name
        if op.start < self.next and self.letters > self.redriven:
            self.rewound.on_reset(self.letters, op.start)
        self.next = op.start
        self.leased, self.back, self.graves = Intervals(), Intervals(), Intervals()
        self.expire(self.low)
        return ()

    def _grant(self, member: bytes, first: int, end: int, index: int) -> bool:
        if first == self.next:
            self.leased.set(first, end, Lease(member, index, 1))
            self.next = end
            return True
        again = list(self.back.runs(first, end))
        for start, stop, back in again:
            self.back.remove(start, stop)
            self.leased.set(start, stop, Lease(member, index, back.attempts + 1))
            self.redelivered += stop - start if back.attempts else 0
        return sum(stop - start for start, stop, _ in again) == end - first

    def _pass(self, first: int, end: int) -> bool:
        if first != self.next:
            return False
        self.back.set(first, end, Back(0, 0))
        self.next = end
        return True

    def _settle(self, op: Settle, first: int, end: int, lease: int) -> list[Range]:
        held = [
            (start, stop, x)
            for start, stop, x in self.leased.runs(first, end)
            if x.lease == lease and op.member in (x.member, LEADER)
        ]
        for start, stop, x in held:
            self.leased.remove(start, stop)
            match op.verdict:
                case Verdict.ACK:
                    self.acked += stop - start
                case Verdict.RELEASE:
                    self._take_back(start, stop, Back(x.attempts - 1, 0))
                case Verdict.REJECT:
                    self._die(start, stop, Dying(x.attempts, self._reason(op.reason)))
                case _:
                    self._take_back(start, stop, Back(x.attempts, op.delay_ms))
        if op.verdict == Verdict.ACK:
            return self._unsettled(first, end)
        return _without(first, end, held)

    def _take_back(self, first: int, end: int, back: Back) -> None:
        """To be handed out again, as far as it is still there, unless that was done as often as it may be."""
        if self.max_deliver and back.attempts >= self.max_deliver:
            self.back.remove(first, end)
            self._die(first, end, Dying(back.attempts, MAX_DELIVER))
            return
        there = self._pass_by(first, end)
        self.back.set(there, end, back)

    def _die(self, first: int, end: int, why: Dying) -> None:
        there = self._pass_by(first, end)
        self._end_dying(there, end)
        if there < end:
            self.dying.set(there, end, why)
            self._reasons[why.reason] += end - there

    def _end_dying(self, first: int, end: int) -> int:
        """How many there were."""
        count = 0
        for start, stop, why in list(self.dying.runs(first, end)):
            count += stop - start
            self._reasons[why.reason] -= stop - start
            if not self._reasons[why.reason]:
                del self._reasons[why.reason]
        self.dying.remove(first, end)
        return count

    def _reason(self, given: str) -> str:
        """As it was given, while there are few different ones: the row is written whole each time."""
        if given in self._reasons or len(self._reasons) < GROUP_REASONS_MAX:
            return given or REJECTED
        return REJECTED

    def _pass_by(self, first: int, end: int) -> int:
        """Where what is still there begins; the records before that have expired."""
        there = min(max(first, self.low), end)
        self.expired += there - first
        return there

    def _lapse(self) -> None:
        """Of what is dying too nothing is left that could be moved."""
        self.expired += self._end_dying(0, self.low)

    def _bury(self, first: int, end: int) -> bool:
        if next(self.dying.gaps(first, end), None) is not None:
            return False
        self.buried += self._end_dying(first, end)
        self.graves.set(first, end, True)
        while len(self.graves) > GRAVES_MAX:
            start, stop, _ = next(self.graves.runs())
            self.graves.remove(start, stop)
        return True

    def on_letters(self, first: int, end: int) -> None:
        """They are stored there: below where they ended if the topic of the letters was deleted, and begins
        anew.
        """
        self.redriven = min(self.redriven, first)
        if first < self.letters:
            self.rewound = Rewound()
        self.letters = end

    def _redrive(self, op: Redrive) -> bool:
        """Records are to be handed out again, as if they had never been. What is out all the same (a reset
        came between) stays as it is.
        """
        if (op.since, op.reset) != (self.redriven, self.reset):
            return False
        self.redriven = op.end
        self.rewound.on_redriven(op.end)
        for first, end in op.ranges:
            self.graves.remove(first, end)
            for start, stop in list(self._done(first, min(end, self.next))):
                self.back.set(self._pass_by(start, stop), stop, Back(0, 0))
        return True

    def _done(self, first: int, end: int) -> Iterator[Range]:
        """Of these, which nobody has or waits for."""
        for a, b in self.leased.gaps(first, end):
            for c, d in self.back.gaps(a, b):
                yield from self.dying.gaps(c, d)

    def _unsettled(self, first: int, end: int) -> list[Range]:
        """What is not acknowledged. That somebody else has done it, or the same one before, is as good."""
        found = [(s, e) for s, e, _ in self.leased.runs(first, end)]
        found += [(s, e) for s, e, _ in self.back.runs(first, end)]
        found += [(s, e) for runs in (self.dying, self.graves) for s, e, _ in runs.runs(first, end)]
        return [*found, (max(first, self.next), end)] if end > self.next else found

    # -------------------------------------------------------------------------------------- on disk
    def encode(self) -> bytes:
        members = list(dict.fromkeys(x.member for _, _, x in self.leased.runs()))
        number = {member: i for i, member in enumerate(members)}
        reasons = list(dict.fromkeys(x.reason for _, _, x in self.dying.runs()))
        place = {reason: i for i, reason in enumerate(reasons)}
        return _encoder.encode(
            _Row(
                self.mode, self.ack_wait_ms, self.max_deliver, self.next, self.acked, self.redelivered,
                members,
                [(s, e, number[x.member], x.lease, x.attempts) for s, e, x in self.leased.runs()],
                [(s, e, x.attempts, x.delay_ms) for s, e, x in self.back.runs()],
                self.buried, reasons,
                [(s, e, x.attempts, place[x.reason]) for s, e, x in self.dying.runs()],
                [(s, e) for s, e, _ in self.graves.runs()],
                self.redriven, self.low, self.expired, self.told, self.letters, self.rewound.notes,
                self.reset,
            )
        )  # fmt: skip


def decode_state(data: bytes) -> GroupState:
    """Raises: msgspec.MsgspecError."""
    row = _decoder.decode(data)
    state = GroupState(Open(row.mode, row.ack_wait_ms, row.max_deliver, row.next))
    state.acked, state.redelivered = row.acked, row.redelivered
    state.buried, state.redriven = row.buried, row.redriven
    state.low, state.expired, state.told = row.low, row.expired, row.told
    state.letters, state.rewound, state.reset = row.letters, Rewound(row.rewound), row.reset
    for first, end, member, lease, attempts in row.leased:
        state.leased.set(first, end, Lease(row.members[member], lease, attempts))
    for first, end, attempts, delay_ms in row.back:
        state.back.set(first, end, Back(attempts, delay_ms))
    for first, end, attempts, reason in row.dying:
        state.dying.set(first, end, Dying(attempts, row.reasons[reason]))
        state._reasons[row.reasons[reason]] += end - first
    for first, end in row.graves:
        state.graves.set(first, end, True)
    return state


class _Row(msgspec.Struct, frozen=True, array_like=True):
    mode: int
    ack_wait_ms: int
    max_deliver: int
    next: int
    acked: int
    redelivered: int
    members: list[bytes]  # named by their places in `leased`
    leased: list[tuple[int, int, int, int, int]]
    back: list[tuple[int, int, int, int]]
    buried: int = 0
    reasons: list[str] = []  # named by their places in `dying`
    dying: list[tuple[int, int, int, int]] = []
    graves: list[tuple[int, int]] = []
    redriven: int = 0
    low: int = 0
    expired: int = 0
    told: int = 0
    letters: int = 0
    rewound: list[tuple[int, int]] = []
    reset: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Row)


def _without(first: int, end: int, held: list[tuple[int, int, Lease]]) -> list[Range]:
    gaps, at = [], first
    for start, stop, _ in held:
        if at < start:
            gaps.append((at, start))
        at = stop
    return [*gaps, (at, end)] if at < end else gaps
