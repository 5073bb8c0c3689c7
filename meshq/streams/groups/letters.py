"""Dead letters: records that a group is through with without success, in a topic of their own.

The dead letters of group G on topic T are in `_dead.G.T`. Partition p of it lives in the slot that partition
p of T lives in, because its id is drawn so that the ring lays both alike; so one entry of that slot's log
ends a record in the group and stores it there: exactly once, whoever leads, whatever crashes.

A letter has the record's key, value and headers, and headers that say where it is from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from meshq.batch import Buffer, RawRecord, frame, read_header, read_placed, read_records, seal
from meshq.entries import StoredBatch
from meshq.streams.groups.intervals import Intervals
from meshq.streams.groups.state import Dying
from meshq.streams.groups.words import GroupBody, Range
from meshq.streams.publish import PublishBody

REASON, ATTEMPTS, ORIGIN, GROUP = "meshq-reason", "meshq-attempts", "meshq-origin", "meshq-group"
LETTERS_BYTES: Final = 256 * 1024  # of the records moved at a time; a single one may be larger
LETTERS_MAX: Final = 256  # in one entry; the rest goes into the next ones
_ORIGIN: Final = re.compile(rb"([A-Za-z0-9_.-]+)/(\d{1,10})@(\d{1,19})")


_GONE: Final = RawRecord(None, b"")  # of a record that was compacted away before it could be a letter


class LettersBody(PublishBody, frozen=True, array_like=True):
    """A DEAD_LETTER entry's body: what is stored, as a PUBLISH says it, and what of the group that ends."""

    moved: GroupBody


class Letters(NamedTuple):
    """A batch for the dead-letter topic, and the records of the source that it is of."""

    data: bytes
    count: int  # type: ignore[assignment]  # the field's word, over tuple.count
    crc: int
    ranges: tuple[Range, ...]


def write_letters(
    topic: str, partition: int, group: str, dying: Intervals[Dying], batches: Iterable[StoredBatch]
) -> Letters | None:
    """Of the records in these batches those that are dying, as many as are moved at a time.

    Raises: RemoteProtocolError when a batch cannot be read.
    """
    records: list[RawRecord] = []
    ranges: list[Range] = []
    size, timestamp_ms = 0, None
    for batch in batches:
        runs = list(dying.runs(batch.base_offset, batch.base_offset + batch.count))
        raw = dict(read_placed(batch.data)) if runs else {}
        for first, end, why in runs:
            for offset in range(first, end):
                record = raw.get(offset - batch.base_offset, _GONE)
                if records and (size + record.size() > LETTERS_BYTES or len(records) >= LETTERS_MAX):
                    return _sealed(records, ranges, timestamp_ms or 0)
                if timestamp_ms is None:
                    timestamp_ms = read_header(batch.data).base_timestamp_ms
                headers = {
                    **(record.headers or {}),
                    REASON: why.reason.encode(),
                    ATTEMPTS: b"%d" % why.attempts,
                    ORIGIN: f"{topic}/{partition}@{offset}".encode(),
                    GROUP: group.encode(),
                }
                records.append(RawRecord(record.key, record.value, headers))
                ranges.append((offset, offset + 1))
                size += record.size()
    return _sealed(records, ranges, timestamp_ms or 0) if records else None


def read_origins(data: Buffer) -> list[tuple[str, int, int] | None]:
    """Of each letter of a batch topic, partition and offset of the record it is of; None: it says none.

    Raises: RemoteProtocolError.
    """
    return [_origin((record.headers or {}).get(ORIGIN, b"")) for record in read_records(data)]


def _origin(text: bytes) -> tuple[str, int, int] | None:
    found = _ORIGIN.fullmatch(text)
    return (found[1].decode(), int(found[2]), int(found[3])) if found else None


def _sealed(records: Sequence[RawRecord], ranges: Sequence[Range], timestamp_ms: int) -> Letters:
    data = frame(seal(records, base_timestamp_ms=timestamp_ms, codec="zstd"))
    joined: list[Range] = []
    for first, end in ranges:
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((first, end))
    return Letters(data, len(records), read_header(data).body_crc, tuple(joined))


_decoder = msgspec.msgpack.Decoder(LettersBody)


def decode_letters(body: bytes) -> LettersBody:
    return _decoder.decode(body)
