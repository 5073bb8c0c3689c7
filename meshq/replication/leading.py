"""The leader's part: its entries go out (feeding.py), answers come back, and what a majority has is decided.

The leader's own disk is one of the majority's and no more: entries leave for the followers while they are
being written here (Ongaro 2014, section 10.2.1). Only an entry of the leader's own term is counted; what came
before is decided with it (section 3.6.2). Nothing is sent to an idle follower: that the leader is alive is
support's business (support.py), so a slot without traffic costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

from meshq.batch import Buffer
from meshq.entries import Entry, EntryKind, make_entry
from meshq.errors import NotOwner, RemoteProtocolError, TooLarge, UsageError
from meshq.limits import ENTRY_BYTES_MAX
from meshq.replication.feeding import Feeding
from meshq.replication.handover import HandOver
from meshq.replication.progress import Pace, Progress
from meshq.replication.quorum import Config, Node, encode_config, leave_joint, step_toward
from meshq.replication.reads import Reads
from meshq.replication.snapshots import Sending
from meshq.replication.state import State
from meshq.replication.words import (
    AppendReply,
    Item,
    Role,
    Send,
    TimeoutNow,
)

FILL_MAX: Final = 256  # empty entries that one answer leads to; more: with the next one


class Leading:
    """Between `begin` and `end` of one leadership. `resign` makes this node a follower without a leader."""

    def __init__(self, state: State, resign: Callable[[], None]) -> None:
        self._state = state
        self._resign = resign
        self.matched: dict[Node, int] = {}  # by followers, when the last leadership ended
        self._term_began = 0  # index of this term's first entry
        self._told_serving = False
        self._stands_in = False  # a learner, for the single voter that lacks something (elections.py)
        self._unsupported_since = inf
        self._reads = Reads(state)
        self.feeding = Feeding(state, self._reads, Sending(state))
        self.hand_over = HandOver()
        self._dirty = False

    # ----------------------------------------------------------------------------------- beginning, end
    def begin(self, config: Config | None = None) -> None:
        """`config`: the term begins with it instead of an empty entry: nobody was asked (generations.py)."""
        s = self._state
        self._term_began = s.log.last.index + 1
        self._told_serving = False
        self._stands_in = not any(c.is_voter(s.me) for _, c in s.configs.history) and config is None
        self._unsupported_since = inf
        self._reads.begin()
        self.hand_over = HandOver()
        self.feeding.begin()
        self.matched = {}
        if config is not None:
            self._append(EntryKind.CONFIG, encode_config(config), b"")
        else:
            self._append(EntryKind.NOOP, b"", b"")
        self._on_config_changed()

    def end(self) -> None:
        """A leader that is left out ends with that decision; receipts for what it decided last count the
        others' copies, so those are still known.
        """
        self.matched = {node: p.match for node, p in self.followers.items()}
        self.feeding.end()
        self._reads.end()

    @property
    def followers(self) -> dict[Node, Progress]:
        return self.feeding.followers

    @property
    def serves(self) -> bool:
        """Whether its first entry is decided and handed on: so is all that was decided before it.

        Decided alone is not enough: a majority may be without this node's own disk, and then the state is not
        yet what an offset or an answer has to be taken from. A witness never serves: it has no payloads.
        """
        return self._state.delivered >= self._term_began and not self.only_lends

    @property
    def only_lends(self) -> bool:
        """Whether it leads to bring somebody level who can, and for nothing else."""
        return self._state.is_witness or self._stands_in

    # ------------------------------------------------------------------------------------------ proposing
    def propose(self, kind: EntryKind, body: bytes, payload: Buffer) -> Entry:
        """Give the entry its place. Raises: NotOwner while it hands over, as who only lends always does;
        TooLarge for one that no frame would hold: it could be sent to nobody, nor anything behind it.
        """
        if self.hand_over.to is not None or self.only_lends:
            raise NotOwner("the slot's leadership is being handed over", retry_after_ms=50)
        if len(body) > ENTRY_BYTES_MAX:
            raise TooLarge(f"an entry of {len(body)} bytes; a log takes at most {ENTRY_BYTES_MAX}")
        return self._append(kind, body, payload)

    def propose_config(self, target: Config) -> Entry:
        """Begin to change who belongs to the slot; what is joint is left by itself.

        Raises: UsageError, NotOwner when one of the preconditions does not hold: nothing of this term decided
        yet (the bug of the one-server changes as first published), another change under way, or a new voter
        that is not level and would leave the slot without a majority of copies, or does not have all that a
        witness may have let go of before there was this member (witnesses.py).
        """
        s = self._state
        if not self.serves or s.configs.index > s.commit:
            raise NotOwner("the slot is not ready to change its members: try again", retry_after_ms=100)
        config = step_toward(s.config, target)
        for node in set(config.voters) - set(s.config.voters):
            progress = self.followers.get(node)
            if node != s.me and (
                progress is None
                or progress.match + s.settings.lag_count < s.log.last.index
                or progress.match < self._let_go_before()
            ):
                raise UsageError("a new voter has to be a learner first, and level")
        return self.propose(EntryKind.CONFIG, encode_config(config), b"")

    def _append(self, kind: EntryKind, body: bytes, payload: Buffer) -> Entry:
        s = self._state
        entry = make_entry(
            s.log.last.chain,
            index=s.log.last.index + 1,
            term=s.term,
            kind=kind,
            timestamp_ms=max(s.wall_ms, s.log.last_timestamp_ms),
            body=body,
        )
        s.append(Item(entry, payload))
        self._dirty = True
        if kind is EntryKind.CONFIG:
            self._on_config_changed()
        return entry

    def _on_config_changed(self) -> None:
        s = self._state
        nodes = s.config.nodes() - {s.me}
        for node in set(self.followers) - nodes:
            self.feeding.drop(node)
            self.hand_over.forget(node)
        for node in sorted(nodes - set(self.followers)):
            self.feeding.add(node)
        self.check_support()
        self._dirty = True

    # -------------------------------------------------------------------------------------------- sending
    def flush(self) -> None:
        """Send whatever may be sent, once a turn."""
        if self._dirty:
            self._dirty = False
            for node, progress in self.followers.items():
                self.feeding.replicate(node, progress)

    # -------------------------------------------------------------------------------------------- answers
    def on_reply(self, frm: Node, reply: AppendReply) -> None:
        p = self.followers.get(frm)
        if p is None:
            return
        s = self._state
        p.round_heard = max(p.round_heard, reply.round)
        p.commit_heard = max(p.commit_heard, reply.commit)
        p.lacks = reply.lacks
        if reply.ok:
            if reply.match > s.log.last.index:
                raise RemoteProtocolError(f"a follower has entry {reply.match}, the leader does not")
            self._on_level(frm, p, reply.match)
        elif p.pace is not Pace.SNAPSHOT:
            self.feeding.on_rejected(p, reply)
        if s.role is Role.LEADER:  # what it decided may have been that this node is no member
            self._fill(p)
            self._reads.confirm(self.followers)
            self.feeding.replicate(frm, p)

    def _fill(self, p: Progress) -> None:
        """A voter that lost the end of its log votes as ever when it has come to there again. What stood
        there may never have been decided, and in an idle slot nothing comes: empty entries take the place.
        """
        last = self._state.log.last.index
        if p.lacks > last == p.match and self.serves and self.hand_over.to is None:
            for _ in range(min(p.lacks - last, FILL_MAX)):
                self._append(EntryKind.NOOP, b"", b"")

    def _on_level(self, frm: Node, p: Progress, match: int) -> None:
        s = self._state
        p.landed(match)
        if p.pace is Pace.SNAPSHOT and match < s.log.start.index:
            self.feeding.snapshots.begin(frm, p)  # it took so long that the log was trimmed beyond it
            return
        if p.pace is not Pace.PIPELINE:
            self.feeding.snapshots.drop(frm)
            p.pipeline()
        p.waiting = False
        quiet = (
            p.match >= p.next - 1
            and p.round_heard >= p.round_sent
            and p.commit_heard >= min(p.commit_sent, p.match)
        )
        p.due = inf if quiet else s.now + s.settings.resend_s
        self._advance()
        self.feeding.tell_witnesses()
        if frm == self.hand_over.to and p.match == s.log.last.index:
            s.out.append(Send(frm, TimeoutNow(s.term)))
        self._step_aside()

    def _advance(self) -> None:
        s = self._state
        if s.commit >= s.log.last.index:
            return
        match = {node: p.match for node, p in self.followers.items()}
        match[s.me] = s.log.durable
        index = s.config.committed(match)
        if index <= s.commit or s.log.term_at(index) != s.term:
            return
        s.commit_to(index)
        self._dirty = True
        self._tell_serving()
        if s.configs.index <= s.commit:
            self._on_config_committed()
        self._reads.confirm(self.followers)

    def _on_config_committed(self) -> None:
        s = self._state
        config = s.config
        if config.outgoing:
            self._append(EntryKind.CONFIG, encode_config(leave_joint(config)), b"")
        elif s.me not in config.voters and not self._stands_in:
            self._dirty = False
            for node, p in self.followers.items():
                self.feeding.send_empty(node, p)  # they should know that it is decided
            self._resign()

    def on_persisted(self) -> None:
        self._advance()
        if self._state.role is Role.LEADER:
            self.feeding.tell_witnesses()  # the leader's own disk may have been the last one
            self._tell_serving()

    def _tell_serving(self) -> None:
        if not self._told_serving and self.serves:
            self._told_serving = True
            self._state.tell_role(serves=True)

    def on_persist_failed(self) -> None:
        """Alone it goes on, without what failed; with others it lets one lead that can write."""
        s = self._state
        if s.config.nodes() == {s.me} and self.serves:
            s.take_back()
        else:
            s.on_persist_failed()
            self._resign()

    # ----------------------------------------------------------------------------------- linearizable reads
    def read(self, ref: object) -> None:
        """Answer ReadReady once a majority has said, after this moment, that this node leads (section 6.4).

        One round serves all that wait. Raises: NotOwner before this term's first commit, Overloaded.
        """
        if not self.serves:
            raise NotOwner("the slot's new leader does not know yet what is decided", retry_after_ms=20)
        self._reads.add(ref, self.followers)
        self._dirty = True
        self._reads.confirm(self.followers)

    # ------------------------------------------------------------------------------------------- witnesses
    def _let_go_before(self) -> int:
        """Whatever a witness let go of without asking a learner of now lies before this."""
        s = self._state
        return (
            max(s.configs.index, self._term_began, self.feeding.snapshots.bare) if s.config.witnesses else 0
        )

    def _step_aside(self) -> None:
        """Who only lends hands over as soon as somebody is level who can serve."""
        s = self._state
        if s.role is not Role.LEADER or not self.only_lends or self.hand_over.to is not None:
            return
        level = [
            n for n in s.config.voters
            if n not in s.config.witnesses and self.followers[n].match == s.log.last.index
        ]  # fmt: skip
        if level:
            alone = self.hand_over.left_alone(s.now)
            self.transfer(min(level, key=lambda n: (n in alone, n.peer not in s.supported_by, n)), now=s.now)

    # ------------------------------------------------------------------------------------------- hand-over
    def transfer(self, to: Node, *, now: float) -> None:
        """Hand leadership over: no more proposals, bring it level, let it campaign (section 3.10). Nothing
        while one is under way.

        Raises: UsageError when it is no other voter, or a witness.
        """
        s = self._state
        if to == s.me or to not in s.config.voters or to in s.config.witnesses:
            raise UsageError("leadership can go to another voter only, and to no witness")
        if self.hand_over.to is not None:
            return
        self.hand_over.begin(to, now + s.settings.transfer_s)
        p = self.followers[to]
        if p.match == s.log.last.index:
            s.out.append(Send(to, TimeoutNow(s.term)))

    # ------------------------------------------------------------------------------------------------ time
    def on_tick(self) -> None:
        s = self._state
        self.feeding.on_tick()
        self.hand_over.on_tick(s.now)
        self._step_aside()
        if s.now - self._unsupported_since >= s.settings.quorum_s:
            self._resign()

    def check_support(self) -> None:
        """Check-quorum: a leader that a majority does not treat as alive is about to be replaced."""
        s = self._state
        behind = {n for n in s.config.nodes() if n == s.me or n.peer in s.supported_by}
        if s.config.has_majority(behind):
            self._unsupported_since = inf
        elif self._unsupported_since == inf:
            self._unsupported_since = s.now

    def deadline(self) -> float:
        return min(
            self.feeding.deadline(),
            self.hand_over.until,
            self._unsupported_since + self._state.settings.quorum_s,
        )
