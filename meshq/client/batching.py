"""A producer's open batches: which record goes into which, and when each leaves.

A batch is sealed when it is full, or when `linger_ms` have passed since the first record in any open one;
with `in_flight` batches of its partition unanswered it waits for one of them instead of queueing behind as a
small one. Without linger it is sealed at the end of the loop's turn, so that what is sent together travels
together; at once, where the last batch was one record and has been answered: that is somebody who waits for
each.

Keyed records go to partition `crc32(key) % partitions`. Records without a key fill one partition's batch,
then the next partition's: full batches wherever, instead of small ones everywhere (Kafka's KIP-480).
"""

from __future__ import annotations

import asyncio
import time
import zlib
from typing import Final

from meshq import batch as batches
from meshq.batch import RawRecord
from meshq.client.checking import Acks, check_acks, check_producer, too_large
from meshq.client.driver import ClientDriver
from meshq.client.facts import BatchSealed
from meshq.client.failures import Failures
from meshq.client.freshness import Freshness
from meshq.client.limbo import Limbo, Waiting
from meshq.client.outgoing import OutgoingBatch
from meshq.client.room import Room
from meshq.errors import MeshqError, TopicGone
from meshq.limits import BATCH_RECORDS_MAX, KIB, PRODUCER_BUFFER_BYTES, RECORD_BYTES_CEILING
from meshq.messages import TopicInfo
from meshq.topics import check_topic

LOOK_AGAIN_S: Final = 1.0  # at a batch that waits for room in flight, should no answer come at all
NO_LIMIT: Final = RECORD_BYTES_CEILING


class Batching:
    """What a Producer is beside what it shows. To be used on the loop's thread."""

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
        self._record_bytes_max = NO_LIMIT
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

    def seal(self) -> None:
        """Send every open batch now."""
        for batch in list(self._open.values()):
            self._seal(batch)

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
        self._record_bytes_max = NO_LIMIT
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
