"""Retention at one peer: what expires and when, who is told, and what becomes of what is on disk."""

from __future__ import annotations

from typing import Any

import pytest

from meshq.entries import EntryKind, Mark
from meshq.errors import DiskFull
from meshq.messages import (
    ACK,
    EARLIEST,
    NACK,
    OFFSET,
    Credit,
    Deliver,
    Expired,
    Failure,
    ReadStarted,
    Retain,
    TopicInfo,
)
from meshq.peer.core import events as e
from meshq.registry import commands
from tests.peer.single import Single, elect, follow, key_of
from tests.peer.test_core_consuming import ONE, TWO, got, join, settle, where

KEEP_5 = {"retain_records": 5}


def ready(peer: Single | None = None, **retain: Any) -> tuple[Single, TopicInfo]:
    """A topic that keeps so much of its one partition."""
    peer = peer or Single()
    peer.hello()
    peer.hello(session=TWO)
    peer.ask("topic.create", topic="t", partitions=1, **retain)
    info = peer.core.ctx.registry.topic("t")
    assert info is not None
    peer.out.clear()
    return peer, info


def publish(peer: Single, info: TopicInfo, *batches: int) -> None:
    for count in batches:
        peer.produce(info, *(b"%d" % n for n in range(count)))


def pass_time(peer: Single, seconds: float = 0.3) -> None:
    """What is wanted of the disk is done meanwhile."""
    for _ in range(4):
        peer.tick(seconds / 4)
        do_disk(peer)


def do_disk(peer: Single) -> None:
    for s in peer.take(e.SurveyBatches):
        marks = [Mark(p.base_offset, p.count, p.timestamp_ms, len(p.data)) for p in stored(peer, s)]
        found = [m for m in marks if m.end > s.offset][: s.count_max]
        peer.tell(e.BatchesSurveyed(s.slot, s.partition, s.offset, found))
    for d in peer.take(e.DeletePayloads):
        below = 1 << 63 if d.below is None else d.below
        peer.payloads[d.partition] = [p for p in stored(peer, d) if p.base_offset + p.count > below]
        peer.tell(e.PayloadsDeleted(d.slot, d.partition, d.below))


def stored(peer: Single, where: Any) -> list[Any]:
    return peer.payloads.get(where.partition, [])


def offsets(peer: Single, info: TopicInfo) -> list[int]:
    return [p.base_offset for p in peer.payloads.get(key_of(info), [])]


def bounds(peer: Single, info: TopicInfo) -> tuple[int, int]:
    state = peer.core.slots.partition(peer.core.ctx.slot_of(key_of(info)), key_of(info))
    return state.low, state.end


def told(messages: list[Any]) -> list[tuple[int, int]]:
    """(count, next) of what expired."""
    return [(i.count, i.next) for m in messages if isinstance(m, Expired) for i in m.items]


def retain_entries(peer: Single) -> int:
    return sum(x.kind is EntryKind.RETAIN for log in peer.entries.values() for x in log)


# ------------------------------------------------------------------------------------------- what expires
def test_by_count_the_newest_records_are_kept_and_the_end_stays() -> None:
    peer, info = ready(**KEEP_5)
    publish(peer, info, 2, 2, 2, 2)
    pass_time(peer)
    assert bounds(peer, info) == (3, 8)
    assert offsets(peer, info) == [2, 4, 6], "the batch that holds record 3 stays"
    (started,) = peer.read(info, EARLIEST)
    assert (started.items[0].offset, started.items[0].end) == (3, 8)
    (shown,) = peer.ask("topic.show", topic="t")["partition"]
    assert (shown["earliest"], shown["end"]) == (3, 8)


def test_by_bytes_whole_batches_go_and_the_newest_never() -> None:
    peer, info = ready(retain_bytes=250)
    publish(peer, info, 1, 1, 1, 1)
    size = len(peer.payloads[key_of(info)][0].data)
    pass_time(peer)
    kept = 250 // size
    assert 0 < kept < 4
    assert bounds(peer, info) == (4 - kept, 4)
    peer.ask("topic.set", topic="t", retain_bytes=1)
    pass_time(peer)
    assert bounds(peer, info) == (3, 4)


