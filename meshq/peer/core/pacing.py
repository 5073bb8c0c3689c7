"""Pacing: copies on their way to a new home take no more than a share of disk and network.

A budget of bytes fills at a steady rate, up to one second's worth. What was read for a copy is taken from it,
perhaps below zero, as its size is known only then; the next one waits until the budget is above zero again.
So the rate holds on average, and a small copy never waits.

A copy waits once. Its leader asks again and again for what does not come, and each asking takes the place of
the one before, with its turn; else a budget that is used up would be owed to one copy many times over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from meshq.ids import Slot
from meshq.replication.quorum import Node

What = tuple[Slot, Node, type]  # whose copy, and whether log or batches are read for it


@dataclass
class Pacing:
    """`waiting` is bounded by its keys: two for each follower of a slot led here. A call that has become
    `urgent` does not wait any longer.
    """

    bytes_per_s: float
    budget: float = field(init=False)
    waiting: dict[What, tuple[Callable[[], None], Callable[[], bool]]] = field(default_factory=dict)
    _at: float = 0.0

    def __post_init__(self) -> None:
        self.budget = self.bytes_per_s

    def when_due(
        self, what: What, call: Callable[[], None], urgent: Callable[[], bool], *, now: float
    ) -> None:
        """Now, or in a later tick."""
        self.waiting[what] = (call, urgent)
        self.tick(now=now)

    def spent(self, size: int) -> None:
        self.budget -= size

    def tick(self, *, now: float) -> None:
        self.budget = min(self.bytes_per_s, self.budget + (now - self._at) * self.bytes_per_s)
        self._at = now
        for what, (call, urgent) in list(self.waiting.items()):
            if self.budget > 0 or urgent():
                del self.waiting[what]
                call()

    def wake(self) -> float:
        return inf if not self.waiting else self._at + max(0.0, -self.budget / self.bytes_per_s) + 0.001
