"""Linearizable reads: an answer is given once a majority has said, after the question, who leads.

A leader that was replaced and does not know it would answer from the past. So each read waits for a *round*:
a number that goes out with every message, comes back with every answer, and counts when a majority answered
it (Ongaro 2014, section 6.4). One round serves all that wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from meshq.errors import Overloaded
from meshq.replication.progress import Progress
from meshq.replication.quorum import Node
from meshq.replication.state import State
from meshq.replication.words import ReadFailed, ReadReady

READS_MAX: Final = 4_096  # linearizable reads waiting for their round; more: `Overloaded`


@dataclass
class Reads:
    """Of one leadership."""

    state: State
    round: int = 0  # the newest one
    _waiting: list[tuple[int, object]] = field(default_factory=list)  # (round to be confirmed, who asks)

    def begin(self) -> None:
        self.round = 0

    def end(self) -> None:
        if self._waiting:
            self.state.out.append(ReadFailed(tuple(ref for _, ref in self._waiting)))
            self._waiting = []

    def add(self, ref: object, followers: Mapping[Node, Progress]) -> None:
        """Raises: Overloaded."""
        if len(self._waiting) >= READS_MAX:
            raise Overloaded("as many reads wait as may", retry_after_ms=20)
        sent = max((p.round_sent for p in followers.values()), default=0)
        if not self._waiting or self._waiting[-1][0] <= sent:
            self.round += 1
        self._waiting.append((self.round, ref))

    def confirm(self, followers: Mapping[Node, Progress]) -> None:
        """Answer those whose round a majority has answered."""
        s = self.state
        if not self._waiting:
            return
        first = self._waiting[0][0]
        heard = {n for n, p in followers.items() if p.round_heard >= first} | {s.me}
        if not s.config.has_majority(heard):
            return
        done = max(
            r for r in {r for r, _ in self._waiting}
            if s.config.has_majority({n for n, p in followers.items() if p.round_heard >= r} | {s.me})
        )  # fmt: skip
        ready = tuple(ref for r, ref in self._waiting if r <= done)
        self._waiting = [x for x in self._waiting if x[0] > done]
        s.out.append(ReadReady(ready, s.commit))
