"""What is written is read back, grouped into few commits, and verified on the way."""

from __future__ import annotations

import time

import lmdb
import pytest

from meshq.batch import KeptRecord, frame_compacted
from meshq.entries import Payload, PayloadKey, Write
from meshq.errors import StoreCorrupt, UsageError
from meshq.ids import SYSTEM_SLOT, PartitionKey, Slot, TopicId
from meshq.limits import MIB, TRANSACTION_BYTES_MAX
from meshq.store import Store
from meshq.store.layout import log_key, payload_key

from .helpers import P0, TOPIC, entries, payload, put

S = Slot(7)
ALL = {"bytes_max": MIB, "count_max": 1_000}


def poke(store: Store, db: object, key: bytes, value: bytes | None) -> None:
    """Change the database behind the store's back, as a bad disk would."""
    with store._dbs.env.begin(write=True) as txn:
        if value is None:
            assert txn.delete(key, db=db)
        else:
            txn.put(key, value, db=db)


def test_a_new_store_is_empty(store):
    assert store.load() == {}
    assert store.read_entries(S, 1, **ALL) == []
    assert store.read_batches(P0, 0, end=100, bytes_max=MIB) == []
    assert store.first_offset(P0) is None
    assert store.offset_at(P0, 5, end=9) == 9


def test_reads_back_what_was_written_after_opening_again(opened, tmp_path, heard):
    store = opened(tmp_path / "s")
    made, batches = entries(1, 3), (payload(0, count=3, at=10), payload(3, at=11))
    put(
        store, heard,
        Write(1, S, tuple(made[:2]), batches[:1], ((b"a", b"1"), (b"b", b"2"))),
        Write(2, S, tuple(made[2:]), batches[1:], ((b"a", None), (b"b", b"3"))),
        Write(3, SYSTEM_SLOT, rows=((b"x", b""),)),
    )  # fmt: skip
    store.close()
    store = opened(tmp_path / "s")
    images = store.load()
    assert set(images) == {S, SYSTEM_SLOT}
    assert images[S].rows == {b"b": b"3"}
    assert (images[S].first_index, images[S].last_index) == (1, 3)
    assert images[S].last_chain == made[-1].chain
    assert (images[SYSTEM_SLOT].rows, images[SYSTEM_SLOT].last_index) == ({b"x": b""}, 0)
    assert store.read_entries(S, 1, **ALL) == made
    found = store.read_batches(P0, 0, end=4, bytes_max=MIB)
    assert [(b.base_offset, b.count, b.timestamp_ms, b.data) for b in found] == [
        (p.base_offset, p.count, p.timestamp_ms, p.data) for p in batches
    ]


def test_everything_that_waits_goes_into_one_commit(store, heard):
    for token in range(500):
        store.write(Write(token, Slot(token % 5), rows=((b"row", b"%d" % token),)))
    heard.start(store)
    heard.wait(lambda: bool(heard.done))
    assert heard.done == [list(range(500))]
    assert (store.counters.commits, store.counters.writes) == (1, 500)
    assert store.load()[Slot(4)].rows == {b"row": b"499"}


def test_a_commit_takes_a_bounded_amount_of_payload_but_at_least_one_write(store, heard):
    size = TRANSACTION_BYTES_MAX // 8
    big = tuple(payload(n, size=size) for n in range(9))
    put(
        store, heard,
        Write(0, S, payloads=big),
        *(Write(n + 1, S, payloads=(payload(100 + n, size=size),)) for n in range(8)),
    )  # fmt: skip
    assert heard.done == [[0], list(range(1, 8)), [8]]


def test_many_small_batches_together_take_little_time(store, heard):
    heard.start(store)
    took = []
    for first in (0, 1_000, 2_000):  # the best of three, because others use this machine too
        writes = [Write(n, S, payloads=(payload(n, size=1024),)) for n in range(first, first + 1_000)]
        started = time.perf_counter()
        for write in writes:
            store.write(write)
        heard.wait(lambda wanted=first + 1_000: len(heard.tokens()) == wanted)
        took.append(time.perf_counter() - started)
    assert min(took) < 0.1  # each with a sync of its own it would be more
    assert store.counters.commits < 100
    assert store.counters.bytes == 3 * sum(w.payload_bytes() for w in writes)


def test_views_are_stored_as_they_are(store, heard):
    made = payload(0)
    viewed = type(made)(made.partition, 0, 1, 0, memoryview(bytearray(made.data)))
    put(store, heard, Write(1, S, payloads=(viewed,)))
    assert store.read_batches(P0, 0, end=1, bytes_max=MIB)[0].data == made.data


