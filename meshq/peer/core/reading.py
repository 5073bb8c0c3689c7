"""Read and Credit: open readers at the right offset, and hand batches on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshq import messages
from meshq.errors import Forbidden, MeshqError, RemoteProtocolError
from meshq.ids import PartitionKey, Session, TopicId
from meshq.limits import CREDIT_BYTES_MAX
from meshq.messages import (
    Credit,
    Deliver,
    DeliverItem,
    Expired,
    ExpiredItem,
    Read,
    ReadItem,
    ReadStarted,
    Started,
    Unread,
)
from meshq.peer.core.context import Context
from meshq.peer.core.events import BatchesFetched, FetchBatches, SeekTime, TimeSought
from meshq.peer.core.publishing import check_partition, find_topic, led_slot
from meshq.peer.core.slots import Slots
from meshq.security.authorization import Principal
from meshq.streams.applied import Retained
from meshq.streams.delivery import Fetch, Skip, SubKey


@dataclass
class Reading:
    ctx: Context
    slots: Slots

    def on_read(self, session: Session, principal: Principal, message: Read) -> None:
        started: list[Started] = []
        for item in message.items:
            partition = PartitionKey(TopicId(item.topic_id), item.partition)
            try:
                found = self._open(session, principal, message.sub, item, partition)
            except MeshqError as e:
                self.ctx.end_read(session, message.sub, partition, e)
                continue
            if found is not None:
                started.append(found)
        if started:
            self.ctx.send(session, ReadStarted(message.sub, started))

    def _open(
        self, session: Session, principal: Principal, sub: int, item: ReadItem, partition: PartitionKey
    ) -> Started | None:
        info = find_topic(self.ctx, item.topic_id, item.version)
        if not principal.may_read(info.name):
            raise Forbidden(f"{principal.name!r} may not read {info.name!r}: it has no capability for it")
        check_partition(info, item.partition)
        slot = led_slot(self.ctx, self.slots, partition)
        state = self.slots.partition(slot, partition)
        reads = self.ctx.sessions.states[session]
        reads.add_reader(sub, partition)
        reads.seeks.pop((sub, partition), None)
        match item.start:
            case messages.EARLIEST:
                position = state.low
            case messages.LATEST:
                position = state.end
            case messages.OFFSET:
                position = min(max(item.value, state.low), state.end)
                if item.generation is not None:
                    cut = self.slots.hosts[slot].stream.cut_after(partition, item.generation)
                    position = position if cut is None else min(position, cut)
            case messages.TIMESTAMP:
                # What it read before stops now: the next batch it gets is the one from then on.
                self.ctx.deliveries.on_unread((session, sub), [partition])
                seek = SeekTime((session, sub), partition, item.value, state.end)
                reads.seeks[(sub, partition)] = seek
                self.ctx.out.append(seek)
                return None
            case _:
                raise RemoteProtocolError(f"a read cannot start at {item.start}")
        return self._start((session, sub), partition, position, state.end)

    def on_sought(self, event: TimeSought) -> None:
        seek = event.seek
        session, sub = seek.sub
        state = self.ctx.sessions.states.get(session)
        if state is None or state.seeks.get((sub, seek.partition)) != seek:
            return  # unread meanwhile, or read again from elsewhere
        del state.seeks[(sub, seek.partition)]
        try:
            find_topic(self.ctx, seek.partition.topic_id, 0)
            slot = led_slot(self.ctx, self.slots, seek.partition)
        except MeshqError as e:
            self.ctx.end_read(session, sub, seek.partition, e)
            return
        now = self.slots.partition(slot, seek.partition)
        started = self._start(seek.sub, seek.partition, max(event.offset, now.low), now.end)
        self.ctx.send(session, ReadStarted(sub, [started]))

    def _start(self, sub: SubKey, partition: PartitionKey, position: int, end: int) -> Started:
        self._fetch(self.ctx.deliveries.on_read(sub, partition, position=position, end=end))
        generation = self.slots.hosts[self.ctx.slot_of(partition)].stream.generation
        return Started(partition.topic_id, partition.partition, position, end, generation)

    def on_credit(self, session: Session, message: Credit) -> None:
        """Credit beyond a bound is ignored: who takes what it gets never has that much."""
        state = self.ctx.sessions.states[session]
        if message.sub not in state.reads and not state.has_room():
            self.ctx.count("credit_ignored")
            return
        state.reads.setdefault(message.sub, set())
        size = message.bytes
        if state.principal.kind != "peer":
            held = self.ctx.deliveries.credit_bytes((session, sub) for sub in state.reads)
            size = min(size, max(CREDIT_BYTES_MAX - held, 0))
        self._fetch(
            self.ctx.deliveries.on_credit((session, message.sub), bytes=size, records=message.records)
        )

    def on_unread(self, session: Session, message: Unread) -> None:
        partitions = [PartitionKey(TopicId(t), p) for t, p in message.items]
        self.ctx.deliveries.on_unread((session, message.sub), partitions)
        state = self.ctx.sessions.states[session]
        if not partitions:
            state.drop_subscription(message.sub)
        for partition in partitions:
            state.drop_reader(message.sub, partition)

    def on_fetched(self, event: BatchesFetched) -> None:
        fetch, batches = event.fetch, event.batches
        if isinstance(batches, MeshqError):
            if self.ctx.deliveries.is_awaited(fetch):  # not one unread or deleted meanwhile
                self.ctx.count("corrupt_reads")
                self.ctx.end_read(fetch.sub[0], fetch.sub[1], fetch.partition, batches)
            batches = ()
        self._fetch(self.ctx.deliveries.on_fetched(fetch, batches))

    def on_retained(self, retained: Retained) -> None:
        self._fetch(self.ctx.deliveries.on_expired(retained.partition, retained.low))

    def on_partition_gone(self, partition: PartitionKey, error: MeshqError) -> None:
        for session, sub in self.ctx.deliveries.on_partition_gone(partition):
            self.ctx.end_read(session, sub, partition, error)

    def flush(self) -> None:
        for push in self.ctx.deliveries.take_pushes():
            session, sub = push.sub
            if isinstance(push, Skip):
                topic_id, number = push.partition
                self.ctx.count("expired_reads")
                gone = ExpiredItem(topic_id, number, push.end - push.first, push.end)
                self.ctx.send(session, Expired(sub, [gone]))
                continue
            items = [
                DeliverItem(
                    b.partition.topic_id, b.partition.partition, b.base_offset, b.timestamp_ms, b.first
                )
                for b in push.batches
            ]
            self.ctx.count("batches_out", len(items))
            payloads = tuple(b.data for b in push.batches)
            self.ctx.send(session, Deliver(sub, items), payloads)

    def _fetch(self, fetches: Sequence[Fetch]) -> None:
        self.ctx.out.extend(FetchBatches(fetch) for fetch in fetches)
