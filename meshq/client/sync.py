"""The client without `async`: the same names, for programs that have no event loop.

The loop runs on a daemon thread of its own; calls hand their work over and wait. Records of a producer are
handed over many at a time, one wake-up for all that wait, and a subscription fetches whole batches, so that
per record no thread is woken. Every wait has a deadline, and Ctrl-C ends it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from meshq.batch import Buffer
from meshq.client import connect as asynchronous
from meshq.client.checking import (
    Acks,
    Headers,
    check_headers,
    check_key,
    check_seconds,
    check_value,
    record_bytes,
)
from meshq.client.failures import KEPT_MAX
from meshq.client.group import GroupRecord as AsyncGroupRecord
from meshq.client.group import GroupSubscription as AsyncGroupSubscription
from meshq.client.groups import GroupInfo, GroupPartition, GroupReset, Redriven, To
from meshq.client.loop_thread import GRACE_S, LoopThread
from meshq.client.mesh import Mesh as AsyncMesh
from meshq.client.ordered_group import OrderedRecord as AsyncOrderedRecord
from meshq.client.ordered_group import OrderedSubscription as AsyncOrderedSubscription
from meshq.client.outgoing import PendingReceipt
from meshq.client.producer import Producer as AsyncProducer
from meshq.client.records import Receipt, Record
from meshq.client.settling import SETTLE_S, Settling
from meshq.client.subscription import Subscription as AsyncSubscription
from meshq.client.sync_outbox import Outbox, without_async
from meshq.errors import MeshqError, OutcomeUnknown, Overloaded, Unavailable, UsageError
from meshq.limits import PRODUCER_BUFFER_BYTES
from meshq.messages import TopicInfo

if TYPE_CHECKING:
    from meshq.client.outbox.producer import OutboxProducer
    from meshq.client.outbox.receipts import PendingQueued


def connect(
    credentials: asynchronous.CredentialsSource | None = None,
    *,
    data: str | Path | None = None,
    name: str = "",
    timeout: float = 10.0,
    **options: Any,
) -> Mesh:
    """A connected Mesh; use it with `with`, or `close()` it. Options and errors as the asynchronous
    `connect`'s.
    """
    connecting = asynchronous.connect(credentials, data=data, name=name, timeout=timeout, **options)

    async def make() -> AsyncMesh:
        return await connecting

    return _start(make, timeout)


def _start(make: Callable[[], Coroutine[Any, Any, AsyncMesh]], timeout: float) -> Mesh:
    thread = LoopThread()
    try:
        return Mesh(thread, thread.call(make(), timeout))
    except BaseException:
        thread.stop()
        raise


TAKEN_ORDERED: Final = (
    100  # records of an ordered group fetched at a time: what a partition that goes waits for
)


class Mesh:
    """As the asynchronous one. Its calls may come from any thread but the loop's own."""

    def __init__(self, thread: LoopThread, mesh: AsyncMesh) -> None:
        self._thread = thread
        self._mesh = mesh
        self._producers: list[Producer] = []  # as the application makes and keeps them

    def publish(
        self,
        topic: str,
        value: Buffer,
        *,
        key: bytes | None = None,
        headers: Headers | None = None,
        acks: Acks = "quorum",
        timeout: float = 30.0,
    ) -> Receipt:
        check_seconds(timeout, "timeout")
        call = self._mesh.publish(topic, value, key=key, headers=headers, acks=acks, timeout=timeout)
        return without_async(self._thread, self._thread.call(call, timeout, unknown=True))

    @property
    def outbox(self) -> Outbox | None:
        """What `publish` and every producer hand their records to, if it was asked for."""
        outbox = self._mesh.outbox
        return None if outbox is None else Outbox(self._thread, outbox)

    def producer(self, topic: str, **options: Any) -> Producer:
        """Options as the asynchronous one's."""
        timeout = options.get("timeout", 30.0)
        buffer_bytes = options.get("buffer_bytes", PRODUCER_BUFFER_BYTES)
        made = self._thread.run(lambda: self._mesh.producer(topic, **options), GRACE_S)
        producer = Producer(self._thread, made, timeout, buffer_bytes)
        self._producers = [p for p in self._producers if not p.is_done]
        self._producers.append(producer)
        return producer

    def subscribe(self, pattern: str, **options: Any) -> Subscription:
        """Options as the asynchronous one's."""
        made = self._thread.run(lambda: self._mesh.subscribe(pattern, **options), GRACE_S)
        kind: type[Subscription] = Subscription
        if isinstance(made, AsyncGroupSubscription):
            kind = GroupSubscription
        elif isinstance(made, AsyncOrderedSubscription):
            kind = OrderedSubscription
        return kind(self._thread, made)

    def ask(self, what: str, args: dict[str, Any] | None = None, *, timeout: float = 30.0) -> Any:
        check_seconds(timeout, "timeout")
        return self._thread.call(self._mesh.ask(what, args, timeout=timeout), timeout, unknown=True)

    def topics(self, pattern: str = "#", *, timeout: float = 30.0) -> list[TopicInfo]:
        check_seconds(timeout, "timeout")
        return self._thread.call(self._mesh.topics(pattern, timeout=timeout), timeout)

    def groups(self, pattern: str = "#", *, timeout: float = 30.0) -> list[GroupInfo]:
        return self._thread.call(self._mesh.groups(pattern, timeout=timeout), timeout)

    def group_show(self, topic: str, group: str, *, timeout: float = 30.0) -> list[GroupPartition]:
        return self._thread.call(self._mesh.group_show(topic, group, timeout=timeout), timeout)

    def group_reset(
        self, topic: str, group: str, to: To, *, dry_run: bool = False, timeout: float = 30.0
    ) -> list[GroupReset]:
        call = self._mesh.group_reset(topic, group, to, dry_run=dry_run, timeout=timeout)
        return self._thread.call(call, timeout, unknown=True)

    def group_redrive(
        self,
        topic: str,
        group: str,
        *,
        limit: int | None = None,
        dry_run: bool = False,
        timeout: float = 30.0,
    ) -> Redriven:
        call = self._mesh.group_redrive(topic, group, limit=limit, dry_run=dry_run, timeout=timeout)
        return self._thread.call(call, timeout, unknown=True)

    def group_delete(self, topic: str, group: str, *, timeout: float = 30.0) -> None:
        call = self._mesh.group_delete(topic, group, timeout=timeout)
        self._thread.call(call, timeout, unknown=True)

    def close(self, timeout: float = 10.0) -> None:
        """As the asynchronous one: what producers took is sent, and what failed untold is raised."""
        if not self._thread.is_running:
            return
        for producer in self._producers:
            producer.refuse_more()
        try:
            self._thread.call(self._close(timeout), timeout, unknown=True)
        finally:
            self._thread.stop()

    async def _close(self, timeout: float) -> None:
        for producer in self._producers:
            producer.hand_over()
        await self._mesh.close(timeout)
        for producer in self._producers:
            producer.raise_refusals()

    def __enter__(self) -> Mesh:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # Somebody who pressed Ctrl-C does not want to wait for what can't be sent.
            self.close(1.0 if isinstance(error, KeyboardInterrupt) else 10.0)
        except MeshqError as e:
            if error is None:
                raise
            error.add_note(f"closing failed too: {e}")


