"""A slot's log entry, and what a slot asks of the disk.

An entry's header is small and always kept with the log; its payload (a batch) is stored apart, keyed by
partition and offset, so that payloads can be fetched, expired and moved without rewriting the log. Every
header carries a checksum and the chain: a hash over the predecessor's chain, this header and the payload's
own checksum. A log that was cut, reordered or altered does not verify.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from hashlib import blake2b
from typing import Final, NamedTuple

from msgspec import Struct

from meshq.batch import Buffer
from meshq.errors import StoreCorrupt
from meshq.ids import PartitionKey, Slot

TERM_BITS: Final = 32  # of a term; what is above them is the slot's generation (replication/generations.py)
CHAIN_BYTES: Final = 8
GENESIS_CHAIN: Final = bytes(CHAIN_BYTES)

_HEAD = struct.Struct(">QBQ8s")  # term, kind, timestamp ms, chain
_CRC = struct.Struct(">I")


class EntryKind(IntEnum):
    """What an entry means. A kind that is not listed stops the peer: an older version must not guess."""

    PUBLISH = 1
    REGISTRY = 2
    DROP_TOPIC = 3
    NOOP = 4  # a new leader's first: what came before it is decided with it
    CONFIG = 5  # who belongs to the slot, from this entry on
    GROUP = 6  # what happened to a group in one partition
    DEAD_LETTER = 7  # records of a group become records of its dead-letter topic
    RETAIN = 8  # a partition begins later now: what is before that has expired
    COMPACT = 9  # a stretch of a partition is less than it was: what later records replace has gone

    @property
    def has_payload(self) -> bool:
        return self in _WITH_PAYLOAD


_WITH_PAYLOAD: Final = (EntryKind.PUBLISH, EntryKind.DEAD_LETTER)


class Entry(Struct, frozen=True):
    """One position of a slot's log. `index` counts from 1; `body` is the kind's own struct, in msgpack."""

    index: int
    term: int
    kind: EntryKind
    timestamp_ms: int  # the leader's clock, never decreasing along a log
    body: bytes
    chain: bytes

    def encode(self) -> bytes:
        data = _HEAD.pack(self.term, self.kind, self.timestamp_ms, self.chain) + self.body
        return _CRC.pack(zlib.crc32(data)) + data


def generation_of(term: int) -> int:
    return term >> TERM_BITS


def make_entry(
    previous_chain: bytes, *, index: int, term: int, kind: EntryKind, timestamp_ms: int, body: bytes
) -> Entry:
    """The entry after the one with `previous_chain`. The body must cover its payload's checksum."""
    chain = _chain(previous_chain, index, term, kind, timestamp_ms, body)
    return Entry(index, term, kind, timestamp_ms, body, chain)


def decode_entry(index: int, data: Buffer) -> Entry:
    """The entry stored under this index. Raises: StoreCorrupt when its checksum does not match."""
    view = memoryview(data)
    if len(view) < _CRC.size + _HEAD.size or _CRC.unpack_from(view)[0] != zlib.crc32(view[_CRC.size :]):
        raise StoreCorrupt(f"log entry {index} does not match its checksum")
    term, kind, timestamp_ms, chain = _HEAD.unpack_from(view, _CRC.size)
    try:
        known = EntryKind(kind)
    except ValueError:
        raise StoreCorrupt(f"log entry {index} is of kind {kind}, which this version does not know") from None
    return Entry(index, term, known, timestamp_ms, bytes(view[_CRC.size + _HEAD.size :]), chain)


def follows(previous_chain: bytes, entry: Entry) -> bool:
    """Whether this entry was made after the one with that chain."""
    e = entry
    return e.chain == _chain(previous_chain, e.index, e.term, e.kind, e.timestamp_ms, e.body)


def _chain(previous: bytes, index: int, term: int, kind: int, timestamp_ms: int, body: bytes) -> bytes:
    head = struct.pack(">QQBQ", index, term, kind, timestamp_ms)
    return blake2b(previous + head + body, digest_size=CHAIN_BYTES, person=b"meshq chain").digest()


class Payload(Struct, frozen=True):
    """A batch to be stored: the bytes exactly as the producer made them."""

    partition: PartitionKey
    base_offset: int
    count: int
    timestamp_ms: int
    data: Buffer


class PayloadKey(Struct, frozen=True):
    """Where a payload is stored."""

    partition: PartitionKey
    base_offset: int
    timestamp_ms: int
    count: int


class PayloadCorrupt(StoreCorrupt):
    """The batch that holds this offset is damaged on this disk, or is not there.

    `stored`: what key it has, if it has one. `crc`: what its entry says of its body, where the log was read.
    """

    def __init__(
        self,
        text: str,
        partition: PartitionKey,
        offset: int,
        *,
        stored: PayloadKey | None = None,
        crc: int | None = None,
    ) -> None:
        where = f"partition {partition.partition} of topic {partition.topic_id.hex()}, offset {offset}"
        super().__init__(f"{where}: {text}")
        self.partition, self.offset = partition, offset
        self.stored, self.crc = stored, crc


class StoredBatch(Struct, frozen=True):
    """A batch read back. `data` is the caller's to keep."""

    partition: PartitionKey
    base_offset: int
    count: int
    timestamp_ms: int
    data: bytes


class Mark(NamedTuple):
    """A stored batch, without what is in it."""

    base_offset: int
    count: int  # type: ignore[assignment]  # the field's word, over tuple.count
    timestamp_ms: int
    size: int

    @property
    def end(self) -> int:
        return self.base_offset + self.count


ASIDE_ROW: Final = b"r"  # rows aside under this prefix are the state that a snapshot brings


class Write(Struct, frozen=True):
    """What one slot wants on disk, all or nothing, in one transaction with whatever else is waiting.

    In this order: entries from `truncate_from` on are deleted, with the payloads at `dropped`; entries,
    payloads and rows are put (a row that is None is deleted); entries below `trim_below` are deleted. `rows`
    are the slot's state as its machines computed it. `token` comes back when the transaction is on disk, or
    has failed.

    What a snapshot brings is put *aside* until it is whole, out of sight of every reader of state: `aside`
    are such rows, after those that begin with `clear_aside` have gone (empty: all of the slot). With
    `replace` the slot begins anew before anything else of this write is done: its log and its rows go, but
    for the rows named there, the rows aside whose keys begin with ASIDE_ROW become its rows, nothing stays
    aside, and of the payloads at `doubtful` those go that another batch of the same offsets stands beside.
    """

    token: int
    slot: Slot
    entries: tuple[Entry, ...] = ()
    payloads: tuple[Payload, ...] = ()
    rows: tuple[tuple[bytes, bytes | None], ...] = ()
    trim_below: int | None = None
    truncate_from: int | None = None
    dropped: tuple[PayloadKey, ...] = ()
    aside: tuple[tuple[bytes, bytes], ...] = ()
    clear_aside: bytes | None = None
    replace: tuple[bytes, ...] | None = None
    doubtful: tuple[PayloadKey, ...] = ()
    rewritten: tuple[tuple[PartitionKey, int, int], ...] = ()

    def payload_bytes(self) -> int:
        return sum([len(p.data) for p in self.payloads])
