"""The stream machine of one slot: turns log entries into partitions, offsets and producers' receipts.

Two views of the same state: *applied* is what the committed log says; *proposed* runs ahead by the entries
that are on their way to disk, because the next batch needs its offset and its sequence check now. The
proposed view is only ever applied state plus `advance` over the waiting entries; each part of it goes when
the last entry that made it is applied, and all of it when the disk refuses them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from meshq.batch import NO_PRODUCER, BatchHeader
from meshq.entries import Entry, EntryKind, generation_of
from meshq.errors import InternalError, MeshqError, Overloaded, StoreCorrupt
from meshq.ids import PartitionKey, Ref, Slot, TopicId
from meshq.streams.groups.letters import LettersBody, decode_letters
from meshq.streams.groups.state import GroupState
from meshq.streams.groups.table import ROW as GROUP_ROW
from meshq.streams.groups.table import GroupApplied, GroupTable
from meshq.streams.groups.words import GroupBody
from meshq.streams.producers import (
    BatchReceipt,
    ProducerKey,
    ProducerState,
    ProducerTable,
    advance,
    is_expired,
    judge,
)
from meshq.streams.publish import PublishBody, decode_publish

REFS_MAX = 64  # repeats of one batch that wait for its receipt; more: `Overloaded`


class PartitionState(msgspec.Struct, frozen=True, array_like=True):
    """Offsets in [low, end) are committed and readable."""

    low: int = 0
    end: int = 0
    bytes: int = 0  # payload bytes stored
    timestamp_ms: int = 0  # of the newest batch
    cuts: tuple[tuple[int, int], ...] = ()  # (generation, end when it began), the newest CUTS_MAX


EMPTY = PartitionState()
CUTS_MAX = 8  # of a partition, and generations of a slot that are remembered; the oldest are forgotten


@dataclass(frozen=True, slots=True)
class Stored:
    """A batch is committed: `refs` wait for its receipt, readers may have it."""

    partition: PartitionKey
    base_offset: int
    count: int
    timestamp_ms: int
    index: int
    refs: tuple[Ref, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """The slot's partitions of a deleted topic are gone; their payloads can be deleted."""

    partitions: tuple[PartitionKey, ...]


@dataclass(frozen=True, slots=True)
class Moved:
    """Records of a group are dead letters now."""

    group: GroupApplied
    stored: Stored


@dataclass(slots=True)
class _Waiting:
    body: PublishBody
    refs: list[Ref]