class PendingResult:
    """What `Producer.send` returns: `result(timeout)` waits for the receipt."""

    __slots__ = ("_error", "_pending", "_producer")

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._pending: PendingReceipt | PendingQueued | None = None
        self._error: MeshqError | None = None  # it was not even taken

    def taken(self, pending: PendingReceipt | PendingQueued) -> None:
        self._pending = pending

    def refused(self, error: MeshqError) -> None:
        self._error = error

    def result(self, timeout: float | None = None) -> Receipt:
        """Raises: as the awaited PendingReceipt; OutcomeUnknown when `timeout` seconds pass before that."""
        return self._producer.result_of(self, timeout)

    async def wait(self) -> Receipt:
        """On the loop's thread, once the producer's hand-over ran."""
        if self._error is not None:
            self._producer.on_refusal_told(self)
            raise type(self._error)(str(self._error))
        assert self._pending is not None
        return await self._pending


class Producer:
    """As the asynchronous one; `send` may be called from any thread."""

    def __init__(
        self,
        thread: LoopThread,
        producer: AsyncProducer | OutboxProducer,
        timeout: float,
        buffer_bytes: int,
    ) -> None:
        self._thread = thread
        self._producer = producer
        self._timeout = timeout
        self._buffer_bytes = buffer_bytes
        self._lock = threading.Lock()
        self._handing_over: deque[tuple[PendingResult, bytes, bytes | None, dict[str, bytes] | None]] = (
            deque()
        )
        self._bytes = 0  # in it; bounded by buffer_bytes
        self._woken = False
        self._closed = False
        # Over the topic's limit of a record, and nobody was told; on the loop's thread.
        self._refused: dict[PendingResult, MeshqError] = {}  # at most KEPT_MAX; beyond it only counted
        self._refused_more = 0

    def send(
        self, value: Buffer, *, key: bytes | None = None, headers: Headers | None = None
    ) -> PendingResult:
        """Raises: Overloaded when `buffer_bytes` are waiting (`ready()` first), UsageError."""
        value, key, fields = check_value(value), check_key(key), check_headers(headers)
        size = record_bytes(value, key, fields)[1]
        result = PendingResult(self)
        with self._lock:
            if not self._thread.is_running:
                raise Unavailable("this client was closed: connect again")
            if self._closed:
                raise UsageError(f"the producer for {self._producer.topic} was closed: make another one")
            if self._bytes + self._producer.buffered_bytes >= self._buffer_bytes:
                raise Overloaded(
                    f"{self._buffer_bytes} bytes for {self._producer.topic} are waiting to be stored: "
                    "`ready()` before the next send, or raise buffer_bytes",
                    retry_after_ms=50,
                )
            self._handing_over.append((result, value, key, fields))
            self._bytes += size
            wake, self._woken = not self._woken, True
        if wake:
            self._thread.post(self.hand_over)
        return result

    def ready(self, timeout: float | None = None) -> None:
        """Wait until `send` takes records again. Raises: Overloaded."""
        within = self._timeout if timeout is None else timeout

        async def wait() -> None:
            self.hand_over()
            await self._producer.ready(within)

        self._thread.call(wait(), within)

    def flush(self) -> None:
        """Raises: as the asynchronous one; OutcomeUnknown too when the loop is too late to say."""
        self._thread.call(self._flush(close=False), self._timeout, unknown=True)

    def close(self) -> None:
        """Flush, and take no more."""
        self.refuse_more()
        self._thread.call(self._flush(close=True), self._timeout, unknown=True)

    def result_of(self, result: PendingResult, timeout: float | None) -> Receipt:
        async def wait() -> Receipt:
            self.hand_over()
            return await asyncio.wait_for(result.wait(), timeout)

        try:
            receipt = self._thread.call(wait(), timeout or self._timeout, unknown=True)
        except TimeoutError:
            raise OutcomeUnknown(f"no receipt within {timeout} s; it may still come: ask again") from None
        return without_async(self._thread, receipt)

    def __enter__(self) -> Producer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif isinstance(error, Exception):
            try:
                self.close()
            except MeshqError as e:
                error.add_note(f"closing the producer for {self._producer.topic} failed too: {e}")

    @property
    def is_done(self) -> bool:
        """Closed, with nothing left to send or to tell."""
        untold = self._refused or self._producer.has_failures
        return self._closed and not untold and not self._handing_over and self._producer.is_idle

    def refuse_more(self) -> None:
        with self._lock:
            self._closed = True

    def hand_over(self) -> None:
        """On the loop's thread: everything that waits goes to the asynchronous producer, in order."""
        with self._lock:
            batch, self._handing_over = self._handing_over, deque()
            size, self._woken = self._bytes, False
        for result, value, key, headers in batch:
            try:
                result.taken(self._producer.take(self._timeout, value, key, headers))
            except MeshqError as e:
                result.refused(e)
                if len(self._refused) < KEPT_MAX:
                    self._refused[result] = e
                else:
                    self._refused_more += 1
        with self._lock:
            self._bytes -= size

    async def _flush(self, *, close: bool) -> None:
        self.hand_over()
        await (self._producer.close() if close else self._producer.flush())
        self.raise_refusals()

    def on_refusal_told(self, result: PendingResult) -> None:
        self._refused.pop(result, None)

    def raise_refusals(self) -> None:
        count = len(self._refused) + self._refused_more
        first = next(iter(self._refused.values()), None)
        self._refused.clear()
        self._refused_more = 0
        if first is not None:
            raise type(first)(f"{count} records were refused; the first error: {first}")


