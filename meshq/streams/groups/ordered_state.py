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
from meshq.streams.groups.state import Dying
from meshq.streams.groups.words import (
    LEADER,
    Assign,
    Delete,
    Mode,
    Op,
    Open,
    Pass,
    Range,
    Redrive,
    Reset,
    Settle,
    Verdict,
)


class OrderedState:
    """Changed by `apply` only. Same entries, same state, on every replica."""

    __slots__ = ("ack_wait_ms", "acked", "before", "holder", "lease", "max_deliver", "mode", "next", "tries")

    def __init__(self, opened: Open) -> None:
        self.mode = Mode.ORDERED
        self.ack_wait_ms = opened.ack_wait_ms  # how long a member may be silent
        self.max_deliver = opened.max_deliver
        self.next = opened.start  # the cursor: every record below is done
        self.holder = b""  # whose the partition is; nobody's: empty
        self.lease = 0  # index of the entry that granted it
        self.tries = 0  # leases in a row that began at this cursor
        self.before = (b"", 0, 0)  # the lease before: whose it was, its number, the cursor it left
        self.acked = 0  # in all

    @property
    def floor(self) -> int:
        """Every record below is acknowledged."""
        return self.next

    @property
    def dying(self) -> Intervals[Dying]:
        """Nothing ever is: what is behind a record waits for it."""
        return Intervals()

    def apply(self, op: Op, index: int) -> tuple[Range, ...]:
        """What of it did not count."""
        match op:
            case Open():
                self.ack_wait_ms, self.max_deliver = op.ack_wait_ms, op.max_deliver
                return ()
            case Assign():
                if not self.holder:
                    self.holder, self.lease = op.member, index
                    self.tries += 1
                return ()
            case Settle():
                return tuple(
                    (first, end) for first, end, lease in op.ranges if not self._settle(op, end, lease)
                )
            case Pass():
                return ((op.first, op.end),)
            case Reset():
                self.next, self.tries = op.start, 0
                self.holder, self.lease, self.before = b"", 0, (b"", 0, 0)
                return ()
            case Delete():
                return ()
            case Redrive():
                return ((op.since, op.end),)
            case _:
                return op.ranges

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
                self.tries, self.before,
            )
        )  # fmt: skip


def decode_ordered(data: bytes) -> OrderedState:
    """Raises: msgspec.MsgspecError."""
    row = _decoder.decode(data)
    state = OrderedState(Open(row.mode, row.ack_wait_ms, row.max_deliver, row.next))
    state.acked, state.holder, state.lease = row.acked, row.holder, row.lease
    state.tries, state.before = row.tries, row.before
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


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Row)