def test_by_age_a_record_goes_when_it_was_appended_so_long_ago_and_not_before() -> None:
    peer, info = ready(retain_age_ms=10_000)
    publish(peer, info, 1)
    pass_time(peer, 6.0)
    publish(peer, info, 1)
    pass_time(peer, 3.0)
    assert bounds(peer, info) == (0, 2)
    pass_time(peer, 1.6)
    assert bounds(peer, info) == (1, 2)
    pass_time(peer, 6.0)
    assert bounds(peer, info) == (2, 2), "nothing is left, and the end stays"
    assert offsets(peer, info) == []
    publish(peer, info, 1)
    assert bounds(peer, info) == (2, 3)


def test_a_clock_that_is_not_trusted_lets_nothing_expire_by_age_and_count_goes_on() -> None:
    peer, info = ready(retain_age_ms=10_000, retain_records=2)
    peer.core.ctx.clock_trusted = lambda: False
    publish(peer, info, 3)
    pass_time(peer, 60.0)
    assert bounds(peer, info) == (1, 3)
    peer.core.ctx.clock_trusted = lambda: True
    pass_time(peer, 12.0)
    assert bounds(peer, info) == (3, 3), "it is asked again after a while"


def test_a_new_setting_holds_for_what_is_there_and_none_keeps_everything() -> None:
    peer, info = ready()
    publish(peer, info, 4, 4)
    pass_time(peer)
    assert bounds(peer, info) == (0, 8)
    peer.ask("topic.set", topic="t", retain_records=3)
    pass_time(peer)
    assert bounds(peer, info) == (5, 8)
    shown = peer.ask("topic.set", topic="t", retain_records=None)
    assert shown["retain_records"] is None
    publish(peer, info, 9)
    pass_time(peer)
    assert bounds(peer, info) == (5, 17)


def test_a_shorter_age_holds_for_what_was_to_be_kept_for_longer() -> None:
    peer, info = ready(retain_age_ms=60_000)
    publish(peer, info, 1)
    pass_time(peer, 1.0)
    peer.ask("topic.set", topic="t", retain_age_ms=2_000)
    pass_time(peer, 2.0)
    assert bounds(peer, info) == (1, 1)


def test_what_will_be_too_old_is_waited_for_once_whatever_is_set_or_deleted() -> None:
    peer, info = ready(retain_age_ms=60_000)
    publish(peer, info, 1)
    for n in range(3):
        peer.ask("topic.set", topic="t", retain_age_ms=60_000 + n)
        pass_time(peer, 1.0)
    assert len(peer.core.retaining._due) == 1
    peer.ask("topic.delete", topic="t")
    pass_time(peer)
    assert not peer.core.retaining._due and not peer.core.retaining._aging


def test_a_follower_decides_nothing_whatever_its_clock_says() -> None:
    peer = Single(founders=("a", "b", "c"))
    elect(peer)
    peer.hello()
    retain = Retain(age_ms=10_000, records=1)
    peer.propose(commands.CreateTopic("t", bytes(16), 1, 1 << 20, 1, retain))
    follow(peer)
    info = peer.core.ctx.registry.topic("t")
    assert info is not None
    peer.produce(info, b"x", b"y")
    follow(peer)
    slot = peer.core.ctx.slot_of(key_of(info))
    peer.core.slots.hosts[slot].leads = False  # as its stream sees it when another one leads
    peer.core.retaining.on_stored(key_of(info))
    pass_time(peer, 1_000.0)
    assert retain_entries(peer) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retain_age_ms", 999),
        ("retain_age_ms", -1),
        ("retain_bytes", 0),
        ("retain_bytes", "10GB"),
        ("retain_records", 1.5),
        ("retain_records", True),
        ("compact", 1),
        ("tombstone_age_ms", None),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(name: str, value: Any) -> None:
    peer, _ = ready()
    refused = peer.ask("topic.set", topic="t", **{name: value})
    assert isinstance(refused, Failure)
    assert (refused.name, name in refused.text) == ("UsageError", True)


