"""Looking things up again, in short read transactions on the caller's thread.

LMDB has no checksums, so everything that is handed out has been verified against its own: a batch by its two,
an entry by its own and by the chain to its predecessor. What does not match is StoreCorrupt, never absent: an
absent entry may be filled in from elsewhere without a word, a corrupt one is reported first.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from meshq.batch import COMPACTED, HEADER_BYTES, Buffer, read_header
from meshq.entries import (
    ASIDE_ROW,
    GENESIS_CHAIN,
    Entry,
    Mark,
    PayloadCorrupt,
    PayloadKey,
    StoredBatch,
    decode_entry,
    follows,
)
from meshq.errors import RemoteProtocolError, StoreCorrupt, UsageError
from meshq.ids import PartitionKey, Slot
from meshq.store.environment import Databases
from meshq.store.layout import (
    BatchKey,
    log_key,
    parse_log_key,
    parse_payload_key,
    parse_row_key,
    payload_key,
    payload_seek,
    row_key,
)


@dataclass(slots=True)
class SlotImage:
    """What the store holds of a slot. An empty log has first index 1, last index 0 and the genesis chain.

    `aside`: what was put aside; of the rows of a snapshot the keys alone, for together they may be big.
    `damage`: what is wrong with its log, where whoever loads it can go on with the rest.
    """

    rows: dict[bytes, bytes] = field(default_factory=dict)
    aside: dict[bytes, bytes] = field(default_factory=dict)
    first_index: int = 1
    last_index: int = 0
    last_chain: bytes = GENESIS_CHAIN
    damage: StoreCorrupt | None = None


def load(dbs: Databases, *, strict: bool) -> dict[Slot, SlotImage]:
    """Every slot with a row or an entry. A hole in a log or a bad last entry: StoreCorrupt if `strict`."""
    images: dict[Slot, SlotImage] = {}
    with dbs.env.begin() as txn:
        with txn.cursor(dbs.rows) as rows:
            for key, value in rows:
                slot, name = parse_row_key(bytes(key))
                images.setdefault(slot, SlotImage()).rows[name] = bytes(value)
        with txn.cursor(dbs.aside) as aside:
            for key, value in aside:
                slot, name = parse_row_key(bytes(key))
                kept = b"" if name.startswith(ASIDE_ROW) else bytes(value)
                images.setdefault(slot, SlotImage()).aside[name] = kept
        with txn.cursor(dbs.log) as log:
            for key in log.iternext(keys=True, values=False):
                _count_entry(images, *parse_log_key(key))
        for slot, image in images.items():
            if image.last_index:
                data = txn.get(log_key(slot, image.last_index), b"", db=dbs.log)
                try:
                    image.last_chain = _decode(slot, image.last_index, data).chain
                except StoreCorrupt as e:
                    image.damage = image.damage or e
            if strict and image.damage is not None:
                raise image.damage
    return images


def read_sound(dbs: Databases, slot: Slot, from_index: int) -> list[Entry]:
    """Of the entries from this index on those whose checksum holds, whatever is between them."""
    found: list[Entry] = []
    prefix = row_key(slot, b"")
    with _cursor(dbs, dbs.log) as cursor:
        here = cursor.set_range(log_key(slot, from_index))
        while here and bytes(cursor.key()).startswith(prefix):
            with suppress(StoreCorrupt):
                found.append(decode_entry(parse_log_key(cursor.key())[1], cursor.value()))
            here = cursor.next()
    return found


def read_rows(dbs: Databases, slot: Slot) -> dict[bytes, bytes]:
    """The slot's rows as they are at one moment."""
    found: dict[bytes, bytes] = {}
    prefix = row_key(slot, b"")
    with dbs.env.begin() as txn, txn.cursor(dbs.rows) as cursor:
        here = cursor.set_range(prefix)
        while here and cursor.key().startswith(prefix):
            found[bytes(cursor.key()[len(prefix) :])] = bytes(cursor.value())
            here = cursor.next()
    return found


