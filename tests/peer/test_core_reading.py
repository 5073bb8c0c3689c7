"""Reading at one peer: where a reader starts, what it is pushed, and what ends it."""

from __future__ import annotations

from typing import Any

import pytest

from meshq.errors import StoreCorrupt
from meshq.ids import Session
from meshq.messages import (
    EARLIEST,
    LATEST,
    OFFSET,
    TIMESTAMP,
    Credit,
    Deliver,
    ReadEnded,
    ReadStarted,
    TopicInfo,
    Unread,
)
from meshq.peer.core import events as e
from meshq.registry import commands
from meshq.replication.words import SupportGot
from tests.peer.single import WALL_MS, Single, elect, identity, key_of

PLENTY = Credit(1, 1 << 20, 1_000)
CLIENT: Session = (e.CLIENTS, b"1")


def ready(records: int = 0, **about: Any) -> tuple[Single, TopicInfo]:
    """A peer with a topic of this many one-record batches, a second apart."""
    peer = Single(**about)
    peer.hello()
    info = peer.make_topic()
    for n in range(records):
        peer.now = float(n)
        peer.produce(info, b"%d" % n)
    peer.out.clear()
    return peer, info


def pushed(peer: Single, since: int = 0) -> list[tuple[int, int]]:
    """(base offset, first record that is new) of every batch."""
    found = [m for m in peer.heard(since=since) if isinstance(m, Deliver)]
    return [(i.base_offset, i.first) for m in found for i in m.items]


def start_of(answers: list[Any]) -> tuple[int, int]:
    (started,) = [m for m in answers if isinstance(m, ReadStarted)]
    return started.items[0].offset, started.items[0].end


@pytest.mark.parametrize(
    ("start", "value", "offset"),
    [(EARLIEST, 0, 0), (LATEST, 0, 5), (OFFSET, 3, 3), (OFFSET, 5, 5), (OFFSET, 99, 5)],
)
def test_where_a_reader_starts(start: int, value: int, offset: int) -> None:
    peer, info = ready(5)
    peer.send(PLENTY)
    assert start_of(peer.read(info, start, value)) == (offset, 5)
    peer.fetch()
    assert pushed(peer) == [(n, n) for n in range(offset, 5)]
    peer.produce(info, b"new")
    assert pushed(peer)[-1] == (5, 5)


def test_a_time_start_asks_the_disk_and_starts_where_it_says() -> None:
    peer, info = ready(5)
    peer.send(PLENTY)
    assert peer.read(info, TIMESTAMP, WALL_MS + 2_500) == []
    (seek,) = peer.take(e.SeekTime)
    assert (seek.partition, seek.timestamp_ms, seek.end) == (key_of(info), WALL_MS + 2_500, 5)
    peer.produce(info, b"meanwhile")
    before = len(peer.out)
    peer.tell(e.TimeSought(seek, 3))
    assert start_of(peer.heard(since=before)) == (3, 6)
    peer.fetch()
    assert pushed(peer) == [(3, 3), (4, 4), (5, 5)]


def test_a_time_start_that_was_unread_or_read_again_meanwhile_is_void() -> None:
    peer, info = ready(5)
    peer.send(PLENTY)
    peer.read(info, TIMESTAMP, 1)
    peer.send(Unread(1, [(info.topic_id, 0)]))
    peer.read(info, OFFSET, 4)
    (seek,) = peer.take(e.SeekTime)
    peer.tell(e.TimeSought(seek, 0))
    peer.fetch()
    assert pushed(peer) == [(4, 4)], "nothing twice, nothing from before"
    peer.read(info, TIMESTAMP, 1)
    peer.read(info, TIMESTAMP, 2)
    first, second = peer.take(e.SeekTime)
    assert peer.tell(e.TimeSought(first, 0)) == []
    before = len(peer.out)
    peer.tell(e.TimeSought(second, 2))
    assert start_of(peer.heard(since=before)) == (2, 5)


def test_what_a_reader_gets_stops_at_once_when_it_starts_again_by_time() -> None:
    peer, info = ready(2)
    peer.send(PLENTY)
    peer.read(info, LATEST)
    peer.read(info, TIMESTAMP, 1)
    peer.produce(info, b"new")
    assert pushed(peer) == []
    (seek,) = peer.take(e.SeekTime)
    peer.tell(e.TimeSought(seek, 0))
    peer.fetch()
    assert pushed(peer) == [(0, 0), (1, 1), (2, 2)]


def test_a_time_start_of_a_topic_deleted_meanwhile_ends_with_topic_gone() -> None:
    peer, info = ready(2)
    peer.send(PLENTY)
    peer.read(info, TIMESTAMP, 1)
    peer.propose(commands.DeleteTopic(info.topic_id))
    (seek,) = peer.take(e.SeekTime)
    before = len(peer.out)
    peer.tell(e.TimeSought(seek, 1))
    (ended,) = peer.heard(since=before)
    assert isinstance(ended, ReadEnded)
    assert ended.name == "TopicGone"
    assert peer.core.ctx.deliveries.count() == 0
    assert peer.core.ctx.sessions.states[CLIENT].readers == 0


def test_reading_stops_without_credit_and_goes_on_with_it() -> None:
    peer, info = ready(5)
    peer.send(Credit(1, 1 << 20, 2))
    peer.read(info)
    peer.fetch()
    assert pushed(peer) == [(0, 0), (1, 1)]
    peer.send(Credit(1, 0, 2))
    peer.fetch()
    assert pushed(peer) == [(n, n) for n in range(4)]