# ------------------------------------------------------------------------------------------ who is told
def test_a_reader_that_is_behind_is_told_how_much_it_missed_and_goes_on_behind_it() -> None:
    peer, info = ready(**KEEP_5)
    peer.read(info, EARLIEST)
    publish(peer, info, 4, 4)
    before = len(peer.out)
    pass_time(peer)
    assert told(peer.heard(since=before)) == [(3, 3)]
    peer.send(Credit(1, 1_000_000, 1_000))
    peer.fetch()
    (pushed,) = [m for m in peer.heard() if isinstance(m, Deliver)]
    assert [(i.base_offset, i.first) for i in pushed.items] == [(0, 3), (4, 4)]


def test_a_reader_that_has_read_them_is_told_nothing() -> None:
    peer, info = ready(**KEEP_5)
    peer.read(info, EARLIEST)
    peer.send(Credit(1, 1_000_000, 1_000))
    publish(peer, info, 4, 4)
    before = len(peer.out)
    pass_time(peer)
    assert bounds(peer, info) == (3, 8)
    assert told(peer.heard(since=before)) == []


def test_what_is_being_fetched_when_it_expires_is_not_handed_out() -> None:
    peer, info = ready(**KEEP_5)
    publish(peer, info, 4, 4)
    peer.read(info, EARLIEST)
    peer.send(Credit(1, 1_000_000, 1_000))
    (fetch,) = peer.take(e.FetchBatches)
    pass_time(peer)
    before = len(peer.out)
    peer.tell(e.BatchesFetched(fetch.fetch, []))
    peer.fetch()
    assert not [m for m in peer.heard(since=before) if m.__class__.__name__ == "ReadEnded"]
    (pushed,) = [m for m in peer.heard(since=0) if isinstance(m, Deliver)]
    assert [i.first for i in pushed.items] == [3, 4]


def test_a_read_from_an_offset_that_expired_begins_at_the_first_record_there_is() -> None:
    peer, info = ready(**KEEP_5)
    publish(peer, info, 8)
    pass_time(peer)
    (started,) = [m for m in peer.read(info, OFFSET, 1) if isinstance(m, ReadStarted)]
    assert started.items[0].offset == 3, "the client sees that it is not where it asked for"


def test_a_group_is_told_what_it_never_got_once_and_goes_on() -> None:
    peer, info = ready(**KEEP_5)
    join(peer, info, in_flight=1)
    publish(peer, info, 4, 4)
    (first,) = got(peer)
    before = len(peer.out)
    pass_time(peer)
    assert told(peer.heard(since=before)) == [(2, 3)], "1 and 2; 0 is out and may still be acknowledged"
    assert settle(peer, info, ACK, first) == []
    assert where(got(peer)) == [(3, 4, 1)]
    peer.start()
    peer.hello()
    peer.out.clear()
    join(peer, info, in_flight=1)
    assert told(peer.heard()) == [], "that they were told is known to the next leader too"


def test_a_group_whose_members_were_all_away_is_told_when_one_comes() -> None:
    peer, info = ready(**KEEP_5)
    join(peer, info, in_flight=1)
    publish(peer, info, 1)
    settle(peer, info, ACK, *got(peer))
    peer.tell(e.SessionClosed(ONE))
    peer.hello()
    publish(peer, info, 9)
    pass_time(peer)
    peer.out.clear()
    join(peer, info, TWO)
    assert told(peer.heard(TWO)) == [(4, 5)]
    assert where(got(peer, TWO)) == [(5, 10, 1)]


def test_a_record_that_comes_back_and_has_expired_is_told_as_well() -> None:
    peer, info = ready(**KEEP_5)
    join(peer, info, in_flight=2)
    publish(peer, info, 2)
    out = got(peer)
    publish(peer, info, 5)
    pass_time(peer)
    before = len(peer.out)
    settle(peer, info, NACK, *out, delay=0)
    assert told(peer.heard(since=before)) == [(2, 2)]
    assert where(got(peer)) == [(2, 4, 1)]


