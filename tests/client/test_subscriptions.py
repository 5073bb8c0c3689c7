"""Subscriptions above a driver that only takes notes: what is asked of the mesh, and what is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from meshq import batch, messages
from meshq.client.facts import Grant, Group, Hand, Leased, RecordsSettled, Start
from meshq.client.ordered_group import OrderedSubscription
from meshq.client.subscription import Subscription
from meshq.errors import OutcomeUnknown
from meshq.messages import EARLIEST

TOPIC_ID = b"t" * 16


class Driver:
    """`asked`: who waits for what."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self.asked: list[tuple[Any, Any]] = []
        self.told: list[Any] = []

    def clock(self) -> float:
        return self.loop.time()

    def draw_number(self) -> int:
        return 1

    def attach(self, sub: int, subscription: Any) -> None:
        """Whoever tests tells it."""

    def detach(self, sub: int) -> None:
        """As `attach`."""

    def tell(self, event: Any) -> None:
        self.told.append(event)

    def request(self, waiter: Any, make: Callable[[int], Any]) -> None:
        self.asked.append((waiter, make(len(self.asked))))

    def settlings(self) -> list[tuple[Any, RecordsSettled]]:
        return [(waiter, x) for waiter, x in self.asked if isinstance(x, RecordsSettled)]


def ordered(driver: Driver, count: int = 5) -> OrderedSubscription:
    """With a partition of so many records in hand, under lease 7."""
    group = Group("g", bytes(16), messages.ORDERED, 10_000, 0)
    sub = OrderedSubscription(driver, "t", Start(EARLIEST), 1 << 20, 1_000, group)  # type: ignore[arg-type]
    sub.granted(Grant(1, "t", TOPIC_ID, 0, 7, 0, 1))
    body = batch.seal([batch.RawRecord(None, b"%d" % n) for n in range(count)], base_timestamp_ms=0)
    sub.handed(Hand(1, b"s", "t", 0, 0, 0, 0, count, batch.frame(body), Leased(TOPIC_ID, 7, ())))
    return sub


async def test_an_acknowledgement_of_which_nobody_knows_may_be_said_again() -> None:
    driver = Driver()
    sub = ordered(driver)
    records = [await anext(sub) for _ in range(4)]
    first = records[3].ack()
    await asyncio.sleep(0)
    ((waiter, said),) = driver.settlings()
    assert said.ranges == [(0, 4, 7)]
    waiter.failed(OutcomeUnknown("not answered in time"))
    with pytest.raises(OutcomeUnknown):
        await first
    again = records[1].ack()
    await asyncio.sleep(0)
    _, (waiter, said) = driver.settlings()
    assert said.ranges == [(0, 4, 7)], "all that was said"
    waiter.settled([])
    await again
    await records[0].ack()
    assert len(driver.settlings()) == 2, "that is known"


async def test_who_waits_for_a_record_again_and_again_leaves_nothing_behind() -> None:
    sub = Subscription(Driver(), "t", Start(EARLIEST), 1 << 20, 1_000)  # type: ignore[arg-type]
    for _ in range(20):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await anext(sub)
    assert len(sub._waiting) <= 1
