"""A producer for threads: records are handed over to the loop's thread many at a time.

`send` puts its record where the loop finds it and wakes that once for all that wait; so a record costs no
wake-up, and what the loop then refuses is told by the record's result, or by `flush`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING

from meshq.batch import Buffer
from meshq.client.checking import Headers, check_headers, check_key, check_value, record_bytes
from meshq.client.failures import KEPT_MAX
from meshq.client.loop_thread import LoopThread
from meshq.client.outgoing import PendingReceipt
from meshq.client.producer import Producer as AsyncProducer
from meshq.client.records import Receipt
from meshq.client.sync_outbox import without_async
from meshq.errors import MeshqError, OutcomeUnknown, Overloaded, Unavailable, UsageError

if TYPE_CHECKING:
    from meshq.client.outbox.producer import OutboxProducer
    from meshq.client.outbox.receipts import PendingQueued


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
