"""An ordered group in one partition, as the log tells it: whose the partition is, and up to where it is done.

The partition is with one member at a time, under a lease named by the index of the entry that granted it.
Records are done in order, so what is done is one number, the cursor. A lease ends before the next one is
granted, and a word under any other lease than the one that stands does not count: whoever was slow, or cut
off, or believed dead cannot move the cursor under its successor (fencing, Kleppmann 2016; Chubby's
sequencers, Burrows 2006).

How far records were handed out is not in the log: who gets the partition begins at the cursor.
"""

from __future__ import annotations

import msgspec

from meshq.streams.groups.intervals import Intervals
from meshq.streams.groups.standing import Standing
from meshq.streams.groups.state import Dying
from meshq.streams.groups.words import (
    LEADER,
    Assign,
    Bury,
    Grant,
    Op,
    Open,
    Pass,
    Range,
    Redrive,
    Reset,
    Settle,
    Verdict,
)


class OrderedState(Standing):
    """`next` is the cursor; `ack_wait_ms` how long a member may be silent."""

    __slots__ = ("before", "holder", "lease", "tries")

    def __init__(self, opened: Open) -> None:
        super().__init__(opened)
        self.holder = b""  # whose the partition is; nobody's: empty
        self.lease = 0  # index of the entry that granted it
        self.tries = 0  # leases in a row that began at this cursor
        self.before = (b"", 0, 0)  # the lease before: whose it was, its number, the cursor it left

    @property
    def floor(self) -> int:
        """Every record below is acknowledged."""
        return self.next

    @property
    def dying(self) -> Intervals[Dying]:
        """Nothing ever is: what is behind a record waits for it."""
        return Intervals()

    def expire(self, low: int) -> None:
        """Records before `low` are not there any more. Whoever holds the partition may still acknowledge
        what it was handed; the next one begins behind what is gone.
        """
        self.low = low
        if not self.holder:
            self._pass_by()

    def _pass_by(self) -> None:
        if self.next < self.low:
            self.expired += self.low - self.next
            self.next, self.tries = self.low, 0

    def _apply(self, op: Op, index: int) -> tuple[Range, ...]:
        match op:
            case Assign():
                if not self.holder:
                    self._pass_by()
                    self.holder, self.lease = op.member, index
                    self.tries += 1
                return ()
            case Settle():
                return tuple(
                    (first, end) for first, end, lease in op.ranges if not self._settle(op, end, lease)
                )
            case Pass():
                return ((op.first, op.end),)
            case Redrive():
                return ((op.since, op.end),)
            case Grant() | Bury():
                return op.ranges
            case _:
                return ()  # nothing is ever dying here

    def _reset(self, op: Reset) -> tuple[Range, ...]:
        self.reset, self.next, self.tries = op.name, op.start, 0
        self.holder, self.lease, self.before = b"", 0, (b"", 0, 0)
        self._pass_by()
        return ()

    def _settle(self, op: Settle, end: int, lease: int) -> bool:
        if op.verdict != Verdict.ACK:
            self._release(op.member, lease)
            return True  # it is not the member's, now or since before
        if self.holder and (self.holder, self.lease) == (op.member, lease):
            if end > self.next:
                self.acked += end - self.next
                self.next = end
                self.tries = 1
            return True
        # An answer that was lost is asked for again: what this lease had acknowledged stays acknowledged.
        member, number, cursor = self.before
        return (member, number) == (op.member, lease) and end <= cursor

    def _release(self, member: bytes, lease: int) -> None:
        if self.holder and self.lease == lease and member in (self.holder, LEADER):
            self.before = (self.holder, lease, self.next)
            self.holder, self.lease = b"", 0

    # -------------------------------------------------------------------------------------- on disk
    def encode(self) -> bytes:
        return _encoder.encode(
            _Row(
                self.mode, self.ack_wait_ms, self.max_deliver, self.next, self.acked, self.holder, self.lease,
                self.tries, self.before, self.low, self.expired, self.told, self.reset,
            )
        )  # fmt: skip


def decode_ordered(data: bytes) -> OrderedState:
    """Raises: msgspec.MsgspecError."""
    row = _decoder.decode(data)
    state = OrderedState(Open(row.mode, row.ack_wait_ms, row.max_deliver, row.next))
    state.acked, state.holder, state.lease = row.acked, row.holder, row.lease
    state.tries, state.before = row.tries, row.before
    state.low, state.expired, state.told, state.reset = row.low, row.expired, row.told, row.reset
    return state


class _Row(msgspec.Struct, frozen=True, array_like=True):
    mode: int
    ack_wait_ms: int
    max_deliver: int
    next: int
    acked: int
    holder: bytes
    lease: int
    tries: int
    before: tuple[bytes, int, int]
    low: int = 0
    expired: int = 0
    told: int = 0
    reset: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Row)
