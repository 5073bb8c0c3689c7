"""Groups at one peer: who gets which records, what settling them does, and what is answered."""

from __future__ import annotations

from typing import Any

import pytest

from meshq.entries import EntryKind
from meshq.errors import DiskFull, TooLarge
from meshq.ids import Session
from meshq.limits import (
    BATCH_BYTES_MAX,
    ENTRY_BYTES_MAX,
    GROUP_OPS_BYTES_MAX,
    GROUP_PENDING_MAX,
    MESSAGE_BYTES_MAX,
)
from meshq.messages import (
    ACK,
    EARLIEST,
    EXTEND,
    LATEST,
    NACK,
    REJECT,
    RELEASE,
    TIMESTAMP,
    Failure,
    HandOut,
    Join,
    ReadEnded,
    ReadItem,
    ReadStarted,
    Settle,
    Settled,
    SettleItem,
    TopicInfo,
    Unread,
)
from meshq.peer.core import events as e
from meshq.peer.core.parts import ENTRY_BYTES
from meshq.registry import commands
from meshq.registry.state import GENESIS_DISK
from meshq.replication.quorum import Node
from tests.peer.single import WALL_MS, Single, identity, key_of

ONE: Session = (e.CLIENTS, b"1")
TWO: Session = (e.CLIENTS, b"2")
Got = tuple[int, int, int, int]  # first, end, attempts, lease


def ready(*batches: int, **about: Any) -> tuple[Single, TopicInfo]:
    """A peer with a topic of batches of so many records."""
    peer = Single(**about)
    peer.hello()
    peer.hello(session=TWO)
    info = peer.make_topic()
    for count in batches:
        peer.produce(info, *(b"%d" % n for n in range(count)))
    peer.out.clear()
    return peer, info


def join(
    peer: Single, info: TopicInfo, session: Session = ONE, start: int = EARLIEST, **about: Any
) -> list[Any]:
    member = bytes(15) + session[1]
    terms = {
        "mode": 1,
        "ack_wait_ms": 10_000,
        "max_deliver": 0,
        "in_flight": 100,
        "in_flight_bytes": 1 << 20,
        "group": "g",
        "sub": 1,
    } | about
    item = ReadItem(info.topic_id, 0, info.version, start, terms.pop("value", 0))
    before = len(peer.out)
    peer.send(Join(member=member, items=[item], **terms), session=session)
    peer.fetch()
    return peer.heard(session, before)


def got(peer: Single, session: Session = ONE) -> list[Got]:
    """What was handed out to it since the last look."""
    peer.fetch()
    found = [m for m in peer.heard(session) if isinstance(m, HandOut)]
    peer.out = [x for x in peer.out if getattr(x, "session", None) != session]
    return [(*r, i.lease) for m in found for i in m.items for r in i.ranges]


def settle(
    peer: Single,
    info: TopicInfo,
    verdict: int,
    *records: Got,
    session: Session = ONE,
    delay: int | None = None,
    reason: str = "",
) -> list[tuple[int, int]]:
    """The records of which it does not hold."""
    item = SettleItem(7, info.topic_id, 0, verdict, [(r[0], r[1], r[3]) for r in records], delay, reason)
    answers = peer.send(Settle(1, [item]), session=session)
    (answer,) = [m for m in answers if isinstance(m, Settled)]
    ((request, refused),) = answer.results
    assert request == 7
    return refused


def where(records: list[Got]) -> list[tuple[int, int, int]]:
    return [r[:3] for r in records]


def test_a_group_begins_where_its_first_member_says_and_goes_on_where_it_was() -> None:
    peer, info = ready(3)
    (started,) = [m for m in join(peer, info, start=LATEST) if isinstance(m, ReadStarted)]
    assert started.items[0].offset == 3
    peer.produce(info, b"new")
    assert where(got(peer)) == [(3, 4, 1)]
    join(peer, info, TWO, start=EARLIEST)
    assert got(peer, TWO) == [], "for the group it is no beginning"


def test_a_group_that_begins_at_a_time() -> None:
    peer, info = ready()
    for n in range(3):
        peer.now = float(n)
        peer.produce(info, b"x")
    join(peer, info, start=TIMESTAMP, value=WALL_MS + 900)
    (seek,) = peer.take(e.SeekTime)
    peer.tell(e.TimeSought(seek, 1))
    assert where(got(peer)) == [(1, 2, 1), (2, 3, 1)]


