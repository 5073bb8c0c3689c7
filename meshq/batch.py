"""The batch: the unit that is framed, compressed, stored, replicated and delivered.

A fixed header of 64 bytes, big-endian, then the body: a msgpack array of `[key, value, headers, timestamp
delta]`, compressed as the header says. The producer makes the bytes once; the leader opens them once, under
limits, to know that the body holds what the header claims; from there they go on untouched to disk and to
subscribers. The base offset is the leader's and travels beside the batch, never in it.

    0   2  magic "MB"
    2   1  version: 1, or 2 for what compaction leaves (frame_compacted)
    3   1  codec: 0 none, 1 lz4 block, 2 zstd
    4   4  count of records
    8   8  base timestamp, ms since 1970 (the producer's clock)
    16  16 producer id (zeros: no producer, no duplicate check)
    32  4  producer epoch
    36  8  first sequence
    44  4  body length before compression
    48  4  crc32 of the 48 bytes above
    52  4  crc32 of the body as it stands
    56  8  reserved, zeros
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Annotated, Final, NamedTuple

import lz4.block
import msgspec
import zstandard

from meshq.errors import RemoteProtocolError, TooLarge, UsageError
from meshq.limits import (
    BATCH_BYTES_MAX,
    BATCH_RATIO_MAX,
    BATCH_RECORDS_MAX,
    COMPACTED_COUNT_MAX,
    HEADERS_HELD_MAX,
    HEADERS_MAX,
    KIB,
)

HEADER_BYTES: Final = 64
VERSION: Final = 1
COMPACTED: Final = 2  # the version of what compaction leaves of batches; no producer makes one
NO_PRODUCER: Final = bytes(16)
CODECS: Final = {"none": 0, "lz4": 1, "zstd": 2}

_HEADER = struct.Struct(">2sBBIq16sIQI")
_CHECKS = struct.Struct(">IIQ")
_COMPRESS_ABOVE_BYTES = 128  # below this compression costs more than it saves
_FEW = 8  # records; more are joined sooner than made into objects
_MANY = 32  # records; fewer are decoded sooner than looked at from outside

Buffer = bytes | bytearray | memoryview


class RawRecord(msgspec.Struct, array_like=True, gc=False):
    """A record as it stands in a body: nothing in it that the batch or the log already says."""

    key: bytes | None
    value: bytes
    headers: Annotated[dict[str, bytes], msgspec.Meta(max_length=HEADERS_HELD_MAX)] | None = None
    delta_ms: int = 0

    def size(self) -> int:
        """Bytes that count against `record_bytes_max`."""
        size = len(self.value) + len(self.key or b"")
        if self.headers:
            size += sum(len(k) + len(v) for k, v in self.headers.items())
        return size


class KeptRecord(RawRecord, array_like=True, gc=False):
    """A record as it stands in a compacted batch, where not every offset has one."""

    place: int = 0  # its offset, counted from the batch's first
    earlier_ms: int = 0  # it was appended so long before the batch's newest record


class BatchHeader(NamedTuple):
    codec: int
    count: int  # type: ignore[assignment]  # the field's word, over tuple.count
    base_timestamp_ms: int
    producer_id: bytes
    producer_epoch: int
    first_sequence: int
    body_bytes: int  # before compression
    body_crc: int
    version: int = VERSION


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Annotated[list[RawRecord], msgspec.Meta(max_length=BATCH_RECORDS_MAX)])
_kept_decoder = msgspec.msgpack.Decoder(
    Annotated[list[KeptRecord], msgspec.Meta(max_length=COMPACTED_COUNT_MAX)]
)
_unreadable = (
    msgspec.MsgspecError, zstandard.ZstdError, lz4.block.LZ4BlockError, RecursionError, ValueError,
)  # fmt: skip


class _Zstd(threading.local):
    """One pair a thread: a zstandard context releases the GIL while it works and may not be shared."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=1)
        self.decompressor = zstandard.ZstdDecompressor()


_zstd = _Zstd()