class Subscription:
    """As the asynchronous one: iterate it."""

    def __init__(self, thread: LoopThread, subscription: AsyncSubscription) -> None:
        self._thread = thread
        self._subscription = subscription
        self._records: list[Record] = []  # of the last batch fetched, the next one last
        self._fetched: deque[list[Record]] = deque()  # where Ctrl-C during a fetch can't lose them
        self.pattern = subscription.pattern

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        """Waits as long as it takes; Ctrl-C interrupts it."""
        while not self._records:
            self._fetch(None)
        return self._records.pop()

    def next(self, timeout: float) -> Record | None:
        """The next record, or None when there is none within `timeout` seconds. Raises: StopIteration when
        closed.
        """
        if not self._records:
            self._fetch(timeout)
        return self._records.pop() if self._records else None

    def ready(self, timeout: float = 30.0) -> None:
        self._thread.call(self._subscription.ready(timeout), timeout)

    def positions(self) -> dict[tuple[str, int], int]:
        """By (topic, partition): the offset of the next record to come out."""
        positions = self._thread.run(self._subscription.positions, GRACE_S)
        here = [self._records[::-1], *self._fetched]
        for records in reversed(here):
            if records:
                positions[records[0].topic, records[0].partition] = records[0].offset
        return positions

    def close(self) -> None:
        self._records.clear()
        self._fetched.clear()
        if self._thread.is_running:
            self._thread.call(self._subscription.close(), GRACE_S)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _take(self) -> list[Record]:
        return await self._subscription.take()

    def _fetch(self, timeout: float | None) -> None:
        async def take() -> bool:
            try:
                async with asyncio.timeout(timeout):
                    self._fetched.append(await self._take())
            except TimeoutError:
                pass
            except StopAsyncIteration:
                return False
            return True

        if not self._fetched and not self._thread.call(take(), timeout):
            raise StopIteration
        if self._fetched:
            self._records = self._fetched.popleft()[::-1]


