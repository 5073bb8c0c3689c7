"""Where a group stands in one partition, whatever its mode: settings, cursor, what expired, the last reset.

How records are handed out and done is the mode's own (state.py, ordered_state.py).
"""

from __future__ import annotations

from meshq.streams.groups.words import Delete, Mode, Op, Open, Range, Reset, Told


class Standing:
    """Changed by `apply` only. Same entries, same state, on every replica."""

    __slots__ = ("ack_wait_ms", "acked", "expired", "low", "max_deliver", "mode", "next", "reset", "told")

    def __init__(self, opened: Open) -> None:
        self.mode = Mode(opened.mode)
        self.ack_wait_ms = opened.ack_wait_ms
        self.max_deliver = opened.max_deliver
        self.next = opened.start
        self.acked = 0  # in all
        self.low = 0  # of the partition: what is before it has expired
        self.expired = 0  # in all: went before they were acknowledged, and cannot be handed out any more
        self.told = 0  # of these a member was told
        self.reset = b""  # the name of the last reset

    def apply(self, op: Op, index: int) -> tuple[Range, ...]:
        """What of it did not count."""
        match op:
            case Open():
                self.ack_wait_ms, self.max_deliver = op.ack_wait_ms, op.max_deliver
                self._on_settings()
                return ()
            case Told():
                self.told = max(self.told, min(op.expired, self.expired))
                return ()
            case Delete():
                return ()  # not of one group's state
            case Reset() if op.since != self.reset:
                return ((op.start, op.start),)
            case Reset():
                return self._reset(op)
            case _:
                return self._apply(op, index)

    def _on_settings(self) -> None:
        """They may be others now."""

    def _reset(self, op: Reset) -> tuple[Range, ...]:
        """It comes behind the one that its asker saw. Has to note its name, if it counts."""
        raise NotImplementedError

    def _apply(self, op: Op, index: int) -> tuple[Range, ...]:
        raise NotImplementedError