def test_trimming_deletes_older_entries_of_that_slot_alone(store, heard):
    made = tuple(entries(1, 10))
    put(store, heard, Write(1, S, made), Write(2, Slot(6), made), Write(3, Slot(8), made),
        Write(4, S, trim_below=8))  # fmt: skip
    images = store.load()
    assert {s: (i.first_index, i.last_index) for s, i in images.items()} == {
        6: (1, 10),
        S: (8, 10),
        8: (1, 10),
    }
    assert store.read_entries(S, 8, **ALL) == list(made[7:])
    with pytest.raises(UsageError, match="begins at 8"):
        store.read_entries(S, 7, **ALL)


def test_trimming_everything_leaves_an_empty_log(store, heard):
    put(store, heard, Write(1, S, tuple(entries(1, 3)), rows=((b"r", b""),)), Write(2, S, trim_below=4))
    image = store.load()[S]
    assert (image.first_index, image.last_index) == (1, 0)
    assert store.read_entries(S, 4, **ALL) == []


def test_entries_come_within_the_bounds_and_at_least_one(store, heard):
    made = entries(1, 10)
    put(store, heard, Write(1, S, tuple(made)), Write(2, Slot(8), tuple(made)))
    size = len(made[3].encode())
    assert store.read_entries(S, 4, bytes_max=1, count_max=9) == made[3:4]
    assert store.read_entries(S, 4, bytes_max=3 * size, count_max=9) == made[3:6]
    assert store.read_entries(S, 4, bytes_max=MIB, count_max=2) == made[3:5]
    assert store.read_entries(S, 4, bytes_max=MIB, count_max=99) == made[3:]
    assert store.read_entries(S, 11, bytes_max=MIB, count_max=99) == []


# ---------------------------------------------------------------------------------------------- corruption
def test_a_corrupt_entry_is_named_and_never_taken_as_absent(store, heard):
    made = entries(1, 5)
    put(store, heard, Write(1, S, tuple(made)))
    data = bytearray(made[2].encode())
    data[-1] ^= 1
    poke(store, store._dbs.log, log_key(S, 3), bytes(data))
    with pytest.raises(StoreCorrupt, match=r"slot 7.*entry 3"):
        store.read_entries(S, 2, **ALL)
    with pytest.raises(StoreCorrupt, match=r"slot 7.*entry 3"):
        store.read_entries(S, 3, **ALL)
    assert store.read_entries(S, 5, **ALL) == made[4:]


def test_a_hole_in_a_log_is_corruption(store, heard):
    put(store, heard, Write(1, S, tuple(entries(1, 5))))
    poke(store, store._dbs.log, log_key(S, 3), None)
    for first in (1, 2, 3):
        with pytest.raises(StoreCorrupt, match="entry 3 of slot 7 is missing"):
            store.read_entries(S, first, **ALL)
    with pytest.raises(StoreCorrupt, match="entry 3 of slot 7 is missing"):
        store.load()


def test_an_entry_of_another_log_does_not_verify(store, heard):
    put(store, heard, Write(1, S, tuple(entries(1, 5))))
    stranger = entries(3, 3, chain=b"another!")[0]
    poke(store, store._dbs.log, log_key(S, 3), stranger.encode())
    for first in (2, 3):
        with pytest.raises(StoreCorrupt, match="entry 3 of slot 7"):
            store.read_entries(S, first, **ALL)


def test_a_corrupt_last_entry_is_found_on_loading(store, heard):
    put(store, heard, Write(1, S, tuple(entries(1, 5))))
    poke(store, store._dbs.log, log_key(S, 5), b"garbage")
    with pytest.raises(StoreCorrupt, match=r"slot 7.*entry 5"):
        store.load()


@pytest.mark.parametrize("at", [0, 5, 40, 64, -1])
def test_a_corrupt_batch_is_named_and_the_good_ones_before_it_are_read(store, heard, at):
    first, second = payload(0, count=2), payload(2)
    put(store, heard, Write(1, S, payloads=(first, second)))
    data = bytearray(second.data)
    data[at] ^= 1
    poke(store, store._dbs.payloads, payload_key(P0, 2, 0, 1), bytes(data))
    assert [b.base_offset for b in store.read_batches(P0, 0, end=9, bytes_max=MIB)] == [0]
    with pytest.raises(StoreCorrupt, match=f"partition 0 of topic {TOPIC.hex()}, offset 2"):
        store.read_batches(P0, 2, end=9, bytes_max=MIB)


def test_a_batch_under_another_ones_key_is_corrupt(store, heard):
    put(store, heard, Write(1, S, payloads=(payload(0, count=2),)))
    poke(store, store._dbs.payloads, payload_key(P0, 0, 0, 2), payload(0, count=3).data)
    with pytest.raises(StoreCorrupt, match="3 records was stored as one of 2"):
        store.read_batches(P0, 0, end=9, bytes_max=MIB)