class SlotStream:
    """Applied state of one slot, and what waits to be applied."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.applied_index = 0
        self.generations: tuple[int, ...] = ()  # after the first one, CUTS_MAX
        self.partitions: dict[PartitionKey, PartitionState] = {}
        self.dropping: set[PartitionKey] = set()  # deleted, payloads not all gone yet
        self._dirty: dict[bytes, None] = {}
        self.producers = ProducerTable(lambda key: self._mark(_producer_row(key)))
        self.groups = GroupTable(self._mark)
        self._ahead_end: dict[PartitionKey, int] = {}
        self._ahead_producers: dict[ProducerKey, ProducerState] = {}
        self._waiting: dict[int, _Waiting] = {}

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
        refs = self._waiting[index].refs
        if ref is not None and ref not in refs:
            if len(refs) >= REFS_MAX:
                return Overloaded(
                    "that batch is on its way to disk and was repeated too often", retry_after_ms=50
                )
            refs.append(ref)
        return index

    def on_proposed(self, entry: Entry, body: PublishBody, ref: Ref | None) -> None:
        """The batch has its place in the log: later ones build on it."""
        partition = PartitionKey(TopicId(body.topic_id), body.partition)
        self._waiting[entry.index] = _Waiting(body, [] if ref is None else [ref])
        self._ahead_end[partition] = body.base_offset + body.count
        if body.producer_id != NO_PRODUCER:
            key = _producer_key(body)
            self._ahead_producers[key] = _advanced(self._proposed(key, entry.timestamp_ms), entry, body)

    def on_append_failed(self) -> list[Ref]:
        """None of what waited was stored: forget it, and return who waited."""
        refs = [ref for w in self._waiting.values() for ref in w.refs]
        self._waiting.clear()
        self._ahead_end.clear()
        self._ahead_producers.clear()
        return refs

    # ------------------------------------------------------------------------------------- applying
    def apply(self, entry: Entry) -> Stored | Dropped | GroupApplied | Moved | None:
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
                    state.on_letters(letters.base_offset)
                return Moved(moved, self._apply_publish(entry, letters))
            case EntryKind.NOOP | EntryKind.CONFIG:
                return None
            case EntryKind.REGISTRY:
                raise InternalError(f"slot {self.slot} holds an entry of the registry")

    def _begin_generation(self, generation: int) -> None:
        """What was decided and never came here is lost: who read beyond these ends has to be told."""
        self.generations = (*self.generations, generation)[-CUTS_MAX:]
        self._mark(_GENERATIONS)
        for partition, state in self.partitions.items():
            cuts = (*state.cuts, (generation, state.end))[-CUTS_MAX:]
            self.partitions[partition] = msgspec.structs.replace(state, cuts=cuts)
            self._mark(_partition_row(partition))

    @property
    def generation(self) -> int:
        return self.generations[-1] if self.generations else 0

    def cut_after(self, partition: PartitionKey, generation: int) -> int | None:
        """Up to which offset the partition is what one of that generation has read; None: all of it."""
        cuts = dict(self.partitions.get(partition, EMPTY).cuts)
        return min((cuts.get(g, 0) for g in self.generations if g > generation), default=None)

    def _apply_publish(self, entry: Entry, body: PublishBody) -> Stored:
        partition = PartitionKey(TopicId(body.topic_id), body.partition)
        old = self.partitions.get(partition, EMPTY)
        if body.base_offset != old.end:
            raise InternalError(
                f"slot {self.slot}: offset {body.base_offset} after {old.end}: offsets are dense"
            )
        self.partitions[partition] = PartitionState(
            old.low, old.end + body.count, old.bytes + body.payload_bytes, entry.timestamp_ms, old.cuts
        )
        self._mark(_partition_row(partition))
        self.producers.expire(entry.timestamp_ms)
        if body.producer_id != NO_PRODUCER:
            key = _producer_key(body)
            state = self.producers.get(key, timestamp_ms=entry.timestamp_ms)
            self.producers.put(key, _advanced(state, entry, body))
            self._catch_up_producer(key, entry.index)
        waiting = self._waiting.pop(entry.index, None)
        if self._ahead_end.get(partition) == body.base_offset + body.count:
            del self._ahead_end[partition]
        refs = tuple(waiting.refs) if waiting else ()
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
            self._mark(_partition_row(partition))
            self._mark(_dropping_row(partition))
        self.producers.drop_topic(topic_id)
        self.groups.drop_topic(topic_id)
        return Dropped(gone)

    def on_payloads_deleted(self, partition: PartitionKey) -> None:
        self.dropping.discard(partition)
        self._mark(_dropping_row(partition))

    # -------------------------------------------------------------------------------------- on disk
    @property
    def is_dirty(self) -> bool:
        return bool(self._dirty)

    def take_rows(self) -> tuple[tuple[bytes, bytes | None], ...]:
        """State that changed since the last call, with the applied index it belongs to, for one
        transaction.
        """
        rows: list[tuple[bytes, bytes | None]] = [(_APPLIED, _encoder.encode(self.applied_index))]
        rows += [(key, self._encoded(key)) for key in self._dirty]
        self._dirty.clear()
        return tuple(rows)

    def mark_again(self, keys: Iterable[bytes]) -> None:
        """These rows did not reach the disk."""
        for key in keys:
            if key != _APPLIED:
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
                        self.partitions[_partition_of(key)] = msgspec.msgpack.decode(
                            value, type=PartitionState
                        )
                    case b"Q":
                        producers[_producer_of(key)] = msgspec.msgpack.decode(value, type=ProducerState)
                    case b"D":
                        self.dropping.add(_partition_of(key))
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
        self._dirty[row] = None

    def _encoded(self, row: bytes) -> bytes | None:
        if row[:1] == GROUP_ROW:
            return self.groups.encoded(row)
        value: PartitionState | ProducerState | tuple[int, ...] | bool | None
        match row[:1]:
            case b"G":
                value = self.generations
            case b"P":
                value = self.partitions.get(_partition_of(row))
            case b"Q":
                value = self.producers.row(_producer_of(row))
            case _:
                value = _partition_of(row) in self.dropping or None
        return None if value is None else _encoder.encode(value)

    def holds(self, topic_id: TopicId) -> bool:
        """Whether anything of this topic is here or on its way to disk."""
        return topic_id in self.topics() or any(p.topic_id == topic_id for p in self._ahead_end)

    def topics(self) -> set[TopicId]:
        """Whose records or groups are here."""
        return {p.topic_id for p in self.partitions} | {k.partition.topic_id for k in self.groups}


_encoder = msgspec.msgpack.Encoder()
_APPLIED, _GENERATIONS = b"A", b"G"
_LOCAL = (_APPLIED, b"D", b"H", b"R")  # rows that each replica has its own of
_PARTITION_ROW_BYTES = 21


def applied_index(rows: Mapping[bytes, bytes]) -> int:
    """How far a slot's rows go: entries behind this index are to be applied again."""
    return msgspec.msgpack.decode(rows[_APPLIED], type=int) if _APPLIED in rows else 0


