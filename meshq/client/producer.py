"""A producer: records in, receipts out.

`send` is called millions of times, so it does next to nothing: it puts the record into the open batch of its
partition and returns. Which batch that is and when it leaves is `batching`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final

from meshq.batch import Buffer, RawRecord
from meshq.client.batching import NO_LIMIT, Batching
from meshq.client.checking import (
    RECORD_OVERHEAD_BYTES,
    Headers,
    check_headers,
    check_key,
    check_value,
    record_bytes,
    too_large,
)
from meshq.client.outgoing import PendingReceipt
from meshq.errors import MeshqError, UsageError
from meshq.limits import BATCH_RECORDS_MAX

_MANY: Final = 64  # records `send_many` looks at together


class Producer(Batching):
    """Made by `Mesh.producer`. To be used on the loop's thread.

    Raises (from an awaited PendingReceipt): Unavailable and its kin, TooLarge, Forbidden, TopicGone:
    certainly not stored. OutcomeUnknown: sent, and not answered in `timeout` seconds; its `retry()` waits on.
    """

    # -------------------------------------------------------------------------------------- sending
    def send(
        self, value: Buffer, *, key: bytes | None = None, headers: Headers | None = None
    ) -> PendingReceipt:
        """Take a record; await the result for its receipt, or leave it to `flush`.

        Raises: Overloaded when `buffer_bytes` are waiting (`await ready()` first), TooLarge, UsageError.
        """
        if key is None and headers is None and type(value) is bytes:
            size = len(value)
            encoded = size + RECORD_OVERHEAD_BYTES
            batch = self._sticky_batch
            if (
                batch is not None
                and size <= self._record_bytes_max
                and (room := self._room).used < room.limit
                and batch.bytes + encoded <= self._batch_bytes
                and (index := len(batch.records)) < BATCH_RECORDS_MAX
            ):
                if self._clock_is_old:
                    self._look_at_clock()
                batch.records.append(value)
                batch.bytes += encoded
                room.used += encoded
                return PendingReceipt(batch, index)
        return self.send_within(self._timeout, value, key=key, headers=headers)

    def send_many(self, values: Sequence[bytes]) -> int:
        """Take records that have neither key nor headers, as many as there is room for; how many were taken.

        Faster than `send` for each: no handle is made, `flush` tells what failed. Take the rest after
        `await ready()`. Raises: TooLarge, UsageError; records before the faulty one were taken.
        """
        taken, size = 0, _MANY
        while taken < len(values) and not self.is_full():
            some = values[taken : taken + size]
            if self._take_many(some):
                taken, size = taken + len(some), _MANY
            elif len(some) > 1:
                size = len(some) // 2  # toward the one that does not fit, or may not be
            else:
                self.send(some[0])
                taken, size = taken + 1, _MANY
        return taken

    def _take_many(self, values: Sequence[bytes]) -> bool:
        """Put them all into the open batch, if they are what they should be and fit."""
        batch = self._sticky_batch
        if batch is None or set(map(type, values)) != {bytes}:
            return False
        sizes = list(map(len, values))
        encoded = sum(sizes) + RECORD_OVERHEAD_BYTES * len(values)
        if (
            max(sizes) > self._record_bytes_max
            or batch.bytes + encoded > self._batch_bytes
            or len(batch.records) + len(values) > BATCH_RECORDS_MAX
        ):
            return False
        if self._clock_is_old:
            self._look_at_clock()
        batch.records += values
        batch.bytes += encoded
        self._room.used += encoded
        return True

    def send_within(
        self, timeout: float, value: Buffer, *, key: bytes | None = None, headers: Headers | None = None
    ) -> PendingReceipt:
        """`send` with a deadline of its own; records of another one go into another batch."""
        if self._closed:
            raise UsageError(f"the producer for {self.topic} was closed: make another one")
        if self.is_full():
            self._room.refuse()
        if type(value) is not bytes or key is not None or headers is not None:
            return self.take(timeout, check_value(value), check_key(key), check_headers(headers))
        return self.take(timeout, value, None, None)

    def take(
        self, timeout: float, value: bytes, key: bytes | None, headers: dict[str, bytes] | None
    ) -> PendingReceipt:
        """A record that was checked, even when there is no room: its sender looked already. Raises:
        TooLarge.
        """
        size, encoded = record_bytes(value, key, headers)
        if size > self._record_bytes_max:
            if size > NO_LIMIT or self._freshness.is_sure():
                raise too_large(size, self._record_bytes_max, self.topic)
            self._forget_topic()  # its limit may have been raised since
            self._limbo.want_fresh()
        alone = self._one_at_a_time and not (self._linger_s or self._under_way or self._open)
        if alone:
            self._now_ms = int(time.time() * 1000)
        elif self._clock_is_old:
            self._look_at_clock()
        record = RawRecord(key, value, headers, 0)
        self._room.used += encoded
        if self._info is None:
            return self._limbo.take(record, encoded, timeout)
        batch = self._batch_for(self._info, record, encoded, timeout)
        receipt = PendingReceipt(batch, len(batch.records) - 1)
        if alone:
            self._seal(batch)
        return receipt

    async def ready(self, timeout: float | None = None) -> None:
        """Wait until `send` takes records again. Raises: Overloaded when it does not within the timeout."""
        if not self.is_full():
            return
        self.seal()
        await self._room.wait(self._timeout if timeout is None else timeout)

    async def flush(self) -> None:
        """Send what there is and wait until it is answered, at most the producer's timeout.

        Raises: the first error of records that failed and whose callers were not told by their own receipts,
        with their number; OutcomeUnknown when any of them may have been stored.
        """
        self.seal()
        while self._limbo:
            await self._limbo.changed()
            self.seal()
        for batch in list(self._unanswered):
            if not batch.answered:
                await batch.wait()
        if self._failures:
            await asyncio.sleep(0)  # who awaits a receipt was woken before this, and is told first
        error = self.take_failures()
        if error is not None:
            raise error

    def take_failures(self) -> MeshqError | None:
        """What `flush` would raise now, without waiting; once."""
        return self._failures.take()

    async def close(self) -> None:
        """Flush, and take no more. Raises as `flush` does."""
        self._closed = True
        self._sticky_batch = None
        await self.flush()

    async def __aenter__(self) -> Producer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
            return
        self._closed = True
        self._sticky_batch = None
        self.seal()
        if isinstance(error, Exception):
            try:
                await self.flush()
            except MeshqError as e:
                error.add_note(f"closing the producer for {self.topic} failed too: {e}")

    @property
    def failed_records(self) -> int:
        """How many failed without their callers being told by their own receipts, over its life."""
        return self._failures.records

    @property
    def has_failures(self) -> bool:
        """Whether `flush` would raise."""
        return bool(self._failures)

    @property
    def buffered_bytes(self) -> int:
        """Taken, and not known to be stored or failed."""
        return self._room.used

    def is_full(self) -> bool:
        """Whether `send` would raise Overloaded."""
        return self._room.used >= self._room.limit

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def is_idle(self) -> bool:
        return self._room.used == 0
