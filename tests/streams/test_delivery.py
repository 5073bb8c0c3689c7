"""Delivery: every reader gets every committed record once, in order, and no more than it gave credit for."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from meshq.entries import StoredBatch
from meshq.ids import PartitionKey, TopicId
from meshq.limits import CREDIT_BYTES_MAX
from meshq.streams import delivery
from meshq.streams.delivery import Deliveries, Fetch, SubKey

PARTITIONS = [PartitionKey(TopicId(n.to_bytes(16, "big")), p) for n in range(2) for p in range(2)]
FIRST = PARTITIONS[0]
SUB: SubKey = (("clients", b"a"), 1)
SUBS: list[SubKey] = [SUB, (("clients", b"a"), 2), (("clients", b"b"), 1)]


@dataclass
class Readers:
    """Deliveries over a disk, and clients that check everything they are sent."""

    of: Deliveries = field(default_factory=Deliveries)
    disk: dict[PartitionKey, list[StoredBatch]] = field(default_factory=lambda: defaultdict(list))
    fetches: list[Fetch] = field(default_factory=list)
    positions: dict[tuple[SubKey, PartitionKey], int] = field(default_factory=dict)
    credit: dict[SubKey, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    got: list[tuple[SubKey, PartitionKey, int]] = field(default_factory=list)  # sub, partition, base offset

    def end(self, partition: PartitionKey) -> int:
        stored = self.disk[partition]
        return stored[-1].base_offset + stored[-1].count if stored else 0

    def commit(self, partition: PartitionKey, count: int = 1, size: int = 10) -> None:
        batch = StoredBatch(partition, self.end(partition), count, 7, bytes(size))
        self.disk[partition].append(batch)
        self.of.on_committed(partition, batch.base_offset, count, 7, batch.data)
        self.receive()

    def read(self, sub: SubKey, partition: PartitionKey, position: int) -> None:
        self.positions[sub, partition] = position
        self.fetches += self.of.on_read(sub, partition, position=position, end=self.end(partition))
        self.receive()

    def give(self, sub: SubKey, bytes: int, records: int) -> None:
        self.credit[sub][0] += bytes
        self.credit[sub][1] += records
        self.fetches += self.of.on_credit(sub, bytes=bytes, records=records)
        self.receive()

    def answer(self, fetch: Fetch) -> None:
        self.fetches.remove(fetch)
        found: list[StoredBatch] = []
        for b in self.disk[fetch.partition]:
            if b.base_offset + b.count > fetch.offset and b.base_offset < fetch.end:
                if found and sum(len(x.data) for x in found) + len(b.data) > fetch.bytes_max:
                    break
                found.append(b)
        self.fetches += self.of.on_fetched(fetch, found)
        self.receive()

    def unread(self, sub: SubKey, partitions: list[PartitionKey]) -> None:
        gone = [k for k in self.positions if k[0] == sub and (not partitions or k[1] in partitions)]
        for k in gone:
            del self.positions[k]
        if not partitions:
            self.credit.pop(sub, None)
        self.of.on_unread(sub, partitions)
        self.receive()

    def close(self, sub: SubKey) -> None:
        for other in [s for s in SUBS if s[0] == sub[0]]:
            for k in [k for k in self.positions if k[0] == other]:
                del self.positions[k]
            self.credit.pop(other, None)
        self.of.on_session_gone(sub[0])
        self.receive()

    def receive(self) -> None:
        for push in self.of.take_pushes():
            assert 0 < len(push.batches) <= delivery.PUSH_BATCHES_MAX
            for b in push.batches:
                position = self.positions[push.sub, b.partition]
                (stored,) = [x for x in self.disk[b.partition] if x.base_offset == b.base_offset]
                assert (b.data, b.timestamp_ms) == (stored.data, 7)
                assert b.base_offset <= position < b.base_offset + stored.count, "the next one, and only once"
                assert b.first == position
                assert min(self.credit[push.sub]) > 0, "only with credit left"
                self.credit[push.sub][0] -= len(b.data)
                self.credit[push.sub][1] -= b.base_offset + stored.count - b.first
                self.positions[push.sub, b.partition] = b.base_offset + stored.count
                self.got.append((push.sub, b.partition, b.base_offset))

    def settle(self) -> None:
        while self.fetches:
            self.answer(self.fetches[0])


partitions = st.sampled_from(PARTITIONS[:2])
subs = st.sampled_from(SUBS)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), partitions, st.integers(1, 3), st.sampled_from([1, 10, 300])),
        st.tuples(st.just("commit"), partitions, st.integers(1, 3), st.sampled_from([1, 10, 300])),
        st.tuples(st.just("give"), subs, st.sampled_from([0, 1, 20, 500]), st.sampled_from([0, 1, 5])),
        st.tuples(st.just("give"), subs, st.just(20), st.just(5)),
        st.tuples(st.just("answer"), st.integers(0, 2)),
        st.tuples(st.just("answer"), st.just(0)),
        st.tuples(st.just("read"), subs, partitions, st.integers(0, 20)),
        st.tuples(st.just("read"), subs, partitions, st.just(0)),
        st.tuples(st.just("unread"), subs, st.lists(partitions, max_size=2)),
        st.tuples(st.just("close"), subs),
    ),
    min_size=20,
    max_size=60,
)


@settings(max_examples=100)
@given(STEPS)
def test_every_reader_gets_each_record_once_in_order_within_its_credit(steps: list[Any]) -> None:
    play(steps)


def play(steps: list[Any]) -> None:
    r = Readers()
    for step in steps:
        match step:
            case ("commit", partition, count, size):
                r.commit(partition, count, size)
            case ("give", sub, size, records):
                r.give(sub, size, records)
            case ("answer", which) if which < len(r.fetches):
                r.answer(r.fetches[which])
            case ("read", sub, partition, position):
                r.read(sub, partition, min(position, r.end(partition)))
            case ("unread", sub, some):
                r.unread(sub, some)
            case ("close", sub):
                r.close(sub)
        assert r.of.count() == len(r.positions)
        assert set(r.of.partitions_read()) == {p for _, p in r.positions}
    for sub in {s for s, _ in r.positions}:
        r.give(sub, 1_000_000, 10_000)
    r.settle()
    assert all(position == r.end(p) for (_, p), position in r.positions.items()), "with credit nobody is left"
    for sub in SUBS:
        r.close(sub)
    assert [name for name, value in vars(r.of).items() if value] == [], "a closed session leaves nothing"


def test_a_level_reader_gets_a_batch_as_it_is_committed_without_a_fetch() -> None:
    r = Readers()
    r.read(SUB, FIRST, 0)
    r.give(SUB, 1_000, 10)
    r.commit(FIRST)
    assert r.got == [(SUB, FIRST, 0)]
    assert r.fetches == []


def test_a_batch_goes_out_whole_and_may_overdraw_once() -> None:
    r = Readers()
    r.read(SUB, FIRST, 0)
    r.give(SUB, 1, 1)
    r.commit(FIRST, count=3, size=500)
    r.commit(FIRST)
    assert len(r.got) == 1
    assert r.credit[SUB] == [-499, -2]
    r.give(SUB, 499, 100)
    assert r.fetches == [], "bytes are at zero"
    r.give(SUB, 1, 0)
    assert [f.offset for f in r.fetches] == [3]


def test_a_start_inside_a_batch_names_the_first_record_and_costs_only_the_rest() -> None:
    r = Readers()
    r.commit(FIRST, count=5)
    r.read(SUB, FIRST, 3)
    r.give(SUB, 1_000, 10)
    r.settle()
    assert r.credit[SUB][1] == 8


def test_readers_that_are_behind_take_turns() -> None:
    r = Readers()
    for partition in PARTITIONS:
        for _ in range(3):
            r.commit(partition, size=100)
        r.read(SUB, partition, 0)
    for _ in range(12):
        r.give(SUB, max(1, 1 - r.credit[SUB][0]), 1)
        r.settle()
    order = [partition for _, partition, _ in r.got]
    assert order == PARTITIONS * 3


def test_no_more_is_fetched_than_there_is_credit_for() -> None:
    r = Readers()
    for n in range(200):
        partition = PartitionKey(TopicId(bytes(16)), n)
        for _ in range(30):
            r.commit(partition, size=100)
        r.read(SUB, partition, 0)
    r.give(SUB, 1_000, 10_000)
    assert sum(f.bytes_max for f in r.fetches) <= 1_000
    for _ in range(10):
        r.give(SUB, 1, 1)
    assert sum(f.bytes_max for f in r.fetches) <= 1_010
    r.settle()
    assert 1_000 < sum(100 for _ in r.got) <= 1_110
    r.give(SUB, CREDIT_BYTES_MAX, 1)
    assert len(r.fetches) <= delivery.PUSH_BATCHES_MAX


def test_each_fetch_that_is_started_could_bring_a_record_within_credit() -> None:
    r = Readers()
    for partition in PARTITIONS:
        r.commit(partition)
        r.read(SUB, partition, 0)
    r.give(SUB, 10_000_000, 2)
    assert len(r.fetches) == 2


def test_a_fetch_for_what_was_read_again_from_elsewhere_is_void() -> None:
    r = Readers()
    for _ in range(4):
        r.commit(FIRST)
    r.give(SUB, 1_000, 10)
    r.read(SUB, FIRST, 0)
    (stale,) = r.fetches
    assert r.of.is_awaited(stale)
    r.read(SUB, FIRST, 2)
    assert not r.of.is_awaited(stale)
    r.answer(stale)
    assert r.got == []
    r.settle()
    assert [base for *_, base in r.got] == [2, 3]


def test_a_void_fetch_does_not_keep_others_waiting() -> None:
    r = Readers()
    for partition in PARTITIONS[:2]:
        r.commit(partition)
        r.read(SUB, partition, 0)
    r.give(SUB, 1, 1)
    (fetch,) = r.fetches
    r.unread(SUB, [fetch.partition])
    r.settle()
    assert [p for _, p, _ in r.got] == [p for p in PARTITIONS[:2] if p != fetch.partition]


def test_a_hole_in_what_was_fetched_is_never_skipped() -> None:
    r = Readers()
    for _ in range(3):
        r.commit(FIRST)
    missing = r.disk[FIRST].pop(1)
    r.read(SUB, FIRST, 0)
    r.give(SUB, 1_000, 10)
    r.answer(r.fetches[0])
    assert r.got == [(SUB, FIRST, 0)]
    assert [f.offset for f in r.fetches] == [missing.base_offset], (
        "it asks for it, and the caller finds the hole"
    )


def test_a_slow_subscription_costs_nobody_else() -> None:
    r = Readers()
    for sub in SUBS[:2]:
        r.read(sub, FIRST, 0)
    r.give(SUBS[1], 1_000, 10)
    for _ in range(3):
        r.commit(FIRST)
    assert r.got == [(SUBS[1], FIRST, base) for base in range(3)]


def test_a_partition_that_is_gone_names_who_read_it() -> None:
    r = Readers()
    for sub in SUBS:
        r.read(sub, FIRST, 0)
    r.read(SUB, PARTITIONS[1], 0)
    assert r.of.readers_of(FIRST.topic_id) == [FIRST, PARTITIONS[1]]
    assert r.of.on_partition_gone(FIRST) == SUBS
    assert r.of.on_partition_gone(FIRST) == []
    assert r.of.partitions_read() == [PARTITIONS[1]]


def test_credit_is_bounded() -> None:
    of = Deliveries()
    for _ in range(3):
        of.on_credit(SUB, bytes=CREDIT_BYTES_MAX, records=CREDIT_BYTES_MAX)
    of.on_read(SUB, FIRST, position=0, end=0)
    of.on_committed(FIRST, 0, 1, 7, bytes(CREDIT_BYTES_MAX))
    of.on_committed(FIRST, 1, 1, 7, b"x")
    assert sum(len(push.batches) for push in of.take_pushes()) == 1


def test_pushes_are_cut_into_messages_within_limits() -> None:
    of = Deliveries()
    of.on_credit(SUB, bytes=CREDIT_BYTES_MAX, records=1_000_000)
    of.on_read(SUB, FIRST, position=0, end=0)
    for n in range(150):
        of.on_committed(FIRST, n, 1, 7, b"x")
    for n in range(150, 153):
        of.on_committed(FIRST, n, 1, 7, bytes(delivery.PUSH_BYTES))
    pushes = of.take_pushes()
    assert [len(push.batches) for push in pushes] == [64, 64, 22, 1, 1, 1]
    assert [b.base_offset for push in pushes for b in push.batches] == list(range(153))
    assert of.take_pushes() == []