# ------------------------------------------------------------------------------------------------ deletion
def test_dropping_deletes_one_partition_in_pieces_and_writes_go_on(store, heard, monkeypatch):
    monkeypatch.setattr("meshq.store.writer.PIECE_BATCHES_MAX", 10)
    store._writer._drop_count_max = 10
    neighbours = [PartitionKey(TOPIC, 1), PartitionKey(TopicId(b"topic-ie-16bytes"), 0)]
    rest = tuple(payload(n, partition=p) for n in range(5) for p in neighbours)
    store.write(Write(0, S, payloads=tuple(payload(n) for n in range(95)) + rest))
    for token in range(1, 4):
        store.write(Write(token, S, rows=((b"r", b"%d" % token),)))
    store.drop_payloads(P0, below=None)
    heard.start(store)
    heard.wait(lambda: heard.dropped == [P0])
    assert store.counters.dropped_batches == 95
    assert store.first_offset(P0) is None
    assert [len(store.read_batches(p, 0, end=99, bytes_max=MIB)) for p in neighbours] == [5, 5]
    store.write(Write(9, S, payloads=(payload(95),)))
    heard.wait(lambda: 9 in heard.tokens())
    assert store.first_offset(P0) == 95


def test_dropping_below_an_offset_keeps_the_batch_that_holds_it(store, heard):
    put(store, heard, Write(1, S, payloads=tuple(payload(n, count=3) for n in range(0, 12, 3))))
    store.drop_payloads(P0, below=7)
    heard.wait(lambda: heard.dropped == [P0])
    assert store.first_offset(P0) == 6
    store.drop_payloads(PartitionKey(TOPIC, 5), below=None)
    heard.wait(lambda: len(heard.dropped) == 2)


def test_what_is_compacted_takes_the_place_of_the_batches_it_is_of(store, heard):
    others = PartitionKey(TOPIC, 1)
    before = tuple(payload(n, count=3, partition=p) for n in range(0, 12, 3) for p in (P0, others))
    kept = frame_compacted([KeptRecord(b"k", b"v", None, 0, 4, 0)], count=6, base_timestamp_ms=0)
    made = Payload(P0, 3, 6, 9, kept)
    rewritten = Write(2, S, payloads=(made,), rewritten=((P0, 3, 9),))
    put(store, heard, Write(1, S, payloads=before), rewritten)
    found = store.read_batches(P0, 0, end=99, bytes_max=MIB)
    assert [(b.base_offset, b.count) for b in found] == [(0, 3), (3, 6), (9, 3)]
    assert store.read_batches(P0, 7, end=99, bytes_max=MIB)[0].data == kept
    assert [m.end for m in store.survey(P0, 4, count_max=9)] == [9, 12]
    assert len(store.read_batches(others, 0, end=99, bytes_max=MIB)) == 4
    keys = [PayloadKey(P0, base, 0, 3) for base in (0, 3, 6)]
    assert [store.is_compacted(k) for k in keys] == [False, True, True]


def test_freed_pages_count_as_room_again(store, heard):
    put(store, heard, Write(1, S, payloads=tuple(payload(n, size=100_000) for n in range(50))))
    store._room.refresh()
    full, used = store.room(), store.used_bytes
    assert used > 5_000_000
    store.drop_payloads(P0, below=None)
    heard.wait(lambda: heard.dropped == [P0])
    store._room.refresh()
    assert store.used_bytes < 200_000
    assert store.room() > full + 4_800_000


# ---------------------------------------------------------------------------------------------- life cycle
def test_closing_writes_what_is_queued_and_may_be_repeated(opened, tmp_path, heard):
    store = opened(tmp_path / "s")
    heard.start(store)
    for token in range(100):
        store.write(Write(token, S, rows=((b"%d" % token, b""),)))
    store.close()
    store.close()
    assert heard.tokens() == list(range(100))
    with pytest.raises(UsageError, match="closed"):
        store.load()
    assert len(opened(tmp_path / "s").load()[S].rows) == 100


def test_an_error_that_is_not_a_full_disk_ends_all_writing(store, heard, monkeypatch):
    heard.start(store)

    def broken(*_: object) -> None:
        raise lmdb.Error("mdb_txn_commit: Input/output error")

    monkeypatch.setattr("meshq.store.writer.apply_writes", broken)
    store.write(Write(1, S))
    heard.wait(lambda: bool(heard.fatal))
    assert "Input/output error" in heard.fatal[0].text
    store.write(Write(2, S))
    store.close()
    assert (heard.done, heard.failed) == ([], [])
