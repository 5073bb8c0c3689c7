"""Batches: what was sealed comes out again, and nothing else gets in."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import lz4.block
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from meshq import batch
from meshq.batch import CODECS, HEADER_BYTES, RawRecord, check, frame, read_header, read_records, seal
from meshq.errors import RemoteProtocolError, TooLarge, UsageError
from meshq.limits import BATCH_BYTES_MAX, BATCH_RECORDS_MAX, HEADERS_MAX, MIB

FUZZ_S = 3.0
RECORD_BYTES_MAX = 1 << 20

records = st.lists(
    st.builds(
        RawRecord,
        key=st.none() | st.binary(max_size=20),
        value=st.binary(max_size=200) | st.just(b"a line of a log " * 40),
        headers=st.none() | st.dictionaries(st.text(max_size=10), st.binary(max_size=10), max_size=4),
        delta_ms=st.integers(-(1 << 40), 1 << 40),
    ),
    min_size=1,
    max_size=20,
)


def forge(
    body: bytes, *, count: int = 1, codec: str = "none", body_bytes: int | None = None, first: int = 0
) -> bytes:
    """A batch whose checksums are right and whose claims are the caller's."""
    size = len(body) if body_bytes is None else body_bytes
    return frame(batch.Body(CODECS[codec], count, 0, size, body), first_sequence=first)


def refused(data: bytes, *, within_s: float = 1.0, peak_bytes: int = 40 * MIB) -> str:
    """The reason a batch is refused; quickly, and without a heap full of objects."""
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(RemoteProtocolError) as caught:
            read_records(data)
        assert time.monotonic() - start < within_s
        assert tracemalloc.get_traced_memory()[1] < peak_bytes
    finally:
        tracemalloc.stop()
    return caught.value.text


@given(
    records,
    st.sampled_from(sorted(CODECS)),
    st.integers(0, (1 << 63) - 1),
    st.binary(min_size=16, max_size=16),
)
def test_a_batch_comes_out_as_it_went_in(
    given_records: list[RawRecord], codec: str, first: int, producer: bytes
) -> None:
    data = frame(
        seal(given_records, base_timestamp_ms=1_700_000_000_000, codec=codec),
        producer_id=producer,
        epoch=7,
        first_sequence=first,
    )
    header = check(data, record_bytes_max=RECORD_BYTES_MAX)
    assert (
        read_records(data) == read_records(memoryview(data)) == read_records(bytearray(data)) == given_records
    )
    assert (header.count, header.base_timestamp_ms) == (len(given_records), 1_700_000_000_000)
    assert (header.producer_id, header.producer_epoch, header.first_sequence) == (producer, 7, first)


def test_what_compression_does_not_make_smaller_travels_as_it_is() -> None:
    noise = RawRecord(None, random.Random(1).randbytes(5_000))
    for codec in CODECS:
        assert seal([noise], base_timestamp_ms=0, codec=codec).codec == 0
        lines = seal([RawRecord(None, b"a line " * 900)], base_timestamp_ms=0, codec=codec)
        assert lines.codec == CODECS[codec]


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_every_single_bit_counts(codec: str) -> None:
    given_records = [RawRecord(b"key", b"a line of a log " * 20, {"h": b"1"}, i) for i in range(3)]
    data = frame(seal(given_records, base_timestamp_ms=5, codec=codec))
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RemoteProtocolError):
            read_records(flipped)


def test_a_batch_cut_anywhere_is_refused() -> None:
    data = frame(seal([RawRecord(b"k", b"v" * 300)], base_timestamp_ms=0, codec="zstd"))
    for size in range(len(data)):
        with pytest.raises(RemoteProtocolError):
            read_records(data[:size])
    with pytest.raises(RemoteProtocolError):
        read_records(data + b"\0")


