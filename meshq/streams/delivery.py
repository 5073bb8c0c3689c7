"""Delivery: push committed batches to readers that have credit.

A *reader* is one partition under one subscription of one connection. It is either *level* (it has everything
committed so far: the next batch is pushed from memory as it commits), *behind* (batches are fetched from
disk, one fetch at a time), or out of credit. A slow reader costs its own credit and nothing else; readers of
one subscription that are behind take turns.

Credit counts bytes and records. A batch goes out whole while both are above zero, so each may overdraw once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from meshq.batch import Buffer
from meshq.entries import StoredBatch
from meshq.ids import PartitionKey, Ref, Session, TopicId
from meshq.limits import CREDIT_BYTES_MAX

FETCH_BYTES = 1024 * 1024  # per fetch from disk: keeps read transactions and event-loop turns short
PUSH_BATCHES_MAX = 64  # batches in one message
PUSH_BYTES = 1024 * 1024

SubKey = Ref  # (session, the client's number for the subscription)


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read batches of [offset, end) and report them with `on_fetched`."""

    sub: SubKey
    partition: PartitionKey
    offset: int
    end: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class Pushed:
    """One batch on its way; records below `first` were read before."""

    partition: PartitionKey
    base_offset: int
    timestamp_ms: int
    first: int
    data: Buffer


@dataclass(frozen=True, slots=True)
class Push:
    sub: SubKey
    batches: tuple[Pushed, ...]


@dataclass(frozen=True, slots=True)
class Skip:
    """Records [first, end) expired before this reader had them: it goes on at `end`."""

    sub: SubKey
    partition: PartitionKey
    first: int
    end: int


@dataclass(slots=True)
class _Reader:
    position: int
    fetching: bool = False


@dataclass(slots=True)
class _Subscription:
    bytes: int = 0
    records: int = 0
    readers: dict[PartitionKey, _Reader] = field(default_factory=dict)
    behind: OrderedDict[PartitionKey, None] = field(default_factory=OrderedDict)
    going: list[Pushed | Skip] = field(default_factory=list)
    asked: list[Fetch] = field(default_factory=list)  # fetches under way, at most PUSH_BATCHES_MAX
    asked_bytes: int = 0  # what they may bring: counts against the credit before it comes


