"""The registrar: the registry is what the system slot's log means, and this is where commands enter that log.

The system slot is a slot like any other (slots.py), with every peer in it: up to five vote, the others copy.
So a topic that was used once is known to every peer, whoever is away; only new things need the slot's leader,
and that a majority of its voters.

    propose ──> leads here? ──yes──> refused as things stand? ──> the log ──> committed ──> applied ──> done
                    └──no──> ProposeRegistry to the leader ──> its index ──> applied here too ──> done

A proposal is tried again for a while when its leader is lost, because that may be all that went wrong. A
command may so enter the log twice: applying it the second time changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf

from meshq.entries import GENESIS_CHAIN, Entry, EntryKind, follows
from meshq.errors import (
    InternalError,
    MeshqError,
    NotOwner,
    Overloaded,
    RegistryUnavailable,
    StoreCorrupt,
    TooLarge,
    TopicGone,
)
from meshq.ids import SYSTEM_SLOT, PeerId, Ref, Session
from meshq.levels import check_understood
from meshq.messages import Answer, Ask, Failure, ProposeRegistry, error_of
from meshq.peer.core.context import Context
from meshq.peer.core.hosts import Host, Tail
from meshq.peer.core.links import Links
from meshq.peer.core.slots import Slots
from meshq.registry import commands
from meshq.registry.commands import AnyCommand, DeleteTopic
from meshq.registry.facts import Change
from meshq.replication.words import Item
from meshq.streams.rows import applied_index
from meshq.streams.slot import SlotStream

PROPOSAL_S = 10.0  # in all, with everything that is tried again
LEADERLESS_S = 3.0  # a proposal waits so long for somebody to lead: as long as a fail-over takes
RETRY_S = 0.1
PROPOSALS_MAX = 1_024  # changes under way; more: `Overloaded`, elsewhere `RegistryUnavailable`
LEVEL_S = 1.0  # asked again after so long
REGISTRY = "registry"  # in place of a session's door, where who waits is the registrar
LEVEL = "registry.level"  # asked of the leader: up to where the log is decided

Done = Callable[[int | MeshqError], None]


class RegistryStream(SlotStream):
    """The system slot's stream: no partitions, and every entry of the registry goes to `on_entry`.

    `waiting`: who proposed an entry here, by its index; nothing of it survives when its leader is replaced.
    """

    def __init__(self, on_entry: Callable[[Entry], None]) -> None:
        super().__init__(SYSTEM_SLOT)
        self._on_entry = on_entry
        self.waiting: dict[int, Ref] = {}  # bounded by PROPOSALS_MAX

    def apply(self, entry: Entry) -> None:
        if entry.index != self.applied_index + 1:
            raise InternalError(f"the registry's entry {entry.index} after {self.applied_index}")
        self.applied_index = entry.index
        match entry.kind:
            case EntryKind.REGISTRY:
                self._on_entry(entry)
            case EntryKind.NOOP | EntryKind.CONFIG:
                pass
            case _:
                raise InternalError(f"the registry's entry {entry.index} is of kind {entry.kind.name}")

    def on_append_failed(self) -> list[Ref]:
        refs = list(self.waiting.values())
        self.waiting.clear()
        return refs


@dataclass(slots=True, eq=False)
class _Proposal:
    """`request` while another peer is asked, `here` while it waits for this one's log, `index` when it is
    committed and the copy here has yet to hear of it.
    """

    command: AnyCommand
    done: Done
    deadline: float
    give_up_at: float  # when there is still nobody who leads
    try_at: float = inf
    tried_at: float = 0.0
    tries: int = 0
    request: int = 0
    asked: PeerId | None = None
    here: bool = False
    index: int = 0


@dataclass
class Registrar:
    """`on_changes` hears what every applied entry changed, in order. `leader`: who leads the system slot, as
    far as is known here.
    """

    ctx: Context
    links: Links
    slots: Slots
    on_changes: Callable[[list[Change]], None]
    leader: Callable[[], PeerId | None]
    stream: RegistryStream = field(init=False)
    _dones: dict[int, Done] = field(default_factory=dict)  # of entries proposed here; bounded
    _proposals: dict[_Proposal, None] = field(default_factory=dict)  # of this host; bounded
    _asked: dict[int, _Proposal] = field(default_factory=dict)  # of these, by request
    _committed: dict[int, list[_Proposal]] = field(default_factory=dict)  # of these, by index
    _level_from: int | None = None
    _doubts: int = 0
    _level_request: int = 0
    _level_asked_at: float = -inf

    def __post_init__(self) -> None:
        self.stream = RegistryStream(self._on_entry)

    # ---------------------------------------------------------------------------------------- restart
    def restore(self, rows: Mapping[bytes, bytes], entries: Iterable[Entry]) -> None:
        """The log on this disk from its first entry on, which is never trimmed: it is the registry.

        What the rows call applied goes into the registry at once and not into memory; the rest is the
        replica's to decide. Raises: StoreCorrupt; UsageError when this software is too old for the mesh.
        """
        chain, last, applied, tail = GENESIS_CHAIN, 0, applied_index(rows), list[Item]()
        for entry in entries:
            if entry.index != last + 1 or not follows(chain, entry):
                raise StoreCorrupt(f"the registry's entry {entry.index} does not continue the log before it")
            chain, last = entry.chain, entry.index
            if entry.index > applied:
                tail.append(Item(entry))
            elif entry.kind is EntryKind.REGISTRY:
                self.ctx.registry.apply(entry.index, commands.decode(entry.body))
                check_understood(self.ctx.registry.level, self.ctx.settings.level)
        if last < applied:
            raise StoreCorrupt(f"the registry's log ends at {last}, and {applied} entries were applied")
        self.slots.hosting.restore(SYSTEM_SLOT, rows, tail=Tail(tail), aside={}, now=self.ctx.now)

    def _on_entry(self, entry: Entry) -> None:
        if self.ctx.registry.level > self.ctx.settings.level:
            return  # this peer is stopping, and may not understand what follows
        result = self.ctx.registry.apply(entry.index, commands.decode(entry.body))
        if not isinstance(result, MeshqError):
            self.on_changes(result)
        self.stream.waiting.pop(entry.index, None)
        done = self._dones.pop(entry.index, None)
        if done is not None:
            done(result if isinstance(result, MeshqError) else entry.index)
        for proposal in self._committed.pop(entry.index, ()):
            self._settle(proposal, entry.index)

    # ------------------------------------------------------------------------------------- proposing
    def propose(self, command: AnyCommand, done: Done) -> None:
        """Commit a command; `done` gets its index once this peer's own copy has it, or the error."""
        if len(self._proposals) >= PROPOSALS_MAX:
            done(Overloaded("as many changes of the registry wait here as may", retry_after_ms=200))
            return
        now = self.ctx.now
        proposal = _Proposal(command, done, now + PROPOSAL_S, now + LEADERLESS_S)
        self._proposals[proposal] = None
        self._try(proposal)

    def _try(self, p: _Proposal) -> None:
        p.tries += 1
        p.try_at, p.tried_at = inf, self.ctx.now
        if self.leads():
            p.here = True
            self._append(p.command, lambda result: self._on_tried(p, result))
            return
        leader, request = self.leader(), self.ctx.next_request()
        message = ProposeRegistry(request, commands.encode(p.command))
        if leader is not None and self.links.send(leader, message):
            p.request, p.asked = request, leader
            self._asked[request] = p
        else:
            p.try_at = self.ctx.now + RETRY_S

    def _on_tried(self, p: _Proposal, result: int | MeshqError) -> None:
        self._asked.pop(p.request, None)
        p.request, p.asked, p.here = 0, None, False
        if isinstance(result, NotOwner):
            # At once: it does not lead. Later: it did, and does not any more, so another one may soon.
            if self.ctx.now - p.tried_at > RETRY_S:
                p.give_up_at = self.ctx.now + LEADERLESS_S
            p.try_at = self.ctx.now + RETRY_S
        elif isinstance(result, TopicGone) and isinstance(p.command, DeleteTopic) and p.tries > 1:
            self._settle(p, self.ctx.registry.version)  # an earlier try deleted it
        elif isinstance(result, MeshqError) or result <= self.stream.applied_index:
            self._settle(p, result)
        else:
            p.index = result
            self._committed.setdefault(result, []).append(p)

    def _settle(self, p: _Proposal, result: int | MeshqError) -> None:
        self._asked.pop(p.request, None)
        if p in self._proposals:
            del self._proposals[p]
            p.done(result)

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for a command."""
        return bool(self._proposals)

    def tick(self) -> None:
        for p in list(self._proposals):
            if self.ctx.now >= p.deadline:
                self._forget_committed(p)
                self._give_up(p, "was not done in time")
            elif p.try_at < inf and self.ctx.now >= p.give_up_at:
                who = ", ".join(self.voter_names()) or "its voters"
                text = "has to wait: the registry has no leader that can be reached from here"
                self._give_up(p, f"{text}, and needs a majority of {who}")
            elif self.ctx.now >= p.try_at:
                self._try(p)

    def _forget_committed(self, p: _Proposal) -> None:
        rest = [x for x in self._committed.pop(p.index, ()) if x is not p]
        if rest:
            self._committed[p.index] = rest

    def _give_up(self, p: _Proposal, why: str) -> None:
        tried = p.here or p.request or p.index or p.tries > 1
        doubt = "; it may or may not be made" if tried else "; what exists goes on"
        self._settle(p, RegistryUnavailable(f"the change {why}{doubt}", retry_after_ms=500))

    def voter_names(self) -> list[str]:
        peers = self.ctx.registry.peers
        return sorted(peers[v].facts.name for v in self.voters() if v in peers)

    def is_reachable(self) -> bool:
        """Whether a command would come to whoever leads the registry, as it looks from here."""
        return self.leads() or self.leader() in self.links.reachable() - {self.ctx.me.peer}

    def voters(self) -> set[PeerId]:
        """Who votes for the system slot, as far as this peer knows."""
        host = self._host()
        return {n.peer for n in host.replica.config.voters} if host else set()

    def on_link_down(self, peer: PeerId) -> None:
        for p in [p for p in self._asked.values() if p.asked == peer]:
            self._on_tried(p, NotOwner("the connection broke"))
        self._level_request = 0

    def on_answer(self, answer: Answer | Failure) -> bool:
        """Whether it was the answer to something asked here."""
        if answer.request == self._level_request:
            self._level_request = 0
            if isinstance(answer, Answer) and isinstance(answer.value, int):
                self._level_from = answer.value
            return True
        proposal = self._asked.get(answer.request)
        if proposal is None:
            return False
        if isinstance(answer, Failure):
            self._on_tried(proposal, error_of(answer))
        elif isinstance(answer.value, int):
            self._on_tried(proposal, answer.value)
        return True

    # --------------------------------------------------------------------------------- at the leader
    def _host(self) -> Host | None:
        return self.slots.hosts.get(SYSTEM_SLOT)

    def leads(self) -> bool:
        host = self._host()
        return host is not None and host.leads

    def check_leads(self) -> None:
        """Raises: NotOwner."""
        if not self.leads():
            raise NotOwner(f"{self.ctx.me.name!r} does not lead the registry", retry_after_ms=50)

    def on_propose(self, session: Session, message: ProposeRegistry) -> None:
        """Another peer's command. Raises: NotOwner, RemoteProtocolError."""
        self.check_leads()

        def done(result: int | MeshqError) -> None:
            if isinstance(result, MeshqError):
                self.ctx.fail(session, message.request, result)
            else:
                self.ctx.send(session, Answer(message.request, result))

        self._append(commands.decode(message.command), done)

    def _append(self, command: AnyCommand, done: Done) -> None:
        if len(self._dones) >= PROPOSALS_MAX:
            text = "the registry has as many changes on their way to disk as it may"
            done(Overloaded(text, retry_after_ms=200))
            return
        result = self.ctx.registry.made_at(command) or self.ctx.registry.refusal(command)
        if result is not None:
            done(result)
            return
        try:
            entry = self.slots.append(SYSTEM_SLOT, EntryKind.REGISTRY, commands.encode(command))
        except (NotOwner, TooLarge) as e:  # it hands over
            done(e)
            return
        self.stream.waiting[entry.index] = (REGISTRY, b""), entry.index
        self._dones[entry.index] = done

    def on_refused(self, index: int, error: MeshqError) -> None:
        """What was appended here at this index was not committed by this leader."""
        done = self._dones.pop(index, None)
        if done is not None:
            lost = not self.leads()
            done(NotOwner("the registry has another leader now", retry_after_ms=50) if lost else error)

    # ----------------------------------------------------------------------------- as new as the leader
    @property
    def is_level(self) -> bool:
        """Whether the copy here has all that was decided when it was last doubted."""
        return self._level_from is not None and self.stream.applied_index >= self._level_from

    def doubt_level(self) -> None:
        self._level_from, self._level_request, self._level_asked_at = None, 0, -inf
        self._doubts += 1

    def seek_level(self) -> None:
        """Ask the leader, unless it has been asked or has told."""
        if self._level_from is not None or self.ctx.now < self._level_asked_at + LEVEL_S:
            return
        leader, doubts = self.leader(), self._doubts
        if self.leads():
            self._level_asked_at = self.ctx.now
            self.slots.read(SYSTEM_SLOT, lambda index: self._on_level(index, doubts))
        elif leader is not None:
            request = self.ctx.next_request()
            if self.links.send(leader, Ask(request, LEVEL)):
                self._level_request, self._level_asked_at = request, self.ctx.now

    def _on_level(self, index: int | None, doubts: int) -> None:
        if doubts == self._doubts:
            self._level_from = index

    def on_ask_level(self, session: Session, request: int) -> None:
        """Linearizable: a majority said after this moment that this peer leads. Raises: NotOwner."""
        self.check_leads()

        def done(index: int | None) -> None:
            if index is None:
                self.ctx.fail(session, request, NotOwner("the registry has another leader now"))
            else:
                self.ctx.send(session, Answer(request, index))

        self.slots.read(SYSTEM_SLOT, done)