def test_a_header_can_not_claim_records_its_body_lacks() -> None:
    body = seal([RawRecord(None, b"v")] * 3, base_timestamp_ms=0).data
    assert len(read_records(forge(body, count=3))) == 3
    for lie in (1, 2, 4, BATCH_RECORDS_MAX):
        assert "3 records" in refused(forge(body, count=lie))
    for lie in (0, BATCH_RECORDS_MAX + 1, 0xFFFF_FFFF):
        assert "claims too much" in refused(forge(body, count=lie))


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_a_header_can_not_claim_another_size_than_its_body_has(codec: str) -> None:
    plain = seal([RawRecord(None, b"v" * 1000)], base_timestamp_ms=0)
    body = seal([RawRecord(None, b"v" * 1000)], base_timestamp_ms=0, codec=codec)
    for lie in (0, 1, plain.body_bytes - 1, plain.body_bytes + 1, BATCH_BYTES_MAX):
        refused(forge(body.data, codec=codec, body_bytes=lie))
    assert "claims too much" in refused(forge(body.data, codec=codec, body_bytes=BATCH_BYTES_MAX + 1))


def _zstd(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(level=1, **options).compress(data)


@pytest.mark.parametrize(
    ("codec", "make"),
    [
        ("zstd", lambda: _zstd(bytes(200 * MIB))),
        ("zstd", lambda: _zstd(bytes(50 * MIB), write_content_size=False)),
        ("zstd", lambda: _zstd(bytes(5 * MIB)) * 50),
        ("lz4", lambda: lz4.block.compress(bytes(200 * MIB), store_size=False)),
        ("lz4", lambda: struct.pack("<I", 0x7FFF_FFFF) + b"\x1f" * 100),
    ],
    ids=["zstd", "zstd of unsaid size", "many zstd frames", "lz4", "lz4 that says its size"],
)
def test_a_bomb_is_refused_before_it_grows(codec: str, make: Callable[[], bytes]) -> None:
    bomb = make()
    for claim in (0, 1000, 5 * MIB):
        refused(forge(bomb[: BATCH_BYTES_MAX - HEADER_BYTES], codec=codec, body_bytes=claim))


def test_a_second_frame_behind_the_first_is_refused() -> None:
    body = seal([RawRecord(None, b"v" * 1000)], base_timestamp_ms=0, codec="zstd")
    assert len(read_records(forge(body.data, codec="zstd", body_bytes=body.body_bytes))) == 1
    for more in (b"hidden", _zstd(b"hidden" * 100)):
        refused(forge(body.data + more, codec="zstd", body_bytes=body.body_bytes))


FULL = BATCH_BYTES_MAX - HEADER_BYTES
RECORD = b"\x94\xc0\xc4\x01v\xc0\x00"  # [nil, b"v", nil, 0]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        b"\x91\xc0",
        b"\x91" * FULL,
        b"\x91\x95\xc0\xc4\x00\xc0\x00" + b"\x91" * (FULL - 7),
        b"\xdd" + struct.pack(">I", FULL - 5) + b"\x90" * (FULL - 5),
        b"\xdd\xff\xff\xff\xff" + RECORD,
        b"\x91\xdd\xff\xff\xff\xff",
        b"\x91\x94\xc0\xc6\xff\xff\xff\xffv",
        b"\x91\x94\xc0\xc4\x01v\xdf\xff\xff\xff\xff",
        b"\x91\x94\xc0\xa1v\xc0\x00",
        b"\x91\x94\xc0\xc4\x01v\x81\xc4\x01h\xc4\x01v\x00",
        b"\x91\x94\xc0\xc4\x01v\x81\xa2\xff\xff\xc4\x01v\x00",
        b"\x91\x94\xc0\xc4\x01v\xc0\xa1v",
        b"\x91\x91\xc0",
        b"\x91" + RECORD + b"\xc0",
    ],
    ids=lambda body: body[:8].hex() or "empty",
)
def test_a_body_that_is_no_list_of_records_is_refused(body: bytes) -> None:
    refused(forge(body))


