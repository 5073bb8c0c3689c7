"""What the parts of a replica share: term and vote, log, configuration, and the way to the disk.

Promises wait for the disk. A vote, an acknowledgement of entries and whatever else another node will rely on
is handed to `promise`, which holds it until everything written so far is durable; `on_persisted` is the only
place where such a message leaves, so no shell can send it early (Ongaro 2014, section 3.8: term, vote and log
are on disk before an answer).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshq.entries import EntryKind
from meshq.ids import PeerId, Slot
from meshq.replication.generations import generation_of
from meshq.replication.quorum import Config, Node, decode_config
from meshq.replication.settings import Settings
from meshq.replication.window import Log
from meshq.replication.words import (
    AppendReply,
    Commit,
    Effect,
    Hard,
    Item,
    Message,
    Persist,
    Role,
    Send,
    SnapshotMeta,
    TakenBack,
    TellConfig,
    TellRole,
)

if TYPE_CHECKING:
    import random


@dataclass(slots=True)
class Configs:
    """Configurations by the index that set them. The newest *appended* one holds, committed or not.

    It goes with the entry: truncated with it, and replaced by a snapshot's (Ongaro 2014, section 4.1).
    """

    history: list[tuple[int, Config]]  # rising; the first one is committed, later ones may not be
    index: int = field(init=False)  # of the newest one, and that itself: asked for at every step
    newest: Config = field(init=False)

    def __post_init__(self) -> None:
        self.index, self.newest = self.history[-1]

    def add(self, index: int, config: Config) -> None:
        self.history.append((index, config))
        self.index, self.newest = index, config

    def truncate(self, from_index: int) -> None:
        while len(self.history) > 1 and self.history[-1][0] >= from_index:
            self.history.pop()
        self.index, self.newest = self.history[-1]

    def settle(self, commit: int) -> list[tuple[int, Config]]:
        """Those that were committed since the last call; only the newest of them is kept."""
        if len(self.history) == 1:
            return []
        settled = [x for x in self.history[1:] if x[0] <= commit]
        if settled:
            del self.history[: len(settled)]
        return settled


@dataclass
class State:
    slot: Slot
    me: Node
    settings: Settings
    rng: random.Random
    hard: Hard
    log: Log
    configs: Configs
    commit: int  # known to be decided; what was handed on with Commit is `delivered`
    ahead: tuple[PeerId, ...] | None = None  # in the ring's order, if it is known: only delays campaigns
    rolled_back: bool = False  # what it promised may be forgotten: it copies, and promises nothing
    may_lead: bool = True
    is_witness: bool = False  # once it is one, it lacks payloads for as long as it is a member
    everywhere: int = 0  # a witness's: all keepers have the log up to here, its own payloads may be gone
    installing: bool = (
        False  # a whole snapshot is on its way to disk: nothing is appended or applied before it
    )
    role: Role = Role.FOLLOWER
    leader: Node | None = None
    now: float = 0.0
    wall_ms: int = 0
    supports: set[PeerId] = field(default_factory=set)  # peers this host treats as alive
    supported_by: set[PeerId] = field(default_factory=set)
    out: list[Effect] = field(default_factory=list)
    delivered: int = 0
    token: int = 0
    persisted: int = 0  # token
    _hard_dirty: bool = False
    _truncate_from: int | None = None
    _unwritten: list[Item] = field(default_factory=list)
    _dropped: list[Item] = field(default_factory=list)  # by truncations that are not on disk yet
    _drops: deque[tuple[int, int]] = field(default_factory=deque)  # (token, how many of them it takes away)
    paused_until: float = 0.0  # the disk was full: nothing is handed to it before
    _ends: deque[tuple[int, int]] = field(default_factory=deque)  # (token, last index it makes durable)
    _held: deque[tuple[int, int, Node, Message]] = field(default_factory=deque)  # (token, term, to, message)

    def __post_init__(self) -> None:
        self.delivered = self.commit
        self.everywhere = self.hard.bare_until
        for _, config in self.configs.history:
            self._on_config(config)

    @property
    def term(self) -> int:
        return self.hard.term

    @property
    def rank(self) -> int:
        """This peer's place in the ring's order for the slot."""
        return len(self.ahead or ())

    @property
    def config(self) -> Config:
        return self.configs.newest

    def witnesses(self) -> set[Node]:
        """By any configuration that may hold: one that the newest leaves out still lacks payloads."""
        named = {node for _, config in self.configs.history for node in config.witnesses}
        return {*named, self.me} if self.is_witness else named

    @property
    def frozen(self) -> bool:
        """Rolled back: no votes. Or damaged: none but for who has all that may be lost here."""
        return self.rolled_back or self.hard.repair_until > 0

    @property
    def decides_alone(self) -> bool:
        return self.config.voters == (self.me,) and not self.config.outgoing

    @property
    def may_stand_in(self) -> bool:
        """Whether it mirrors a single voter that is there. If that one does not lead, part of its log is
        lost, and this node may be the one that has it: it leads until the voter has it too.
        """
        config = self.config
        if len(config.voters) != 1 or config.outgoing or self.is_witness or self.me not in config.learners:
            return False
        return config.voters[0].peer in self.supports

    @property
    def is_stale(self) -> bool:
        """Whether its log knows nothing yet of the generation that its term is of."""
        return generation_of(self.log.last.term) < generation_of(self.hard.term)

    @property
    def is_begun(self) -> bool:
        """Whether an entry of this generation is on this disk. Nobody hears of the generation before: were it
        forgotten here in a crash, who heard of it would wait for ever for a log that nobody has.
        """
        generation = generation_of(self.hard.term)
        return generation == 0 or generation_of(self.log.term_at(self.log.durable) or 0) == generation

    def is_me(self, peer: PeerId) -> bool:
        return peer == self.me.peer

    # ----------------------------------------------------------------------------------------- disk
    def set_hard(self, term: int, vote: Node | None) -> None:
        self._keep(self.hard._replace(term=term, vote=vote))

    def begin_generation(self, term: int) -> None:
        """What is here is what there is, so nothing has to be repaired any more."""
        self._keep(Hard(term, self.me))

    def repair(self, until: int) -> None:
        """Entries up to this index are damaged and have to come again."""
        until = max(until, self.hard.repair_until)
        self._keep(self.hard._replace(repair_until=until, repair_term=self.hard.term))

    def note_everywhere(self, index: int, *, bare: bool) -> None:
        """All keepers have the log up to here. `bare`: something of it came without its payload."""
        self.everywhere = max(self.everywhere, index)
        if bare:
            self._keep(self.hard._replace(bare_until=max(index, self.hard.bare_until)))

    def forget_decisions(self) -> None:
        """Of an older generation only what was handed on has been decided: the rest may not be."""
        self.commit = self.delivered

    def thaw(self, have: int) -> None:
        """A damaged log was replaced up to here: when that is where it had ended, its promises hold again.

        Or when it has an entry of a later term than any in which something can have been acknowledged here:
        whoever led that term was elected without this node, or by its vote because of a log that was no
        shorter, and had all that was decided before it. What had stood behind that was no more than proposed.
        """
        hard = self.hard
        if hard.repair_until and (have >= hard.repair_until or self.log.last.term > hard.repair_term):
            self._keep(hard._replace(repair_until=0, repair_term=0))

    def _keep(self, hard: Hard) -> None:
        if hard != self.hard:
            self.hard = hard
            self._hard_dirty = True

    def append(self, item: Item) -> None:
        self.log.append(item)
        self._unwritten.append(item)
        if item.entry.kind is EntryKind.CONFIG:
            config = decode_config(item.entry.body)
            self.configs.add(item.entry.index, config)
            self._on_config(config)

    def _on_config(self, config: Config) -> None:
        self.is_witness |= self.me in config.witnesses

    def truncate(self, from_index: int) -> None:
        self._dropped += self.log.between(from_index - 1, self.log.last.index)
        self.log.truncate(from_index)
        self.configs.truncate(from_index)
        self.everywhere = min(self.everywhere, from_index - 1)
        if self.hard.bare_until >= from_index:
            self._keep(self.hard._replace(bare_until=from_index - 1))
        self._unwritten = [i for i in self._unwritten if i.entry.index < from_index]
        self._truncate_from = min(from_index, self._truncate_from or from_index)
        # What is on its way to disk counts only as far as it is still this log.
        self._ends = deque((token, min(end, from_index - 1)) for token, end in self._ends)

    def replace_log(self, meta: SnapshotMeta) -> None:
        """A snapshot is in place of everything, on disk and here."""
        last = meta.last
        self.log.reset(last, meta.timestamp_ms)
        self.configs = Configs([(last.index, meta.config)])
        self._on_config(meta.config)
        self._unwritten.clear()
        self._truncate_from = None
        self._ends.clear()
        self._dropped.clear()
        self._drops.clear()
        self.commit = self.delivered = last.index
        self.everywhere = max(self.everywhere, last.index)
        self.thaw(last.index)

    def drop_damaged(self) -> None:
        """What is on disk behind the good part of a damaged log goes with the next Persist."""
        self._truncate_from = self.log.last.index + 1

    def promise(self, to: Node, message: Message) -> None:
        """Send this when all that was decided so far is on disk; never, if the term is another by then."""
        token = self.token + 1 if self._is_dirty() else self.token
        if token <= self.persisted:
            self.out.append(Send(to, message))
        else:
            self._held.append((token, self.term, to, message))

    def acknowledge(self, to: Node, match: int, round_: int = 0) -> None:
        """The log is the leader's up to `match`: it may count on that when it is durable.

        A node that was rolled back may have promised another leader something that it forgot, so nothing that
        it says may count, for entries or for a round of reads: it only tells where it is, to be sent more.
        """
        if self.rolled_back:
            self.go_back(to, self.log.last.index)
        else:
            lacks = self.hard.repair_until
            self.promise(to, AppendReply(self.term, True, match, 0, round_, self.commit, lacks))

    def go_back(self, to: Node, index: int, round_: int = 0) -> None:
        """The logs may agree up to there; what was sent behind it was no use."""
        term = self.log.term_at(index) or 0
        counted = 0 if self.rolled_back else round_
        self.promise(to, AppendReply(self.term, False, index, term, counted, 0, self.hard.repair_until))

    def is_durable(self) -> bool:
        return not self._is_dirty() and self.token <= self.persisted

    def flush(self) -> None:
        """Hand what changed to the disk."""
        if not self._is_dirty() or self.now < self.paused_until:
            return
        self.token += 1
        hard = self.hard if self._hard_dirty else None
        items = tuple(self._unwritten)
        dropped: tuple[Item, ...] = ()
        if self._dropped:
            dropped = tuple(self._dropped[sum(count for _, count in self._drops) :])
            self._drops.append((self.token, len(dropped)))
        self.out.append(Persist(self.token, hard, self._truncate_from, items, dropped))
        self._ends.append((self.token, self.log.last.index))
        self._hard_dirty = False
        self._truncate_from = None
        self._unwritten.clear()

    def on_persist_failed(self) -> None:
        """Nothing since the last Persisted is on disk. Entries among it are forgotten: nobody was told of
        them, and whoever has them sends them again. Term and vote are handed over again after a while, alone,
        for which there may be room; what was promised with them waits for that.
        """
        index = self.log.durable + 1
        if index <= self.log.last.index:
            self.truncate(index)
        self._ends.clear()
        self._drops.clear()
        self._hard_dirty = True
        self._truncate_from = index
        held = (x[1:] for x in self._held if not (isinstance(x[3], AppendReply) and x[3].ok))
        self._held = deque((self.token + 1, *x) for x in held)
        self.paused_until = self.now + self.settings.full_s

    def take_back(self) -> None:
        """A leader that is alone: nobody saw what its disk refused, so it has not been."""
        index = self.log.durable + 1
        if index <= self.log.last.index:
            self.truncate(index)
            self.out.append(TakenBack(index))
        self._ends.clear()
        self._unwritten.clear()
        self._dropped.clear()
        self._drops.clear()
        self._truncate_from = None

    def on_persisted(self, token: int) -> None:
        self.persisted = max(self.persisted, token)
        while self._ends and self._ends[0][0] <= token:
            self.log.durable = max(self.log.durable, self._ends.popleft()[1])
        while self._drops and self._drops[0][0] <= token:
            del self._dropped[: self._drops.popleft()[1]]
        while self._held and self._held[0][0] <= token:
            _, term, to, message = self._held.popleft()
            if term == self.term:
                self.out.append(Send(to, message))
        self.deliver()

    def _is_dirty(self) -> bool:
        return self._hard_dirty or bool(self._unwritten) or self._truncate_from is not None

    # --------------------------------------------------------------------------------------- commit
    def commit_to(self, index: int) -> None:
        if index > self.commit:
            self.commit = index
            self.deliver()

    def deliver(self) -> None:
        """Hand on what is decided and durable here: only that survives a crash together with what it did."""
        upto = min(self.commit, self.log.durable)
        if upto <= self.delivered or self.installing:
            return
        items = self.log.between(self.delivered, upto)
        self.delivered = upto
        self.out.append(Commit(items))
        self.out += [TellConfig(config, index) for index, config in self.configs.settle(upto)]
        self.log.forget(upto, keep_bytes=self.settings.memory_bytes)

    # ----------------------------------------------------------------------------------------- role
    def tell_role(self, serves: bool) -> None:
        self.out.append(TellRole(self.role, self.term, self.leader, serves))