class GroupSubscription(Subscription):
    """As the asynchronous one. Records come one at a time: they wait where their time is minded."""

    async def _take(self) -> list[Record]:
        taken = await self._subscription.take(1)
        return [GroupRecord.of(r, self._thread) for r in taken if isinstance(r, AsyncGroupRecord)]


class OrderedSubscription(Subscription):
    """As the asynchronous one. `on_revoke` is called on the client's own thread."""

    async def _take(self) -> list[Record]:
        taken = await self._subscription.take(TAKEN_ORDERED)
        return [OrderedRecord.of(r, self._thread) for r in taken if isinstance(r, AsyncOrderedRecord)]


class OrderedRecord(Record, gc=True):
    """As the asynchronous one: `ack` waits until the mesh has it on disk. Raises as that does."""

    inner: AsyncOrderedRecord | None = None
    thread: LoopThread | None = None

    @classmethod
    def of(cls, r: AsyncOrderedRecord, thread: LoopThread) -> OrderedRecord:
        return cls(
            r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, r.headers, r.attempts, r, thread
        )

    def ack(self) -> None:
        """Of it and all before it in its partition."""
        record, thread = self.inner, self.thread
        assert record is not None
        assert thread is not None

        async def wait() -> None:
            await record.ack()

        thread.call(wait(), SETTLE_S, unknown=True)


class GroupRecord(Record, gc=True):
    """As the asynchronous one: each call waits until the mesh has it on disk. Raises as that does."""

    inner: AsyncGroupRecord | None = None
    thread: LoopThread | None = None

    @classmethod
    def of(cls, r: AsyncGroupRecord, thread: LoopThread) -> GroupRecord:
        return cls(
            r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, r.headers, r.attempts, r, thread
        )

    def ack(self) -> None:
        self._wait(lambda r: r.ack())

    def nack(self, delay: float | None = None) -> None:
        self._wait(lambda r: r.nack(delay))

    def reject(self, reason: str = "") -> None:
        self._wait(lambda r: r.reject(reason))

    def extend(self) -> None:
        self._wait(lambda r: r.extend())

    def _wait(self, settle: Callable[[AsyncGroupRecord], Settling]) -> None:
        record, thread = self.inner, self.thread
        assert record is not None
        assert thread is not None

        async def wait() -> None:
            await settle(record)

        thread.call(wait(), SETTLE_S, unknown=True)
