"""What one transaction does to the databases: a group of writes, or one piece of a deletion.

The writes of a group are merged before LMDB sees them. A row that several of them change is written once, as
the last one left it, and each database is filled by one call: every call gives up the interpreter for a
moment, and under a busy event loop getting it back costs more than the write itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import lmdb

from meshq.batch import Buffer
from meshq.entries import ASIDE_ROW, PayloadKey, Write
from meshq.ids import PartitionKey, Slot
from meshq.limits import MIB
from meshq.store.environment import Databases
from meshq.store.layout import (
    META_TURN,
    log_key,
    pack_u64,
    parse_log_key,
    parse_payload_key,
    payload_key,
    payload_seek,
    row_key,
)

PIECE_BATCHES_MAX = 1_000  # very many pages freed at once make LMDB's free list slow
PIECE_BYTES_MAX = 16 * MIB  # freed in one transaction; the rest in the next


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step of a deletion did; `finished`: nothing is left to delete."""

    finished: bool
    count: int
    bytes: int


def apply_writes(txn: lmdb.Transaction[Any], dbs: Databases, writes: Iterable[Write]) -> None:
    """Everything these writes ask for, in their order."""
    waiting = _Waiting(txn, dbs)
    for write in writes:
        if write.replace is not None:
            waiting.put()
            replace_slot(txn, dbs, write)
        elif write.clear_aside is not None:
            _clear(txn, dbs.aside, row_key(write.slot, write.clear_aside))
        if write.rewritten:
            waiting.put()
            for partition, first, end in write.rewritten:
                _clear_batches(txn, dbs, partition, first, end)
        if write.truncate_from is not None or write.dropped:
            # What was put before may be what is truncated, so it has to be there first. This is rare.
            waiting.put()
            _truncate(txn, dbs, write)
        waiting.add(write)
    waiting.put()


class _Waiting:
    """What a group puts, gathered."""

    def __init__(self, txn: lmdb.Transaction[Any], dbs: Databases) -> None:
        self._txn, self._dbs = txn, dbs
        self._begin()

    def _begin(self) -> None:
        self._log: list[tuple[bytes, Buffer]] = []
        self._payloads: list[tuple[bytes, Buffer]] = []
        self._rows: dict[bytes, bytes | None] = {}
        self._trims: dict[Slot, int] = {}

    def add(self, write: Write) -> None:
        self._log += ((log_key(write.slot, e.index), e.encode()) for e in write.entries)
        self._payloads += (
            (payload_key(p.partition, p.base_offset, p.timestamp_ms, p.count), p.data) for p in write.payloads
        )
        for key, value in write.rows:
            self._rows[row_key(write.slot, key)] = value
        if write.trim_below is not None:
            self._trims[write.slot] = max(self._trims.get(write.slot, 0), write.trim_below)
        _put(self._txn, self._dbs.aside, [(row_key(write.slot, k), v) for k, v in write.aside])

    def put(self) -> None:
        txn, dbs = self._txn, self._dbs
        _put(txn, dbs.payloads, self._payloads)
        _put(txn, dbs.log, self._log)
        _put(txn, dbs.rows, sorted((k, v) for k, v in self._rows.items() if v is not None))
        for key in (k for k, v in self._rows.items() if v is None):
            txn.delete(key, db=dbs.rows)
        for slot, below in self._trims.items():
            _trim(txn, dbs, slot, below)
        self._begin()


def replace_slot(txn: lmdb.Transaction[Any], dbs: Databases, write: Write) -> None:
    """The slot begins anew: from what was put aside, or, with that cleared first, from nothing."""
    slot, keep = write.slot, write.replace or ()
    if write.clear_aside is not None:
        _clear(txn, dbs.aside, row_key(slot, write.clear_aside))
    kept = [(row_key(slot, k), txn.get(row_key(slot, k), db=dbs.rows)) for k in keep]
    _clear(txn, dbs.log, row_key(slot, b""))
    _clear(txn, dbs.rows, row_key(slot, b""))
    rows = [(k, bytes(v)) for k, v in kept if v is not None]
    prefix = row_key(slot, ASIDE_ROW)
    with txn.cursor(dbs.aside) as cursor:
        found = cursor.set_range(prefix)
        while found and bytes(cursor.key()).startswith(prefix):
            rows.append((row_key(slot, bytes(cursor.key())[len(prefix) :]), bytes(cursor.value())))
            found = cursor.next()
    _put(txn, dbs.rows, rows)
    _clear(txn, dbs.aside, row_key(slot, b""))
    for key in write.doubtful:
        if _has_other(txn, dbs, key):
            _delete_payload(txn, dbs, key)