class Deliveries:
    """All readers of one peer."""

    def __init__(self) -> None:
        self._subs: dict[SubKey, _Subscription] = {}
        self._of_partition: dict[PartitionKey, dict[SubKey, _Reader]] = {}
        self._ends: dict[PartitionKey, int] = {}  # of partitions that are read
        self.ready: dict[SubKey, None] = {}  # subscriptions with something collected to push

    # --------------------------------------------------------------------------------- what happens
    def on_read(
        self, sub: SubKey, partition: PartitionKey, *, position: int, end: int, low: int = 0
    ) -> list[Fetch]:
        """A reader starts (or starts again) at `position`; `end` is the high watermark now. What it would
        have read before `low` has expired.
        """
        s = self._subs.setdefault(sub, _Subscription())
        self._drop_reader(sub, s, partition)
        reader = _Reader(max(position, low))
        s.readers[partition] = reader
        self._of_partition.setdefault(partition, {})[sub] = reader
        self._ends[partition] = end
        if position < low:
            s.going.append(Skip(sub, partition, position, low))
            self.ready[sub] = None
        if reader.position < end:
            s.behind[partition] = None
        return self._advance(sub, s)

    def credit_bytes(self, subs: Iterable[SubKey]) -> int:
        """What these subscriptions may still be pushed."""
        return sum(max(self._subs[sub].bytes, 0) for sub in subs if sub in self._subs)

    def on_credit(self, sub: SubKey, *, bytes: int, records: int) -> list[Fetch]:
        s = self._subs.setdefault(sub, _Subscription())
        s.bytes = min(s.bytes + bytes, CREDIT_BYTES_MAX)
        s.records = min(s.records + records, CREDIT_BYTES_MAX)
        return self._advance(sub, s)

    def on_committed(
        self, partition: PartitionKey, base_offset: int, count: int, timestamp_ms: int, data: Buffer
    ) -> None:
        """A batch was committed: level readers with credit get it from memory, the others are behind now."""
        readers = self._of_partition.get(partition)
        if not readers:
            return
        self._ends[partition] = base_offset + count
        for sub, reader in readers.items():
            s = self._subs[sub]
            if reader.position == base_offset and not reader.fetching and s.bytes > 0 and s.records > 0:
                item = Pushed(partition, base_offset, timestamp_ms, base_offset, data)
                self._collect(sub, s, reader, item, count)
            else:
                s.behind[partition] = None

    def on_expired(self, partition: PartitionKey, low: int) -> list[Fetch]:
        """The partition begins here now: who has not read so far is told what it missed."""
        fetches: list[Fetch] = []
        for sub, reader in self._of_partition.get(partition, {}).items():
            if reader.position < low:
                s = self._subs[sub]
                s.going.append(Skip(sub, partition, reader.position, low))
                self.ready[sub] = None
                reader.position, reader.fetching = low, False  # what is being fetched is void
                s.behind[partition] = None
                fetches += self._advance(sub, s)
        return fetches

    def is_awaited(self, fetch: Fetch) -> bool:
        """False when it was unread meanwhile, or read again from elsewhere: whatever came of it is void."""
        s = self._subs.get(fetch.sub)
        reader = s.readers.get(fetch.partition) if s else None
        return reader is not None and reader.fetching and reader.position == fetch.offset

    def on_fetched(self, fetch: Fetch, batches: Sequence[StoredBatch]) -> list[Fetch]:
        """What a Fetch found: at least one batch, the first holding its offset (the caller made sure)."""
        s = self._subs.get(fetch.sub)
        if s is None:
            return []
        if fetch in s.asked:
            s.asked.remove(fetch)
            s.asked_bytes -= fetch.bytes_max
        if self.is_awaited(fetch):
            self._take(fetch, batches, s, s.readers[fetch.partition])
        return self._advance(fetch.sub, s)

    def _take(self, fetch: Fetch, batches: Sequence[StoredBatch], s: _Subscription, reader: _Reader) -> None:
        reader.fetching = False
        for b in batches:
            if b.base_offset + b.count <= reader.position:
                continue  # of before it was compacted together with the one before
            # A batch that does not continue what came before: the next fetch begins at the hole and finds it.
            if s.bytes <= 0 or s.records <= 0 or b.base_offset > reader.position:
                break
            item = Pushed(
                b.partition, b.base_offset, b.timestamp_ms, max(reader.position, b.base_offset), b.data
            )
            self._collect(fetch.sub, s, reader, item, b.count)
        if reader.position < self._ends[fetch.partition]:
            s.behind[fetch.partition] = None

    def on_unread(self, sub: SubKey, partitions: Sequence[PartitionKey] = ()) -> None:
        """Stop these partitions, or the whole subscription."""
        s = self._subs.get(sub)
        if s is None:
            return
        for partition in list(partitions) or list(s.readers):
            self._drop_reader(sub, s, partition)
        if not partitions:
            del self._subs[sub]
            self.ready.pop(sub, None)

    def on_session_gone(self, session: Session) -> None:
        for sub in [k for k in self._subs if k[0] == session]:
            self.on_unread(sub)

    def on_partition_gone(self, partition: PartitionKey) -> list[SubKey]:
        """Nobody reads it any more; returns who did."""
        subs = list(self._of_partition.get(partition, ()))
        for sub in subs:
            self._drop_reader(sub, self._subs[sub], partition)
        return subs

    def readers_of(self, topic_id: TopicId) -> list[PartitionKey]:
        return [p for p in self._of_partition if p.topic_id == topic_id]

    def partitions_read(self) -> list[PartitionKey]:
        return list(self._of_partition)

    def count(self) -> int:
        return sum(len(s.readers) for s in self._subs.values())

    def take_pushes(self) -> list[Push | Skip]:
        """Everything collected since the last call, in its order, in as few messages as the limits allow."""
        pushes: list[Push | Skip] = []
        for sub in self.ready:
            s = self._subs[sub]
            batches: list[Pushed] = []
            size = 0
            for item in s.going:
                over = isinstance(item, Skip) or size + len(item.data) > PUSH_BYTES
                if batches and (over or len(batches) >= PUSH_BATCHES_MAX):
                    pushes.append(Push(sub, tuple(batches)))
                    batches, size = [], 0
                if isinstance(item, Skip):
                    pushes.append(item)
                else:
                    batches.append(item)
                    size += len(item.data)
            if batches:
                pushes.append(Push(sub, tuple(batches)))
            s.going.clear()
        self.ready.clear()
        return pushes

    # ------------------------------------------------------------------------------- how it is done
    def _advance(self, sub: SubKey, s: _Subscription) -> list[Fetch]:
        """Start fetches for readers that are behind, while there is credit that no fetch was started for:
        what is read from disk for one subscription is never much more than it may be sent.
        """
        fetches: list[Fetch] = []
        most = min(s.records, PUSH_BATCHES_MAX)  # a fetch brings at least one record
        while s.behind and s.bytes > s.asked_bytes and len(s.asked) < most:
            partition, _ = s.behind.popitem(last=False)
            reader = s.readers[partition]
            if reader.fetching or reader.position >= self._ends[partition]:
                continue
            reader.fetching = True
            size = min(FETCH_BYTES, s.bytes - s.asked_bytes)
            fetches.append(Fetch(sub, partition, reader.position, self._ends[partition], size))
            s.asked.append(fetches[-1])
            s.asked_bytes += size
        return fetches

    def _collect(self, sub: SubKey, s: _Subscription, reader: _Reader, item: Pushed, count: int) -> None:
        s.going.append(item)
        s.bytes -= len(item.data)
        s.records -= item.base_offset + count - item.first
        reader.position = item.base_offset + count
        self.ready[sub] = None

    def _drop_reader(self, sub: SubKey, s: _Subscription, partition: PartitionKey) -> None:
        if s.readers.pop(partition, None) is None:
            return
        s.behind.pop(partition, None)
        readers = self._of_partition[partition]
        del readers[sub]
        if not readers:
            del self._of_partition[partition]
            del self._ends[partition]
