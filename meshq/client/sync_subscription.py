"""Subscriptions for threads: whole batches are fetched from the loop's thread, and handed on one by one.

Records of groups come to be settled, and their time runs: of those only as many are fetched as are worked on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final

from meshq.client.group import GroupRecord as AsyncGroupRecord
from meshq.client.loop_thread import GRACE_S, LoopThread
from meshq.client.ordered_group import OrderedRecord as AsyncOrderedRecord
from meshq.client.records import Record
from meshq.client.settling import SETTLE_S, Settling
from meshq.client.subscription import Subscription as AsyncSubscription

if TYPE_CHECKING:
    pass


TAKEN_ORDERED: Final = (
    100  # records of an ordered group fetched at a time: what a partition that goes waits for
)


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
