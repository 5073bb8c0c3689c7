"""A subscription that takes part in a group: each record is settled, by whoever works on it.

What is said of records in one turn of the loop travels together, as ranges: a thousand acknowledgements in a
row are one message and one entry in the log. `ack()` and the others take effect at once; awaiting what they
return waits until the mesh has it on disk.

Records that wait here untaken have their time extended as long as the application is at work (takes or
settles some now and then), so that a long queue here costs nobody an attempt. One whose time is over all the
same is not handed out: it belongs to another member by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from meshq import messages
from meshq.batch import COMPACTED, KeptRecord, read_header, read_records
from meshq.client.driver import ClientDriver
from meshq.client.facts import AtWork, Group, Hand, Leased, Start
from meshq.client.key_order import KeyOrder
from meshq.client.records import Record
from meshq.client.settling import Flight, MemberSubscription, Settling, Where, merged
from meshq.errors import InternalError, RemoteProtocolError, UsageError
from meshq.limits import ACK_WAIT_MS_MAX, REASON_CHARS_MAX

RANGES_MAX: Final = 4_096  # in one message
AT_WORK_S: Final = 1.0  # it is said no more often


class GroupRecord(Record, gc=False):  # half the time; it is in a cycle while it waits to be taken only
    """A record that a group's member was handed. It is settled once, by one of the methods."""

    lot: Lot | None = None
    settled: bool = False

    def ack(self) -> Settling:
        """It is done. Once the awaited result is there it is not handed out again, whatever happens.

        Awaiting raises: LeaseLost when its time was over and it is handed out again; OutcomeUnknown when no
        answer came in time.
        """
        lot = self._unsettled()
        self.settled = True
        return lot.sub.settle(lot, self.offset, messages.ACK, None)

    def nack(self, delay: float | None = None) -> Settling:
        """It could not be done: have it handed out again after `delay` seconds (None: after a while that
        grows with its attempts). Raises as `ack`.
        """
        if delay is not None and not 0 <= delay * 1000 <= ACK_WAIT_MS_MAX:
            raise UsageError(f"delay must be 0 to {ACK_WAIT_MS_MAX // 1000} seconds, not {delay!r}")
        return self._settle(messages.NACK, None if delay is None else round(delay * 1000))

    def reject(self, reason: str = "") -> Settling:
        """It is no use handing it out again: have it moved to the group's dead letters, with this reason.
        Raises as `ack`.
        """
        if not isinstance(reason, str) or len(reason) > REASON_CHARS_MAX or not _is_text(reason):
            raise UsageError(f"a reason is text of at most {REASON_CHARS_MAX} characters, not {reason!r:.80}")
        return self._settle(messages.REJECT, None, reason)

    def extend(self) -> Settling:
        """It takes longer: `ack_wait` begins anew. It can be settled afterwards. Raises as `ack`."""
        lot = self._unsettled()
        return lot.sub.settle(lot, self.offset, messages.EXTEND, None)

    def _settle(self, verdict: int, delay_ms: int | None, reason: str = "") -> Settling:
        lot = self._unsettled()
        self.settled = True
        return lot.sub.settle(lot, self.offset, verdict, delay_ms, reason)

    def _unsettled(self) -> Lot:
        if self.lot is None:
            raise InternalError("a group's record without its lease")
        if self.settled:
            raise UsageError(f"{self.topic}/{self.partition}@{self.offset} was settled before")
        return self.lot


