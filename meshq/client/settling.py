"""A subscription that takes part in a group, whatever its mode: what is said of records, and its end.

What is said travels in *flights*: all of one turn of the loop that can go together. What a record's method
returns is a place in one. Closing says what there is to be said, waits until it has arrived, and leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshq.client.driver import ClientDriver
from meshq.client.facts import Group, RecordsSettled, Start, Unsubscribed
from meshq.client.subscription import Subscription
from meshq.errors import LeaseLost, MeshqError, UsageError

if TYPE_CHECKING:
    from meshq.client.group import Lot

SETTLE_S: Final = 30.0  # how long an answer may take


class MemberSubscription(Subscription):
    def __init__(
        self,
        driver: ClientDriver,
        pattern: str,
        start: Start,
        credit_bytes: int,
        credit_records: int,
        group: Group,
    ) -> None:
        self._flying: dict[asyncio.Future[Any], None] = {}
        super().__init__(driver, pattern, start, credit_bytes, credit_records, group=group)

    def positions(self) -> dict[tuple[str, int], int]:
        raise UsageError("a group's position is kept by the mesh: `meshq group show TOPIC GROUP`")

    @property
    def is_closed(self) -> bool:
        return self._closed

    async def close(self) -> None:
        """Take no more, and let others have what is not settled. What was said of records before arrives
        first.
        """
        if self._closed:
            return
        self._batches.clear()
        self._closed = True
        self._finish()
        self._records.clear()
        if self._flying and not self._driver.closed:
            await asyncio.wait(list(self._flying), timeout=SETTLE_S)
        self._driver.detach(self._sub)
        if not self._driver.closed:
            self._driver.tell(Unsubscribed(self._sub))
        self._wake()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _finish(self) -> None:
        """Say what there is to be said; nothing more is taken."""
        raise NotImplementedError

    def _follow(self, flight: Flight) -> None:
        """Until it has landed."""
        self._flying[flight.future] = None
        flight.future.add_done_callback(self._landed)

    def _say(self, flight: Flight, where: Where, ranges: Sequence[tuple[int, int, int]]) -> None:
        deadline = self._driver.clock() + SETTLE_S
        self._driver.request(
            flight,
            lambda ticket: RecordsSettled(
                ticket, self._sub, *where[:3], ranges, where.delay_ms, deadline, where.reason
            ),
        )

    def _landed(self, future: asyncio.Future[Any]) -> None:
        self._flying.pop(future, None)
        if not future.cancelled():
            future.exception()  # told to who awaits it; nobody has to


class Settling:
    """What settling a record returns: awaitable, and done whether it is awaited or not."""

    __slots__ = ("_flight", "_offset")

    def __init__(self, flight: Flight, offset: int) -> None:
        self._flight = flight
        self._offset = offset

    def __await__(self) -> Generator[Any, None, None]:
        refused = yield from asyncio.shield(self._flight.future).__await__()
        if any(first <= self._offset < end for first, end in refused):
            raise LeaseLost(
                f"offset {self._offset} is not this consumer's any more: its `ack_wait` was over, "
                "its partition went to another member, or its group was reset. It is handed out again"
            )


class Where(NamedTuple):
    """What can travel together."""

    topic_id: bytes
    partition: int
    verdict: int
    delay_ms: int | None
    reason: str


@dataclass(slots=True, eq=False)
class Flight:
    """Settled together. `future` gets the records, (first, end), for which it does not hold."""

    future: asyncio.Future[list[tuple[int, int]]]
    ranges: list[tuple[int, int, int]] = field(default_factory=list)
    open: int = 0  # messages that are not answered
    refused: list[tuple[int, int]] = field(default_factory=list)
    lots: set[Lot] = field(default_factory=set)  # whose time begins anew if it holds
    until: float = 0.0
    sent: bool = False

    def add(self, first: int, end: int, lease: int) -> None:
        ranges = self.ranges
        if ranges and ranges[-1][1] == first and ranges[-1][2] == lease:
            ranges[-1] = (ranges[-1][0], end, lease)
        else:
            ranges.append((first, end, lease))

    def settled(self, value: Any) -> None:
        self.refused += value
        self.open -= 1
        for lot in self.lots:
            if not self.refused:
                lot.until = max(lot.until, self.until)
        if not self.open and not self.future.done():
            self.future.set_result(self.refused)

    @property
    def has_failed(self) -> bool:
        """Nobody knows whether it counted."""
        return self.future.done() and (self.future.cancelled() or self.future.exception() is not None)

    def failed(self, error: MeshqError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def doubted(self, error: MeshqError) -> None:
        self.failed(error)


def merged(ranges: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Neighbours of one lease as one range, sorted."""
    found: list[tuple[int, int, int]] = []
    for first, end, lease in sorted(ranges):
        if found and found[-1][1] >= first and found[-1][2] == lease:
            found[-1] = (found[-1][0], max(end, found[-1][1]), lease)
        else:
            found.append((first, end, lease))
    return found
