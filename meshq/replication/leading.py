"""The leader's part: its entries go out, answers come back, and what a majority has on disk is decided.

The leader's own disk is one of the majority's and no more: entries leave for the followers while they are
being written here (Ongaro 2014, section 10.2.1). Only an entry of the leader's own term is counted; what came
before is decided with it (section 3.6.2). Nothing is sent to an idle follower: that the leader is alive is
support's business (support.py), so a slot without traffic costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from meshq.batch import Buffer
from meshq.entries import Entry, EntryKind, make_entry
from meshq.errors import NotOwner, RemoteProtocolError, TooLarge, UsageError
from meshq.limits import ENTRY_BYTES_MAX
from meshq.replication.handover import HandOver
from meshq.replication.progress import Pace, Progress
from meshq.replication.quorum import Config, Node, encode_config, leave_joint, step_toward
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
    Role,
    Send,
    SnapshotRead,
    SnapshotReply,
    TimeoutNow,
)


class Leading:
    """Between `begin` and `end` of one leadership. `resign` makes this node a follower without a leader."""

    def __init__(self, state: State, resign: Callable[[], None]) -> None:
        self._state = state
        self._resign = resign
        self.followers: dict[Node, Progress] = {}
        self.matched: dict[Node, int] = {}  # by followers, when the last leadership ended
        self._snapshots = Sending(state)
        self._term_began = 0  # index of this term's first entry
        self._told_serving = False
        self._unsupported_since = inf
        self._reads = Reads(state)
        self.hand_over = HandOver()
        self._dirty = False

    # ----------------------------------------------------------------------------------- beginning, end
    def begin(self, config: Config | None = None) -> None:
        """`config`: the term begins with it instead of an empty entry: nobody was asked (generations.py)."""
        s = self._state
        self._term_began = s.log.last.index + 1
        self._told_serving = False
        self._unsupported_since = inf
        self._reads.begin()
        self.hand_over = HandOver()
        self.followers, self.matched = {}, {}
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
        self.followers = {}
        self._snapshots.clear()
        self._reads.end()

    @property
    def serves(self) -> bool:
        """Whether its first entry is decided and handed on: so is all that was decided before it.

        Decided alone is not enough: a majority may be without this node's own disk, and then the state is not
        yet what an offset or an answer has to be taken from. A witness never serves: it has no payloads.
        """
        return self._state.delivered >= self._term_began and not self._state.is_witness

    # ------------------------------------------------------------------------------------------ proposing
    def propose(self, kind: EntryKind, body: bytes, payload: Buffer) -> Entry:
        """Give the entry its place. Raises: NotOwner while it hands over, as a witness always does; TooLarge
        for one that no frame would hold: it could be sent to nobody, nor anything behind it.
        """
        if self.hand_over.to is not None or self._state.is_witness:
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
            del self.followers[node]
            self._snapshots.drop(node)
            self.hand_over.forget(node)
        for node in sorted(nodes - set(self.followers)):
            self.followers[node] = Progress(next=max(s.log.last.index, 1))  # the newest entry is news to it
        self.check_support()
        self._dirty = True

    # -------------------------------------------------------------------------------------------- sending
    def flush(self) -> None:
        """Send whatever may be sent, once a turn."""
        if self._dirty:
            self._dirty = False
            for node, progress in self.followers.items():
                self._replicate(node, progress)

    def _replicate(self, node: Node, p: Progress) -> None:
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
            self._send_empty(node, p)

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

    def _send_empty(self, node: Node, p: Progress) -> None:
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
            self._snapshots.begin(node, p)
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
        self._replicate(event.to, p)

    # -------------------------------------------------------------------------------------------- answers
    def on_reply(self, frm: Node, reply: AppendReply) -> None:
        p = self.followers.get(frm)
        if p is None:
            return
        s = self._state
        p.round_heard = max(p.round_heard, reply.round)
        p.commit_heard = max(p.commit_heard, reply.commit)
        if reply.ok:
            if reply.match > s.log.last.index:
                raise RemoteProtocolError(f"a follower has entry {reply.match}, the leader does not")
            self._on_level(frm, p, reply.match)
        elif p.pace is not Pace.SNAPSHOT:
            self._on_rejected(p, reply)
        if s.role is Role.LEADER:  # what it decided may have been that this node is no member
            self._reads.confirm(self.followers)
            self._replicate(frm, p)

    def _on_level(self, frm: Node, p: Progress, match: int) -> None:
        s = self._state
        p.landed(match)
        if p.pace is Pace.SNAPSHOT and match < s.log.start.index:
            self._snapshots.begin(frm, p)  # it took so long that the log was trimmed beyond it
            return
        if p.pace is not Pace.PIPELINE:
            self._snapshots.drop(frm)
            p.pipeline()
        p.waiting = False
        quiet = (
            p.match >= p.next - 1
            and p.round_heard >= p.round_sent
            and p.commit_heard >= min(p.commit_sent, p.match)
        )
        p.due = inf if quiet else s.now + s.settings.resend_s
        self._advance()
        self._tell_witnesses()
        if frm == self.hand_over.to and p.match == s.log.last.index:
            s.out.append(Send(frm, TimeoutNow(s.term)))
        self._step_aside()

    def _on_rejected(self, p: Progress, reply: AppendReply) -> None:
        """It lacks what came before, or holds others' entries there: go back to where both may agree.

        What it says is below what was asked, so this comes to an end; a late answer costs some sending again.
        Where its log ends before ours begins, there is nothing to compare: it needs a snapshot.
        """
        log = self._state.log
        agreed = reply.match
        if agreed >= log.start.index:
            agreed = log.last_not_above(agreed, reply.match_term)
        p.probe_from(agreed + 1)

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
        elif s.me not in config.voters:
            self._dirty = False
            for node, p in self.followers.items():
                self._send_empty(node, p)  # they should know that it is decided
            self._resign()

    def on_persisted(self) -> None:
        self._advance()
        if self._state.role is Role.LEADER:
            self._tell_witnesses()  # the leader's own disk may have been the last one
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
    def everywhere(self) -> int:
        """Up to which index all keepers have the log on disk."""
        s = self._state
        have = [p.match for node, p in self.followers.items() if node not in s.config.witnesses]
        return max(s.everywhere, min(have, default=0)) if s.is_witness else min([s.log.durable, *have])

    def _let_go_before(self) -> int:
        """Whatever a witness let go of without asking a learner of now lies before this."""
        s = self._state
        return max(s.configs.index, self._term_began, self._snapshots.bare) if s.config.witnesses else 0

    def _lacking(self, node: Node) -> int:
        """Up to where this leader may have no payloads for a keeper."""
        s = self._state
        return s.everywhere if s.is_witness and node not in s.config.witnesses else 0

    def _tell_witnesses(self) -> None:
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

    def _step_aside(self) -> None:
        """A witness that leads hands over as soon as somebody is level who can serve."""
        s = self._state
        if s.role is not Role.LEADER or not s.is_witness or self.hand_over.to is not None:
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

    def on_snapshot_read(self, event: SnapshotRead) -> None:
        self._snapshots.on_read(event, self.followers.get(event.to), everywhere=self.everywhere())

    def on_snapshot_reply(self, frm: Node, reply: SnapshotReply) -> None:
        self._snapshots.on_reply(frm, reply, self.followers.get(frm))

    # ------------------------------------------------------------------------------------------------ time
    def on_linked(self, node: Node) -> None:
        """What was on the way is lost, and it may not remember how far things are decided."""
        p = self.followers.get(node)
        if p is None:
            return
        if p.pace is Pace.SNAPSHOT:
            self._snapshots.again(node, p)
            return
        p.probe_from(p.match + 1 if p.match else p.next)
        p.commit_sent = p.commit_heard = p.round_sent = 0
        p.reading = False
        self._probe(node, p)

    def _probe(self, node: Node, p: Progress) -> None:
        self._replicate(node, p)
        if not p.waiting and not p.reading and p.pace is Pace.PROBE:
            self._send_empty(node, p)

    def on_tick(self) -> None:
        s = self._state
        for node, p in self.followers.items():
            if s.now < p.due:
                continue
            p.due = s.now + s.settings.resend_s
            if p.pace is Pace.SNAPSHOT:
                self._snapshots.again(node, p)
            else:
                self.on_linked(node)
                p.due = s.now + s.settings.resend_s
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
        due = min([p.due for p in self.followers.values()], default=inf)
        return min(due, self.hand_over.until, self._unsupported_since + self._state.settings.quorum_s)
