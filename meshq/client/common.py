"""What the client's machines share: the list their effects go to, one count of requests, one source of
chance.
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Generic, TypeVar

from meshq.client.facts import Effect

if TYPE_CHECKING:
    import random


_K = TypeVar("_K")


class Common:
    def __init__(self, rng: random.Random) -> None:
        self.effects: list[Effect] = []  # emptied by the core at the end of each event
        self.rng = rng
        self.requests = count(1)  # numbers of those on their way


class Alarm:
    """The earliest moment anything is due: a lower bound, so that keeping it costs nothing.

    What was due and is done already is not taken out: at worst the machine looks once for nothing, and then
    knows the true next moment.
    """

    def __init__(self) -> None:
        self.at = inf

    def by(self, moment: float) -> None:
        if moment < self.at:
            self.at = moment

    def rings(self, now: float) -> bool:
        """Whether it is time; then it is unset, and to be set again by who looks through what is due."""
        if now < self.at:
            return False
        self.at = inf
        return True


class Alarms(Generic[_K]):
    """An Alarm for each of many: whom it rings for is known, and the others need not be looked at."""

    def __init__(self) -> None:
        self._at: dict[_K, float] = {}
        self._heap: list[tuple[float, int, _K]] = []  # also holds moments that an earlier one replaced
        self._numbers = count()
        self.at = inf

    def by(self, key: _K, moment: float) -> None:
        if moment < self._at.get(key, inf):
            self._at[key] = moment
            heappush(self._heap, (moment, next(self._numbers), key))
            self.at = self._heap[0][0]

    def clear(self) -> None:
        self._at.clear()
        self._heap.clear()
        self.at = inf

    def rung(self, now: float) -> list[_K]:
        """Whose time it is; theirs are unset."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            at, _, key = heappop(self._heap)
            if self._at.get(key) == at:
                del self._at[key]
                found.append(key)
        self.at = self._heap[0][0] if self._heap else inf
        return found
