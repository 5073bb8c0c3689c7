"""What the client's machines share: the list their effects go to, one count of requests, one source of
chance.
"""

from __future__ import annotations

from itertools import count
from math import inf
from typing import TYPE_CHECKING

from meshq.client.facts import Effect

if TYPE_CHECKING:
    import random


class Common:
    def __init__(self, rng: random.Random) -> None:
        self.effects: list[Effect] = []  # emptied by the core at the end of each event
        self.rng = rng
        self._requests = count(1)

    def next_request(self) -> int:
        return next(self._requests)


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