class GroupSubscription(MemberSubscription):
    """Made by `Mesh.subscribe` with a group: `async for record in subscription`, then `await record.ack()`.

    Closing it gives back what is not settled, at once, to the group's other members.
    """

    def __init__(
        self,
        driver: ClientDriver,
        pattern: str,
        start: Start,
        credit_bytes: int,
        credit_records: int,
        group: Group,
    ) -> None:
        self._ack_wait = group.ack_wait_ms / 1000
        self._now = driver.clock
        self._touched = self._now()  # when the application did something here
        self._told = self._touched  # when the mesh was told that it is at work
        self._lots: dict[Lot, None] = {}  # with records nobody took; bounded by the credit
        self._lot: Lot | None = None  # whose records are being handed out
        self._flights: dict[Where, Flight] = {}  # of this turn
        self._tending: asyncio.TimerHandle | None = None
        self._order = KeyOrder() if group.mode == messages.KEYED else None
        super().__init__(driver, pattern, start, credit_bytes, credit_records, group=group)

    def __aiter__(self) -> GroupSubscription:
        return self

    async def __anext__(self) -> GroupRecord:
        while True:
            now = self._touch()
            if not self._records:
                await self._fill()
                now = self._now()
            record = self._records.pop()
            if self._may_take(record, now):  # type: ignore[arg-type]  # all of them are a group's
                return record  # type: ignore[return-value]

    async def take(self, count: int | None = None) -> list[Record]:
        self._touch()
        while True:
            records, now = await super().take(count), self._now()
            found = [r for r in records if self._may_take(r, now)]  # type: ignore[arg-type]
            if found:
                return found

    def _finish(self) -> None:
        self._release()
        self._send_flights()
        if self._tending is not None:
            self._tending.cancel()

    # ------------------------------------------------------------------------------------- settling
    def settle(self, lot: Lot, offset: int, verdict: int, delay_ms: int | None, reason: str = "") -> Settling:
        """Of one record; for the record's own methods."""
        if self._closed:
            raise UsageError(f"the subscription to {self.pattern} was closed, and gave this record back")
        if not self._flights:  # once a turn
            self._touch()
        if self._order is not None:
            self._order.settled(lot, offset, verdict, self._now(), self._here())
        if verdict != messages.ACK:
            return Settling(self._flight(lot, verdict, delay_ms, offset, offset + 1, reason), offset)
        if lot.acking is None or lot.acking.sent:
            lot.acking = self._flight(lot, verdict, None, offset, offset + 1)
        else:
            lot.acking.add(offset, offset + 1, lot.lease)
        return Settling(lot.acking, offset)

    def _flight(
        self, lot: Lot, verdict: int, delay_ms: int | None, first: int, end: int, reason: str = ""
    ) -> Flight:
        where = Where(lot.topic_id, lot.hand.partition, verdict, delay_ms, reason)
        flight = self._flights.get(where)
        if flight is None:
            if not self._flights:
                self._driver.loop.call_soon(self._send_flights)
            flight = self._flights[where] = Flight(self._driver.loop.create_future())
        flight.add(first, end, lot.lease)
        return flight

    def _send_flights(self) -> None:
        flights, self._flights = self._flights, {}
        for where, flight in flights.items():
            ranges = merged(flight.ranges)
            pieces = [ranges[i : i + RANGES_MAX] for i in range(0, len(ranges), RANGES_MAX)]
            flight.open, flight.sent = len(pieces), True
            self._follow(flight)
            for piece in pieces:
                self._say(flight, where, piece)

    # ------------------------------------------------------------------------ what the driver tells
    def handed(self, hand: Hand) -> None:
        lot = Lot(self, hand, self._now() + self._ack_wait)
        self._lots[lot] = None
        super().handed(hand)
        if self._tending is None:
            self._tend_later()

    # ------------------------------------------------------------------------------- how it is done
    def _may_take(self, record: GroupRecord, now: float) -> bool:
        lot = record.lot
        if lot is None:
            return False
        if self._order is None:
            return lot.until > now
        if self._order.may_take(lot, record.key, record.offset, now, self._here()):
            return True
        if lot.until > now:
            self._flight(lot, messages.RELEASE, None, record.offset, record.offset + 1)
        return False

    def _here(self) -> list[Lot]:
        """With records that nobody took yet."""
        return [*self._lots, *([self._lot] if self._lot is not None and self._records else [])]

    def _open(self, hand: Hand) -> None:
        lot = next(iter(self._lots))
        leased = hand.leased
        if lot.hand is not hand or leased is None:
            raise InternalError("batches are opened in the order they came in")
        records = self._records_of(lot, hand, leased)
        self._in_a_row += len(records)
        records.reverse()
        self._records, self._lot = records, lot
        del self._lots[lot]

    def _records_of(self, lot: Lot, hand: Hand, leased: Leased) -> list[Record]:
        topic, partition, at, base = hand.topic, hand.partition, hand.timestamp_ms, hand.base_offset
        header = read_header(hand.payload)
        raw, stop = read_records(hand.payload, header), base + header.count
        if any(first < base or end > stop for first, end, _ in leased.ranges):
            raise RemoteProtocolError("records were handed out that are not in their batch")
        if header.version == COMPACTED:
            kept = {base + r.place: r for r in raw if isinstance(r, KeptRecord)}
            records: list[Record] = [
                GroupRecord(
                    topic, partition, n, at - r.earlier_ms, r.key, r.value, r.headers or {}, attempts, lot
                )
                for first, end, attempts in leased.ranges
                for n in range(first, end)
                if (r := kept.get(n)) is not None
            ]
            self._pass_by(lot, leased.ranges, {r.offset for r in records})
            return records
        return [
            GroupRecord(topic, partition, n, at, r.key, r.value, r.headers or {}, attempts, lot)
            for first, end, attempts in leased.ranges
            for n, r in enumerate(raw[first - base : end - base], first)
        ]

    def _pass_by(self, lot: Lot, ranges: Sequence[tuple[int, int, int]], there: set[int]) -> None:
        """Offsets whose records were compacted away: nobody has to work on them."""
        if sum(end - first for first, end, _ in ranges) == len(there):
            return
        for first, end, _ in ranges:
            for offset in range(first, end):
                if offset not in there:
                    self._flight(lot, messages.ACK, None, offset, offset + 1)

    def _give_back(self) -> None:
        """Nothing: records are settled, and that makes room."""

    def _untaken(self) -> list[tuple[Lot, int, int]]:
        now = self._now()
        found = [
            (lot, first, end)
            for lot in self._lots
            if lot.until > now and lot.hand.leased is not None
            for first, end, _ in lot.hand.leased.ranges
        ]
        if self._records and self._lot is not None and self._lot.until > now:
            found += [(self._lot, r.offset, r.offset + 1) for r in self._records]
        return found

    def _release(self) -> None:
        """Others may have what nobody took here, as if it had not been here."""
        for lot, first, end in self._untaken():
            self._flight(lot, messages.RELEASE, None, first, end)
        self._lots.clear()
        self._batches.clear()
        self._records.clear()

    def _tend_later(self) -> None:
        self._tending = self._driver.loop.call_later(self._ack_wait / 3, self._tend)

    def _tend(self) -> None:
        """Records that wait here stay ours while the application is at work; and the mesh hears that it is,
        for it hands nothing more to who says nothing.
        """
        self._tending = None
        if self._closed or self._driver.closed:
            return
        now = self._now()
        if now - self._touched < self._ack_wait or any(not f.done() for f in self._waiting):
            for lot, first, end in self._untaken():
                self._flight(lot, messages.EXTEND, None, first, end).lots.add(lot)
            for flight in self._flights.values():
                flight.until = now + self._ack_wait
            self._tell_at_work(now)
        self._tend_later()

    def _touch(self) -> float:
        """What time it is."""
        now = self._now()
        if now - self._touched >= self._ack_wait:
            self._tell_at_work(now)  # it may have been taken for one that is stuck
        self._touched = now
        return now

    def _tell_at_work(self, now: float) -> None:
        if now - self._told >= AT_WORK_S and not self._driver.closed:
            self._told = now
            self._driver.tell(AtWork(self._sub))


@dataclass(slots=True, eq=False)
class Lot:
    """Records of one batch under one lease, theirs until then."""

    sub: GroupSubscription
    hand: Hand
    until: float
    topic_id: bytes = b""
    lease: int = 0
    barred: set[bytes] = field(default_factory=set)  # keys of which a record before these came back
    taken: dict[int, bytes] = field(default_factory=dict)  # keys by offset, of a keyed group
    acking: Flight | None = None  # the last one

    def __post_init__(self) -> None:
        if self.hand.leased is not None:
            self.topic_id, self.lease = self.hand.leased.topic_id, self.hand.leased.lease


def _is_text(reason: str) -> bool:
    try:
        reason.encode()
    except UnicodeEncodeError:
        return False
    return True
