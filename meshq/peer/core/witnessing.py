"""What a witness has of a slot's payloads, and when it lets go of them.

    applied ──> fresh: up to where each partition has batches ──checkpoint──> mark (index, those ends)
    every keeper has the log up to a mark's index ──> batches below its ends are deleted

A witness needs no payload that all keepers have (replication/witnesses.py), and asks for none of them one by
one: a mark deletes whole ranges. Marks are forgotten with the process; the first one after a start is of all
partitions. So what a crash leaves behind goes then.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from meshq.ids import PartitionKey
from meshq.peer.core.events import DeletePayloads, Effect
from meshq.replication.machine import Replica
from meshq.streams.slot import SlotStream

MARKS_MAX: Final = 256  # of one slot; more: two become one, and what they name is kept for longer
TRIM_MAX: Final = 4_096  # entries of the log that one write lets go of
Ends = dict[PartitionKey, int]


@dataclass(slots=True)
class Kept:
    """Of one slot."""

    fresh: Ends | None = None  # since the last mark; None: nothing is known of what is there
    marks: deque[tuple[int, Ends]] = field(default_factory=deque)

    def begin(self) -> None:
        """Whatever is there may be from before."""
        self.fresh = None
        self.marks.clear()

    def on_stored(self, partition: PartitionKey, end: int) -> None:
        if self.fresh is not None:
            self.fresh[partition] = end

    def take(self, stream: SlotStream) -> Ends:
        """What a state that is about to be saved has of batches that no mark names yet."""
        fresh, self.fresh = self.fresh, {}
        return fresh if fresh is not None else {p: s.end for p, s in stream.partitions.items()}

    def give_back(self, ends: Ends) -> None:
        """That state was not saved."""
        if self.fresh is not None:
            self.fresh = ends | self.fresh

    def mark(self, index: int, ends: Ends) -> None:
        """It is on disk as of this index, so nothing before that is read again at a start."""
        if ends:
            self.marks.append((index, ends))
        if len(self.marks) > MARKS_MAX:
            marks, self.marks = list(self.marks), deque()
            for i in range(0, len(marks), 2):
                two = marks[i : i + 2]
                self.marks.append((two[-1][0], two[0][1] | two[-1][1]))

    def let_go(self, replica: Replica) -> list[Effect]:
        gone: Ends = {}
        while self.marks and self.marks[0][0] <= replica.everywhere:
            gone |= self.marks.popleft()[1]
        return [DeletePayloads(replica.slot, partition, end) for partition, end in gone.items()]

    @staticmethod
    def trim_to(replica: Replica, first: int) -> int:
        """The first entry to keep of a log that begins at `first`, or 0."""
        keep_from = min(replica.everywhere + 1, first + TRIM_MAX)
        return keep_from if keep_from > first else 0
