"""How far one follower is, as its leader sees it, and how much may be on the way to it.

    PROBE      where its log agrees is not known (or an answer is overdue): one message at a time
    PIPELINE   known: messages follow each other without waiting, up to a bound
    SNAPSHOT   what it lacks is no longer in the log: it gets the state itself

After etcd's raft ("progress"), with bytes bounded beside messages.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf

from meshq.replication.words import SnapshotMeta


class Pace(Enum):
    PROBE = auto()
    PIPELINE = auto()
    SNAPSHOT = auto()


@dataclass(slots=True)
class Progress:
    """`match`: durable there and equal to ours up to it. `next`: what to send next."""

    next: int
    match: int = 0
    pace: Pace = Pace.PROBE
    waiting: bool = False  # PROBE: for the answer; any: for the disk to read older entries
    reading: bool = False
    due: float = inf  # when an answer is overdue
    commit_sent: int = 0
    commit_heard: int = 0
    everywhere_sent: int = 0  # to a witness
    lacks: int = 0  # up to there it had acknowledged what it lost
    round_sent: int = 0
    round_heard: int = 0
    bytes: int = 0
    snapshot: SnapshotMeta | None = None
    position: int = 0  # of the snapshot's next piece
    _flights: deque[tuple[int, int]] = field(default_factory=deque)  # (last index, bytes), in order

    def flew(self, last_index: int, size: int) -> None:
        self._flights.append((last_index, size))
        self.bytes += size

    @property
    def count(self) -> int:
        return len(self._flights)

    def landed(self, match: int) -> None:
        self.match = max(self.match, match)
        self.next = max(self.next, self.match + 1)
        while self._flights and self._flights[0][0] <= match:
            self.bytes -= self._flights.popleft()[1]

    def probe_from(self, index: int) -> None:
        """Begin again at this index: nothing that is on the way is counted on."""
        self.pace = Pace.PROBE
        self.next = max(index, 1)
        self.waiting = False
        self.snapshot = None
        self._flights.clear()
        self.bytes = 0
        self.due = inf

    def pipeline(self) -> None:
        self.pace = Pace.PIPELINE
        self.waiting = False
        self.snapshot = None
        self.next = self.match + 1
        self._flights.clear()
        self.bytes = 0
