"""One leader's hand-overs: to whom one is under way, and whom to leave alone since one to it failed.

    none --begin--> under way (nothing is proposed) --elected--> this leadership is over
                    under way --`transfer_s` passed--> failed: none, and that node is left alone for a while

While one is under way publishing waits, so it ends in its time however often it is asked for again, and the
next one to the same node comes later and later: a node may be alive and level and yet unable to lead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Final

from meshq.replication.quorum import Node

PAUSE_S: Final = 5.0  # after the first failure; doubled with each
PAUSE_MAX_S: Final = 300.0


@dataclass(slots=True)
class HandOver:
    to: Node | None = None
    until: float = inf
    _failed: dict[Node, tuple[float, float]] = field(default_factory=dict)  # (pause, its end); members only

    def begin(self, to: Node, until: float) -> None:
        self.to, self.until = to, until

    def on_tick(self, now: float) -> None:
        if self.to is not None and now >= self.until:
            pause = min(2 * self._failed[self.to][0], PAUSE_MAX_S) if self.to in self._failed else PAUSE_S
            self._failed[self.to] = pause, now + pause
            self.to, self.until = None, inf

    def forget(self, node: Node) -> None:
        """It is no member any more."""
        self._failed.pop(node, None)

    def left_alone(self, now: float) -> set[Node]:
        return {node for node, (_, until) in self._failed.items() if now < until}
