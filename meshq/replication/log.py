"""The log of one slot, as a machine: entries get their index here, and nowhere else is it decided what is
committed.

A slot has one voter in this version, so a majority is that voter alone: an entry is committed when it is
durable here. The rule stands at one place (`on_appended`), and only from there can a receipt begin its way. A
*follower* keeps a copy of another peer's log (the registry's) and takes entries only in order and only when
they continue its chain.

After Ongaro, "Consensus: Bridging Theory and Practice" (2014), section 3.5, for the words index, term and
commit.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from meshq.entries import GENESIS_CHAIN, Entry, EntryKind, follows, make_entry
from meshq.errors import InternalError, RemoteProtocolError
from meshq.ids import Slot


# Effects
@dataclass(frozen=True, slots=True)
class Append:
    """Put these entries on disk, in this order, then report `Appended`."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    """These entries are safe: apply them, in this order."""

    entries: tuple[Entry, ...]


class SlotLog:
    """Where the next entry goes and how far the log is safe.

    `last_index` and `last_chain` describe the end of the log as handed to the disk; `commit_index` what is
    durable. Entries between the two are held in memory (they are bounded by what a peer accepts before it is
    on disk).
    """

    def __init__(self, slot: Slot, *, term: int = 1, last: Entry | None = None) -> None:
        self.slot = slot
        self.term = max(term, last.term if last else 0)
        self.last_index = last.index if last else 0
        self.last_chain = last.chain if last else GENESIS_CHAIN
        self.last_timestamp_ms = last.timestamp_ms if last else 0
        self.commit_index = self.last_index
        self._waiting: deque[Entry] = deque()
        self._durable = (self.last_index, self.last_chain, self.last_timestamp_ms)

    def propose(self, kind: EntryKind, body: bytes, *, wall_ms: int) -> Append:
        """Give the entry its place. Its time never goes back, whatever the clock did."""
        self.last_timestamp_ms = max(self.last_timestamp_ms, wall_ms)
        entry = make_entry(
            self.last_chain,
            index=self.last_index + 1,
            term=self.term,
            kind=kind,
            timestamp_ms=self.last_timestamp_ms,
            body=body,
        )
        return self._take(entry)

    def receive(self, entry: Entry) -> Append | None:
        """A follower's copy of the owner's entry; None when it is here already.

        Raises: RemoteProtocolError when it leaves a hole or does not continue this log's chain.
        """
        if entry.index <= self.last_index:
            return None
        if entry.index != self.last_index + 1 or not follows(self.last_chain, entry):
            raise RemoteProtocolError(
                f"entry {entry.index} does not continue slot {self.slot}, whose log ends at {self.last_index}"
            )
        return self._take(entry)

    def on_appended(self, index: int) -> Committed:
        """The disk has everything up to `index`: with one voter that is the majority."""
        done: list[Entry] = []
        while self._waiting and self._waiting[0].index <= index:
            done.append(self._waiting.popleft())
        if done:
            last = done[-1]
            self._durable = (last.index, last.chain, last.timestamp_ms)
            self.commit_index = last.index
        return Committed(tuple(done))

    def on_append_failed(self) -> tuple[Entry, ...]:
        """The disk took none of what waits: the log ends where it is durable. Returns what fell off.

        Nobody was told of these entries, so nothing that was promised is lost.
        """
        lost = tuple(self._waiting)
        self._waiting.clear()
        self.last_index, self.last_chain, self.last_timestamp_ms = self._durable
        if self.last_index != self.commit_index:
            raise InternalError(f"slot {self.slot}: the durable end is not the committed end")
        return lost

    def _take(self, entry: Entry) -> Append:
        self.last_index = entry.index
        self.last_chain = entry.chain
        self.last_timestamp_ms = max(self.last_timestamp_ms, entry.timestamp_ms)
        self.term = max(self.term, entry.term)
        self._waiting.append(entry)
        return Append((entry,))
