"""Consumers as they should not be: each gets a clear error, or a state that stays small. Others go on."""

from __future__ import annotations

import time

from meshq.ids import Session
from meshq.limits import ACK_WAIT_MS_MAX, SETTLE_RANGES_MAX
from meshq.messages import ACK, NACK, Credit, Failure, HandOut, Ping, Settle, Settled, SettleItem, Unread
from meshq.peer.core import events as e
from tests.peer.single import Single
from tests.peer.test_core_consuming import ONE, TWO, Got, got, join, ready, settle, where
from tests.peer.test_core_dead_letters import letters, state_of


def count(records: list[Got]) -> int:
    return sum(end - first for first, end, *_ in records)


def pass_time(peer: Single, seconds: float) -> None:
    """As it passes: a turn each second or two, on connections that stay."""
    end = peer.now + seconds
    while peer.now < end:
        peer.tick(1.9)
        for session in (ONE, TWO):
            if session in peer.core.ctx.sessions.states:
                peer.send(Ping(1), session=session)
        peer.fetch()


def test_one_that_never_says_anything_costs_each_record_one_delivery_and_others_do_them() -> None:
    peer, info = ready()
    join(peer, info, in_flight=100, max_deliver=3)
    peer.tick(0.1)
    peer.produce(info, *(b"%d" % n for n in range(300)))
    pass_time(peer, 120)
    stuck = got(peer)
    assert count(stuck) == 100, "it is handed no more until it says something"
    join(peer, info, TWO, in_flight=300, max_deliver=3)
    pass_time(peer, 2)
    seen = got(peer, TWO)
    assert count(seen) == 300
    assert max(attempts for _, _, attempts, _ in seen) == 2
    assert settle(peer, info, ACK, *seen, session=TWO) == []
    assert letters(peer) == []
    peer.produce(info, b"new")
    assert got(peer) == [], "the one that works gets it"
    assert where(got(peer, TWO)) == [(300, 301, 1)]


def test_one_that_was_stuck_gets_records_again_when_it_says_a_word() -> None:
    for word in (Credit(1, 0, 0), Settle(1, [])):
        peer, info = ready()
        join(peer, info)
        peer.tick(0.1)
        peer.produce(info, b"0", b"1")
        (record,) = got(peer)
        pass_time(peer, 30)
        assert got(peer) == []
        peer.send(word)
        assert where(got(peer)) == [(0, 2, 2)]
        assert record[2] == 1


def test_what_did_not_reach_one_that_died_goes_to_others_at_once_and_was_no_attempt() -> None:
    peer, info = ready(2)
    join(peer, info, max_deliver=1)
    (push,) = [m for m in peer.heard() if isinstance(m, HandOut)]
    join(peer, info, TWO, max_deliver=1)
    peer.out.clear()
    peer.tell(e.SessionClosed(ONE, push))
    assert where(got(peer, TWO)) == [(0, 2, 1)]
    peer.tell(e.SessionClosed(ONE, push))
    peer.tick(1)
    assert got(peer, TWO) == [], "it is another lease by now"


def test_one_that_works_but_leaves_a_record_unsettled_is_not_stuck() -> None:
    peer, info = ready(3)
    join(peer, info, in_flight=2)
    (record,) = got(peer)
    peer.tick(5)
    settle(peer, info, ACK, (1, 2, 1, record[3]))
    assert where(got(peer)) == [(2, 3, 1)]
    pass_time(peer, 6)
    assert where(got(peer)) == [(0, 1, 2)], "it gets back what it forgot"


def test_one_that_joins_and_leaves_a_thousand_times_leaves_nothing_behind() -> None:
    peer, info = ready(10)
    begun = time.perf_counter()
    for _ in range(1_000):
        join(peer, info)
        peer.send(Unread(1))
        peer.out.clear()
    assert time.perf_counter() - begun < 20
    consuming = peer.core.consuming
    pass_time(peer, 4)
    assert not consuming._joined
    assert not consuming.desks.parts
    assert len(state_of(peer).encode()) < 300
    join(peer, info, TWO)
    pass_time(peer, 2)
    assert count(got(peer, TWO)) == 10


def test_a_thousand_that_vanish_leave_nothing_behind() -> None:
    peer, info = ready(10)
    for n in range(1_000):
        session: Session = (e.CLIENTS, b"v%d" % n)
        peer.hello(session=session)
        join(peer, info, session, in_flight=1)
        peer.tell(e.SessionClosed(session))
        peer.out.clear()
    assert not peer.core.consuming._joined
    pass_time(peer, 15)
    assert not peer.core.consuming.desks.parts
    assert len(state_of(peer).encode()) < 500


def test_absurd_delays_are_cut_to_what_may_be() -> None:
    peer, info = ready(1)
    join(peer, info)
    (record,) = got(peer)
    assert settle(peer, info, NACK, record, delay=(1 << 32) - 1) == []
    ((_, _, back),) = state_of(peer).back.runs()
    assert back.delay_ms == ACK_WAIT_MS_MAX


def test_ranges_of_no_record_and_of_all_there_could_be() -> None:
    peer, info = ready(3)
    join(peer, info)
    (record,) = got(peer)
    every = (0, (1 << 63) - 1, 1, record[3])
    assert settle(peer, info, NACK, every, delay=0) == [(3, (1 << 63) - 1)]
    (again,) = got(peer)
    item = SettleItem(7, info.topic_id, 0, ACK, [(2, 2, again[3])])
    (failed,) = peer.send(Settle(1, [item]))
    assert (type(failed), failed.name) == (Failure, "RemoteProtocolError")
    assert settle(peer, info, ACK, (0, (1 << 63) - 1, 2, again[3])) == [(3, (1 << 63) - 1)]


def test_more_at_once_than_a_turn_takes_is_to_be_said_again() -> None:
    peer, info = ready(1)
    join(peer, info)
    got(peer)
    many = [(n, n + 1, 1) for n in range(4_096)]
    items = [SettleItem(n, info.topic_id, 0, ACK, many) for n in range(1, SETTLE_RANGES_MAX // 4_096 + 2)]
    answers = peer.send(Settle(1, items))
    (failed,) = [m for m in answers if isinstance(m, Failure)]
    assert (failed.request, failed.status) == (items[-1].request, 429)
    assert sum(len(m.results) for m in answers if isinstance(m, Settled)) == len(items) - 1


def test_another_sessions_subscription_is_not_ones_own() -> None:
    peer, info = ready(1)
    join(peer, info)
    (record,) = got(peer)
    item = SettleItem(7, info.topic_id, 0, ACK, [(0, 1, record[3])])
    (failed,) = peer.send(Settle(1, [item]), session=TWO)
    assert (type(failed), failed.status) == (Failure, 503)
    assert settle(peer, info, ACK, record) == []
