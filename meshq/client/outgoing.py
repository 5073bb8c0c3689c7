"""A producer's batch from its first record to its receipt, and the small thing a caller holds for each
record.

Per record there is only a `PendingReceipt` of two words: which batch, and the place in it. The batch knows
what became of all of them at once, so a receipt's offset is the batch's plus the place. A future is made only
when somebody awaits before that; nobody awaiting is no error by itself, the producer's `flush` tells of it.
A failed batch notes which of its records' callers were told, so that `flush` tells of the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import msgspec

from meshq.batch import RawRecord
from meshq.client.records import Receipt
from meshq.errors import MeshqError, OutcomeUnknown
from meshq.messages import Accepted, TopicInfo


class PublishOutcomeUnknown(OutcomeUnknown):
    """Sent, but not answered in time. The batch is still being sent, in a way that can't store it twice."""

    def __init__(self, text: str = "", *, retry_after_ms: int = 0) -> None:
        super().__init__(text, retry_after_ms=retry_after_ms)
        self._batch: OutgoingBatch | None = None
        self._index = 0

    @classmethod
    def of(cls, error: MeshqError, batch: OutgoingBatch, index: int) -> PublishOutcomeUnknown:
        unknown = cls(str(error))
        unknown._batch, unknown._index = batch, index
        return unknown

    async def retry(self, timeout: float = 30.0) -> Receipt:
        """Wait for the same batch again. Raises: OutcomeUnknown (as this one) when it is still not known
        after `timeout` seconds or never will be; any other error means that it was certainly not stored."""
        if self._batch is None:
            raise OutcomeUnknown(str(self))
        return await self._batch.retry(self._index, timeout)


class OutgoingBatch:
    """Records of one partition under way; hears of its ticket as a driver's Waiter."""

    __slots__ = (
        "_delta_ms", "_loop", "_on_answered", "_on_ended", "_waiting", "_waiting_for_end", "answered",
        "base_ms", "bytes", "count", "deltas", "due", "ended", "error", "info", "opened_at", "partition",
        "receipt", "records", "timeout", "told",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        info: TopicInfo | None,
        partition: int,
        base_ms: int,
        opened_at: float,
        timeout: float,
        on_answered: Callable[[OutgoingBatch], None],
        on_ended: Callable[[OutgoingBatch], None],
    ) -> None:
        self._loop = loop
        self._on_answered = on_answered
        self._on_ended = on_ended
        self._waiting: list[asyncio.Future[None]] = []  # one for each who awaits, until it is answered
        self._waiting_for_end: list[asyncio.Future[None]] = []
        self.info = info
        self.partition = partition
        self.base_ms = base_ms
        self.opened_at = opened_at
        self.timeout = timeout
        # Plain values as they are, all else as a RawRecord. At most BATCH_RECORDS_MAX; none once sealed.
        self.records: list[RawRecord | bytes] = []
        self.deltas = [(0, 0)]  # (place, ms since base_ms) of plain values from this place on
        self._delta_ms = 0
        self.count = 0  # of records, once sealed
        self.bytes = 0
        self.due = False  # its linger is over: to be sealed as soon as there is room in flight
        self.receipt: Accepted | None = None
        self.error: MeshqError | None = None
        self.answered = False  # callers have been told something
        self.ended = False  # nothing else will become of it
        self.told: set[int] | None = None  # records whose callers got the error, when it failed

    def on_time(self, now_ms: int) -> None:
        """Records from here on were made at this time."""
        delta_ms = now_ms - self.base_ms
        if delta_ms != self._delta_ms:
            self._delta_ms = delta_ms
            self.deltas.append((len(self.records), delta_ms))

    @property
    def untold(self) -> int:
        """How many of its records failed and nobody has been told."""
        return 0 if self.error is None else self.count - len(self.told or ())

    def settled(self, value: Accepted) -> None:
        self.receipt, self.error = value, None
        self._end()

    def failed(self, error: MeshqError) -> None:
        self.error = error
        self._end()

    def doubted(self, error: MeshqError) -> None:
        self.error = error
        self._answer()

    def _answer(self) -> None:
        if not self.answered:
            self.answered = True
            self._on_answered(self)
            _wake(self._waiting)

    def _end(self) -> None:
        self.ended = True
        self._on_ended(self)
        self._answer()
        if self._waiting_for_end:
            _wake(self._waiting_for_end)

    def wake(self) -> None:
        """Let those who await look again: their records moved to other batches."""
        _wake(self._waiting)

    def wait(self) -> asyncio.Future[None]:
        """Done once it is answered. Everybody gets a future of his own: cancelling one leaves the others
        alone.
        """
        future = self._loop.create_future()
        self._waiting.append(future)
        return future

    def receipt_of(self, index: int) -> Receipt:
        """Raises what became of it, as an error of the caller's own."""
        receipt, error = self.receipt, self.error
        if receipt is not None and self.info is not None:
            base = receipt.base_offset
            offset = None if base is None else base + index
            return Receipt(self.info.name, self.partition, offset, receipt.copies)
        assert error is not None
        self.told = self.told or set()
        self.told.add(index)
        if isinstance(error, OutcomeUnknown):
            raise PublishOutcomeUnknown.of(error, self, index)
        raise type(error)(str(error), retry_after_ms=error.retry_after_ms)

    async def retry(self, index: int, timeout: float) -> Receipt:
        if not self.ended:
            future = self._loop.create_future()
            self._waiting_for_end.append(future)
            try:
                await asyncio.wait_for(future, timeout)
            except TimeoutError:
                self._waiting_for_end.remove(future)
        return self.receipt_of(index)


class PendingReceipt(msgspec.Struct, gc=False, eq=False):
    """Await it for the record's Receipt. Raises: any MeshqError; all but OutcomeUnknown mean certainly not
    stored.
    """

    batch: OutgoingBatch
    index: int

    def __await__(self) -> Generator[Any, None, Receipt]:
        while not self.batch.answered:
            yield from self.batch.wait()
        return self.batch.receipt_of(self.index)

    def done(self) -> bool:
        return self.batch.answered


def _wake(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
    futures.clear()
