"""What strangers bring about is said a few times, then rarely; how often it was not is said with it."""

from __future__ import annotations

from meshq.transport.sparingly import BURST, Sparingly


def test_a_burst_is_said_and_then_one_a_second_with_how_many_were_not() -> None:
    logged = Sparingly()
    assert [logged.say(100.0) for _ in range(BURST + 5)] == [0] * BURST + [None] * 5
    assert logged.say(100.9) is None
    assert logged.say(101.5) == 6
    assert logged.say(101.6) is None
    assert [logged.say(1_000.0) for _ in range(BURST + 1)] == [1, *[0] * (BURST - 1), None]