def read_payload(dbs: Databases, key: PayloadKey) -> bytes:
    """The payload under exactly this key; empty where one that had expired was left out when it was sent.

    Raises: PayloadCorrupt when it is not there, or not sound.
    """
    name = payload_key(key.partition, key.base_offset, key.timestamp_ms, key.count)
    with dbs.env.begin(buffers=True) as txn:
        data = txn.get(name, db=dbs.payloads)
        if data is not None and not len(data):
            return b""
        wanted = BatchKey(key.base_offset, key.timestamp_ms, key.count)
        fault = "it is not there" if data is None else fault_of(data, wanted)
        if data is None or fault:
            raise PayloadCorrupt(fault, key.partition, key.base_offset, stored=key)
        return bytes(data)


def is_compacted(dbs: Databases, key: PayloadKey) -> bool:
    """Whether nothing is stored under this key, or what compaction left there. Damage is neither."""
    with dbs.env.begin(buffers=True) as txn:
        name = payload_key(key.partition, key.base_offset, key.timestamp_ms, key.count)
        data = txn.get(name, db=dbs.payloads)
        if data is None:
            return True
        with suppress(RemoteProtocolError):
            return read_header(data).version == COMPACTED
    return False


def read_entries(
    dbs: Databases, slot: Slot, from_index: int, *, bytes_max: int, count_max: int
) -> list[Entry]:
    """Entries from this index on, dense and verified; at least one, or none behind the log's end.

    Raises: StoreCorrupt; UsageError for an index that has been trimmed away.
    """
    entries: list[Entry] = []
    size = 0
    with _cursor(dbs, dbs.log) as cursor:
        found = cursor.set_range(log_key(slot, from_index))
        chain = _chain_before(cursor, slot, from_index, found)
        found = cursor.set_range(log_key(slot, from_index))
        while found and len(entries) < count_max:
            at, index = parse_log_key(cursor.key())
            if at != slot:
                break
            size += len(cursor.value())
            if entries and size > bytes_max:
                break
            entry = _next_entry(slot, from_index + len(entries), index, cursor.value(), chain)
            entries.append(entry)
            chain = entry.chain
            found = cursor.next()
    return entries


def read_batches(
    dbs: Databases, partition: PartitionKey, offset: int, *, end: int, bytes_max: int, count_max: int
) -> list[StoredBatch]:
    """Batches from the one that holds `offset` (or the next one there is), whose base offset is below `end`.

    The first one comes whatever its size. Good batches before a bad one are returned; the next read raises.
    Raises: PayloadCorrupt.
    """
    batches: list[StoredBatch] = []
    size = 0
    with _cursor(dbs, dbs.payloads) as cursor:
        key = _seek_batch(cursor, partition, offset)
        while key is not None and key.base_offset < end and len(batches) < count_max:
            data = cursor.value()
            size += len(data)
            if batches and size > bytes_max:
                break
            fault = fault_of(data, key)
            if fault and batches:
                break
            if fault:
                stored = PayloadKey(partition, key.base_offset, key.timestamp_ms, key.count)
                raise PayloadCorrupt(fault, partition, key.base_offset, stored=stored)
            batches.append(StoredBatch(partition, key.base_offset, key.count, key.timestamp_ms, bytes(data)))
            key = parse_payload_key(partition, cursor.key()) if cursor.next() else None
    return batches


def survey(dbs: Databases, partition: PartitionKey, offset: int, *, count_max: int) -> list[Mark]:
    """What is stored, from the batch that holds `offset` on (or the next one there is): so many at most."""
    marks: list[Mark] = []
    with _cursor(dbs, dbs.payloads) as cursor:
        key = _seek_batch(cursor, partition, offset)
        while key is not None and len(marks) < count_max:
            marks.append(Mark(key.base_offset, key.count, key.timestamp_ms, len(cursor.value())))
            key = parse_payload_key(partition, cursor.key()) if cursor.next() else None
    return marks


