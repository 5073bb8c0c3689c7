"""The registrar: keeps this peer's copy of the registry, and takes new commands to the peer that holds it.

The holder appends commands to the system slot's log; they count when they are committed there. Every other
peer pulls committed entries in order into its own copy of that log, durably, and applies them. So a topic
that was used once is known to every peer even when the holder is away; only new things need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from meshq.entries import CHAIN_BYTES, Entry, EntryKind, decode_entry, follows
from meshq.errors import (
    MeshqError,
    Overloaded,
    RegistryUnavailable,
    RemoteProtocolError,
    StoreCorrupt,
)
from meshq.ids import SYSTEM_SLOT, PeerId, Session
from meshq.messages import (
    Answer,
    Failure,
    ProposeRegistry,
    PullRegistry,
    RegistryEntries,
    RegistryMoved,
    error_of,
)
from meshq.peer.core.context import Context
from meshq.peer.core.events import ReadEntries
from meshq.peer.core.links import Links
from meshq.registry import commands
from meshq.registry.commands import AnyCommand
from meshq.registry.state import Change
from meshq.replication.log import SlotLog

PROPOSAL_S = 10.0
PULL_S = 3.0
PROPOSALS_MAX = 1_024  # changes under way; more: `Overloaded`, elsewhere `RegistryUnavailable`
PULL_BYTES = 512 * 1024

Done = Callable[[int | MeshqError], None]


@dataclass(slots=True)
class _Proposal:
    done: Done
    deadline: float
    index: int = 0  # committed at; waits until the copy here has it


@dataclass
class Registrar:
    """`on_changes` hears what every applied entry changed, in order."""

    ctx: Context
    links: Links
    on_changes: Callable[[list[Change]], None]
    log: SlotLog = field(default_factory=lambda: SlotLog(SYSTEM_SLOT))
    _waiting: dict[int, Done] = field(
        default_factory=dict
    )  # at the holder, by index; bounded by PROPOSALS_MAX
    _proposals: dict[int, _Proposal] = field(default_factory=dict)  # elsewhere, by request; bounded
    _pulled_at: float = float("-inf")
    _holder_commit: int | None = None  # as last heard from the holder in this run

    @property
    def is_holder(self) -> bool:
        return self.ctx.me.peer == self.ctx.me.registry_peer

    @property
    def is_level(self) -> bool:
        """Whether the copy here is known to hold all that the holder had committed."""
        return self._holder_commit is not None and self.log.commit_index >= self._holder_commit

    def restore(self, entries: Iterable[Entry]) -> None:
        """The copy on this disk, from its first entry on. Raises: StoreCorrupt when its chain is broken."""
        chain, last = bytes(CHAIN_BYTES), None
        for entry in entries:
            if not follows(chain, entry):
                raise StoreCorrupt(f"the registry's entry {entry.index} does not continue the log before it")
            self.ctx.registry.apply(entry.index, commands.decode(entry.body))
            chain, last = entry.chain, entry
        self.log = SlotLog(SYSTEM_SLOT, last=last)

    # ------------------------------------------------------------------------------------ proposing
    def propose(self, command: AnyCommand, done: Done) -> None:
        """Commit a command; `done` gets its index once this peer's own copy has it, or the error."""
        if self.is_holder:
            self._append(command, done)
            return
        request = self.ctx.next_request()
        message = ProposeRegistry(request, commands.encode(command))
        if len(self._proposals) >= PROPOSALS_MAX or not self.links.send(self.ctx.me.registry_peer, message):
            holder = self.ctx.registry.peers[self.ctx.me.registry_peer].facts.name
            done(
                RegistryUnavailable(
                    f"peer {holder!r}, which holds the registry, cannot be reached from here: "
                    "what exists goes on, new things wait until it is back",
                    retry_after_ms=500,
                )
            )
            return
        self._proposals[request] = _Proposal(done, self.ctx.now + PROPOSAL_S)

    def on_propose(self, session: Session, message: ProposeRegistry) -> None:
        """Another peer's command. Raises: RegistryUnavailable when we are not the holder,
        RemoteProtocolError.
        """
        if not self.is_holder:
            raise RegistryUnavailable(f"{self.ctx.me.name!r} does not hold the registry")

        def done(result: int | MeshqError) -> None:
            if isinstance(result, MeshqError):
                self.ctx.fail(session, message.request, result)
            else:
                self.ctx.send(session, Answer(message.request, result))

        self._append(commands.decode(message.command), done)

    def _append(self, command: AnyCommand, done: Done) -> None:
        if len(self._waiting) >= PROPOSALS_MAX:
            text = "the registry has as many changes on their way to disk as it may"
            done(Overloaded(text, retry_after_ms=200))
            return
        refusal = self.ctx.registry.refusal(command)
        if refusal is not None:
            done(refusal)
            return
        body = commands.encode(command)
        entry = self.log.propose(EntryKind.REGISTRY, body, wall_ms=self.ctx.wall_ms).entries[0]
        self._waiting[entry.index] = done
        self._persist(entry)

    def _persist(self, entry: Entry) -> None:
        self.ctx.disk.submit(
            SYSTEM_SLOT,
            entries=(entry,),
            done=lambda: self._on_appended(entry.index),
            failed=self._on_append_failed,
        )

    def _on_appended(self, index: int) -> None:
        for entry in self.log.on_appended(index).entries:
            result = self.ctx.registry.apply(entry.index, commands.decode(entry.body))
            if not isinstance(result, MeshqError):
                self.on_changes(result)
            done = self._waiting.pop(entry.index, None)
            if done is not None:
                done(result if isinstance(result, MeshqError) else entry.index)
        self._tell_followers()
        self._settle_proposals()

    def _on_append_failed(self, error: MeshqError) -> None:
        for entry in self.log.on_append_failed():
            done = self._waiting.pop(entry.index, None)
            if done is not None:
                done(error)

    # --------------------------------------------------------------------------------------- holder
    def on_pull(self, session: Session, message: PullRegistry) -> None:
        """Raises: RemoteProtocolError."""
        if message.from_index < 1:
            raise RemoteProtocolError("the registry's entries count from 1")
        self.ctx.sessions.states[session].pulls_registry = True
        self.ctx.out.append(ReadEntries(session, message.from_index, self.log.commit_index + 1))

    def on_entries_read(self, read: ReadEntries, entries: Iterable[Entry]) -> None:
        encoded = [entry.encode() for entry in entries]
        if read.session in self.ctx.sessions.states:
            self.ctx.send(read.session, RegistryEntries(read.from_index, self.log.commit_index, encoded))

    def _tell_followers(self) -> None:
        for session, state in self.ctx.sessions.states.items():
            if state.pulls_registry:
                self.ctx.send(session, RegistryMoved(self.log.commit_index))

    # ------------------------------------------------------------------------------------ followers
    def tick(self) -> None:
        if not self.is_holder and self.ctx.now >= self._pulled_at + PULL_S:
            self.pull()
        for request in [r for r, p in self._proposals.items() if p.deadline <= self.ctx.now]:
            text = (
                "the peer that holds the registry did not answer in time: the change may or may not be made"
            )
            self._proposals.pop(request).done(RegistryUnavailable(text, retry_after_ms=500))

    def pull(self) -> None:
        self._pulled_at = self.ctx.now
        self.links.send(self.ctx.me.registry_peer, PullRegistry(self.log.last_index + 1))

    def on_link_down(self, peer: PeerId) -> None:
        if peer == self.ctx.me.registry_peer:
            lost, self._proposals = self._proposals, {}
            for proposal in lost.values():
                proposal.done(
                    RegistryUnavailable("the connection to the registry's holder broke", retry_after_ms=200)
                )

    def on_moved(self, message: RegistryMoved) -> None:
        self._holder_commit = message.commit
        if message.commit > self.log.last_index:
            self.pull()

    def on_entries(self, message: RegistryEntries) -> None:
        """The next piece of the holder's log. Raises: RemoteProtocolError, StoreCorrupt when it does not fit
        ours.
        """
        self._holder_commit = message.commit
        if message.from_index > self.log.last_index + 1:
            return  # asked for before our disk refused what comes between: the next pull begins at our end
        for i, data in enumerate(message.entries):
            entry = decode_entry(message.from_index + i, data)
            if entry.kind is not EntryKind.REGISTRY:
                raise RemoteProtocolError(f"the registry's entry {entry.index} is of kind {entry.kind.name}")
            if self.log.receive(entry) is not None:
                self._persist(entry)
        if message.entries and message.commit > self.log.last_index:
            self.pull()

    def on_answer(self, answer: Answer | Failure) -> bool:
        """Whether it was the answer to a proposal of ours."""
        proposal = self._proposals.get(answer.request)
        if proposal is None:
            return False
        if isinstance(answer, Failure):
            del self._proposals[answer.request]
            proposal.done(error_of(answer))
        elif isinstance(answer.value, int):
            proposal.index = answer.value
            self._settle_proposals()
            if answer.request in self._proposals:
                self.pull()
        return True

    def _settle_proposals(self) -> None:
        version = self.ctx.registry.version
        for request in [r for r, p in self._proposals.items() if 0 < p.index <= version]:
            proposal = self._proposals.pop(request)
            proposal.done(proposal.index)
