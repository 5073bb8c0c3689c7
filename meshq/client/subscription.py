"""A subscription: an endless iterator of records.

Batches wait here as they came; one is opened when its first record is wanted. What was taken is reported
batch by batch, and that is what lets the mesh push more: a slow reader holds up nobody but itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Final, Self

from meshq.batch import COMPACTED, KeptRecord, read_header, read_records
from meshq.client.driver import ClientDriver, FutureWaiter
from meshq.client.facts import (
    Consumed,
    Grant,
    Group,
    Hand,
    Place,
    Revoke,
    Start,
    SubscribeRequested,
    TellExpired,
    Unsubscribed,
)
from meshq.client.records import Record
from meshq.errors import MeshqError, RecordsExpired, Unavailable
from meshq.limits import MIB

CREDIT_BYTES: Final = 8 * MIB
CREDIT_RECORDS: Final = 100_000
YIELD_RECORDS: Final = 1_000  # handed out in a row before others on the loop get a turn


class Subscription:
    """Made by `Mesh.subscribe`: `async for record in subscription`. To be used on the loop's thread.

    Iterating raises what the mesh refuses it with (Forbidden), RemoteProtocolError for a batch that cannot be
    read, and ends when it was closed. It raises RecordsExpired where records went by their topic's retention
    before they came here: it says how many, and iterating again goes on behind them. As a context manager it
    closes itself.
    """

    def __init__(
        self,
        driver: ClientDriver,
        pattern: str,
        start: Start,
        credit_bytes: int,
        credit_records: int,
        prefixes: tuple[str, ...] = (),
        group: Group | None = None,
    ) -> None:
        self.pattern = pattern
        self._driver = driver
        self._sub = driver.draw_number()
        self._batches: deque[Hand | TellExpired] = deque()  # bounded by the credit
        self._records: list[Record] = []  # of the batch being handed out, last one first
        self._taken: Hand | None = None  # that batch
        self._positions: dict[tuple[str, int], int] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._error: MeshqError | None = None
        self._closed = False
        self._in_a_row = 0
        self._ready = FutureWaiter(driver.loop)
        driver.attach(self._sub, self)
        driver.request(
            self._ready,
            lambda t: SubscribeRequested(
                self._sub, pattern, start, credit_bytes, credit_records, t, prefixes, group
            ),
        )

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Record:
        if self._records:
            return self._records.pop()
        await self._fill()
        return self._records.pop()

    async def take(self, count: int | None = None) -> list[Record]:
        """All records of the next batch (what is left of it), or at most so many. Raises: StopAsyncIteration
        once it is closed.
        """
        if not self._records:
            await self._fill()
        left = 0 if count is None else max(len(self._records) - count, 0)
        records = self._records[left:][::-1]
        del self._records[left:]
        return records

    async def ready(self, timeout: float = 30.0) -> None:
        """Wait until every partition there was when it began is being read: from then on `latest` misses
        nothing.

        Raises: Unavailable when that takes longer than `timeout` seconds; what the mesh refuses it with.
        """
        try:
            await asyncio.wait_for(asyncio.shield(self._ready.future), timeout)
        except TimeoutError:
            raise Unavailable(
                f"the subscription to {self.pattern} is not complete after {timeout:g} s: peers that own "
                "some of its partitions cannot be reached (see `meshq status`); it goes on trying"
            ) from None

    def positions(self) -> dict[tuple[str, int], int]:
        """By (topic, partition): the offset of the next record to come out."""
        positions = dict(self._positions)
        if self._records and self._taken is not None:
            positions[self._taken.topic, self._taken.partition] = self._records[-1].offset
        return positions

    async def close(self) -> None:
        """Take no more records. Idempotent."""
        self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    # ------------------------------------------------------------------------ what the driver tells
    def handed(self, hand: Hand) -> None:
        self._batches.append(hand)
        self._wake()

    def placed(self, place: Place) -> None:
        # Batches of before a new link may still wait here: what comes out next is where they begin.
        if not any(h.topic == place.topic and h.partition == place.partition for h in self._batches):
            self._positions[place.topic, place.partition] = place.offset

    def expired(self, told: TellExpired) -> None:
        self._batches.append(told)
        self._wake()

    def granted(self, grant: Grant) -> None:
        """Nothing is, but to members of ordered groups."""

    def revoked(self, revoke: Revoke) -> None:
        """As `granted`."""

    def ended(self, error: MeshqError) -> None:
        if not self._closed:
            self._error = error
        self._wake()

    # ------------------------------------------------------------------------------- how it is done
    async def _fill(self) -> None:
        """Have records. Raises: what ended it, StopAsyncIteration."""
        while not self._records:
            self._give_back()
            if self._in_a_row >= YIELD_RECORDS:
                self._in_a_row = 0
                await asyncio.sleep(0)
            if self._closed:
                raise StopAsyncIteration
            if self._batches:
                if not self._records:  # another task may have been here meanwhile
                    self._next(self._batches.popleft())
            elif self._error is not None:
                raise type(self._error)(str(self._error))
            else:
                await self._wait()

    async def _wait(self) -> None:
        future = self._driver.loop.create_future()
        self._waiting = [f for f in self._waiting if not f.done()]  # others waited for so long, and gave up
        self._waiting.append(future)
        await future

    def _next(self, item: Hand | TellExpired) -> None:
        if isinstance(item, Hand):
            self._open(item)
            return
        self._positions[item.topic, item.partition] = item.next
        raise RecordsExpired(
            f"{item.count} records of {item.topic}/{item.partition} before offset {item.next} went by its "
            "retention before they were read here; the subscription goes on from there",
            topic=item.topic,
            partition=item.partition,
            count=item.count,
            next=item.next,
        )

    def _open(self, hand: Hand) -> None:
        self._taken = hand
        self._positions[hand.topic, hand.partition] = hand.base_offset
        header = read_header(hand.payload)
        raw = read_records(hand.payload, header)
        topic, partition, base, at = hand.topic, hand.partition, hand.base_offset, hand.timestamp_ms
        if header.version == COMPACTED:
            records = [
                Record(topic, partition, base + r.place, at - r.earlier_ms, r.key, r.value, r.headers or {})
                for r in raw
                if isinstance(r, KeptRecord) and base + r.place >= hand.first
            ]
        else:
            records = [
                Record(topic, partition, offset, at, r.key, r.value, r.headers or {})
                for offset, r in enumerate(raw, base)
            ]
            if hand.first > base:
                del records[: hand.first - base]
        self._positions[topic, partition] = base + header.count
        self._in_a_row += len(records)
        records.reverse()
        self._records = records

    def _give_back(self) -> None:
        hand, self._taken = self._taken, None
        if hand is not None:
            self._driver.tell(Consumed(self._sub, hand.source, len(hand.payload), hand.records))

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._batches.clear()
        self._records.clear()
        self._driver.detach(self._sub)
        if not self._driver.closed:
            self._driver.tell(Unsubscribed(self._sub))
        self._wake()

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()