class Body(NamedTuple):
    """A sealed, compressed body waiting for its header (the sequence is known only when it is first sent)."""

    codec: int
    count: int  # type: ignore[assignment]  # the field's word, over tuple.count
    base_timestamp_ms: int
    body_bytes: int
    data: bytes


def seal(
    records: Sequence[RawRecord | bytes],
    *,
    base_timestamp_ms: int,
    codec: str = "none",
    deltas: Sequence[tuple[int, int]] = ((0, 0),),
) -> Body:
    """Encode and compress records into a body.

    records: plain bytes are a value that has neither key nor headers
    deltas: (place, delta_ms): the timestamp delta of plain values from this place on; the first place is 0

    Raises: UsageError for an unknown codec, no records or too many, TooLarge over BATCH_BYTES_MAX.
    """
    if codec not in CODECS:
        raise UsageError(f"unknown compression {codec!r}: one of {', '.join(CODECS)}")
    if not 0 < len(records) <= BATCH_RECORDS_MAX:
        raise UsageError(f"a batch holds 1 to {BATCH_RECORDS_MAX} records, not {len(records)}")
    plain = _encode(records, deltas)
    if len(plain) > BATCH_BYTES_MAX - HEADER_BYTES:
        raise TooLarge(f"a batch of {len(plain)} bytes is over the limit of {BATCH_BYTES_MAX}")
    number, data = CODECS[codec], plain
    if number and len(plain) > _COMPRESS_ABOVE_BYTES:
        data = (
            lz4.block.compress(plain, store_size=False) if number == 1 else _zstd.compressor.compress(plain)
        )
    if len(data) >= len(plain) or _is_bomb(len(data), len(plain)):
        number, data = 0, plain
    return Body(number, len(records), base_timestamp_ms, len(plain), data)


def _encode(records: Sequence[RawRecord | bytes], deltas: Sequence[tuple[int, int]]) -> bytes:
    """The array of all records. Plain values of one size are joined, with no object or call for each."""
    kinds = set(map(type, records))
    if bytes not in kinds:
        return _encoder.encode(records)
    if len(records) < _FEW and len(deltas) == 1:
        return _encoder.encode([_raw(r, deltas[0][1]) for r in records])
    ends = [place for place, _ in deltas[1:]] + [len(records)]
    runs = [(records[start:end], delta_ms) for (start, delta_ms), end in zip(deltas, ends, strict=True)]
    runs = [(run, delta_ms) for run, delta_ms in runs if run]
    if len(kinds) == 1 and len(set(map(len, records))) == 1:  # type: ignore[arg-type]  # all are bytes
        before = _array_head(len(records))
        parts: list[bytes] = []
        for run, delta_ms in runs:
            parts.append(_join(before, run, delta_ms))  # type: ignore[arg-type]
            before = b""
        return parts[0] if len(parts) == 1 else b"".join(parts)
    made: list[RawRecord] = []
    for run, delta_ms in runs:
        made += [_raw(r, delta_ms) for r in run]
    return _encoder.encode(made)


def _raw(record: RawRecord | bytes, delta_ms: int) -> RawRecord:
    return RawRecord(None, record, None, delta_ms) if isinstance(record, bytes) else record


def _join(before: bytes, values: Sequence[bytes], delta_ms: int) -> bytes:
    """Each as `[nil, value, nil, delta]`; all of one size, so what stands between two is always the same."""
    head = b"\x94\xc0" + _bin_head(len(values[0]))
    tail = b"\xc0" + _encoder.encode(delta_ms)
    ends = list(values)
    ends[0] = before + head + ends[0]
    ends[-1] += tail
    return (tail + head).join(ends)


