"""A producer: records in, batches out.

`send` is called millions of times, so it does next to nothing: it puts the record into the open batch of its
partition and returns. A batch is sealed when it is full, or when `linger_ms` have passed since the first
record in any open one; with `in_flight` batches of its partition unanswered it waits for one of them instead
of queueing behind as a small one. Without linger it is sealed at the end of the loop's turn, so that what is
sent together travels together; at once, where the last batch was one record and has been answered: that is
somebody who waits for each.

Keyed records go to partition `crc32(key) % partitions`. Records without a key fill one partition's batch,
then the next partition's: full batches wherever, instead of small ones everywhere (Kafka's KIP-480).
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Sequence
from types import TracebackType
from typing import Final

from meshq import batch as batches
from meshq.batch import Buffer, RawRecord
from meshq.client.checking import (
    RECORD_OVERHEAD_BYTES,
    Acks,
    Headers,
    check_acks,
    check_headers,
    check_key,
    check_producer,
    check_value,
    record_bytes,
    too_large,
)
from meshq.client.driver import ClientDriver
from meshq.client.facts import BatchSealed
from meshq.client.failures import Failures
from meshq.client.freshness import Freshness
from meshq.client.limbo import Limbo, Waiting
from meshq.client.outgoing import OutgoingBatch, PendingReceipt
from meshq.client.room import Room
from meshq.errors import MeshqError, TopicGone, UsageError
from meshq.limits import BATCH_RECORDS_MAX, KIB, PRODUCER_BUFFER_BYTES, RECORD_BYTES_CEILING
from meshq.messages import TopicInfo
from meshq.topics import check_topic

LOOK_AGAIN_S: Final = 1.0  # at a batch that waits for room in flight, should no answer come at all
_MANY: Final = 64  # records `send_many` looks at together
_NO_LIMIT: Final = RECORD_BYTES_CEILING


class Producer:
    """Made by `Mesh.producer`. To be used on the loop's thread.

    Raises (from an awaited PendingReceipt): Unavailable and its kin, TooLarge, Forbidden, TopicGone:
    certainly not stored. OutcomeUnknown: sent, and not answered in `timeout` seconds; its `retry()` waits on.
    """

    def __init__(
        self,
        driver: ClientDriver,
        topic: str,
        *,
        linger_ms: float = 5,
        batch_bytes: int = 256 * KIB,
        compression: str = "none",
        acks: Acks = "quorum",
        in_flight: int = 16,
        buffer_bytes: int = PRODUCER_BUFFER_BYTES,
        timeout: float = 30.0,
    ) -> None:
        check_producer(compression, in_flight, batch_bytes, buffer_bytes)
        self._acks = check_acks(acks)
        self.topic = check_topic(topic)
        self._failures = Failures(topic)
        self._driver = driver
        self._loop = driver.loop
        self._lane = driver.draw_number()
        self._linger_s = linger_ms / 1000
        self._batch_bytes = batch_bytes
        self._compression = compression
        self._in_flight = in_flight
        self._room = Room(driver.loop, self.topic, limit=buffer_bytes, batch_bytes=batch_bytes)
        self._timeout = timeout
        self._closed = False
        self._info: TopicInfo | None = None
        self._record_bytes_max = _NO_LIMIT
        self._open: dict[int, OutgoingBatch] = {}  # by partition
        self._sticky = 0  # partition of records without a key
        self._sticky_batch: OutgoingBatch | None = None  # its open batch
        self._limbo = Limbo(
            driver,
            topic,
            new_batch=lambda: self._new_batch(None, -1, timeout, 0.0),
            on_topic=self._on_topic,
            on_failed=self._failures.add,
        )
        self._freshness = Freshness(driver, topic, self._on_settings)
        self._under_way: dict[int, int] = {}  # batches not answered, by partition
        self._unanswered: dict[OutgoingBatch, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._one_at_a_time = False  # so it was with the last batch
        self._now_ms = 0
        self._clock_is_old = True

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
            if size > _NO_LIMIT or self._freshness.is_sure():
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

    def seal(self) -> None:
        """Send every open batch now."""
        for batch in list(self._open.values()):
            self._seal(batch)

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
        return self._room.is_full()

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def is_idle(self) -> bool:
        return self._room.used == 0

    # -------------------------------------------------------------------------------------- batches
    def _batch_for(
        self, info: TopicInfo, record: RawRecord, encoded: int, timeout: float, since: float | None = None
    ) -> OutgoingBatch:
        """The batch the record was put into."""
        partition = self._sticky if record.key is None else zlib.crc32(record.key) % info.partitions
        batch = self._open.get(partition)
        if batch is not None and (
            batch.bytes + encoded > self._batch_bytes
            or len(batch.records) >= BATCH_RECORDS_MAX
            or batch.timeout != timeout
        ):
            self._seal(batch)
            partition = self._sticky if record.key is None else partition
            batch = self._open.get(partition)
        if batch is None:
            batch = self._open_batch(info, partition, timeout, since)
        batch.on_time(self._now_ms)
        if record.key is None and record.headers is None:
            batch.records.append(record.value)
        else:
            record.delta_ms = self._now_ms - batch.base_ms
            batch.records.append(record)
        batch.bytes += encoded
        return batch

    def _open_batch(
        self, info: TopicInfo, partition: int, timeout: float, since: float | None
    ) -> OutgoingBatch:
        now = self._driver.clock()
        self._freshness.look(now, self._timeout)
        opened_at = now if since is None else since
        batch = self._open[partition] = self._new_batch(info, partition, timeout, opened_at)
        self._note_sticky()
        self._unanswered[batch] = None
        if self._linger_s:
            self._look_again_at(self._loop.time() + self._linger_s)
        return batch

    def _look_again_at(self, moment: float) -> None:
        """At open batches; sooner than was planned, if that was later."""
        if self._timer is not None:
            if self._timer.when() <= moment:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(moment, self._on_linger)

    def _note_sticky(self) -> None:
        """What `send` may fill without looking further."""
        batch = self._open.get(self._sticky)
        usable = batch is not None and batch.timeout == self._timeout and not self._closed
        self._sticky_batch = batch if usable else None
        if self._sticky_batch is not None:
            self._sticky_batch.on_time(self._now_ms)

    def _new_batch(
        self, info: TopicInfo | None, partition: int, timeout: float, opened_at: float
    ) -> OutgoingBatch:
        base_ms = self._now_ms if info else 0
        told = self._on_answered, self._on_ended
        return OutgoingBatch(self._loop, info, partition, base_ms, opened_at, timeout, *told)

    def _seal(self, batch: OutgoingBatch) -> None:
        info, partition = batch.info, batch.partition
        assert info is not None
        del self._open[partition]
        if partition == self._sticky:
            self._sticky = (partition + 1) % info.partitions
            self._note_sticky()
        records, batch.records = batch.records, []
        deltas, batch.deltas = batch.deltas, []
        batch.count = len(records)
        self._one_at_a_time = batch.count == 1
        self._under_way[partition] = self._under_way.get(partition, 0) + 1
        try:
            body = batches.seal(
                records, base_timestamp_ms=batch.base_ms, codec=self._compression, deltas=deltas
            )
        except MeshqError as e:
            batch.failed(e)
            return
        deadline = batch.opened_at + batch.timeout
        self._driver.request(
            batch,
            lambda ticket: BatchSealed(
                ticket, self._lane, info, partition, body, deadline, self._in_flight, self._acks
            ),
        )

    def _on_linger(self) -> None:
        """Seal what is open, but leave open what would only queue."""
        if self._timer is not None:
            self._timer.cancel()  # else it rings on beside the next one
            self._timer = None
        now = self._driver.clock()
        for partition, batch in list(self._open.items()):
            if self._under_way.get(partition, 0) < self._in_flight or now - batch.opened_at >= batch.timeout:
                self._seal(batch)
            else:
                batch.due = True
        if self._open:
            self._look_again_at(self._loop.time() + LOOK_AGAIN_S)

    def _on_answered(self, batch: OutgoingBatch) -> None:
        self._unanswered.pop(batch, None)
        if batch.info is None:
            return
        partition = batch.partition
        self._under_way[partition] -= 1
        if not self._under_way[partition]:
            del self._under_way[partition]
        waiting = self._open.get(partition)
        if waiting is not None and waiting.due:
            self._seal(waiting)
        if batch.error is not None:
            self._failures.add(batch)

    def _on_ended(self, batch: OutgoingBatch) -> None:
        if isinstance(batch.error, TopicGone) and self._is_topic(batch.info):
            self._forget_topic()
        self._room.release(batch.bytes)

    # ------------------------------------------------------------------------------------ the topic
    def _on_topic(self, info: TopicInfo, waiting: list[Waiting]) -> None:
        """The topic is known: what came before finds its batches, in its order."""
        self._info = info
        self._freshness.known()
        self._record_bytes_max = info.record_bytes_max
        self._sticky %= info.partitions
        if waiting:
            self._look_at_clock()
        for w in waiting:
            size = w.record.size()
            if size > info.record_bytes_max:
                self._limbo.fail([w], too_large(size, info.record_bytes_max, self.topic))
                continue
            batch = self._batch_for(info, w.record, w.encoded, w.timeout, w.taken_at)
            w.receipt.batch, w.receipt.index = batch, len(batch.records) - 1
        if waiting:
            self.seal()  # their time has been running; those to come shall not share it

    def _on_settings(self, info: TopicInfo) -> None:
        """As they are now. Another topic of the same name is not ours: the old one's batches will say so."""
        if self._info is not None and self._is_topic(info) and info.version > self._info.version:
            self._info = info
            self._record_bytes_max = info.record_bytes_max

    def _is_topic(self, info: TopicInfo | None) -> bool:
        return info is not None and self._info is not None and info.topic_id == self._info.topic_id

    def _forget_topic(self) -> None:
        self._info = None
        self._record_bytes_max = _NO_LIMIT
        self.seal()  # under the old id, to be refused
        self._sticky_batch = None

    # ----------------------------------------------------------------------------------------- time
    def _look_at_clock(self) -> None:
        """Once a turn of the loop is often enough for a timestamp; without linger the turn is the batch."""
        self._now_ms = int(time.time() * 1000)
        self._clock_is_old = False
        if self._sticky_batch is not None:
            self._sticky_batch.on_time(self._now_ms)
        self._loop.call_soon(self._on_turn)

    def _on_turn(self) -> None:
        self._clock_is_old = True
        if not self._linger_s and self._open:
            self._on_linger()
