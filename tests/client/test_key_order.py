"""What a member of a keyed group does not take: what is behind a record of its key that came back or was
late."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from meshq.client import key_order
from meshq.client.key_order import KeyOrder
from meshq.messages import ACK, EXTEND, NACK, RELEASE


def lot(until: float = 10.0, partition: int = 0) -> Any:
    return SimpleNamespace(
        topic_id=b"t", hand=SimpleNamespace(partition=partition), until=until, barred=set(), taken={}
    )


def test_what_goes_well_goes_on() -> None:
    order, one, two = KeyOrder(), lot(), lot()
    assert order.may_take(one, b"a", 0, 1.0, [two])
    assert order.may_take(one, None, 1, 1.0, [two])
    order.settled(one, 0, EXTEND, 2.0, [two])
    order.settled(one, 0, ACK, 2.0, [two])
    assert order.may_take(two, b"a", 5, 2.0, [])


def test_what_came_back_bars_what_is_here_of_its_key_and_partition_and_nothing_that_comes() -> None:
    for verdict in (NACK, RELEASE):
        order, one, two, other = KeyOrder(), lot(), lot(), lot(partition=1)
        assert order.may_take(one, b"a", 0, 1.0, [one, two, other])
        order.settled(one, 0, verdict, 2.0, [one, two, other])
        assert not order.may_take(one, b"a", 1, 2.0, [two, other])
        assert not order.may_take(two, b"a", 5, 2.0, [])
        assert order.may_take(two, b"b", 6, 2.0, [])
        assert order.may_take(other, b"a", 5, 2.0, [])
        assert order.may_take(lot(), b"a", 0, 2.0, [])


def test_what_is_late_bars_what_is_behind_it_whether_it_was_taken_or_not() -> None:
    order, one, two = KeyOrder(), lot(until=5.0), lot()
    assert order.may_take(one, b"a", 0, 1.0, [two])
    assert not order.may_take(two, b"a", 5, 6.0, [])
    order, one, two = KeyOrder(), lot(until=5.0), lot()
    assert not order.may_take(one, b"a", 0, 6.0, [two])
    assert not order.may_take(two, b"a", 5, 6.0, [])
    order, one, two = KeyOrder(), lot(until=5.0), lot()
    assert order.may_take(one, b"a", 0, 1.0, [two])
    order.settled(one, 0, ACK, 6.0, [two])
    assert not order.may_take(two, b"a", 5, 6.0, []), (
        "it was taken back there before the acknowledgement came"
    )
    assert not order.may_take(lot(until=5.0), None, 9, 6.0, [])


def test_what_nobody_settles_is_forgotten(monkeypatch: Any) -> None:
    monkeypatch.setattr(key_order, "TAKEN_MAX", 3)
    order = KeyOrder()
    for n in range(100):
        assert order.may_take(lot(until=n + 0.5), b"%d" % n, n, float(n), [])
    assert len(order._taken) <= 3