def _plain_size(body: Buffer, count: int) -> int | None:
    """The size of the values, if the body is what `_join` makes: so many records without key and headers,
    each with a delta below 128 ms. None: it may be anything.

    Only the bytes between the values are looked at, those of one place in all records at a time: 18 ns a
    record of 100 B beside some 4 µs for the whole, where decoding takes 85 ns a record.
    """
    start = len(_array_head(count))
    stride, rest = divmod(len(body) - start, count)
    if rest or bytes(body[:start]) != _array_head(count):
        return None
    for head_bytes in (2, 3, 5):
        size = stride - 2 - head_bytes - 2
        if size >= 0 and len(_bin_head(size)) == head_bytes:
            break
    else:
        return None
    body = bytes(body)  # whose slices with a step are four times as fast as a view's
    wanted = dict(enumerate(b"\x94\xc0" + _bin_head(size), start))
    wanted[start + stride - 2] = 0xC0
    if any(body[place::stride] != bytes((byte,)) * count for place, byte in wanted.items()):
        return None
    return size if body[start + stride - 1 :: stride].isascii() else None


def _array_head(count: int) -> bytes:
    return bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")


def _bin_head(size: int) -> bytes:
    if size < 1 << 8:
        return bytes((0xC4, size))
    return b"\xc5" + size.to_bytes(2, "big") if size < 1 << 16 else b"\xc6" + size.to_bytes(4, "big")


def frame(body: Body, *, producer_id: bytes = NO_PRODUCER, epoch: int = 0, first_sequence: int = 0) -> bytes:
    """The batch's bytes: header and body."""
    head = _HEADER.pack(
        b"MB", VERSION, body.codec, body.count, body.base_timestamp_ms, producer_id, epoch, first_sequence,
        body.body_bytes,
    )  # fmt: skip
    return b"".join((head, _CHECKS.pack(zlib.crc32(head), zlib.crc32(body.data), 0), body.data))


def frame_compacted(records: Sequence[KeptRecord], *, count: int, base_timestamp_ms: int) -> bytes:
    """A batch that stands for `count` offsets, of which these records are left; perhaps none."""
    plain = _encoder.encode(records)
    codec, data = 0, plain
    if len(plain) > _COMPRESS_ABOVE_BYTES:
        data = _zstd.compressor.compress(plain)
        codec = 2
    if len(data) >= len(plain) or _is_bomb(len(data), len(plain)):
        codec, data = 0, plain
    head = _HEADER.pack(b"MB", COMPACTED, codec, count, base_timestamp_ms, NO_PRODUCER, 0, 0, len(plain))
    return b"".join((head, _CHECKS.pack(zlib.crc32(head), zlib.crc32(data), 0), data))


def read_header(data: Buffer) -> BatchHeader:
    """The header, checked against its own checksum and against the limits; the body is not looked at.

    Raises: RemoteProtocolError.
    """
    if not HEADER_BYTES <= len(data) <= BATCH_BYTES_MAX:
        raise RemoteProtocolError(f"a batch of {len(data)} bytes, not {HEADER_BYTES} to {BATCH_BYTES_MAX}")
    view = memoryview(data)
    magic, version, codec, count, base, producer, epoch, first, body_bytes = _HEADER.unpack_from(view)
    head_crc, body_crc, reserved = _CHECKS.unpack_from(view, _HEADER.size)
    if magic != b"MB" or version not in _COUNTS or codec > 2:
        raise RemoteProtocolError("not a batch of a version and codec known here")
    if zlib.crc32(view[: _HEADER.size]) != head_crc or reserved != 0:
        raise RemoteProtocolError("a batch header whose checksum does not match")
    if not 0 < count <= _COUNTS[version] or body_bytes > BATCH_BYTES_MAX or first >= 1 << 63:
        raise RemoteProtocolError("a batch header that claims too much")
    if _is_bomb(len(data) - HEADER_BYTES, body_bytes):
        raise RemoteProtocolError(f"a batch body that grows more than {BATCH_RATIO_MAX} times")
    return BatchHeader(codec, count, base, producer, epoch, first, body_bytes, body_crc, version)


def read_records(data: Buffer, header: BatchHeader | None = None) -> list[RawRecord]:
    """The records of a batch, decompressed and decoded under limits.

    Raises: RemoteProtocolError when a checksum, the count, a type or a length is not as the header says.
    """
    header = header or read_header(data)
    return _decode(_plain_body(data, header), header)


