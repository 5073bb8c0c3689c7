"""A subscription that takes part in an ordered group: whole partitions are ours for a time, and done in
order.

An acknowledgement stands for the record and all before it in its partition; what is acknowledged in one turn
of the loop is one number a partition. A partition that is to go to another member is finished first: what
waits here untaken is let go, and once all that was taken is acknowledged (or `on_revoke` has returned) it is
given back."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from meshq import messages
from meshq.batch import COMPACTED, KeptRecord, read_header, read_records
from meshq.client.driver import ClientDriver
from meshq.client.facts import Consumed, Grant, Group, Hand, Revoke, Start
from meshq.client.records import Record
from meshq.client.settling import Flight, MemberSubscription, Settling, Where
from meshq.errors import InternalError, UsageError

OFFSETS_END = (1 << 63) - 1
OnRevoke = Callable[[str, int], Awaitable[None] | None]


class OrderedRecord(
    Record, gc=False
):  # a third of the time; it is in a cycle while it waits to be taken only
    """A record of a partition that is this member's.

    `attempts` counts the leases in a row that began with this record: more than one, and somebody before had
    it and did not come through. Of records further on in the partition it is 1."""

    tenure: Tenure | None = None

    def ack(self) -> Settling:
        """It is done, and all before it in this partition. Once the awaited result is there none of them is
        handed out again, whatever happens.

        Awaiting raises: LeaseLost when the partition has gone to another member, who begins behind what was
        acknowledged in time; OutcomeUnknown when no answer came in time.
        """
        if self.tenure is None:
            raise InternalError("an ordered group's record without its lease")
        return self.tenure.sub.settle(self.tenure, self.offset)


@dataclass(slots=True, eq=False)
class Tenure:
    """A partition that is ours, under one lease. Offsets are of the next record."""

    sub: OrderedSubscription
    topic: str
    topic_id: bytes
    partition: int
    lease: int
    first: int  # where it began
    attempts: int
    opened: int  # handed out to here, but for what is left of the batch that is being handed out
    acked: int = 0  # said
    flying: int = 0  # acknowledgements without an answer
    revoked: bool = False  # to be given back
    telling: bool = False  # the application is being told
    released: bool = False  # said, or not to be said
    flight: Flight | None = None  # of this turn
    last: Flight | None = None


class OrderedSubscription(MemberSubscription):
    """Made by `Mesh.subscribe` with a group of mode `ordered`: `async for record in subscription`, then
    `record.ack()`, after each record or after many.

    Closing it gives all its partitions to the group's other members at once.
    """

    def __init__(
        self,
        driver: ClientDriver,
        pattern: str,
        start: Start,
        credit_bytes: int,
        credit_records: int,
        group: Group,
        on_revoke: OnRevoke | None = None,
    ) -> None:
        self._on_revoke = on_revoke
        self._tenures: dict[tuple[bytes, int], Tenure] = {}  # those that are ours
        self._open_tenure: Tenure | None = None  # whose batch is being handed out
        self._revoking: dict[asyncio.Task[None], None] = {}  # calls of `on_revoke` under way
        super().__init__(driver, pattern, start, credit_bytes, credit_records, group=group)

    def __aiter__(self) -> OrderedSubscription:
        return self

    async def __anext__(self) -> OrderedRecord:
        if not self._records:
            await self._fill()
        return self._records.pop()  # type: ignore[return-value]  # all of them are a group's

    def partitions(self) -> list[tuple[str, int]]:
        """(topic, partition) of those that are this member's now."""
        return sorted((t.topic, t.partition) for t in self._tenures.values() if not t.released)

    def _finish(self) -> None:
        for tenure in self._tenures.values():
            self._send(tenure)
        self._tenures.clear()
        for task in self._revoking:
            task.cancel()

    # ------------------------------------------------------------------------------------- settling
    def settle(self, tenure: Tenure, offset: int) -> Settling:
        """Of the record and all before it; for the record's own method."""
        if self._closed:
            raise UsageError(f"the subscription to {self.pattern} was closed, and gave its partitions back")
        if offset < tenure.acked and tenure.last is not None and not tenure.last.has_failed:
            return Settling(tenure.last, offset)
        tenure.acked = max(tenure.acked, offset + 1)
        if tenure.flight is None:
            tenure.flight = tenure.last = Flight(self._driver.loop.create_future(), open=1)
            tenure.flying += 1
            self._driver.loop.call_soon(self._send, tenure)
        return Settling(tenure.flight, offset)

    def _send(self, tenure: Tenure) -> None:
        flight, tenure.flight = tenure.flight, None
        if flight is not None:
            flight.future.add_done_callback(lambda _: self._on_landed(tenure))
            self._tell(tenure, flight, messages.ACK, 0, tenure.acked)

    def _on_landed(self, tenure: Tenure) -> None:
        tenure.flying -= 1
        self._check_finished(tenure)

    def _tell(self, tenure: Tenure, flight: Flight, verdict: int, first: int, end: int) -> None:
        self._follow(flight)
        where = Where(tenure.topic_id, tenure.partition, verdict, None, "")
        self._say(flight, where, [(first, end, tenure.lease)])

    # ------------------------------------------------------------------------ what the driver tells
    def granted(self, grant: Grant) -> None:
        self._tenures[grant.topic_id, grant.partition] = Tenure(
            self, grant.topic, grant.topic_id, grant.partition, grant.lease, grant.offset, grant.attempts,
            opened=grant.offset, acked=grant.offset,
        )  # fmt: skip

    def revoked(self, revoke: Revoke) -> None:
        key = (revoke.topic_id, revoke.partition)
        tenure = self._tenures.get(key)
        if tenure is None or tenure.lease != revoke.lease:
            return
        if revoke.over:
            del self._tenures[key]
            tenure.released = True
        if not tenure.revoked:
            tenure.revoked = True
            self._let_go(tenure)
            if self._on_revoke is not None:
                tenure.telling = True
                task = self._driver.loop.create_task(self._call(self._on_revoke, tenure))
                self._revoking[task] = None
                task.add_done_callback(lambda t: self._revoking.pop(t, None))
        self._check_finished(tenure)

    def handed(self, hand: Hand) -> None:
        tenure = self._tenure_of(hand)
        if tenure is None or tenure.revoked:
            self._return(hand)
        else:
            super().handed(hand)

    # ------------------------------------------------------------------------------- how it is done
    def _open(self, hand: Hand) -> None:
        tenure = self._tenure_of(hand)
        self._taken, self._open_tenure = hand, tenure
        if tenure is None:
            return  # it went while the batch waited
        topic, partition, base, at = hand.topic, hand.partition, hand.base_offset, hand.timestamp_ms
        header = read_header(hand.payload)
        raw = read_records(hand.payload, header)
        if header.version == COMPACTED:
            records: list[Record] = [
                OrderedRecord(
                    topic, partition, base + r.place, at - r.earlier_ms, r.key, r.value, r.headers or {}, 1,
                    tenure,
                )
                for r in raw
                if isinstance(r, KeptRecord) and base + r.place >= hand.first
            ]  # fmt: skip
        else:
            records = [
                OrderedRecord(topic, partition, n, at, r.key, r.value, r.headers or {}, 1, tenure)
                for n, r in enumerate(raw, base)
            ]
            del records[: max(hand.first - base, 0)]
        if records:  # not behind the last one: what was compacted away is not waited for
            tenure.opened = records[-1].offset + 1
            if records[0].offset == tenure.first:
                records[0].attempts = tenure.attempts
        self._in_a_row += len(records)
        records.reverse()
        self._records = records

    def _tenure_of(self, hand: Hand) -> Tenure | None:
        leased = hand.leased
        tenure = self._tenures.get((leased.topic_id, hand.partition)) if leased is not None else None
        return tenure if tenure is not None and leased is not None and tenure.lease == leased.lease else None

    def _return(self, hand: Hand) -> None:
        self._driver.tell(Consumed(self._sub, hand.source, len(hand.payload), hand.records))

    def _handed_to(self, tenure: Tenure) -> int:
        return self._records[-1].offset if self._open_tenure is tenure and self._records else tenure.opened

    def _let_go(self, tenure: Tenure) -> None:
        """Nobody takes any more of it here."""
        tenure.opened = self._handed_to(tenure)
        if self._open_tenure is tenure:
            self._records.clear()
        waiting = list(self._batches)
        self._batches.clear()
        for hand in waiting:
            if not isinstance(hand, Hand):
                self._batches.append(hand)  # what has expired is to be told all the same
            elif hand.leased is not None and (hand.leased.lease, hand.partition) == (
                tenure.lease,
                tenure.partition,
            ):
                self._return(hand)
            else:
                self._batches.append(hand)

    async def _call(self, on_revoke: OnRevoke, tenure: Tenure) -> None:
        """What it raises is shown as of any task of the loop; the partition goes either way."""
        try:
            said = on_revoke(tenure.topic, tenure.partition)
            if inspect.isawaitable(said):
                await said
        finally:
            tenure.telling = False
            tenure.opened = tenure.acked  # what is not acknowledged now is the next one's
            self._check_finished(tenure)

    def _check_finished(self, tenure: Tenure) -> None:
        """Give it back, if that is asked for and nothing stands in the way."""
        busy = tenure.telling or tenure.flying or tenure.acked < tenure.opened
        if busy or not tenure.revoked or tenure.released or self._closed:
            return
        tenure.released = True
        self._tenures.pop((tenure.topic_id, tenure.partition), None)
        flight = Flight(self._driver.loop.create_future(), open=1)
        self._tell(tenure, flight, messages.RELEASE, tenure.acked, OFFSETS_END)