def test_every_record_goes_to_one_member_and_work_is_shared_out() -> None:
    peer, info = ready()
    join(peer, info)
    join(peer, info, TWO)
    peer.produce(info, *(b"%d" % n for n in range(10)))
    one, two = got(peer), got(peer, TWO)
    assert where(one) + where(two) == [(0, 5, 1), (5, 10, 1)] or where(two) + where(one) == [
        (0, 5, 1),
        (5, 10, 1),
    ]


def test_nothing_is_handed_out_before_the_grant_is_on_disk() -> None:
    peer, info = ready(2)
    join(peer, info, in_flight=0)
    peer.hold = True
    join(peer, info)
    assert got(peer) == []
    peer.write()
    assert where(got(peer)) == [(0, 2, 1)]


def test_what_is_acknowledged_is_not_handed_out_again_also_after_a_restart() -> None:
    peer, info = ready(4)
    join(peer, info)
    records = got(peer)
    first, _, attempts, lease = records[0]
    assert settle(peer, info, ACK, (first + 1, first + 3, attempts, lease)) == []
    peer.tick(10.1)
    peer.tick(1)
    assert where(got(peer)) == [(0, 1, 2), (3, 4, 2)]
    peer.start()
    peer.hello()
    join(peer, info)
    assert got(peer) == [], "leases begin anew with the leader"
    peer.tick(10.1)
    peer.tick(1)
    assert where(got(peer)) == [(0, 1, 3), (3, 4, 3)]


def test_a_crash_before_the_acknowledgement_is_on_disk_loses_it_and_it_was_not_confirmed() -> None:
    peer, info = ready(1)
    join(peer, info)
    (record,) = got(peer)
    peer.hold = True
    item = SettleItem(7, info.topic_id, 0, ACK, [(0, 1, record[3])])
    assert peer.send(Settle(1, [item])) == []
    peer.hold = False
    peer.start()
    peer.hello()
    join(peer, info)
    peer.tick(10.1)
    peer.tick(1)
    assert where(got(peer)) == [(0, 1, 2)]


def test_nack_brings_it_back_after_the_delay() -> None:
    peer, info = ready(2)
    join(peer, info)
    (record,) = got(peer)
    assert settle(peer, info, NACK, (0, 1, 1, record[3]), delay=5_000) == []
    peer.tick(4.9)
    assert got(peer) == []
    peer.tick(0.2)
    assert where(got(peer)) == [(0, 1, 2)]


def test_nack_without_a_delay_waits_longer_each_time() -> None:
    peer, info = ready(1)
    join(peer, info, ack_wait_ms=3_600_000)
    waits = []
    for _ in range(6):
        (record,) = got(peer)
        settle(peer, info, NACK, record)
        begun = peer.now
        while not (peer.tick(0.01) and any(isinstance(x, e.FetchBatches) for x in peer.out)):
            pass
        waits.append(peer.now - begun)
    assert waits == sorted(waits)
    assert 0.04 < waits[0] < 0.12
    assert 1.5 < waits[5] < 3.3


def test_a_record_given_back_unseen_has_not_been_tried() -> None:
    peer, info = ready(1)
    join(peer, info)
    for _ in range(3):
        (record,) = got(peer)
        assert record[:3] == (0, 1, 1)
        settle(peer, info, RELEASE, record)


def test_extend_begins_the_time_anew() -> None:
    peer, info = ready(2)
    join(peer, info)
    (record,) = got(peer)
    peer.tick(8)
    assert settle(peer, info, EXTEND, (0, 1, 1, record[3])) == []
    peer.tick(3)
    peer.tick(1)
    assert where(got(peer)) == [(1, 2, 2)]
    peer.tick(7)
    peer.tick(1)
    assert where(got(peer)) == [(0, 1, 2)]


def test_another_members_record_is_not_settled() -> None:
    peer, info = ready(1)
    join(peer, info)
    (record,) = got(peer)
    join(peer, info, TWO)
    for verdict in (ACK, NACK, RELEASE, EXTEND):
        assert settle(peer, info, verdict, record, session=TWO) == [(0, 1)]
    assert settle(peer, info, ACK, record) == []


