"""The stream machine of one slot: turns log entries into partitions, offsets and producers' receipts.

Two views of the same state: *applied* is what the committed log says; *proposed* runs ahead by the entries
that are on their way to disk, because the next batch needs its offset and its sequence check now. The
proposed view is only ever applied state plus `advance` over the waiting entries; each part of it goes when
the last entry that made it is applied, and all of it when the disk refuses them.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from meshq.batch import NO_PRODUCER, BatchHeader
from meshq.entries import Entry, EntryKind, Payload, generation_of
from meshq.errors import InternalError, MeshqError, Overloaded, StoreCorrupt
from meshq.ids import PartitionKey, Ref, Slot, TopicId
from meshq.streams.applied import (
    CUTS_MAX,
    EMPTY,
    Applied,
    Compacted,
    Dropped,
    Moved,
    PartitionState,
    Retained,
    Stored,
)
from meshq.streams.compaction import decode_compact
from meshq.streams.groups.letters import LettersBody, decode_letters
from meshq.streams.groups.state import GroupState
from meshq.streams.groups.table import ROW as GROUP_ROW
from meshq.streams.groups.table import GroupTable
from meshq.streams.groups.words import GroupBody
from meshq.streams.producers import (
    BatchReceipt,
    ProducerKey,
    ProducerState,
    ProducerTable,
    is_expired,
    judge,
)
from meshq.streams.publish import (
    PublishBody,
    advanced,
    decode_publish,
    partition_key_of,
    payload_key_of,
    producer_key_of,
)
from meshq.streams.retention import decode_retain
from meshq.streams.rows import (
    APPLIED,
    GENERATIONS,
    dropping_row,
    expired_row,
    partition_of,
    partition_row,
    producer_of,
    producer_row,
)

REFS_MAX = 64  # repeats of one batch that wait for its receipt; more: `Overloaded`
_encoder = msgspec.msgpack.Encoder()


class SlotStream:
    """Applied state of one slot, and what waits to be applied."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.applied_index = 0
        self.generations: tuple[int, ...] = ()  # after the first one, CUTS_MAX
        self.partitions: dict[PartitionKey, PartitionState] = {}
        self.dropping: set[PartitionKey] = set()  # deleted, payloads not all gone yet
        self.expired: dict[PartitionKey, int] = {}  # payloads below this offset are not all gone yet
        self.rewrites: list[Compacted] = []  # to be written with the state that they are part of
        self.dirty: dict[bytes, None] = {}  # rows to be written
        self.producers = ProducerTable(lambda key: self._mark(producer_row(key)))
        self.groups = GroupTable(self._mark, lambda p: self.partitions.get(p, EMPTY).low)
        self._ahead_end: dict[PartitionKey, int] = {}
        self._ahead_producers: dict[ProducerKey, ProducerState] = {}
        self._waiting: dict[int, list[Ref]] = {}  # by entry: who wants its receipt

    # ------------------------------------------------------------------------------------ proposing
    def judge(
        self,
        partition: PartitionKey,
        header: BatchHeader,
        client_key: bytes,
        ref: Ref | None,
        *,
        timestamp_ms: int,
    ) -> BatchReceipt | MeshqError | PublishBody | int:
        """What becomes of a batch: a body to append, the receipt of the same batch earlier, or an error.

        An index: it repeats that entry's batch, still on its way; `ref` gets that one's receipt.
        """
        end = self._ahead_end.get(partition)
        if end is None:
            end = self.partitions.get(partition, EMPTY).end
        if header.producer_id != NO_PRODUCER:
            key = ProducerKey(client_key, header.producer_id, *partition)
            state = self._proposed(key, timestamp_ms)
            if state is None and not self.producers.has_room(
                self._ahead_producers, epoch=header.producer_epoch, timestamp_ms=timestamp_ms
            ):
                return Overloaded("this slot remembers as many producers as it may", retry_after_ms=5_000)
            verdict = judge(
                state,
                epoch=header.producer_epoch,
                first_sequence=header.first_sequence,
                count=header.count,
                crc=header.body_crc,
            )
            if isinstance(verdict, BatchReceipt) and verdict.index in self._waiting:
                return self._wait_too(verdict.index, ref)
            if verdict is not None:
                return verdict
        return PublishBody(
            partition.topic_id, partition.partition, end, header.count, client_key, header.producer_id,
            header.producer_epoch, header.first_sequence, header.body_crc, 0,
        )  # fmt: skip

    def letters(self, partition: PartitionKey, count: int, crc: int, moved: GroupBody) -> LettersBody:
        """The body with which records of a group become records of this partition, its dead letters."""
        end = self._ahead_end.get(partition)
        if end is None:
            end = self.partitions.get(partition, EMPTY).end
        return LettersBody(*partition, end, count, b"", NO_PRODUCER, 0, 0, crc, 0, moved)

    def _proposed(self, key: ProducerKey, timestamp_ms: int) -> ProducerState | None:
        """What will be remembered of a producer once everything that waits is applied."""
        state = self._ahead_producers.get(key)
        if state is None:
            return self.producers.get(key, timestamp_ms=timestamp_ms)
        return None if is_expired(state, timestamp_ms) else state

    def _wait_too(self, index: int, ref: Ref | None) -> Overloaded | int:
        refs = self._waiting[index]
        if ref is not None and ref not in refs:
            if len(refs) >= REFS_MAX:
                return Overloaded(
                    "that batch is on its way to disk and was repeated too often", retry_after_ms=50
                )
            refs.append(ref)
        return index

    def on_proposed(self, entry: Entry, body: PublishBody, ref: Ref | None) -> None:
        """The batch has its place in the log: later ones build on it."""
        partition, key = partition_key_of(body), producer_key_of(body)
        self._waiting[entry.index] = [] if ref is None else [ref]
        self._ahead_end[partition] = body.base_offset + body.count
        if key is not None:
            self._ahead_producers[key] = advanced(self._proposed(key, entry.timestamp_ms), entry, body)

    def on_append_failed(self) -> list[Ref]:
        """None of what waited was stored: forget it, and return who waited."""
        refs = [ref for waiting in self._waiting.values() for ref in waiting]
        self._waiting.clear()
        self._ahead_end.clear()
        self._ahead_producers.clear()
        return refs

    # ------------------------------------------------------------------------------------- applying
    def apply(self, entry: Entry) -> Applied | None:
        """The next committed entry. Same entries, same state, on every replica."""
        if entry.index != self.applied_index + 1:
            raise InternalError(f"slot {self.slot}: entry {entry.index} after {self.applied_index}")
        self.applied_index = entry.index
        if generation_of(entry.term) > self.generation:
            self._begin_generation(generation_of(entry.term))
        match entry.kind:
            case EntryKind.PUBLISH:
                return self._apply_publish(entry, decode_publish(entry.body))
            case EntryKind.DROP_TOPIC:
                return self._apply_drop(TopicId(entry.body))
            case EntryKind.GROUP:
                return self.groups.apply(entry.body, entry.index)
            case EntryKind.DEAD_LETTER:
                letters = decode_letters(entry.body)
                # What is not dying (any more), or has no group, was a dead letter all the same when this was
                # proposed: its letter is stored, as what was proposed behind it begins where that one ends.
                moved = self.groups.apply_body(letters.moved, entry.index)
                state = self.groups.get(moved.key)
                if isinstance(state, GroupState):
                    state.on_letters(letters.base_offset, letters.base_offset + letters.count)
                return Moved(moved, self._apply_publish(entry, letters))
            case EntryKind.RETAIN:
                return self._apply_retain(entry)
            case EntryKind.COMPACT:
                return self._apply_compact(entry)
            case EntryKind.NOOP | EntryKind.CONFIG:
                return None
            case EntryKind.REGISTRY:
                raise InternalError(f"slot {self.slot} holds an entry of the registry")

    def _begin_generation(self, generation: int) -> None:
        """What was decided and never came here is lost: who read beyond these ends has to be told."""
        self.generations = (*self.generations, generation)[-CUTS_MAX:]
        self._mark(GENERATIONS)
        for partition, state in self.partitions.items():
            cuts = (*state.cuts, (generation, state.end))[-CUTS_MAX:]
            self.partitions[partition] = replace(state, cuts=cuts)
            self._mark(partition_row(partition))

    @property
    def generation(self) -> int:
        return self.generations[-1] if self.generations else 0

    def cut_after(self, partition: PartitionKey, generation: int) -> int | None:
        """Up to which offset the partition is what one of that generation has read; None: all of it."""
        cuts = dict(self.partitions.get(partition, EMPTY).cuts)
        return min((cuts.get(g, 0) for g in self.generations if g > generation), default=None)

    def _apply_publish(self, entry: Entry, body: PublishBody) -> Stored:
        partition, key = partition_key_of(body), producer_key_of(body)
        old = self.partitions.get(partition, EMPTY)
        if body.base_offset != old.end:
            raise InternalError(
                f"slot {self.slot}: offset {body.base_offset} after {old.end}: offsets are dense"
            )
        self.partitions[partition] = PartitionState(
            old.low, old.end + body.count, old.bytes + body.payload_bytes, entry.timestamp_ms, old.cuts,
            old.clean, old.clean_bytes, old.rewritten,
        )  # fmt: skip
        self._mark(partition_row(partition))
        self.producers.expire(entry.timestamp_ms)
        if key is not None:
            state = self.producers.get(key, timestamp_ms=entry.timestamp_ms)
            self.producers.put(key, advanced(state, entry, body))
            self._catch_up_producer(key, entry.index)
        if self._ahead_end.get(partition) == body.base_offset + body.count:
            del self._ahead_end[partition]
        refs = tuple(self._waiting.pop(entry.index, ()))
        return Stored(partition, body.base_offset, body.count, entry.timestamp_ms, entry.index, refs)

    def _catch_up_producer(self, key: ProducerKey, index: int) -> None:
        ahead = self._ahead_producers.get(key)
        if ahead is not None and ahead.receipts[-1].index == index:
            del self._ahead_producers[key]

    def _apply_drop(self, topic_id: TopicId) -> Dropped:
        gone = tuple(p for p in self.partitions if p.topic_id == topic_id)
        for partition in gone:
            del self.partitions[partition]
            self.dropping.add(partition)
            if self.expired.pop(partition, None) is not None:
                self._mark(expired_row(partition))
            self._mark(partition_row(partition))
            self._mark(dropping_row(partition))
        self.producers.drop_topic(topic_id)
        self.groups.drop_topic(topic_id)
        return Dropped(gone)

    def _apply_retain(self, entry: Entry) -> Retained | None:
        body = decode_retain(entry.body)
        partition = PartitionKey(TopicId(body.topic_id), body.partition)
        old = self.partitions.get(partition)
        if old is None or body.first != old.low or not old.low < body.low <= old.end:
            return None  # deleted, or said before by another leader
        size = max(old.bytes - body.size, 0)
        clean_bytes = min(old.clean_bytes, size)
        self.partitions[partition] = replace(old, low=body.low, bytes=size, clean_bytes=clean_bytes)
        self._mark(partition_row(partition))
        self.groups.expire(partition, body.low)
        self.expire(partition, body.low)
        return Retained(partition, body.first, body.low)

    def _apply_compact(self, entry: Entry) -> Compacted | None:
        body = decode_compact(entry.body)
        partition = PartitionKey(TopicId(body.topic_id), body.partition)
        old, end = self.partitions.get(partition), body.first + body.count
        if old is None or body.first < old.low or end > old.end:
            return None  # deleted, or it expired meanwhile
        size = old.bytes - body.freed + len(body.data)
        self.partitions[partition] = replace(
            old,
            bytes=max(size, 0),
            clean=max(old.clean, body.clean),
            clean_bytes=size if body.clean else old.clean_bytes,
            rewritten=max(old.rewritten, end),
        )
        self._mark(partition_row(partition))
        payload = Payload(partition, body.first, body.count, body.timestamp_ms, body.data)
        done = Compacted(partition, body.first, end, payload, entry.index)
        if body.count:
            self.rewrite([done])
        return done

    def rewrite(self, more: Iterable[Compacted]) -> None:
        """To be written. What a later one replaces again is not: they would be put side by side."""
        every, self.rewrites = sorted([*self.rewrites, *more], key=lambda x: x.index), []
        for x in every:
            within, same = range(x.first, x.end), x.partition
            self.rewrites = [y for y in self.rewrites if y.partition != same or y.first not in within]
            self.rewrites.append(x)

    def expire(self, partition: PartitionKey, below: int) -> None:
        """Payloads below this offset may be on this disk, and are of no use any more."""
        self.expired[partition] = below
        self._mark(expired_row(partition))

    def has_gone(self, entry: Entry) -> bool:
        """Whether the payload of an entry that was applied is not kept any more."""
        key = payload_key_of(entry) if entry.index <= self.applied_index else None
        state = self.partitions.get(key.partition) if key is not None else None
        return key is not None and (state is None or key.base_offset + key.count <= state.low)

    def was_rewritten(self, entry: Entry) -> bool:
        """Whether what is stored at the entry's place may be what compaction left of it, or nothing."""
        key = payload_key_of(entry) if entry.index <= self.applied_index else None
        return key is not None and key.base_offset < self.partitions.get(key.partition, EMPTY).rewritten

    def on_payloads_deleted(self, partition: PartitionKey, below: int | None) -> None:
        """Those that end at or before this offset; None: all."""
        if below is None:
            self.dropping.discard(partition)
            self._mark(dropping_row(partition))
        elif self.expired.get(partition, below + 1) <= below:
            del self.expired[partition]
            self._mark(expired_row(partition))

    # -------------------------------------------------------------------------------------- on disk
    def take_rows(self) -> tuple[tuple[bytes, bytes | None], ...]:
        """State that changed since the last call, with the applied index it belongs to, for one
        transaction.
        """
        rows: list[tuple[bytes, bytes | None]] = [(APPLIED, _encoder.encode(self.applied_index))]
        rows += [(key, self._encoded(key)) for key in self.dirty]
        self.dirty.clear()
        return tuple(rows)

    def mark_again(self, keys: Iterable[bytes]) -> None:
        """These rows did not reach the disk."""
        for key in keys:
            if key != APPLIED:
                self._mark(key)

    def restore(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """State as an earlier run saved it; entries after `applied_index` are to be applied again."""
        producers: dict[ProducerKey, ProducerState] = {}
        try:
            for key, value in rows:
                match key[:1]:
                    case b"A":
                        self.applied_index = msgspec.msgpack.decode(value, type=int)
                    case b"P":
                        self.partitions[partition_of(key)] = msgspec.msgpack.decode(
                            value, type=PartitionState
                        )
                    case b"Q":
                        producers[producer_of(key)] = msgspec.msgpack.decode(value, type=ProducerState)
                    case b"D":
                        self.dropping.add(partition_of(key))
                    case b"E":
                        self.expired[partition_of(key)] = msgspec.msgpack.decode(value, type=int)
                    case b"G":
                        self.generations = msgspec.msgpack.decode(value, type=tuple[int, ...])
                    case b"C":
                        self.groups.restore(key, value)
                    case _:
                        pass  # rows of other machines of this slot (the fence)
        except msgspec.MsgspecError as e:
            raise StoreCorrupt(f"slot {self.slot}: a state row cannot be read: {e}") from None
        self.producers.restore(producers)

    def _mark(self, row: bytes) -> None:
        self.dirty[row] = None

    def _encoded(self, row: bytes) -> bytes | None:
        if row[:1] == GROUP_ROW:
            return self.groups.encoded(row)
        value: PartitionState | ProducerState | tuple[int, ...] | int | None
        match row[:1]:
            case b"G":
                value = self.generations
            case b"P":
                value = self.partitions.get(partition_of(row))
            case b"Q":
                value = self.producers.row(producer_of(row))
            case b"E":
                value = self.expired.get(partition_of(row))
            case _:
                value = partition_of(row) in self.dropping or None
        return None if value is None else _encoder.encode(value)

    def holds(self, topic_id: TopicId) -> bool:
        """Whether anything of this topic is here or on its way to disk."""
        return topic_id in self.topics() or any(p.topic_id == topic_id for p in self._ahead_end)

    def topics(self) -> set[TopicId]:
        """Whose records or groups are here."""
        return {p.topic_id for p in self.partitions} | {k.partition.topic_id for k in self.groups}