def read_placed(data: Buffer) -> Iterable[tuple[int, RawRecord]]:
    """The records of a batch with their places: offsets, counted from its first.

    Raises: RemoteProtocolError.
    """
    header = read_header(data)
    records = read_records(data, header)
    return enumerate(records) if header.version == VERSION else [(_place(r), r) for r in records]


def _place(record: RawRecord) -> int:
    assert isinstance(record, KeptRecord)
    return record.place


def _plain_body(data: Buffer, header: BatchHeader) -> Buffer:
    """The body as it was before compression. Raises: RemoteProtocolError."""
    body = memoryview(data)[HEADER_BYTES:]
    if zlib.crc32(body) != header.body_crc:
        raise RemoteProtocolError("a batch body whose checksum does not match")
    try:
        return _decompress(body, header)
    except _unreadable as e:
        raise RemoteProtocolError(f"a batch body that cannot be read: {e}") from None


def _decode(body: Buffer, header: BatchHeader) -> list[RawRecord]:
    if header.version == COMPACTED:
        return _decode_kept(body, header)
    try:
        records: list[RawRecord] = _decoder.decode(body)
    except _unreadable as e:
        raise RemoteProtocolError(f"a batch body that cannot be read: {e}") from None
    if len(records) != header.count:
        raise RemoteProtocolError(f"a batch of {len(records)} records whose header says {header.count}")
    return records


def _decode_kept(body: Buffer, header: BatchHeader) -> list[RawRecord]:
    try:
        records = _kept_decoder.decode(body)
    except _unreadable as e:
        raise RemoteProtocolError(f"a compacted batch that cannot be read: {e}") from None
    places = [-1, *(r.place for r in records), header.count]
    if any(a >= b for a, b in pairwise(places)):
        raise RemoteProtocolError("a compacted batch whose records are not in the order of their places")
    return list(records)


def check(
    data: Buffer, *, record_bytes_max: int, keyed: bool = False, header: BatchHeader | None = None
) -> BatchHeader:
    """What a leader does once with a batch from outside: everything in it is as claimed and within limits.

    keyed: each record has to have a key, for its topic is compacted
    header: if it was read already

    Raises: RemoteProtocolError, TooLarge.
    """
    header = header or read_header(data)
    if header.version != VERSION:
        raise RemoteProtocolError("a compacted batch: no producer makes one")
    body = _plain_body(data, header)
    size = _plain_size(body, header.count) if header.count >= _MANY else None
    if keyed and (size is not None or any(r.key is None for r in _decode(body, header))):
        raise RemoteProtocolError("a record without a key: in a compacted topic every one needs a key")
    if size is None:
        records = _decode(body, header)
        if any(record.headers and len(record.headers) > HEADERS_MAX for record in records):
            raise RemoteProtocolError(f"a record with more than {HEADERS_MAX} headers")
        if header.body_bytes > record_bytes_max:  # else no record in it can be over the limit
            size = max(record.size() for record in records)
    if size is not None and size > record_bytes_max:
        raise TooLarge(f"a record of {size} bytes is over the topic's limit of {record_bytes_max}")
    return header


_COUNTS: Final = {VERSION: BATCH_RECORDS_MAX, COMPACTED: COMPACTED_COUNT_MAX}


def _is_bomb(size: int, plain: int) -> bool:
    """Whether so few bytes would make a peer work on so many."""
    return plain > 64 * KIB and plain > BATCH_RATIO_MAX * size


def _decompress(body: memoryview, header: BatchHeader) -> Buffer:
    if header.codec == 0:
        plain: Buffer = body
    elif header.codec == 1:
        plain = lz4.block.decompress(body, uncompressed_size=header.body_bytes)
    else:
        # The content size stands in the zstd frame too; one that claims something else is refused unread.
        if zstandard.frame_content_size(body) != header.body_bytes:
            raise RemoteProtocolError("a zstd body whose size is not what its header says")
        plain = _zstd.decompressor.decompress(body, max_output_size=header.body_bytes, allow_extra_data=False)
    if len(plain) != header.body_bytes:
        raise RemoteProtocolError("a body whose size is not what its header says")
    return plain
