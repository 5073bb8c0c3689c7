"""Each key's earliest moment, and who has to be looked at when time has come."""

from __future__ import annotations

from math import inf

from meshq.client.common import Alarms


def test_only_those_whose_time_it_is_are_named_and_each_once() -> None:
    alarms = Alarms[str]()
    assert alarms.at == inf
    alarms.by("a", 5.0)
    alarms.by("a", 3.0)
    alarms.by("a", 9.0)  # later than what is set already
    alarms.by("b", 4.0)
    assert alarms.at == 3.0
    assert alarms.rung(2.9) == []
    assert alarms.rung(3.0) == ["a"]
    assert alarms.rung(10.0) == ["b"]
    assert alarms.at == inf


def test_what_rang_may_be_set_again() -> None:
    alarms = Alarms[str]()
    alarms.by("a", 1.0)
    assert alarms.rung(1.0) == ["a"]
    alarms.by("a", 2.0)
    assert alarms.at == 2.0
    assert alarms.rung(2.0) == ["a"]
