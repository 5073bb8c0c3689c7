"""What the client hands out: records and receipts."""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class Record(msgspec.Struct, gc=False):
    """One record of a subscription.

    timestamp: when the slot's leader appended it, in ms since 1970; the same for all records of a batch
    headers: empty when it has none
    attempts: how often it was handed out, this time included
    """

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes
    headers: dict[str, bytes]
    attempts: int = 1


class Receipt(NamedTuple):
    """The record is stored at this place; `copies` peers had it on disk when this was sent.

    `offset` is None at acks="leader" and "none": the record may still be lost.
    """

    topic: str
    partition: int
    offset: int | None
    copies: int

    @property
    def state(self) -> str:
        """`committed`; `accepted` where less was asked for. Of an outbox's, see QueuedReceipt."""
        return "accepted" if self.offset is None else "committed"

    async def committed(self, timeout: float | None = None) -> Receipt:
        """Itself: what an outbox's receipt becomes later."""
        return self
