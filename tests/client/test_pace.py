"""How many records a member has in hand: few while it is slow, many while it is quick."""

from __future__ import annotations

from meshq.client.pace import LEAST, MOST, QUICK_S, SLOW_S, Pace


def work(pace: Pace, rate: float, start: float, seconds: float) -> float:
    """So many records a second, looked at every ten milliseconds; when that ends."""
    steps = round(seconds * 100)
    for step in range(steps):
        pace.on_settled(round(rate / 100))
        pace.look(start + step / 100)
    return start + seconds


def test_who_is_quick_gets_more_until_all_of_it_takes_a_moment() -> None:
    pace = Pace()
    work(pace, 20_000, 0.0, 5.0)
    assert QUICK_S * 20_000 <= pace.records <= SLOW_S * 20_000


def test_who_is_slow_has_the_least_and_who_becomes_slow_gets_back_there() -> None:
    pace = Pace()
    now = work(pace, 500, 0.0, 10.0)
    assert pace.records == LEAST
    now = work(pace, 100_000, now, 3.0)
    assert pace.records == MOST
    work(pace, 500, now, 120.0)
    assert pace.records == LEAST


def test_a_pause_is_slow() -> None:
    pace = Pace()
    work(pace, 100_000, 0.0, 3.0)
    pace.on_settled(MOST)
    pace.look(1_000.0)
    assert pace.records == MOST // 2