def test_late_verdicts_do_not_count_and_an_acknowledgement_twice_does_no_harm() -> None:
    peer, info = ready(1)
    join(peer, info)
    (old,) = got(peer)
    peer.tick(10.1)
    assert settle(peer, info, ACK, old) == [(0, 1)], "it is to be handed out again"
    peer.tick(1)
    (new,) = got(peer)
    for verdict in (ACK, NACK, EXTEND):
        assert settle(peer, info, verdict, old) == [(0, 1)]
    assert settle(peer, info, ACK, new) == []
    assert settle(peer, info, ACK, new) == []
    assert settle(peer, info, NACK, new) == [(0, 1)]
    assert settle(peer, info, ACK, (0, 9, 1, new[3])) == [(1, 9)], "what was never handed out"


def test_a_member_that_leaves_gives_back_at_once_one_that_is_cut_off_in_time() -> None:
    peer, info = ready(2)
    join(peer, info)
    got(peer)
    join(peer, info, TWO)
    peer.send(Unread(1))
    assert where(got(peer, TWO)) == [(0, 2, 2)]
    peer.tell(e.SessionClosed(TWO))
    peer.hello()
    join(peer, info)
    assert got(peer) == []
    peer.tick(10.1)
    peer.tick(1)
    assert where(got(peer)) == [(0, 2, 3)]


def test_a_member_that_comes_back_still_holds_what_it_held() -> None:
    peer, info = ready(2)
    join(peer, info)
    (record,) = got(peer)
    peer.tell(e.SessionClosed(ONE))
    peer.hello()
    join(peer, info)
    assert settle(peer, info, ACK, record) == []
    peer.tick(30)
    peer.tick(1)
    assert got(peer) == []


def test_no_more_is_out_than_a_member_asked_for() -> None:
    peer, info = ready(5, 5)
    join(peer, info, in_flight=3)
    (record,) = got(peer)
    assert record[:2] == (0, 3)
    settle(peer, info, ACK, (1, 2, 1, record[3]))
    assert where(got(peer)) == [(3, 4, 1)]
    join(peer, info, in_flight=6)
    assert sum(end - first for first, end, *_ in got(peer)) == 3


def test_what_a_member_is_through_with_in_one_partition_is_room_in_another() -> None:
    peer = Single()
    peer.hello()
    info = peer.make_topic(partitions=3)
    for partition in range(3):
        peer.produce(info, b"x", partition=partition)
    items = [ReadItem(info.topic_id, p, info.version, EARLIEST) for p in range(3)]
    peer.out.clear()
    peer.send(Join(1, "g", bytes(16), 1, 10_000, 0, 1, 1 << 20, items))
    seen = set()
    for _ in range(3):
        peer.fetch()
        (handed,) = [i for m in peer.heard() if isinstance(m, HandOut) for i in m.items]
        seen.add(handed.partition)
        peer.out.clear()
        peer.send(Settle(1, [SettleItem(1, info.topic_id, handed.partition, ACK, [(0, 1, handed.lease)])]))
    assert seen == {0, 1, 2}


def test_a_group_has_a_bound_of_what_is_out_and_goes_on_below_it() -> None:
    peer, info = ready(*[1_000] * 18)
    for n in range(3):
        session = (e.CLIENTS, b"%d" % (n + 3))
        peer.hello(session=session)
        join(peer, info, session, in_flight=10_000)
    out = [r for n in range(3) for r in got(peer, (e.CLIENTS, b"%d" % (n + 3)))]
    assert sum(end - first for first, end, *_ in out) == GROUP_PENDING_MAX


def test_the_other_group_and_plain_readers_are_not_touched() -> None:
    peer, info = ready(2)
    join(peer, info)
    (record,) = got(peer)
    settle(peer, info, ACK, record)
    join(peer, info, group="other", sub=2)
    assert where(got(peer)) == [(0, 2, 1)]


@pytest.mark.parametrize(
    ("about", "error"),
    [
        ({"group": "no name"}, "UsageError"),
        ({"mode": 9}, "UsageError"),
        ({"ack_wait_ms": 0}, "UsageError"),
        ({"ack_wait_ms": (1 << 32) - 1}, "UsageError"),
        ({"start": 9}, "RemoteProtocolError"),
    ],
)
def test_terms_that_make_no_sense_are_refused(about: dict[str, Any], error: str) -> None:
    peer, info = ready(1)
    (ended,) = join(peer, info, **about)
    assert isinstance(ended, ReadEnded)
    assert ended.name == error


