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
from meshq.entries import PayloadKey, Write
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
    log: list[tuple[bytes, Buffer]] = []
    payloads: list[tuple[bytes, Buffer]] = []
    rows: dict[bytes, bytes | None] = {}
    trims: dict[Slot, int] = {}
    for write in writes:
        if write.truncate_from is not None:
            # What was put before may be what is truncated, so it has to be there first. This is rare.
            _put(txn, dbs.payloads, payloads)
            _put(txn, dbs.log, log)
            log, payloads = [], []
            _truncate(txn, dbs, write.slot, write.truncate_from, write.dropped)
        log += ((log_key(write.slot, e.index), e.encode()) for e in write.entries)
        payloads += (
            (payload_key(p.partition, p.base_offset, p.timestamp_ms, p.count), p.data) for p in write.payloads
        )
        for key, value in write.rows:
            rows[row_key(write.slot, key)] = value
        if write.trim_below is not None:
            trims[write.slot] = max(trims.get(write.slot, 0), write.trim_below)
    _put(txn, dbs.payloads, payloads)
    _put(txn, dbs.log, log)
    _put(txn, dbs.rows, sorted((k, v) for k, v in rows.items() if v is not None))
    for key in (k for k, v in rows.items() if v is None):
        txn.delete(key, db=dbs.rows)
    for slot, below in trims.items():
        _trim(txn, dbs, slot, below)


def drop_piece(
    txn: lmdb.Transaction[Any], dbs: Databases, partition: PartitionKey, below: int | None, *, count_max: int
) -> Piece:
    """Delete the oldest batches that end at or below this offset (None: all), one piece of them."""
    count = size = 0
    with txn.cursor(dbs.payloads) as cursor:
        found = cursor.set_range(payload_seek(partition, 0))
        while found:
            batch = parse_payload_key(partition, cursor.key())
            if batch is None or (below is not None and batch.end > below):
                break
            if count >= count_max or size >= PIECE_BYTES_MAX:
                return Piece(False, count, size)
            size += len(cursor.value())
            count += 1
            cursor.delete()
            found = bool(cursor.key())  # deleting moves on to the next; past the last one there is no key
    return Piece(True, count, size)


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


def _truncate(
    txn: lmdb.Transaction[Any], dbs: Databases, slot: Slot, from_index: int, dropped: Iterable[PayloadKey]
) -> None:
    with txn.cursor(dbs.log) as cursor:
        found = cursor.set_range(log_key(slot, from_index))
        while found and parse_log_key(cursor.key())[0] == slot:
            cursor.delete()
            found = bool(cursor.key())
    for key in dropped:
        txn.delete(payload_key(key.partition, key.base_offset, key.timestamp_ms, key.count), db=dbs.payloads)


def _trim(txn: lmdb.Transaction[Any], dbs: Databases, slot: Slot, below: int) -> None:
    with txn.cursor(dbs.log) as cursor:
        found = cursor.set_range(log_key(slot, 0))
        while found and parse_log_key(cursor.key()) < (slot, below):
            cursor.delete()
            found = bool(cursor.key())
