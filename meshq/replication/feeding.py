"""What a leader sends to each follower: what that one lacks, from memory, from the disk, or the state itself.

Messages follow each other while a bound of bytes and of messages is kept (progress.py). What is no longer in
memory is read from the disk, a piece at a time; instead of what is no longer in the log goes the state
(snapshots.py). Nothing is sent to an idle follower that has everything and knows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from meshq.replication.progress import Pace, Progress
from meshq.replication.quorum import Node
from meshq.replication.reads import Reads
from meshq.replication.snapshots import Sending
from meshq.replication.state import State
from meshq.replication.witnesses import for_witness
from meshq.replication.words import (
    AppendEntries,
    AppendReply,
    Item,
    LogRead,
    Position,
    ReadLog,
    Send,
    SnapshotRead,
    SnapshotReply,
)


@dataclass
class Feeding:
    """Of one leadership. A node is a follower for as long as it is a member."""

    _state: State
    _reads: Reads
    snapshots: Sending
    followers: dict[Node, Progress] = field(default_factory=dict)

    def begin(self) -> None:
        self.followers = {}

    def end(self) -> None:
        self.followers = {}
        self.snapshots.clear()

    def add(self, node: Node) -> None:
        """The newest entry is news to it, and where its log agrees with this one is to be found out."""
        self.followers[node] = Progress(next=max(self._state.log.last.index, 1))

    def drop(self, node: Node) -> None:
        del self.followers[node]
        self.snapshots.drop(node)

    def replicate(self, node: Node, p: Progress) -> None:
        if p.pace is Pace.SNAPSHOT or p.reading:
            return
        s, t = self._state, self._state.settings
        while not p.waiting and p.next <= s.log.last.index and self._has_room(p):
            if p.next <= max(s.log.base.index, self._lacking(node)):
                self._fetch_older(node, p)
                return
            prev = s.log.position(p.next - 1)
            assert prev is not None
            self._send(node, p, prev, s.log.piece(p.next - 1, t.append_bytes, t.append_count))
        # What is on the way will be answered, and the answer brings us here again.
        news = not p.count and p.commit_sent < min(s.commit, p.match)
        if not p.waiting and (news or p.round_sent < self._reads.round):
            self.send_empty(node, p)

    def _has_room(self, p: Progress) -> bool:
        t = self._state.settings
        return p.bytes < t.in_flight_bytes and p.count < t.in_flight_count

    def _send(self, node: Node, p: Progress, prev: Position, items: tuple[Item, ...]) -> None:
        s = self._state
        p.commit_sent, p.round_sent = s.commit, self._reads.round
        message = AppendEntries(s.term, prev, items, s.commit, self._reads.round)
        if node in s.config.witnesses:
            message = for_witness(message, self.everywhere())
            p.everywhere_sent = message.everywhere
        if s.is_begun:
            s.out.append(Send(node, message))
        else:
            s.promise(node, message)
        if items:
            last = items[-1].entry.index
            p.flew(last, sum(len(i.payload) + len(i.entry.body) for i in items))
            p.next = last + 1
        p.waiting = p.pace is Pace.PROBE
        if p.due == inf:
            p.due = s.now + s.settings.resend_s

    def send_empty(self, node: Node, p: Progress) -> None:
        """Only how far things are decided, or a question whether it still follows."""
        s = self._state
        prev = s.log.position(p.next - 1)
        if prev is None:
            term = s.log.term_at(p.next - 1)
            if term is None:
                self._fetch_older(node, p)
                return
            prev = Position(p.next - 1, term, b"")  # the chain is on disk, and nothing is to be appended
        self._send(node, p, prev, ())

    def _fetch_older(self, node: Node, p: Progress) -> None:
        s = self._state
        if s.is_witness and p.next <= max(s.log.start.index, self._lacking(node)):
            p.probe_from(
                s.log.last.index + 1
            )  # only a keeper has what it lacks; it is asked again in a while
            p.waiting, p.due = True, s.now + s.settings.resend_s
            return
        if p.next <= s.log.start.index:
            p.pace = Pace.SNAPSHOT
            p.due = s.now + s.settings.resend_s
            self.snapshots.begin(node, p)
            return
        p.reading = True
        s.out.append(ReadLog(node, p.next, s.settings.append_bytes))

    def on_log_read(self, event: LogRead) -> None:
        p = self.followers.get(event.to)
        if p is None or not p.reading:
            return
        p.reading = False
        s = self._state
        if not event.items or p.pace is Pace.SNAPSHOT:
            p.due = s.now + s.settings.resend_s  # trimmed meanwhile, or unreadable: looked at again then
            return
        last = event.items[-1].entry
        if event.prev.index == p.next - 1 and not p.waiting and s.log.term_at(last.index) == last.term:
            self._send(event.to, p, event.prev, event.items)
        self.replicate(event.to, p)

    def on_rejected(self, p: Progress, reply: AppendReply) -> None:
        """It lacks what came before, or holds others' entries there: go back to where both may agree.

        What it says is below what was asked, so this comes to an end; a late answer costs some sending again.
        Where its log ends before ours begins, there is nothing to compare: it needs a snapshot.
        """
        log = self._state.log
        agreed = reply.match
        if agreed >= log.start.index:
            agreed = log.last_not_above(agreed, reply.match_term)
        p.probe_from(agreed + 1)

    # ------------------------------------------------------------------------------------------- snapshots
    def on_snapshot_read(self, event: SnapshotRead) -> None:
        self.snapshots.on_read(event, self.followers.get(event.to), everywhere=self.everywhere())

    def on_snapshot_reply(self, frm: Node, reply: SnapshotReply) -> None:
        self.snapshots.on_reply(frm, reply, self.followers.get(frm))

    # ------------------------------------------------------------------------------------------- witnesses
    def everywhere(self) -> int:
        """Up to which index all keepers have the log on disk."""
        s = self._state
        have = [p.match for node, p in self.followers.items() if node not in s.config.witnesses]
        return max(s.everywhere, min(have, default=0)) if s.is_witness else min([s.log.durable, *have])

    def _lacking(self, node: Node) -> int:
        """Up to where this leader may have no payloads for a keeper."""
        s = self._state
        return s.everywhere if s.is_witness and node not in s.config.witnesses else 0

    def tell_witnesses(self) -> None:
        """More is everywhere than they know: the next entry says so, or a message of its own in a while."""
        s = self._state
        if not s.config.witnesses:
            return
        everywhere = self.everywhere()
        if s.is_witness:
            s.note_everywhere(everywhere, bare=False)
        for node in s.config.witnesses:
            p = self.followers.get(node)
            if p is not None and p.due == inf and p.everywhere_sent < everywhere:
                p.due = s.now + s.settings.resend_s

    # ------------------------------------------------------------------------------------------------ time
    def on_linked(self, node: Node) -> None:
        """What was on the way is lost, and it may not remember how far things are decided."""
        p = self.followers.get(node)
        if p is None:
            return
        if p.pace is Pace.SNAPSHOT:
            self.snapshots.again(node, p)
            return
        p.probe_from(p.match + 1 if p.match else p.next)
        p.commit_sent = p.commit_heard = p.round_sent = 0
        p.reading = False
        self._probe(node, p)

    def _probe(self, node: Node, p: Progress) -> None:
        self.replicate(node, p)
        if not p.waiting and not p.reading and p.pace is Pace.PROBE:
            self.send_empty(node, p)

    def on_tick(self) -> None:
        """Who did not answer is asked again."""
        s = self._state
        for node, p in self.followers.items():
            if s.now < p.due:
                continue
            p.due = s.now + s.settings.resend_s
            if p.pace is Pace.SNAPSHOT:
                self.snapshots.again(node, p)
            else:
                self.on_linked(node)
                p.due = s.now + s.settings.resend_s

    def deadline(self) -> float:
        return min([p.due for p in self.followers.values()], default=inf)

    # ----------------------------------------------------------------------------------------------- facts
    def catching_up(self) -> set[Node]:
        """Followers that are sent what is not in memory any more, or of which nothing is known yet: few as
        the entries may be that they lack, those may be large.
        """
        log = self._state.log
        return {
            node
            for node, p in self.followers.items()
            if not p.match or p.pace is Pace.SNAPSHOT or p.match < p.next <= log.base.index
        }
