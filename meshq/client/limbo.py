"""Records a producer took before it knew their topic: how many partitions, how large a record may be.

They wait here in order and find their batches when the answer comes. Each keeps its own deadline: the topic
is asked for with the earliest of them, and asked for again while there are records with a later one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from meshq.batch import RawRecord
from meshq.client.driver import ClientDriver
from meshq.client.facts import TopicWanted
from meshq.client.outgoing import OutgoingBatch, PendingReceipt
from meshq.errors import MeshqError
from meshq.messages import TopicInfo


class Waiting(NamedTuple):
    receipt: PendingReceipt
    record: RawRecord
    encoded: int  # bytes it takes in a batch
    timeout: float
    taken_at: float


class Limbo:
    """`new_batch` makes one that holds no records: what receipts point at meanwhile, and when they fail."""

    def __init__(
        self,
        driver: ClientDriver,
        topic: str,
        *,
        new_batch: Callable[[], OutgoingBatch],
        on_topic: Callable[[TopicInfo, list[Waiting]], None],
        on_failed: Callable[[OutgoingBatch], None],
    ) -> None:
        self._driver = driver
        self._topic = topic
        self._new_batch = new_batch
        self._on_topic = on_topic
        self._on_failed = on_failed
        self._batch = new_batch()
        self._fresh = False  # what is remembered of the topic is not good enough
        self._waiting: list[Waiting] = []  # bounded by the producer's buffer
        self._asked: list[
            float
        ] = []  # deadlines of the questions under way, each earlier than the one before

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self, record: RawRecord, encoded: int, timeout: float) -> PendingReceipt:
        """Keep the record and have the topic looked up; where that is known it leaves again at once."""
        now = self._driver.clock()
        receipt = PendingReceipt(self._batch, 0)
        self._waiting.append(Waiting(receipt, record, encoded, timeout, now))
        self._ask(now + timeout)
        return receipt

    def want_fresh(self) -> None:
        """Until it is settled, have the topic looked up anew."""
        self._fresh = True

    async def changed(self) -> None:
        """Until some of the records have left."""
        await self._batch.wait()

    def fail(self, late: list[Waiting], error: MeshqError) -> None:
        batch = self._new_batch()
        batch.count = len(late)
        batch.bytes = sum(w.encoded for w in late)
        for i, waiting in enumerate(late):
            waiting.receipt.batch, waiting.receipt.index = batch, i
        batch.failed(error)
        self._on_failed(batch)

    def _ask(self, deadline: float) -> None:
        if not self._asked or deadline < self._asked[-1]:
            self._asked.append(deadline)
            question = _Question(self, deadline)
            self._driver.request(
                question, lambda ticket: TopicWanted(ticket, self._topic, deadline, self._fresh)
            )

    def on_settled(self, info: TopicInfo, deadline: float) -> None:
        self._asked.remove(deadline)
        self._fresh = False
        waiting, self._waiting = self._waiting, []
        left, self._batch = self._batch, self._new_batch()
        self._on_topic(info, waiting)
        left.wake()

    def on_failed(self, error: MeshqError, deadline: float) -> None:
        """Its time was up for some, or there is no such topic for all."""
        self._asked.remove(deadline)
        early = self._driver.clock() < deadline
        late = [w for w in self._waiting if early or w.taken_at + w.timeout <= deadline]
        self._waiting = [w for w in self._waiting if not early and w.taken_at + w.timeout > deadline]
        left, self._batch = self._batch, self._new_batch()
        for waiting in self._waiting:
            waiting.receipt.batch = self._batch
        if late:
            self.fail(late, error)
        left.wake()
        if self._waiting:
            self._ask(min(w.taken_at + w.timeout for w in self._waiting))


@dataclass(slots=True)
class _Question:
    """Waiter of one TopicWanted."""

    limbo: Limbo
    deadline: float

    def settled(self, value: TopicInfo) -> None:
        self.limbo.on_settled(value, self.deadline)

    def failed(self, error: MeshqError) -> None:
        self.limbo.on_failed(error, self.deadline)

    def doubted(self, error: MeshqError) -> None:
        raise AssertionError("only batches are doubted")