def test_the_worst_body_within_the_limits_costs_a_bounded_heap() -> None:
    def record(n: int) -> bytes:
        names = b"".join(b"\xa8%08x\xc4\x00" % (64 * n + i) for i in range(64))
        return b"\x94\xc0\xc4\x00\xde\x00\x40" + names + b"\x00"

    count = FULL // len(record(0))
    body = b"\xdc" + struct.pack(">H", count) + b"".join(record(n) for n in range(count))
    tracemalloc.start()
    try:
        assert len(read_records(forge(body, count=count))) == count
        assert tracemalloc.get_traced_memory()[1] < 100 * MIB
    finally:
        tracemalloc.stop()


def test_a_sequence_that_would_overflow_is_refused() -> None:
    body = seal([RawRecord(None, b"v")], base_timestamp_ms=0).data
    assert read_header(forge(body, first=(1 << 63) - 1)).first_sequence == (1 << 63) - 1
    assert "claims too much" in refused(forge(body, first=1 << 63))


def test_a_record_over_the_topics_limit_is_named_with_its_size() -> None:
    fits = frame(seal([RawRecord(b"k" * 40, b"v" * 40, {"h" * 10: b"1" * 10})], base_timestamp_ms=0))
    assert check(fits, record_bytes_max=100).count == 1
    with pytest.raises(TooLarge, match=r"a record of 100 bytes .* limit of 99"):
        check(fits, record_bytes_max=99)


def test_headers_have_a_limit() -> None:
    def batch_of(count: int) -> bytes:
        return frame(seal([RawRecord(None, b"", {str(i): b"" for i in range(count)})], base_timestamp_ms=0))

    assert check(batch_of(HEADERS_MAX), record_bytes_max=RECORD_BYTES_MAX)
    with pytest.raises(RemoteProtocolError, match="64"):
        check(batch_of(HEADERS_MAX + 1), record_bytes_max=RECORD_BYTES_MAX)


def test_a_producer_can_not_seal_what_a_leader_would_refuse() -> None:
    with pytest.raises(UsageError, match="unknown compression 'gzip'"):
        seal([RawRecord(None, b"")], base_timestamp_ms=0, codec="gzip")
    with pytest.raises(UsageError, match="1 to"):
        seal([], base_timestamp_ms=0)
    with pytest.raises(UsageError, match="1 to"):
        seal([RawRecord(None, b"")] * (BATCH_RECORDS_MAX + 1), base_timestamp_ms=0)
    with pytest.raises(TooLarge, match="over the limit"):
        seal([RawRecord(None, bytes(MIB))] * 5, base_timestamp_ms=0, codec="zstd")
    full = frame(seal([RawRecord(None, b"")] * BATCH_RECORDS_MAX, base_timestamp_ms=0))
    assert check(full, record_bytes_max=0).count == BATCH_RECORDS_MAX


def test_threads_seal_and_read_side_by_side() -> None:
    given_records = [RawRecord(None, b"a line of a log %d " % i * 200) for i in range(200)]

    def round_trips(codec: str) -> bool:
        return all(
            read_records(frame(seal(given_records, base_timestamp_ms=0, codec=codec))) == given_records
            for _ in range(10)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(round_trips, ["zstd"] * 6 + ["lz4"] * 2))


def test_fuzzed_batches_are_read_or_refused() -> None:
    """Mutations behind right checksums, so that they reach the decoders."""
    rng = random.Random(2024)
    seeds = [
        seal(
            [RawRecord(b"k", b"a line " * 30, {"h": b"v"}, i) for i in range(n)],
            base_timestamp_ms=0,
            codec=codec,
        )
        for n in (1, 3, 40)
        for codec in CODECS
    ]
    end = time.monotonic() + FUZZ_S
    outcomes = {"read": 0, "refused": 0}
    while time.monotonic() < end:
        seed = rng.choice(seeds)
        body = _mutated(rng, seed.data)
        size = rng.choice((seed.body_bytes, seed.body_bytes, len(body), rng.randrange(1 << 32)))
        count = rng.choice((seed.count, seed.count, rng.randrange(1 << 32)))
        data = frame(batch.Body(rng.choice((seed.codec, rng.randrange(256))), count, 0, size, body))
        if rng.random() < 0.2:
            data = _mutated(rng, data)
        try:
            assert len(read_records(data)) == read_header(data).count
            outcomes["read"] += 1
        except RemoteProtocolError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 100, outcomes