def first_offset(dbs: Databases, partition: PartitionKey) -> int | None:
    """The base offset of the partition's oldest batch; None when it has none."""
    with _cursor(dbs, dbs.payloads) as cursor:
        key = _at_or_after(cursor, partition, 0)
        return key.base_offset if key else None


def offset_at(dbs: Databases, partition: PartitionKey, timestamp_ms: int, *, end: int) -> int:
    """The base offset of the first batch appended at this time or later; `end` if none below it was.

    A binary search over offsets: time never decreases along a partition.
    """
    result = end
    with _cursor(dbs, dbs.payloads) as cursor:
        low, high = 0, end
        while low < high:
            middle = (low + high) // 2
            key = _at_or_after(cursor, partition, middle)
            if key is None or key.base_offset >= high:
                high = middle
            elif key.timestamp_ms < timestamp_ms:
                low = key.base_offset + 1
            else:
                result, high = key.base_offset, middle
    return result


@contextmanager
def _cursor(dbs: Databases, db: Any) -> Iterator[Any]:
    """A cursor that hands out views into the map, good only inside."""
    with dbs.env.begin(buffers=True) as txn, txn.cursor(db) as cursor:
        yield cursor


def _count_entry(images: dict[Slot, SlotImage], slot: Slot, index: int) -> None:
    image = images.setdefault(slot, SlotImage())
    if not image.last_index:
        image.first_index = index
    elif index != image.last_index + 1:
        image.damage = image.damage or _missing(slot, image.last_index + 1)
    image.last_index = index


def _chain_before(cursor: Any, slot: Slot, index: int, found: bool) -> bytes | None:
    """The chain of the entry before this index; None when the log begins here (or has nothing here)."""
    here = found and parse_log_key(cursor.key())[0] == slot
    before = cursor.prev() if found else cursor.last()
    if before:
        at, previous = parse_log_key(cursor.key())
        if at == slot:
            if here and previous != index - 1:
                raise _missing(slot, previous + 1)
            return _decode(slot, previous, cursor.value()).chain
    if here and cursor.set_range(log_key(slot, index)):
        first = parse_log_key(cursor.key())[1]
        if first != index:
            raise UsageError(f"entry {index} of slot {slot} was trimmed; its log begins at {first}")
    return None


def _next_entry(slot: Slot, wanted: int, index: int, data: Buffer, chain: bytes | None) -> Entry:
    if index != wanted:
        raise _missing(slot, wanted)
    entry = _decode(slot, index, data)
    if chain is not None and not follows(chain, entry):
        raise StoreCorrupt(f"log entry {index} of slot {slot} was not made after the one before it")
    return entry


def _decode(slot: Slot, index: int, data: Buffer) -> Entry:
    try:
        return decode_entry(index, data)
    except StoreCorrupt as e:
        raise StoreCorrupt(f"slot {slot}: {e}") from None


def _missing(slot: Slot, index: int) -> StoreCorrupt:
    return StoreCorrupt(f"log entry {index} of slot {slot} is missing between others")


def _seek_batch(cursor: Any, partition: PartitionKey, offset: int) -> BatchKey | None:
    """Put the cursor on the batch that holds this offset, or on the next one."""
    found = cursor.set_range(payload_seek(partition, offset + 1))
    if cursor.prev() if found else cursor.last():
        key = parse_payload_key(partition, cursor.key())
        if key is not None and key.end > offset:
            return key
    return _at_or_after(cursor, partition, offset)


def _at_or_after(cursor: Any, partition: PartitionKey, offset: int) -> BatchKey | None:
    if not cursor.set_range(payload_seek(partition, offset)):
        return None
    return parse_payload_key(partition, cursor.key())


def fault_of(data: Buffer, key: BatchKey) -> str:
    """What is wrong with a stored batch; empty when it is sound."""
    try:
        header = read_header(data)
    except RemoteProtocolError as e:
        return str(e)
    if header.count != key.count:
        return f"a batch of {header.count} records was stored as one of {key.count}"
    if zlib.crc32(memoryview(data)[HEADER_BYTES:]) != header.body_crc:
        return "a batch body whose checksum does not match"
    return ""