def test_a_group_that_begins_at_an_offset_that_expired_is_told() -> None:
    peer, info = ready(**KEEP_5)
    publish(peer, info, 8)
    pass_time(peer)
    peer.out.clear()
    join(peer, info, start=OFFSET, value=1)
    assert told(peer.heard()) == [(2, 3)]
    assert where(got(peer)) == [(3, 8, 1)]


def test_a_group_that_begins_at_the_earliest_record_missed_nothing() -> None:
    peer, info = ready(**KEEP_5)
    publish(peer, info, 8)
    pass_time(peer)
    peer.out.clear()
    join(peer, info)
    assert told(peer.heard()) == []
    assert where(got(peer)) == [(3, 8, 1)]


def test_what_was_to_be_a_dead_letter_and_expired_first_is_counted_and_told() -> None:
    peer, info = ready(**KEEP_5)
    join(peer, info, max_deliver=1, in_flight=1)
    publish(peer, info, 1)
    (out,) = got(peer)
    publish(peer, info, 6)
    pass_time(peer)
    before = len(peer.out)
    settle(peer, info, NACK, out, delay=0)
    assert (1, 2) in told(peer.heard(since=before))


# ------------------------------------------------------------------------------------------------ the disk
def test_payloads_go_only_when_the_state_without_them_is_on_disk() -> None:
    peer, info = ready(**KEEP_5)
    publish(peer, info, 4, 4)
    peer.tick(0.3)
    (survey,) = peer.take(e.SurveyBatches)
    peer.hold = True
    marks = [Mark(p.base_offset, p.count, p.timestamp_ms, len(p.data)) for p in stored(peer, survey)]
    peer.tell(e.BatchesSurveyed(survey.slot, survey.partition, survey.offset, marks))
    peer.write()  # the entry; what it did goes to the disk now
    assert bounds(peer, info) == (3, 8)
    assert not peer.take(e.DeletePayloads)
    peer.write()
    (delete,) = peer.take(e.DeletePayloads)
    assert delete.below == 3


def test_a_deletion_that_a_crash_cut_short_is_asked_for_again() -> None:
    peer, info = ready(retain_records=4)
    publish(peer, info, 4, 4)
    peer.tick(0.3)
    (survey,) = peer.take(e.SurveyBatches)
    marks = [Mark(p.base_offset, p.count, p.timestamp_ms, len(p.data)) for p in stored(peer, survey)]
    peer.tell(e.BatchesSurveyed(survey.slot, survey.partition, survey.offset, marks))
    (delete,) = peer.take(e.DeletePayloads)
    peer.start()
    (again,) = peer.take(e.DeletePayloads)
    assert (again, bounds(peer, info)) == (delete, (4, 8))
    peer.tell(e.PayloadsDeleted(again.slot, again.partition, again.below))
    peer.tick(2.0)
    peer.start()
    assert not peer.take(e.DeletePayloads), "done is done"


def test_a_disk_that_refuses_the_entry_is_asked_again() -> None:
    peer, info = ready(**KEEP_5)
    publish(peer, info, 8)
    peer.tick(0.3)
    (survey,) = peer.take(e.SurveyBatches)
    peer.hold = True
    marks = [Mark(p.base_offset, p.count, p.timestamp_ms, len(p.data)) for p in stored(peer, survey)]
    peer.tell(e.BatchesSurveyed(survey.slot, survey.partition, survey.offset, marks))
    peer.refuse(DiskFull("no room"))
    assert bounds(peer, info) == (0, 8)
    peer.hold = False
    pass_time(peer, 2.0)
    assert bounds(peer, info) == (3, 8)


def test_a_partition_that_has_much_too_much_is_cut_in_slices() -> None:
    peer, info = ready()
    publish(peer, info, *[1] * 2_500)
    peer.ask("topic.set", topic="t", retain_records=10)
    pass_time(peer, 2.0)
    assert bounds(peer, info) == (2_490, 2_500)
    assert retain_entries(peer) == 3
