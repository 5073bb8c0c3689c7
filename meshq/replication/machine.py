"""One slot's replica: Raft's log, with liveness from support between peers instead of heartbeats per slot.

    Received ──> term ──> elections (votes)   following (entries)   leading (answers)
    Persisted ─> promises leave, what a majority has is decided
    SupportGiven / SupportGot ──> campaign, or step down

Diego Ongaro, "Consensus: Bridging Theory and Practice", 2014; the parts cite its sections. Safety rests on
terms, votes and majorities alone; support and time only decide when a voter takes a step.

Events in, effects out; the caller gives time and randomness. Effects are to be carried out in their order.
Messages may be lost, repeated and late; the disk may not be: it does Persists in order and tells the truth.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, assert_never

from meshq.batch import Buffer
from meshq.entries import Entry, EntryKind
from meshq.errors import NotOwner, RemoteProtocolError, UsageError
from meshq.ids import PeerId, Slot
from meshq.replication.elections import Elections
from meshq.replication.facts import Facts
from meshq.replication.following import Following
from meshq.replication.generations import generation_of
from meshq.replication.leading import Leading
from meshq.replication.quorum import Config, Node, config_of
from meshq.replication.settings import Settings
from meshq.replication.snapshots import Receiving
from meshq.replication.state import Configs, State
from meshq.replication.window import Log
from meshq.replication.words import (
    AppendEntries,
    AppendReply,
    Effect,
    Event,
    GenerationSeen,
    Hard,
    InstallSnapshot,
    LeaderGone,
    LogRead,
    Message,
    PeerLinked,
    Persisted,
    PersistFailed,
    Position,
    Received,
    RequestVote,
    Role,
    SnapshotMeta,
    SnapshotRead,
    SnapshotReply,
    SnapshotStored,
    SupportGiven,
    SupportGot,
    Ticked,
    TimeoutNow,
    VoteReply,
)

if TYPE_CHECKING:
    import random


class Replica(Facts):
    """`handle` for everything that happens; `propose` and its kin, then `flush`, on a leader.

    At a start: `hard`, `log` and `configs` as they are on disk, `applied` the index the slot's state is at.
    A node whose disk was rolled back or cloned is `frozen`: it copies and never votes. `repair_until`: the
    log ends early here because an entry is damaged; until it has been replaced up to that index it votes for
    nobody who may lack what stood there.
    """

    def __init__(
        self,
        slot: Slot,
        me: Node,
        *,
        hard: Hard,
        log: Log,
        configs: list[tuple[int, Config]],
        applied: int,
        rng: random.Random,
        now: float,
        settings: Settings | None = None,
        ahead: tuple[PeerId, ...] | None = None,
        supports: Iterable[PeerId] = (),
        supported_by: Iterable[PeerId] = (),
        frozen: bool = False,
        repair_until: int = 0,
        partial: tuple[SnapshotMeta, int] | None = None,
    ) -> None:
        self._state = s = State(
            slot, me, settings or Settings(), rng, hard, log, Configs(configs), applied, ahead=ahead, now=now
        )
        self.log = log
        s.rolled_back = frozen
        s.supports, s.supported_by = set(supports), set(supported_by)
        self._leading = Leading(s, self._resign)
        self._elections = Elections(s, self._leading)
        self._following = Following(s)
        self._receiving = Receiving(s, partial)
        if repair_until:
            s.repair(repair_until)
            s.drop_damaged()
        self._elections.arm()

    def deadline(self) -> float:
        s = self._state
        at = self._leading.deadline() if s.role is Role.LEADER else self._elections.at
        return min(at, s.paused_until) if s.paused_until > s.now else at

    # ------------------------------------------------------------------------------------------- handling
    def handle(self, event: Event, *, now: float, wall_ms: int) -> list[Effect]:
        s = self._state
        s.now, s.wall_ms = now, wall_ms
        match event:
            case Received(frm, message):
                self._on_message(frm, message)
            case Persisted(token):
                s.on_persisted(token)
                if s.role is Role.LEADER:
                    self._leading.on_persisted()
                else:
                    self._elections.on_persisted()
            case PersistFailed():
                self._on_persist_failed()
            case Ticked():
                self._on_tick()
            case SupportGiven(peer, given):
                self._on_support_given(peer, given)
            case SupportGot(peer, got):
                (s.supported_by.add if got else s.supported_by.discard)(peer)
                if s.role is Role.LEADER:
                    self._leading.check_support()
                elif got:
                    self._elections.on_support_got()
            case LeaderGone(peer, term):
                if s.role is Role.FOLLOWER and s.term == term and s.leader is not None:
                    self._on_leader_gone(peer)
            case LogRead():
                if s.role is Role.LEADER:
                    self._leading.feeding.on_log_read(event)
            case PeerLinked(node):
                if s.role is Role.LEADER:
                    self._leading.feeding.on_linked(node)
            case SnapshotRead():
                if s.role is Role.LEADER:
                    self._leading.feeding.on_snapshot_read(event)
            case SnapshotStored():
                self._receiving.on_stored(event)
            case GenerationSeen(term):
                if generation_of(term) > generation_of(s.term):
                    self._elections.become_follower(term, None)
            case _:
                assert_never(event)
        return self._take()

    def flush(self, *, now: float, wall_ms: int) -> list[Effect]:
        """What proposals, reads and hand-overs since the last effects lead to."""
        self._state.now, self._state.wall_ms = now, wall_ms
        return self._take()

    def _take(self) -> list[Effect]:
        s = self._state
        s.flush()
        if s.role is Role.LEADER:
            self._leading.flush()
        out = s.out
        s.out = []
        return out

    # --------------------------------------------------------------------------------- what a leader is asked
    def propose(self, kind: EntryKind, body: bytes, payload: Buffer = b"", *, wall_ms: int) -> Entry:
        """Append an entry; `Commit` brings it when it is decided. Raises: NotOwner, TooLarge."""
        self._state.wall_ms = wall_ms
        return self._lead().propose(kind, body, payload)

    def propose_config(self, target: Config, *, wall_ms: int) -> Entry:
        """Begin to change members. Raises: NotOwner, UsageError."""
        self._state.wall_ms = wall_ms
        return self._lead().propose_config(target)

    def transfer(self, to: Node, *, now: float) -> None:
        """Hand leadership to another voter; nothing while one is under way. Raises: NotOwner, UsageError."""
        self._lead().transfer(to, now=now)

    def read(self, ref: object) -> None:
        """A linearizable read: ReadReady or ReadFailed will name `ref`. Raises: NotOwner, Overloaded."""
        self._lead().read(ref)

    def recover(self, left: Collection[Node], *, draw: int, wall_ms: int, unheld: bool = False) -> Entry:
        """Go on alone from what is here, in a new generation (generations.py): of the slot's nodes only those
        in `left` are left, and they are no majority. They copy from here. What was decided and never came
        here is lost, see `kept`; the entry returned is the generation's first. `flush` sends it.

        `unheld`: none of the voters that this copy's configuration names has that configuration itself, so
        that they cannot elect each other by it, however many of them are left; or they have it and cannot,
        as their logs are of an older generation than is known to exist, or damaged.

        A stale log goes on too: nobody is left who has the generation that it heard of.

        Raises: UsageError where it could be wrong.
        """
        s = self._state
        s.wall_ms = wall_ms
        if s.me not in left or s.me not in s.config.nodes():
            raise UsageError("this peer is no member of the slot: another one has to go on")
        if s.is_witness:
            raise UsageError("a witness has no records: one that keeps them has to go on")
        if s.config.has_majority(left) and not unheld:
            raise UsageError("a majority of the slot's voters is left: nothing has to be given up")
        if self.follows_a_live_leader:
            raise UsageError("the slot has a leader, and this peer treats that as alive: nothing is given up")
        if s.rolled_back or s.installing:
            raise UsageError("this peer cannot go on by itself: its copy is not whole")
        others = tuple(sorted(n for n in s.config.nodes() if n in left and n != s.me))
        self._elections.begin_generation(config_of((s.me,), others, s.config.witnesses), draw)
        return s.log.item(s.log.last.index).entry

    def set_ahead(self, peers: tuple[PeerId, ...] | None) -> None:
        self._state.ahead = peers

    def set_may_lead(self, may_lead: bool) -> None:
        """False: a peer whose disk is full, whose clock is off or that is leaving does not campaign."""
        self._state.may_lead = may_lead

    def freeze(self) -> None:
        """This disk was rolled back or cloned: from now on it copies, and promises nobody anything."""
        self._state.rolled_back = True
        if self._state.role is Role.LEADER:
            self._resign()

    def forget_partial(self) -> None:
        """What had been put aside of a snapshot is gone: the next piece is the first one."""
        self._receiving.partial = None

    def trim(self, start: Position) -> None:
        """The shell dropped the log up to here: it has been applied, and saved with what it did."""
        self._state.log.trim(start)

    def _lead(self) -> Leading:
        if self._state.role is not Role.LEADER:
            raise NotOwner("this peer does not lead the slot", retry_after_ms=50)
        return self._leading

    # -------------------------------------------------------------------------------------------- messages
    def _on_message(self, frm: Node, message: Message) -> None:
        s = self._state
        if message.term > s.term and not self._adopt_term(frm, message):
            return
        if message.term < s.term:
            self._answer_the_late(frm, message)
            return
        match message:
            case AppendEntries() | InstallSnapshot():
                self._on_leader(frm, message)
            case AppendReply():
                if s.role is Role.LEADER:
                    self._leading.on_reply(frm, message)
            case RequestVote():
                self._elections.on_request(frm, message)
            case VoteReply():
                self._elections.on_vote(frm, message)
            case SnapshotReply():
                if s.role is Role.LEADER:
                    self._leading.feeding.on_snapshot_reply(frm, message)
            case TimeoutNow():
                self._elections.on_timeout_now(frm)
            case _:
                assert_never(message)

    def _adopt_term(self, frm: Node, message: Message) -> bool:
        """Follow into a newer term; whether the message still counts."""
        elections = self._elections
        match message:
            case RequestVote(pre=True):
                elections.on_request(frm, message)
                return False
            case VoteReply(granted=True, pre=True):
                elections.on_vote(frm, message)
                return False
            case RequestVote(transfer=False) if elections.follows_a_live_leader():
                return False
            case AppendEntries() | InstallSnapshot():
                elections.become_follower(message.term, frm)
            case _:
                elections.become_follower(message.term, None)
        return True

    def _answer_the_late(self, frm: Node, message: Message) -> None:
        """So that a leader or candidate of an old term hears of the newer one."""
        s = self._state
        match message:
            case AppendEntries() | InstallSnapshot():
                s.promise(frm, AppendReply(s.term, False, s.log.last.index))
            case RequestVote(pre=True):
                s.promise(frm, VoteReply(s.term, False, True))
            case _:
                pass

    def _on_leader(self, frm: Node, message: AppendEntries | InstallSnapshot) -> None:
        s = self._state
        if s.role is Role.LEADER:
            raise RemoteProtocolError(f"slot {s.slot} has two leaders in term {s.term}")
        self._elections.become_follower(s.term, frm)
        self._elections.on_heard_leader()
        if isinstance(message, InstallSnapshot):
            self._receiving.on_piece(frm, message)
        elif not s.installing:
            self._following.on_append(frm, message)

    # ------------------------------------------------------------------------------------ time and support
    def _on_tick(self) -> None:
        if self._state.role is Role.LEADER:
            self._leading.on_tick()
        else:
            self._elections.on_tick()

    def _on_support_given(self, peer: PeerId, given: bool) -> None:
        s = self._state
        (s.supports.add if given else s.supports.discard)(peer)
        if s.leader is not None and s.leader.peer == peer:
            self._elections.on_support_given(None if given else peer)

    def _on_persist_failed(self) -> None:
        if self._state.role is Role.LEADER:
            self._leading.on_persist_failed()
        else:
            self._state.on_persist_failed()

    def _on_leader_gone(self, peer: PeerId) -> None:
        s = self._state
        if s.leader is not None and s.leader.peer == peer:
            self._elections.become_follower(s.term, None)
            self._elections.on_support_given(peer)

    def _resign(self) -> None:
        self._elections.become_follower(self._state.term, None)
