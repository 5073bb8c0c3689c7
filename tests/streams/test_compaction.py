"""Compaction beside a twin: of each key the last record, tombstones for as long as they have to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshq import batch
from meshq.batch import KeptRecord, RawRecord, read_header, read_placed
from meshq.entries import StoredBatch
from meshq.errors import RemoteProtocolError
from meshq.ids import PartitionKey, TopicId
from meshq.streams import compaction
from meshq.streams.compaction import Latest, Slice, compact, slice_of

WHERE = PartitionKey(TopicId(bytes(16)), 0)
Record = tuple[bytes | None, bytes]
RECORDS = st.tuples(st.sampled_from([None, b"a", b"b", b"c", b"d"]), st.sampled_from([b"", b"x", b"yy"]))
BATCHES = st.lists(st.lists(RECORDS, min_size=1, max_size=6), min_size=1, max_size=10)


@dataclass
class Partition:
    """Batches as a disk has them. One a second is appended."""

    stored: list[StoredBatch] = field(default_factory=list)
    clean: int = 0
    end: int = 0

    def publish(self, *records: Record) -> None:
        body = batch.seal([RawRecord(k, v) for k, v in records], base_timestamp_ms=7 + self.end)
        now_ms = (len(self.times) + 1) * 1_000
        self.stored.append(StoredBatch(WHERE, self.end, len(records), now_ms, batch.frame(body)))
        self.times.append(now_ms)
        self.end += len(records)

    times: list[int] = field(default_factory=list)

    def compact(self, before_ms: int | None = None, *, keys_max: int = 1 << 30) -> int:
        """A whole pass; how many slices became others."""
        latest, made = Latest(self.clean), 0
        for b in self.stored:
            if b.base_offset + b.count > self.clean and len(latest.offsets) < keys_max:
                latest.learn(b)
        at = 0
        while at < latest.end:
            taken = slice_of([b for b in self.stored if b.base_offset >= at], latest.end)
            found = compact(taken, latest.offsets, tombstones_before_ms=before_ms)
            at = taken[-1].base_offset + taken[-1].count
            if found is not None:
                self.put(found)
                made += 1
        self.clean = latest.end
        return made

    def put(self, s: Slice) -> None:
        gone = [b for b in self.stored if s.first <= b.base_offset < s.end]
        assert sum(len(b.data) for b in gone) == s.freed
        new = StoredBatch(WHERE, s.first, s.end - s.first, s.timestamp_ms, s.data)
        assert read_header(s.data).count == new.count
        self.stored = sorted([b for b in self.stored if b not in gone] + [new], key=lambda b: b.base_offset)

    def records(self) -> dict[int, tuple[Record, int, int]]:
        """By offset: what it is, when it was appended, and the producer's time."""
        found = {}
        at = 0
        for b in self.stored:
            assert b.base_offset == at, "batches are dense"
            at += b.count
            base_ms = read_header(b.data).base_timestamp_ms
            for place, r in read_placed(b.data):
                when = b.timestamp_ms - (r.earlier_ms if isinstance(r, KeptRecord) else 0)
                found[b.base_offset + place] = ((r.key, r.value), when, base_ms + r.delta_ms)
        assert at == self.end
        return found


def made_of(batches: list[list[Record]]) -> Partition:
    p = Partition()
    for records in batches:
        p.publish(*records)
    return p


def twin(before: dict[int, Any], upto: int, before_ms: int | None) -> dict[int, Any]:
    """What has to be left of records, if the keys of all up to there are known."""
    last = {r[0]: offset for offset, (r, *_) in before.items() if r[0] is not None and offset < upto}
    return {
        offset: x
        for offset, x in before.items()
        if offset >= upto
        or x[0][0] is None
        or (last[x[0][0]] == offset and not (x[0][1] == b"" and before_ms is not None and x[1] < before_ms))
    }


@given(BATCHES, st.none() | st.integers(0, 12_000), st.integers(1, 400))
def test_of_each_key_the_last_is_left_where_it_was(
    batches: list[list[Record]], before_ms: int | None, slice_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "SLICE_BYTES", slice_bytes)
        p = made_of(batches)
        wanted = twin(p.records(), p.end, before_ms)
        p.compact(before_ms)
        assert p.records() == wanted


@given(BATCHES, BATCHES, st.integers(1, 400))
def test_a_second_pass_finds_what_came_since_and_nothing_twice(
    first: list[list[Record]], second: list[list[Record]], slice_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "SLICE_BYTES", slice_bytes)
        p = made_of(first)
        p.compact()
        for records in second:
            p.publish(*records)
        wanted = twin(p.records(), p.end, None)
        p.compact()
        assert p.records() == wanted
        p.compact()
        assert p.records() == wanted


@given(BATCHES)
def test_with_too_many_keys_for_one_pass_the_next_ones_do_the_rest(batches: list[list[Record]]) -> None:
    p = made_of(batches)
    wanted = twin(p.records(), p.end, None)
    while p.clean < p.end:
        p.compact(keys_max=1)
    assert p.records() == wanted


def test_a_partition_that_only_ever_says_the_same_keys_does_not_grow() -> None:
    p = Partition()
    for turn in range(60):
        for n in range(20):
            p.publish((b"k%d" % n, b"%d" % turn), (b"k%d" % (n + 1), b"v" * 100))
        p.compact()
    assert len(p.records()) == 21
    assert len(p.stored) <= 4
    assert sum(len(b.data) for b in p.stored) < 4_000


def test_a_tombstone_stays_until_its_time_and_takes_what_it_is_about_along_at_once() -> None:
    p = made_of([[(b"a", b"x"), (b"b", b"y")], [(b"a", b"")]])
    p.compact(before_ms=2_000)
    assert {o: r for o, (r, *_) in p.records().items()} == {1: (b"b", b"y"), 2: (b"a", b"")}
    p.publish((b"c", b"z"))
    p.compact(before_ms=2_001)
    assert {o: r for o, (r, *_) in p.records().items()} == {1: (b"b", b"y"), 3: (b"c", b"z")}


def test_nothing_of_a_pass_cut_short_brings_a_record_back() -> None:
    """Its slices are taken in order: a tombstone does not leave before what it is about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "SLICE_BYTES", 1)
        p = made_of([[(b"a", b"x")], [(b"b", b"y")], [(b"a", b"")]])
        latest = Latest(0)
        for b in p.stored:
            latest.learn(b)
        for b in list(p.stored):
            found = compact([b], latest.offsets, tombstones_before_ms=1 << 60)
            if found is not None:
                p.put(found)
            alive = {r[0] for r, *_ in p.records().values() if r[1]}
            assert b"a" not in alive or any(r == (b"a", b"") for r, *_ in p.records().values())


def test_a_compacted_batch_is_read_under_limits() -> None:
    good = batch.frame_compacted([KeptRecord(b"a", b"x", None, 0, 3, 5)], count=10, base_timestamp_ms=0)
    ((place, record),) = read_placed(good)
    assert isinstance(record, KeptRecord)
    assert (place, record.value, record.earlier_ms) == (3, b"x", 5)
    with pytest.raises(RemoteProtocolError):
        batch.check(good, record_bytes_max=1_000)
    for places in ((3, 3), (4, 3), (-1,), (10,)):
        records = [KeptRecord(b"a", b"x", None, 0, place, 0) for place in places]
        with pytest.raises(RemoteProtocolError):
            read_placed(batch.frame_compacted(records, count=10, base_timestamp_ms=0))
    with pytest.raises(RemoteProtocolError):
        read_header(batch.frame_compacted([], count=1 << 20, base_timestamp_ms=0))
