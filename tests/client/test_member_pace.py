"""A member of a queue group at the machine: how many records it lets its leader hand out."""

from __future__ import annotations

import pytest

from meshq.client import pace
from meshq.client.facts import Group, RecordsSettled, Start, SubscribeRequested
from meshq.messages import (
    ACK,
    EARLIEST,
    EXTEND,
    QUEUE,
    Join,
    ReadStarted,
    Settled,
    Started,
    TopicsChanged,
    Watch,
)
from meshq.messages import Settle as SettleMessage

from .test_core import INFO, A, Machine, sent


def member(credit: int) -> Machine:
    m = Machine()
    group = Group("g", bytes(16), QUEUE, 10_000, 0)
    m.do(SubscribeRequested(9, "t", Start(EARLIEST), 1 << 20, credit, 1, (), group))
    (watch,) = sent(m.effects, Watch)
    m.hear(A, TopicsChanged(watch.request, 500, [INFO]))
    m.hear(A, ReadStarted(9, [Started(INFO.topic_id, 0, 0, 9)]))
    return m


def settle(m: Machine, count: int, verdict: int = ACK) -> list[int]:
    """So many records at once; what may be in hand by what the leader is told then."""
    m.effects.clear()
    m.do(RecordsSettled(7, 9, INFO.topic_id, 0, verdict, [(0, count, 5)], None, m.now + 30))
    for message in sent(m.effects, SettleMessage):
        m.hear(A, Settled([(item.request, []) for item in message.items]))
    return [j.in_flight for j in sent(m.effects, Join)]


def test_who_settles_quickly_is_handed_more_and_who_takes_long_less() -> None:
    m = member(0)
    assert [j.in_flight for j in sent(m.effects, Join)] == [pace.LEAST]
    settle(m, pace.LEAST)
    m.now += pace.QUICK_S / 2
    assert settle(m, pace.LEAST) == [2 * pace.LEAST]
    assert settle(m, pace.LEAST) == [], "half of what may be in hand"
    m.now += 2 * pace.SLOW_S
    assert settle(m, pace.LEAST) == [pace.LEAST]


@pytest.mark.parametrize("credit", [0, 40])
def test_neither_more_time_nor_a_number_that_was_said_changes_anything(credit: int) -> None:
    m = member(credit)
    for _ in range(4):
        assert settle(m, 10_000, EXTEND if not credit else ACK) == []
    assert [j.in_flight for j in sent(member(credit).effects, Join)] == [credit or pace.LEAST]
