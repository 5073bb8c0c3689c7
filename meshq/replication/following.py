"""The follower's part: take the leader's entries in order, and say so when they are on disk.

What was decided is never doubted: entries up to the commit index are the leader's too, so only behind it are
logs compared. Where they differ, this one's are dropped, which is right because they can't have been decided
(Ongaro 2014, sections 3.5 and 3.6). Terms decide that, never an index alone.

The chain of hashes sees what terms can't: an entry that does not continue this log although its predecessor
has the same index and term means that one of the two logs is damaged. It is reported and fetched again.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshq.entries import follows
from meshq.errors import InternalError
from meshq.replication.quorum import Node
from meshq.replication.state import State
from meshq.replication.words import AppendEntries, Damaged, Diverged, Item


@dataclass
class Following:
    state: State

    def on_append(self, frm: Node, m: AppendEntries) -> None:
        s = self.state
        if m.items and s.now < s.paused_until:
            return  # there is no room for them: they are sent again in a while
        if s.is_stale and self._has_diverged(m):
            s.out.append(Diverged())
            return
        if m.prev.index > s.delivered and s.log.term_at(m.prev.index) != m.prev.term:
            self._reject(frm, m)
            return
        for item in m.items:
            if item.entry.index > s.delivered and not self._take(item):
                self._reject(frm, m)
                return
        match = m.prev.index + len(m.items)
        s.commit_to(min(m.commit, match))
        if m.everywhere:
            s.note_everywhere(min(m.everywhere, match), bare=bool(m.items) and m.prev.index < m.everywhere)
        s.thaw(s.log.last.index)
        s.acknowledge(frm, match, m.round)

    def _has_diverged(self, m: AppendEntries) -> bool:
        """Whether the leader's log has another entry where one was decided here, which only one of a newer
        generation can have. Terms tell it: an index and a term are one entry in any generation.

        Behind what was decided here it is as always. Before it every entry of the message is compared; what
        lies before the log here can't be, and is not taken on trust.
        """
        s = self.state
        if m.prev.index > s.delivered or not s.delivered:
            return False
        there = [(m.prev.index, m.prev.term), *((i.entry.index, i.entry.term) for i in m.items)]
        return any(index <= s.delivered and s.log.term_at(index) != term for index, term in there)

    def _take(self, item: Item) -> bool:
        """Whether the log now has this entry."""
        s, entry = self.state, item.entry
        if entry.index <= s.log.last.index:
            if s.log.term_at(entry.index) == entry.term:
                return self._is_the_same(item)
            if entry.index <= s.commit:
                raise InternalError(
                    f"slot {s.slot}: the leader has another entry {entry.index}, long decided"
                )
            s.truncate(entry.index)
        if entry.index != s.log.last.index + 1:
            return False
        if not follows(s.log.last.chain, entry):
            return self._is_damaged(s.log.last.index)
        s.append(item)
        return True

    def _is_the_same(self, item: Item) -> bool:
        s, entry = self.state, item.entry
        here = s.log.position(entry.index)
        if here is None or here.chain == entry.chain:
            return True
        return self._is_damaged(entry.index)

    def _is_damaged(self, index: int) -> bool:
        """Ours or the leader's: drop what is not decided, so that it is sent again. Always False.

        It was acknowledged, so until it is here again this node promises nobody a vote.
        """
        s = self.state
        s.out.append(Damaged(index))
        if index > s.delivered:
            s.repair(until=s.log.last.index)
            s.truncate(index)
        return False

    def _reject(self, frm: Node, m: AppendEntries) -> None:
        s = self.state
        index = max(s.log.last_not_above(m.prev.index - 1, m.prev.term), s.delivered)
        index = min(index, s.log.last.index)
        s.go_back(frm, index, m.round)