def drop_piece(
    txn: lmdb.Transaction[Any],
    dbs: Databases,
    partition: PartitionKey,
    below: int | None,
    *,
    count_max: int,
    bytes_max: int = PIECE_BYTES_MAX,
) -> Piece:
    """Delete the oldest batches that end at or below this offset (None: all), one piece of them."""
    count = size = 0
    with txn.cursor(dbs.payloads) as cursor:
        found = cursor.set_range(payload_seek(partition, 0))
        while found:
            batch = parse_payload_key(partition, cursor.key())
            if batch is None or (below is not None and batch.end > below):
                break
            if count >= count_max or size >= bytes_max:
                return Piece(False, count, size)
            size += len(cursor.value())
            count += 1
            cursor.delete()
            found = bool(cursor.key())  # deleting moves on to the next; past the last one there is no key
    return Piece(True, count, size)


def _clear_batches(
    txn: lmdb.Transaction[Any], dbs: Databases, partition: PartitionKey, first: int, end: int
) -> None:
    """Those that begin in [first, end)."""
    with txn.cursor(dbs.payloads) as cursor:
        found = cursor.set_range(payload_seek(partition, first))
        while found:
            batch = parse_payload_key(partition, cursor.key())
            if batch is None or batch.base_offset >= end:
                break
            cursor.delete()
            found = bool(cursor.key())


def pass_freed_on(txn: lmdb.Transaction[Any], dbs: Databases) -> None:
    """Commit something small, so that the next transaction may use the pages the last one freed.

    LMDB gives a transaction no page freed by the one right before it: the state one commit back stays whole,
    to be returned to after a power cut. On a full disk a write would fail just after room for it was made.
    """
    txn.put(META_TURN, pack_u64(txn.id()), db=dbs.meta)


def _put(
    txn: lmdb.Transaction[Any], db: Any, items: list[tuple[bytes, Buffer]] | list[tuple[bytes, bytes]]
) -> None:
    if items:
        with txn.cursor(db) as cursor:
            cursor.putmulti(items)


def _truncate(txn: lmdb.Transaction[Any], dbs: Databases, write: Write) -> None:
    if write.truncate_from is not None:
        _clear(txn, dbs.log, row_key(write.slot, b""), log_key(write.slot, write.truncate_from))
    for key in write.dropped:
        _delete_payload(txn, dbs, key)


def _delete_payload(txn: lmdb.Transaction[Any], dbs: Databases, key: PayloadKey) -> None:
    txn.delete(payload_key(key.partition, key.base_offset, key.timestamp_ms, key.count), db=dbs.payloads)


def _has_other(txn: lmdb.Transaction[Any], dbs: Databases, key: PayloadKey) -> bool:
    """Whether a batch under another key holds some of the same offsets."""
    here = payload_key(key.partition, key.base_offset, key.timestamp_ms, key.count)
    with txn.cursor(dbs.payloads) as cursor:
        found = cursor.set_range(payload_seek(key.partition, key.base_offset + key.count))
        while cursor.prev() if found else cursor.last():
            found = True
            batch = parse_payload_key(key.partition, cursor.key())
            if batch is None or batch.end <= key.base_offset:
                return False
            if bytes(cursor.key()) != here:
                return True
    return False


def _clear(txn: lmdb.Transaction[Any], db: Any, prefix: bytes, start: bytes | None = None) -> None:
    """Delete all keys with this prefix (from `start` on)."""
    with txn.cursor(db) as cursor:
        found = cursor.set_range(start or prefix)
        while found and bytes(cursor.key()).startswith(prefix):
            cursor.delete()
            found = bool(cursor.key())


def _trim(txn: lmdb.Transaction[Any], dbs: Databases, slot: Slot, below: int) -> None:
    with txn.cursor(dbs.log) as cursor:
        found = cursor.set_range(log_key(slot, 0))
        while found and parse_log_key(cursor.key()) < (slot, below):
            cursor.delete()
            found = bool(cursor.key())