def is_shared(key: bytes) -> bool:
    """Whether a row is the same on every replica at the same index, and so part of a snapshot."""
    return bool(key) and key[:1] not in _LOCAL


def partition_of_row(key: bytes) -> PartitionKey | None:
    """Whose row it is, if it is a partition's."""
    return _partition_of(key) if key[:1] == b"P" and len(key) == _PARTITION_ROW_BYTES else None


def partition_states(rows: Mapping[bytes, bytes]) -> list[tuple[PartitionKey, PartitionState]]:
    """The partitions that rows tell of, sorted: the same order on every replica."""
    return [
        (_partition_of(key), msgspec.msgpack.decode(rows[key], type=PartitionState))
        for key in sorted(rows)
        if key[:1] == b"P"
    ]


def begun_rows(index: int, dropping: Iterable[PartitionKey]) -> list[tuple[bytes, bytes]]:
    """Rows of this replica alone where its state is replaced: the index that is at, what is to be deleted."""
    return [
        (_APPLIED, _encoder.encode(index)),
        *((_dropping_row(p), _encoder.encode(True)) for p in sorted(dropping)),
    ]


def _advanced(state: ProducerState | None, entry: Entry, body: PublishBody) -> ProducerState:
    epoch = body.producer_epoch
    receipt = BatchReceipt(
        body.first_sequence, body.count, body.payload_crc, body.base_offset, entry.index, epoch
    )
    return advance(state, epoch=epoch, receipt=receipt, timestamp_ms=entry.timestamp_ms)


def _producer_key(body: PublishBody) -> ProducerKey:
    return ProducerKey(body.client_key, body.producer_id, TopicId(body.topic_id), body.partition)


def _partition_row(p: PartitionKey) -> bytes:
    return b"P" + p.topic_id + p.partition.to_bytes(4, "big")


def _dropping_row(p: PartitionKey) -> bytes:
    return b"D" + p.topic_id + p.partition.to_bytes(4, "big")


def _producer_row(k: ProducerKey) -> bytes:
    return b"Q" + k.client_key + k.producer_id + k.topic_id + k.partition.to_bytes(4, "big")


def _partition_of(row: bytes) -> PartitionKey:
    return PartitionKey(TopicId(row[1:17]), int.from_bytes(row[17:21], "big"))


def _producer_of(row: bytes) -> ProducerKey:
    return ProducerKey(row[1:33], row[33:49], TopicId(row[49:65]), int.from_bytes(row[65:69], "big"))
