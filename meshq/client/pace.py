"""Pace: how many records a member of a queue group may have in hand, when nobody said how many.

What waits at one member no other can have, so who is slow should have few. Who is quick needs more than it
works off until the next ones come, or it waits for the mesh; and a batch comes whole with each piece of it.
So there are few to begin with, twice as many whenever as many as there may be were settled in a moment,
and half as many again when that took long.
"""

from __future__ import annotations

from math import inf
from typing import Final

LEAST: Final = 256
MOST: Final = 8_192
QUICK_S: Final = 0.1
SLOW_S: Final = 0.4


class Pace:
    __slots__ = ("_settled", "_since", "records")

    def __init__(self) -> None:
        self.records = LEAST
        self._settled = 0
        self._since = -inf

    def on_settled(self, count: int) -> None:
        self._settled += count

    def look(self, now: float) -> None:
        if self._settled < self.records:
            return
        took, self._since, self._settled = now - self._since, now, 0
        if took < QUICK_S:
            self.records = min(2 * self.records, MOST)
        elif took > SLOW_S:
            self.records = max(self.records // 2, LEAST)