def _mutated(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 8))):
        place = rng.randrange(len(changed) + 1)
        match rng.randrange(3):
            case 0:
                changed[place : place + 1] = rng.randbytes(1)
            case 1:
                del changed[place : place + rng.randrange(1, 9)]
            case _:
                changed[place:place] = rng.choice((b"\xdd\xff\xff\xff\xff", b"\x91" * 2000, rng.randbytes(4)))
        if not changed:
            break
    return bytes(changed)


def test_the_header_is_laid_out_as_documented() -> None:
    body = seal([RawRecord(None, b"v")], base_timestamp_ms=0x0102030405060708)
    data = frame(body, producer_id=b"p" * 16, epoch=9, first_sequence=10)
    assert data[:4] == b"MB\x01\x00"
    assert struct.unpack(">IQ16sIQI", data[4:48]) == (1, 0x0102030405060708, b"p" * 16, 9, 10, len(body.data))
    assert struct.unpack(">IIQ", data[48:64]) == (zlib.crc32(data[:48]), zlib.crc32(body.data), 0)
    assert data[64:] == body.data


@given(
    st.one_of(
        st.lists(
            st.binary(max_size=40) | st.builds(RawRecord, st.none() | st.just(b"key"), st.just(b"value")),
            min_size=1,
            max_size=40,
        ),
        st.sampled_from([0, 1, 255, 256, 65_535, 65_536]).flatmap(
            lambda size: st.integers(1, 40).map(lambda n: [bytes([n]) * size] * n)
        ),
    ),
    st.lists(st.tuples(st.integers(1, 39), st.integers(-5, 70_000)), max_size=3),
)
@settings(max_examples=50)
def test_plain_values_are_the_bytes_of_records_without_key_and_headers(
    records: list[RawRecord | bytes], more: list[tuple[int, int]]
) -> None:
    deltas = [(0, 0), *sorted((p, d) for p, d in dict(more).items() if p < len(records))]
    delta_at = [max(d for d in deltas if d[0] <= place)[1] for place in range(len(records))]
    objects = [
        RawRecord(None, r, None, delta) if isinstance(r, bytes) else r
        for r, delta in zip(records, delta_at, strict=True)
    ]
    assert seal(records, base_timestamp_ms=7, deltas=deltas) == seal(objects, base_timestamp_ms=7)


@given(
    st.sampled_from([0, 1, 7, 255, 256, 65_536]),
    st.integers(1, 40),
    st.sampled_from([0, 1, 127, 128, 300]),
    st.one_of(st.none(), st.tuples(st.integers(0, 400), st.integers(0, 255))),
)
@settings(max_examples=200)
def test_a_body_that_is_known_by_its_pattern_is_what_decoding_finds(
    size: int, count: int, delta_ms: int, damage: tuple[int, int] | None
) -> None:
    values: list[RawRecord | bytes] = [bytes([n]) * size for n in range(count)]
    body = seal(values, base_timestamp_ms=0, deltas=[(0, delta_ms)]).data
    if damage is None:
        assert batch._plain_size(body, count) == (size if delta_ms < 128 else None)
        return
    place, byte = damage
    body = body[: place % len(body)] + bytes([byte]) + body[place % len(body) + 1 :]
    if batch._plain_size(body, count) is not None:
        found = batch._decoder.decode(body)
        assert [(r.key, len(r.value), r.headers) for r in found] == [(None, size, None)] * count
