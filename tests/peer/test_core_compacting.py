"""Compaction at one peer: what is left, who reads it, and what happens when it is cut short."""

from __future__ import annotations

from typing import Any

import pytest

from meshq import batch
from meshq.entries import EntryKind
from meshq.messages import EARLIEST, Credit, Deliver, Failure, Produce, Produced, ProduceItem, TopicInfo
from meshq.peer.core import compacting
from tests.peer.single import Single, key_of
from tests.peer.test_core_retaining import bounds, do_disk

Record = tuple[bytes, bytes]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    squeeze(monkeypatch.setattr)


def squeeze(put: Any) -> None:
    put(compacting, "DIRTY_BYTES_MIN", 1)
    put(compacting, "SLICE_BYTES", 300)
    put(compacting, "LEARN_BYTES", 200)


def ready(**retain: Any) -> tuple[Single, TopicInfo]:
    peer = Single()
    peer.hello()
    peer.ask("topic.create", topic="t", partitions=1, compact=True, **retain)
    info = peer.core.ctx.registry.topic("t")
    assert info is not None
    peer.out.clear()
    return peer, info


def publish(peer: Single, info: TopicInfo, *records: tuple[bytes | None, bytes]) -> Any:
    body = batch.seal([batch.RawRecord(k, v) for k, v in records], base_timestamp_ms=0)
    item = ProduceItem(1, info.topic_id, 0, info.version)
    peer.hello()
    return peer.send(Produce([item]), batch.frame(body))[-1]


def pass_time(peer: Single, seconds: float = 2.0) -> None:
    for _ in range(12):
        peer.tick(seconds / 12)
        for _ in range(20):
            do_disk(peer)
            peer.fetch()


def left(peer: Single, info: TopicInfo) -> dict[int, Record]:
    """By offset, as a reader from the beginning gets it."""
    peer.hello()  # it may have been silent for long
    peer.out.clear()
    peer.read(info, EARLIEST, sub=9)
    peer.send(Credit(9, 10_000_000, 10_000_000))
    peer.fetch()
    found: dict[int, Record] = {}
    at = bounds(peer, info)[0]
    for m in [m for m in peer.heard() if isinstance(m, Deliver)]:
        payloads = next(x.payloads for x in peer.out if getattr(x, "message", None) is m)
        for item, data in zip(m.items, payloads, strict=True):
            assert item.base_offset <= at, "no gap"
            at = item.base_offset + batch.read_header(data).count
            for place, r in batch.read_placed(data):
                if item.base_offset + place >= item.first:
                    assert r.key is not None
                    found[item.base_offset + place] = (r.key, r.value)
    assert at == bounds(peer, info)[1]
    return found


def compact_entries(peer: Single) -> int:
    return sum(x.kind is EntryKind.COMPACT for log in peer.entries.values() for x in log)


def test_of_each_key_the_last_record_is_left_at_its_offset_and_the_end_stays() -> None:
    peer, info = ready()
    publish(peer, info, (b"a", b"1"), (b"b", b"1"))
    publish(peer, info, (b"a", b"2"), (b"c", b"1"))
    publish(peer, info, (b"b", b"2"))
    pass_time(peer)
    assert left(peer, info) == {2: (b"a", b"2"), 3: (b"c", b"1"), 4: (b"b", b"2")}
    assert bounds(peer, info) == (0, 5)
    state = peer.core.slots.partition(peer.core.ctx.slot_of(key_of(info)), key_of(info))
    assert state.bytes == sum(len(p.data) for p in peer.payloads[key_of(info)])


def test_a_record_without_a_key_is_refused() -> None:
    peer, info = ready()
    for records in ([(None, b"x")], [(b"a", b"x"), (None, b"y")]):
        refused = publish(peer, info, *records)
        assert isinstance(refused, Failure)
        assert "needs a key" in refused.text
    assert isinstance(publish(peer, info, (b"a", b"x")), Produced)


def test_a_tombstone_takes_what_was_before_it_and_stays_for_its_time() -> None:
    peer, info = ready(tombstone_age_ms=60_000)
    publish(peer, info, (b"a", b"1"), (b"b", b"1"))
    publish(peer, info, (b"a", b""))
    pass_time(peer)
    assert left(peer, info) == {1: (b"b", b"1"), 2: (b"a", b"")}
    publish(peer, info, (b"c", b"1" * 300))
    pass_time(peer, 50.0)
    assert 2 in left(peer, info), "its time is not over"
    pass_time(peer, 20.0)
    publish(peer, info, (b"d", b"1" * 900))
    pass_time(peer)
    assert left(peer, info).keys() == {1, 3, 4}


def test_a_clock_that_is_not_trusted_ends_no_tombstone() -> None:
    peer, info = ready(tombstone_age_ms=1_000)
    peer.core.ctx.clock_trusted = lambda: False
    publish(peer, info, (b"a", b""))
    pass_time(peer, 20.0)
    publish(peer, info, (b"b", b"1" * 300))
    pass_time(peer)
    assert 0 in left(peer, info)


def test_a_restart_in_the_middle_loses_nothing_and_it_goes_on() -> None:
    peer, info = ready()
    for n in range(30):
        publish(peer, info, (b"k%d" % (n % 4), b"%d" % n * 20))
    peer.tick(0.2)
    for _ in range(6):
        peer.fetch()
        peer.tick(0.1)
    assert compact_entries(peer) > 0
    peer.start()
    peer.hello()
    wanted = {n: (b"k%d" % (n % 4), b"%d" % n * 20) for n in range(26, 30)}
    assert left(peer, info).items() >= wanted.items()
    publish(peer, info, (b"z", b"z" * 2_000))
    pass_time(peer)
    assert left(peer, info) == wanted | {30: (b"z", b"z" * 2_000)}


def test_what_is_compacted_is_written_with_the_state_that_says_so() -> None:
    peer, info = ready()
    publish(peer, info, (b"a", b"1"))
    publish(peer, info, (b"a", b"2"))
    before = [bytes(p.data) for p in peer.payloads[key_of(info)]]
    peer.tick(0.2)
    peer.fetch()
    peer.hold = True
    peer.fetch()
    peer.write()  # the entry
    peer.waiting.clear()  # a crash takes what it did
    assert [bytes(p.data) for p in peer.payloads[key_of(info)]] == before
    peer.hold = False
    peer.start()
    peer.hello()
    pass_time(peer)
    assert left(peer, info) == {1: (b"a", b"2")}


def test_with_a_limit_of_bytes_both_hold() -> None:
    peer, info = ready(retain_bytes=900)
    for n in range(60):
        publish(peer, info, (b"k%d" % (n % 9), b"%d" % n * 20))
        if n % 7 == 0:
            pass_time(peer, 0.3)
    pass_time(peer)
    state = peer.core.slots.partition(peer.core.ctx.slot_of(key_of(info)), key_of(info))
    assert state.bytes == sum(len(p.data) for p in peer.payloads[key_of(info)])
    assert 0 < state.bytes <= 900
    assert left(peer, info)[59] == (b"k5", b"59" * 20)


def test_turned_on_later_it_holds_for_what_is_there() -> None:
    peer, info = ready()
    peer.ask("topic.set", topic="t", compact=False)
    publish(peer, info, (b"a", b"1"))
    publish(peer, info, (b"a", b"2"))
    pass_time(peer)
    assert len(left(peer, info)) == 2
    peer.ask("topic.set", topic="t", compact=True)
    pass_time(peer)
    assert left(peer, info) == {1: (b"a", b"2")}
