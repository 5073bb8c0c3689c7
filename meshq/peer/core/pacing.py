"""Pacing: copies on their way to a new home take no more than a share of disk and network.

A budget of bytes fills at a steady rate, up to one second's worth. What was read for a copy is taken from it,
perhaps below zero, as its size is known only then; the next one waits until the budget is above zero again.
So the rate holds on average, and a small copy never waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf


@dataclass
class Pacing:
    """`waiting` is bounded by who asks: one call for each follower of a slot led here. A call that has become
    `urgent` does not wait any longer.
    """

    bytes_per_s: float
    budget: float = field(init=False)
    waiting: deque[tuple[Callable[[], None], Callable[[], bool]]] = field(default_factory=deque)
    _at: float = 0.0

    def __post_init__(self) -> None:
        self.budget = self.bytes_per_s

    def when_due(self, call: Callable[[], None], urgent: Callable[[], bool], *, now: float) -> None:
        """Now, or in a later tick."""
        self.waiting.append((call, urgent))
        self.tick(now=now)

    def spent(self, size: int) -> None:
        self.budget -= size

    def tick(self, *, now: float) -> None:
        self.budget = min(self.bytes_per_s, self.budget + (now - self._at) * self.bytes_per_s)
        self._at = now
        for _ in range(len(self.waiting)):
            call, urgent = self.waiting.popleft()
            if self.budget > 0 or urgent():
                call()
            else:
                self.waiting.append((call, urgent))

    def wake(self) -> float:
        return inf if not self.waiting else self._at + max(0.0, -self.budget / self.bytes_per_s) + 0.001