def test_a_client_needs_a_capability_and_consume_is_enough() -> None:
    peer, info = ready(1)
    key = peer.register("c", ("publish", "t"))
    peer.hello(session=TWO, key=key)
    item = ReadItem(info.topic_id, 0, info.version, EARLIEST)
    terms = Join(1, "g", bytes(16), 1, 10_000, 0, 10, 1 << 20, [item])
    (ended,) = peer.send(terms, session=TWO, key=key)
    assert (type(ended), ended.name) == (ReadEnded, "Forbidden")
    key = peer.register("d", ("consume", "t"))
    peer.hello(session=ONE, key=key)
    assert any(isinstance(m, ReadStarted) for m in peer.send(terms, session=ONE, key=key))


def test_settling_without_having_joined_is_to_be_tried_again() -> None:
    peer, info = ready(1)
    item = SettleItem(7, info.topic_id, 0, ACK, [(0, 1, 1)])
    (failed,) = peer.send(Settle(1, [item]))
    assert isinstance(failed, Failure)
    assert (failed.request, failed.status) == (7, 503)


def test_what_the_disk_refuses_is_answered_and_handed_out_again() -> None:
    peer, info = ready(2)
    join(peer, info)
    (record,) = got(peer)
    peer.hold = True
    item = SettleItem(7, info.topic_id, 0, ACK, [(0, 1, record[3])])
    peer.send(Settle(1, [item]))
    before = len(peer.out)
    peer.refuse(DiskFull("full"))
    (failed,) = [m for m in peer.heard(since=before) if isinstance(m, Failure)]
    assert (failed.request, failed.name) == (7, "DiskFull")
    peer.hold = False
    assert settle(peer, info, ACK, record) == []


def test_a_deleted_topic_ends_its_groups() -> None:
    peer, info = ready(1)
    join(peer, info)
    got(peer)
    peer.propose(commands.DeleteTopic(info.topic_id))
    (ended,) = [m for m in peer.heard() if isinstance(m, ReadEnded)]
    assert ended.name == "TopicGone"
    assert not any(h.stream.topics() for h in peer.core.slots.hosts.values())


def test_a_million_records_that_wait_cost_nothing() -> None:
    peer, info = ready(*[16_000] * 3)
    join(peer, info, in_flight=10)
    got(peer)
    (state,) = [
        s for h in peer.core.slots.hosts.values() for k in h.stream.groups if (s := h.stream.groups.get(k))
    ]
    assert len(state.encode()) < 200


def test_what_is_said_while_the_slot_is_handed_over_becomes_entries_that_can_be_sent() -> None:
    """Long reasons, and more than may wait: the rest is refused, nothing is lost of what was taken."""
    peer, info = ready(*[2_000] * 8)
    join(peer, info, in_flight=10_000, in_flight_bytes=1 << 26)
    out = [r for _ in range(3) for r in got(peer)]
    (part,) = peer.core.consuming.desks.parts.values()
    host = peer.core.slots.hosts[part.slot]
    host.replica._leading.hand_over.to = Node(identity("b").peer_id, GENESIS_DISK)
    lease = {o: lease for first, end, _, lease in out for o in range(first, end)}
    before = len(peer.out)
    for chunk in range(3):
        some = range(2_000 * chunk, 2_000 * (chunk + 1))
        peer.send(
            Settle(
                1,
                [
                    SettleItem(o, info.topic_id, 0, REJECT, [(o, o + 1, lease[o])], None, "é" * 256)
                    for o in some
                ],
            )
        )
    refused = [m for m in peer.heard(since=before) if isinstance(m, Failure)]
    assert {m.status for m in refused} == {429}
    assert part.size <= GROUP_OPS_BYTES_MAX
    host.replica._leading.hand_over.to = None
    peer.tick(0.1)
    told = dict(r for m in peer.heard(since=before) if isinstance(m, Settled) for r in m.results)
    assert sorted([*told, *(m.request for m in refused)]) == list(range(6_000))
    assert len(told) > 3_000 and not any(told.values())
    assert max(len(x.body) for x in peer.entries[part.slot]) <= ENTRY_BYTES + 100


def test_an_entry_that_no_frame_would_hold_does_not_come_into_the_log() -> None:
    peer, info = ready(1)
    slot = peer.core.ctx.slot_of(key_of(info))
    last = peer.core.slots.hosts[slot].replica.last
    assert ENTRY_BYTES_MAX + BATCH_BYTES_MAX // 64 < MESSAGE_BYTES_MAX
    with pytest.raises(TooLarge):
        peer.core.slots.append(slot, EntryKind.GROUP, bytes(ENTRY_BYTES_MAX + 1))
    assert peer.core.slots.hosts[slot].replica.last == last
