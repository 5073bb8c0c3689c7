"""State instead of log: for a follower that lacks what its leader has trimmed (Ongaro 2014, chapter 5).

The leader sends its state in pieces, one on the way at a time, and the follower puts each aside on disk
before it asks for the next; after a break either side goes on from what is there. The last piece replaces
the follower's state, log and configuration in one transaction, so a crash leaves it with the old or the new.
A snapshot is of applied state: it can only carry a configuration that was committed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from meshq.replication.progress import Pace, Progress
from meshq.replication.quorum import Node
from meshq.replication.state import State
from meshq.replication.witnesses import may_lack
from meshq.replication.words import (
    Diverged,
    InstallSnapshot,
    ReadSnapshot,
    Send,
    SnapshotMeta,
    SnapshotRead,
    SnapshotReply,
    SnapshotStored,
    StoreSnapshot,
    TellConfig,
)


@dataclass
class Sending:
    """The leader's side. `reading`: the shell has been asked for a piece for this node."""

    state: State
    _reading: set[Node] = field(default_factory=set)
    bare: int = 0  # up to where a witness was sent one in this leadership

    def clear(self) -> None:
        self._reading.clear()
        self.bare = 0

    def drop(self, node: Node) -> None:
        self._reading.discard(node)

    def begin(self, node: Node, p: Progress) -> None:
        p.snapshot, p.position = None, 0
        self._read(node, p)

    def again(self, node: Node, p: Progress) -> None:
        """No answer came: the same piece once more."""
        p.due = self.state.now + self.state.settings.resend_s
        self._reading.discard(node)
        self._read(node, p)

    def _read(self, node: Node, p: Progress) -> None:
        if node not in self._reading:
            self._reading.add(node)
            self.state.out.append(ReadSnapshot(node, p.snapshot, p.position))

    def on_read(self, event: SnapshotRead, p: Progress | None, *, everywhere: int) -> None:
        if event.to not in self._reading or p is None or p.pace is not Pace.SNAPSHOT:
            return
        self._reading.discard(event.to)
        s = self.state
        whole = not p.lacks
        if event.to in s.config.witnesses and not may_lack(event.meta, event.to, everywhere, whole=whole):
            p.snapshot, p.due = None, s.now + s.settings.resend_s
            return  # later
        if event.to in s.config.witnesses:
            self.bare = max(self.bare, event.meta.last.index)
        p.snapshot, p.position = event.meta, event.position
        p.due = s.now + s.settings.resend_s
        message = InstallSnapshot(s.term, event.meta, event.position, event.data, event.done)
        s.out.append(Send(event.to, message))

    def on_reply(self, frm: Node, reply: SnapshotReply, p: Progress | None) -> None:
        if p is None or p.pace is not Pace.SNAPSHOT or p.snapshot is None:
            return
        # Each piece is answered once: a repeated answer would set a second stream of pieces going.
        if reply.index == p.snapshot.last.index and reply.of == p.position:
            p.position = reply.position
            self._read(frm, p)


@dataclass
class Receiving:
    """The follower's side. `partial` is what has been put aside: of which snapshot, and how much."""

    state: State
    partial: tuple[SnapshotMeta, int] | None = None
    _writing: bool = False
    _from: Node | None = None
    _of: int = 0  # the position of the piece that is being written

    def on_piece(self, frm: Node, m: InstallSnapshot) -> None:
        s = self.state
        last = m.meta.last
        if s.is_stale and s.delivered and s.log.term_at(last.index) != last.term:
            s.out.append(Diverged())  # perhaps it is not, but nothing here can tell
            return
        if last.index <= s.delivered or (s.log.term_at(last.index) == last.term and not s.hard.repair_until):
            s.commit_to(last.index)
            s.acknowledge(frm, max(last.index, s.delivered))
            return
        if self._writing:
            return
        has = self.partial[1] if self.partial is not None and self.partial[0] == m.meta else 0
        if m.position != has:
            s.promise(frm, SnapshotReply(s.term, last.index, has, m.position))
            return
        self._writing, s.installing, self._from, self._of = True, m.done, frm, m.position
        s.out.append(StoreSnapshot(frm, m.meta, m.position, m.data, m.done))

    def on_stored(self, event: SnapshotStored) -> None:
        s = self.state
        self._writing = s.installing = False
        to = self._from
        if not event.done:
            self.partial = (event.meta, event.position)
            if to is not None:
                s.promise(to, SnapshotReply(s.term, event.meta.last.index, event.position, self._of))
            return
        self.partial = None
        last = event.meta.last
        s.replace_log(event.meta)
        s.out.append(TellConfig(event.meta.config, last.index))
        if to is not None:
            s.acknowledge(to, last.index)
