"""Ordered groups at one peer: whose a partition is, what an acknowledgement moves, how it goes to another."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from meshq.ids import Session
from meshq.levels import BASE
from meshq.messages import (
    ACK,
    EARLIEST,
    NACK,
    ORDERED,
    RELEASE,
    Credit,
    Deliver,
    Failure,
    Granted,
    Join,
    ReadEnded,
    ReadItem,
    ReadStarted,
    Revoked,
    Settle,
    Settled,
    SettleItem,
    TopicInfo,
    Unread,
)
from meshq.peer.core import events as e
from meshq.registry import commands
from tests.peer.single import Single

ONE: Session = (e.CLIENTS, b"1")
TWO: Session = (e.CLIENTS, b"2")
TIMEOUT_S = 4.0
Lease = tuple[int, int, int]  # partition, lease, offset


def ready(*values: bytes, partitions: int = 1) -> tuple[Single, TopicInfo]:
    peer = Single()
    for session in (ONE, TWO):
        peer.hello(session=session)
    info = peer.make_topic(partitions=partitions)
    for partition in range(partitions):
        for value in values:
            peer.produce(info, value, partition=partition)
    peer.out.clear()
    return peer, info


def join(peer: Single, info: TopicInfo, session: Session = ONE, **about: Any) -> list[Any]:
    """With credit, as clients do it; what came of it."""
    terms = {"mode": ORDERED, "ack_wait_ms": round(TIMEOUT_S * 1000), "max_deliver": 0, "group": "g"} | about
    sub = terms.pop("sub", 1)
    member = bytes(15) + session[1]
    items = [ReadItem(info.topic_id, p, info.version, EARLIEST) for p in range(info.partitions)]
    before = len(peer.out)
    peer.send(Join(sub, member=member, in_flight=0, in_flight_bytes=0, items=items, **terms), session=session)
    peer.send(Credit(sub, 1 << 20, 1_000), session=session)
    return peer.heard(session, before)


def beat(peer: Single, seconds: float, *sessions: Session) -> None:
    """That much time, in which these are heard of as members are."""
    for _ in range(round(seconds / 0.5)):
        for session in sessions:
            peer.send(Credit(1, 0, 0), session=session)
        peer.tick(0.5)


def granted(peer: Single, session: Session = ONE) -> list[Lease]:
    """Since the last look."""
    found = [(i.partition, i.lease, i.offset) for m in said(peer, Granted, session) for i in m.items]
    forget(peer, Granted, session)
    return found


def revoked(peer: Single, session: Session = ONE) -> list[tuple[int, int, bool]]:
    found = [(i.partition, i.lease, i.over) for m in said(peer, Revoked, session) for i in m.items]
    forget(peer, Revoked, session)
    return found


def pushed(peer: Single, session: Session = ONE) -> list[tuple[int, int]]:
    """(partition, offset of the first record) of the batches it was pushed since the last look."""
    while any(isinstance(x, e.FetchBatches) for x in peer.out):
        peer.fetch()
    found = [
        (i.partition, max(i.base_offset, i.first)) for m in said(peer, Deliver, session) for i in m.items
    ]
    forget(peer, Deliver, session)
    return found


def said(peer: Single, kind: type[Any], session: Session) -> list[Any]:
    return [m for m in peer.heard(session) if isinstance(m, kind)]


def forget(peer: Single, kind: type[Any], session: Session) -> None:
    peer.out = [
        x
        for x in peer.out
        if not (isinstance(x, e.SendSession) and x.session == session and isinstance(x.message, kind))
    ]


def settle(
    peer: Single,
    info: TopicInfo,
    verdict: int,
    end: int,
    lease: int,
    session: Session = ONE,
    partition: int = 0,
) -> list[tuple[int, int]]:
    """The records of which it does not hold."""
    item = SettleItem(7, info.topic_id, partition, verdict, [(0, end, lease)])
    (answer,) = [m for m in peer.send(Settle(1, [item]), session=session) if isinstance(m, Settled)]
    ((_, refused),) = answer.results
    return refused


def release(peer: Single, info: TopicInfo, lease: int, session: Session = ONE, partition: int = 0) -> None:
    assert settle(peer, info, RELEASE, (1 << 63) - 1, lease, session, partition) == []


def test_the_only_member_has_every_partition_and_its_records_in_order() -> None:
    peer, info = ready(b"a", b"b", partitions=3)
    heard = join(peer, info)
    assert [len(m.items) for m in heard if isinstance(m, ReadStarted)] == [1, 1, 1]
    assert sorted(p for p, _, _ in granted(peer)) == [0, 1, 2]
    assert sorted(pushed(peer)) == [(p, n) for p in range(3) for n in range(2)]


def test_nothing_is_pushed_before_the_lease_is_on_disk() -> None:
    peer, info = ready(b"a")
    join(peer, info, session=TWO)
    peer.send(Unread(1), session=TWO)
    peer.hold = True
    join(peer, info)
    assert (granted(peer), pushed(peer)) == ([], [])
    peer.produce(info, b"b")
    assert (granted(peer), pushed(peer)) == ([], [])
    peer.write()
    assert len(granted(peer)) == 1
    assert pushed(peer)[0] == (0, 0)


def test_who_is_told_of_its_lease_hears_that_before_the_records() -> None:
    peer, info = ready()
    join(peer, info, session=TWO)
    peer.send(Unread(1), session=TWO)
    peer.hold = True
    join(peer, info)
    peer.produce(info, b"a")
    peer.write()  # the lease and the record are committed in one turn
    kinds = [type(m) for m in peer.heard() if isinstance(m, Granted | Deliver)]
    assert kinds == [Granted, Deliver]


def test_an_acknowledgement_stands_for_all_before_it_also_after_a_restart() -> None:
    peer, info = ready(b"a", b"b", b"c")
    join(peer, info)
    ((_, lease, _),) = granted(peer)
    assert settle(peer, info, ACK, 2, lease) == []
    assert settle(peer, info, ACK, 1, lease) == [], "it is done with the second"
    peer._carry_out(peer.core.checkpoint(now=peer.now, wall_ms=peer.wall_ms))
    peer.start()
    peer.hello()
    (started,) = [m for m in join(peer, info) if isinstance(m, ReadStarted)]
    assert (started.items[0].lease, started.items[0].offset) == (lease, 2), "it still has its lease"
    assert pushed(peer) == [(0, 2)]
    assert settle(peer, info, ACK, 3, lease) == []


def test_a_second_member_gets_its_share_once_the_first_has_let_go_and_the_rest_goes_on() -> None:
    peer, info = ready(b"a", partitions=4)
    join(peer, info)
    leases = {p: lease for p, lease, _ in granted(peer)}
    pushed(peer)
    join(peer, info, TWO)
    asked = revoked(peer)
    assert len(asked) == 2
    assert all(leases[p] == lease and not over for p, lease, over in asked)
    assert granted(peer, TWO) == [], "not before they are given back"
    going = {p for p, _, _ in asked}
    for partition in range(4):
        peer.produce(info, b"b", partition=partition)
    assert sorted(pushed(peer)) == [(p, 1) for p in range(4) if p not in going]
    for partition in going:
        assert settle(peer, info, ACK, 1, leases[partition], partition=partition) == [], "it may finish"
        release(peer, info, leases[partition], partition=partition)
    assert sorted((p, offset) for p, _, offset in granted(peer, TWO)) == [(p, 1) for p in sorted(going)]
    assert sorted(pushed(peer, TWO)) == [(p, 1) for p in sorted(going)]
    assert sorted(revoked(peer)) == [(p, leases[p], True) for p in sorted(going)]


def test_the_next_lease_is_granted_by_the_entry_that_ends_the_last() -> None:
    peer, info = ready(b"a", partitions=2)
    join(peer, info)
    granted(peer)
    join(peer, info, TWO)
    ((partition, lease, _),) = revoked(peer)
    entries = peer.core.ctx.counters["group_entries"]
    release(peer, info, lease, partition=partition)
    assert len(granted(peer, TWO)) == 1
    assert peer.core.ctx.counters["group_entries"] == entries + 1


def test_a_late_acknowledgement_does_not_count_and_does_not_move_the_successors_cursor() -> None:
    peer, info = ready(b"a", b"b", b"c")
    join(peer, info)
    ((_, old, _),) = granted(peer)
    assert settle(peer, info, ACK, 1, old) == []
    join(peer, info, TWO)
    beat(peer, TIMEOUT_S + 1, TWO)
    ((_, new, offset),) = granted(peer, TWO)
    assert offset == 1
    assert settle(peer, info, ACK, 3, old) == [(0, 3)]
    assert settle(peer, info, ACK, 3, new) == [(0, 3)], "a lease is its holder's alone"
    assert settle(peer, info, ACK, 1, old) == [], "that one it had, and may ask for again"
    assert settle(peer, info, ACK, 2, new, TWO) == []
    assert settle(peer, info, ACK, 2, old) == [(0, 2)], "it was not done under this lease"
    assert settle(peer, info, ACK, 3, new, TWO) == []


def test_another_members_lease_is_not_given_back() -> None:
    peer, info = ready(b"a")
    join(peer, info)
    ((_, lease, _),) = granted(peer)
    join(peer, info, TWO)
    revoked(peer)
    release(peer, info, lease, TWO)
    assert granted(peer, TWO) == []
    assert settle(peer, info, ACK, 1, lease) == []


def test_who_leaves_leaves_at_once_and_who_is_silent_in_time() -> None:
    peer, info = ready(b"a", partitions=2)
    join(peer, info)
    join(peer, info, TWO)
    for p, lease, _ in revoked(peer):
        release(peer, info, lease, partition=p)
    granted(peer)
    assert len(granted(peer, TWO)) == 1
    peer.send(Unread(1))
    assert len(granted(peer, TWO)) == 1
    join(peer, info)
    for p, lease, _ in revoked(peer, TWO):
        release(peer, info, lease, TWO, partition=p)
    assert len(granted(peer)) == 1
    peer.tell(e.SessionClosed(TWO))
    beat(peer, TIMEOUT_S - 1, ONE)
    assert granted(peer) == [], "it may be back"
    beat(peer, 2, ONE)
    assert len(granted(peer)) == 1


def test_a_member_that_comes_back_in_time_keeps_its_partitions() -> None:
    peer, info = ready(b"a", partitions=2)
    join(peer, info)
    leases = sorted((p, lease) for p, lease, _ in granted(peer))
    peer.tell(e.SessionClosed(ONE))
    beat(peer, TIMEOUT_S - 1)
    peer.hello()
    heard = join(peer, info)
    started = [(i.partition, i.lease) for m in heard if isinstance(m, ReadStarted) for i in m.items]
    assert sorted(started) == leases
    assert granted(peer) == []
    assert sorted(pushed(peer)) == [(0, 0), (1, 0)]


def test_what_a_peer_did_not_hear_while_it_stood_still_is_held_against_nobody() -> None:
    peer, info = ready(b"a")
    join(peer, info)
    granted(peer)
    peer.tick(TIMEOUT_S + 1)
    assert revoked(peer) == []
    beat(peer, TIMEOUT_S - 1)
    assert revoked(peer) == []
    beat(peer, 2)
    assert [over for _, _, over in revoked(peer)] == [True]


def test_a_peer_that_stands_still_now_and_then_lets_go_of_the_silent_all_the_same() -> None:
    peer, info = ready(b"a")
    join(peer, info)
    join(peer, info, TWO)
    for _ in range(5):  # each second that it runs it does not run for more than one
        peer.tick(1.2)
        beat(peer, 1, TWO)
    (roster,) = peer.core.consuming.desks.leases._rosters.values()
    assert len(roster) == 1, "the second one is here, the first is not"


def test_who_does_not_give_back_what_it_is_asked_for_loses_it_in_time() -> None:
    peer, info = ready(b"a", partitions=2)
    join(peer, info)
    granted(peer)
    join(peer, info, TWO)
    ((partition, lease, _),) = revoked(peer)
    beat(peer, TIMEOUT_S - 1, ONE, TWO)
    assert granted(peer, TWO) == []
    beat(peer, 2, ONE, TWO)
    assert [p for p, _, _ in granted(peer, TWO)] == [partition]
    assert revoked(peer) == [(partition, lease, True)]
    assert settle(peer, info, ACK, 1, lease, partition=partition) == [(0, 1)]


def test_a_new_leader_takes_nothing_from_a_holder_before_the_others_had_time_to_come() -> None:
    peer, info = ready(b"a", partitions=8)
    join(peer, info)
    assert len(granted(peer)) == 8
    peer.start()
    for session in (ONE, TWO):
        peer.hello(session=session)
    join(peer, info, TWO)
    join(peer, info)
    beat(peer, 0.5, ONE, TWO)
    assert revoked(peer) == []
    beat(peer, 1, ONE, TWO)
    assert len(revoked(peer)) == 4


def test_attempts_count_the_leases_that_began_with_the_same_record() -> None:
    peer, info = ready(b"a", b"b")
    seen = []
    for n in range(3):
        join(peer, info)
        (message,) = said(peer, Granted, ONE)
        seen.append(message.items[0].attempts)
        if n == 1:
            settle(peer, info, ACK, 1, message.items[0].lease)
        forget(peer, Granted, ONE)
        peer.send(Unread(1))
    assert seen == [1, 2, 2], "the second record: handed out under two leases, and first in one of them"


def test_who_joins_and_leaves_a_thousand_times_leaves_nothing_behind() -> None:
    peer, info = ready(b"a", partitions=2)
    for _ in range(1_000):
        join(peer, info)
        peer.send(Unread(1))
        peer.out.clear()
    peer.tick(0.1)
    desks = peer.core.consuming.desks
    assert not desks.parts
    assert not desks.leases._rosters
    assert not peer.core.consuming._joined


@pytest.mark.parametrize(("verdict", "end"), [(NACK, 1), (3, 1), (ACK, 5)])
def test_what_makes_no_sense_is_refused(verdict: int, end: int) -> None:
    peer, info = ready(b"a")
    join(peer, info)
    ((_, lease, _),) = granted(peer)
    item = SettleItem(7, info.topic_id, 0, verdict, [(0, end, lease)])
    (failed,) = [m for m in peer.send(Settle(1, [item])) if isinstance(m, Failure)]
    assert failed.name in ("UsageError", "RemoteProtocolError")


def test_a_group_has_one_mode() -> None:
    peer, info = ready(b"a")
    join(peer, info)
    (ended,) = [m for m in join(peer, info, TWO, mode=1) if isinstance(m, ReadEnded)]
    assert ended.name == "UsageError"
    peer.hold = True
    join(peer, info, group="h", sub=2)
    join(peer, info, TWO, group="h", mode=1, sub=2)
    before = len(peer.out)
    peer.write()
    peer.hold = False
    (ended,) = [m for m in peer.heard(TWO, before) if isinstance(m, ReadEnded)]
    assert ended.name == "UsageError", "also when both came before it was in the log"


def test_when_a_topic_grows_shares_are_even_again() -> None:
    peer, info = ready(b"a", partitions=2)
    join(peer, info)
    join(peer, info, TWO)
    for p, lease, _ in revoked(peer):
        release(peer, info, lease, partition=p)
    peer.propose(commands.SetTopic(info.topic_id, 6))
    grown = peer.core.ctx.registry.topic("t")
    assert grown is not None and grown.partitions == 6
    for session in (ONE, TWO):
        join(peer, grown, session)
    for _ in range(3):
        for session in (ONE, TWO):
            for p, lease, over in revoked(peer, session):
                if not over:
                    release(peer, info, lease, session, partition=p)
        peer.tick(0.1)
    holders = [h.stream.groups.get(key) for h in peer.core.slots.hosts.values() for key in h.stream.groups]
    assert sorted(Counter(state.holder for state in holders if state is not None).values()) == [3, 3]


def test_a_mesh_whose_level_is_lower_has_queues_alone() -> None:
    peer, info = ready(b"a")
    peer.core.ctx.registry.level = BASE
    (ended,) = [m for m in join(peer, info) if isinstance(m, ReadEnded)]
    assert (ended.name, "meshq upgrade" in ended.text) == ("UsageError", True)