def test_a_batch_is_pushed_only_once_it_is_on_disk() -> None:
    peer, info = ready()
    peer.send(PLENTY)
    peer.read(info)
    peer.hold = True
    peer.produce(info, b"a", b"b")
    assert pushed(peer) == []
    peer.write()
    assert pushed(peer) == [(0, 0)]


def test_unread_ends_what_it_names_or_all() -> None:
    peer, _ = ready()
    info = peer.make_topic("two", partitions=2)
    peer.send(PLENTY)
    for partition in (0, 1):
        peer.read(info, partition=partition)
    peer.send(Unread(1, [(info.topic_id, 0)]))
    for partition in (0, 1):
        peer.produce(info, b"x", partition=partition)
    found = [m for m in peer.heard() if isinstance(m, Deliver)]
    assert [i.partition for m in found for i in m.items] == [1]
    peer.send(Unread(1))
    assert peer.core.ctx.sessions.states[CLIENT].reads == {}
    assert [n for n, value in vars(peer.core.ctx.deliveries).items() if value] == []


def test_a_refused_reread_ends_the_reader_that_was_there() -> None:
    peer, info = ready(1)
    peer.send(PLENTY)
    peer.read(info, LATEST)
    (ended,) = peer.read(info, start=9)
    assert ended.name == "RemoteProtocolError"
    peer.produce(info, b"x")
    assert pushed(peer) == []
    assert peer.core.ctx.deliveries.count() == peer.core.ctx.sessions.states[CLIENT].readers == 0


def test_a_partition_or_topic_that_is_not_there_ends_the_read() -> None:
    peer, info = ready()
    assert [a.name for a in peer.read(info, partition=1)] == ["RemoteProtocolError"]
    assert isinstance(peer.ask("topic.delete", topic="t"), dict)
    assert [a.name for a in peer.read(info)] == ["TopicGone"]


def test_a_deleted_topic_ends_its_readers_and_its_payloads_are_deleted() -> None:
    peer, info = ready(3)
    peer.hello(session=(e.CLIENTS, b"2"))
    for session in (CLIENT, (e.CLIENTS, b"2")):
        peer.read(info, session=session)
    before = len(peer.out)
    peer.propose(commands.DeleteTopic(info.topic_id))
    for session in (CLIENT, (e.CLIENTS, b"2")):
        (ended,) = [m for m in peer.heard(session, before) if isinstance(m, ReadEnded)]
        assert (ended.name, ended.topic_id) == ("TopicGone", info.topic_id)
    (delete,) = peer.take(e.DeletePayloads)
    assert delete.partition == key_of(info)
    (failed,) = peer.produce(info)
    assert failed.name == "TopicGone"
    again = peer.make_topic("t")
    assert again.topic_id != info.topic_id
    assert start_of(peer.read(again)) == (0, 0), "another topic, from offset 0"
    peer.start()
    (once_more,) = peer.take(e.DeletePayloads)
    assert once_more == delete, "until the disk says that they are gone"
    peer.tell(e.PayloadsDeleted(delete.slot, delete.partition, None))
    peer.tick(1.1)
    peer.start()
    assert not peer.take(e.DeletePayloads)


def test_a_fetch_that_comes_back_after_its_topic_was_deleted_is_no_damage() -> None:
    peer, info = ready(3)
    peer.send(PLENTY)
    peer.read(info)
    (effect,) = peer.take(e.FetchBatches)
    peer.propose(commands.DeleteTopic(info.topic_id))
    before = len(peer.out)
    peer.tell(e.BatchesFetched(effect.fetch, []))
    assert peer.heard(since=before) == []
    assert "corrupt_reads" not in peer.core.ctx.counters


@pytest.mark.parametrize("what", ["hole", "error"])
def test_damage_on_disk_ends_the_read_loudly_and_the_others_go_on(what: str) -> None:
    peer, info = ready(3)
    other = peer.make_topic("other")
    peer.produce(other, b"x")
    peer.send(Credit(1, 1, 10))
    for topic in (info, other):
        peer.read(topic)
    (effect,) = peer.take(e.FetchBatches)
    assert effect.fetch.partition == key_of(info)
    peer.tell(e.BatchesFetched(effect.fetch, StoreCorrupt("damaged") if what == "error" else []))
    (ended,) = [m for m in peer.heard() if isinstance(m, ReadEnded)]
    assert ended.name == "StoreCorrupt"
    peer.fetch()
    found = [i.topic_id for m in peer.heard() if isinstance(m, Deliver) for i in m.items]
    assert found == [other.topic_id]


def test_readers_of_a_slot_that_is_not_led_here_any_more_are_sent_elsewhere() -> None:
    peer = Single(founders=("a", "b", "c"))
    peer.hello()
    elect(peer)
    info = peer.make_topic()
    assert type(peer.read(info)[0]).__name__ == "ReadStarted"
    for other in ("b", "c"):
        peer.core.slots.on_supported(SupportGot(identity(other).peer_id, False))
    peer.tick(1.0)
    (ended,) = [m for m in peer.heard() if isinstance(m, ReadEnded)]
    assert ended.name == "NotOwner"
    assert peer.core.ctx.deliveries.count() == 0
