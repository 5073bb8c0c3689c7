"""What a replica is told, what it asks for, and what replicas say to each other.

    events (facts)        Ticked, Received, Persisted, PersistFailed, LogRead, PeerLinked,
                          SupportGiven, SupportGot, LeaderGone, SnapshotRead, SnapshotStored, GenerationSeen
    effects (commands)    Persist, Send, Commit, ReadLog, TellRole, ReadReady, ...
    messages              RequestVote/VoteReply, AppendEntries/AppendReply, InstallSnapshot/SnapshotReply,
                          TimeoutNow

Messages are Raft's own (Ongaro 2014, figure 3.1 and sections 3.10, 4.2.3, 6.4, 9.6), with the chain of the
entry before, so that a log which differs where terms agree is seen as damaged and not extended.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

import msgspec

from meshq.batch import Buffer
from meshq.entries import GENESIS_CHAIN, Entry
from meshq.ids import PeerId
from meshq.replication.quorum import Config, Node


class Position(NamedTuple):
    """A place in a log: an entry's index and term, and the chain up to it. Index 0 is before the first."""

    index: int  # type: ignore[assignment]  # a tuple's own `index` is of no use here
    term: int
    chain: bytes


GENESIS = Position(0, 0, GENESIS_CHAIN)


class Item(NamedTuple):
    """An entry and the payload it stands for (empty for most kinds), which travels and is stored with it."""

    entry: Entry
    payload: Buffer = b""


class Hard(NamedTuple):
    """What a node must never forget: the newest term it knows, and whom it voted for in it.

    `repair_until`: a damaged log was cut off, and what it had acknowledged up to this index is not here again
    yet; `repair_term`: in no later term than this one. Both are kept with the rest, or a second crash would
    forget for whom votes have to wait.

    `bare_until`: a witness's. That entries up to this index are here without their payloads is no damage.
    """

    term: int
    vote: Node | None
    repair_until: int = 0
    bare_until: int = 0
    repair_term: int = 0

    @property
    def lost(self) -> tuple[int, int]:
        """(term, index) that the log's end was not beyond, before it was cut off. (0, 0): all is here."""
        return (self.repair_term, self.repair_until) if self.repair_until else (0, 0)


class SnapshotMeta(msgspec.Struct, frozen=True, array_like=True):
    """The state a log's beginning adds up to: everything up to `last`, under `config`.

    `timestamp_ms` is the newest time up to there, since time must not go back after it.
    """

    last: Position
    config: Config
    timestamp_ms: int = 0


class Role(Enum):
    FOLLOWER = auto()
    PRE_CANDIDATE = auto()
    CANDIDATE = auto()
    LEADER = auto()


# ----------------------------------------------------------------------------------------- messages
class RequestVote(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """`pre`: only asking whether one would get it. `transfer`: the leader itself wants this election."""

    term: int
    last_index: int
    last_term: int
    pre: bool = False
    transfer: bool = False


class VoteReply(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """`term` is the one that was asked for when granted, the voter's own when refused."""

    term: int
    granted: bool
    pre: bool = False


class AppendEntries(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The leader's log after `prev`. `round` comes back, so that the leader knows that it still led then.

    `everywhere`: told to witnesses only. Every keeper has its log on disk up to this index, so items up to it
    come without their payloads, and payloads up to it need not be kept.
    """

    term: int
    prev: Position
    items: tuple[Item, ...]
    commit: int
    round: int = 0
    everywhere: int = 0


class AppendReply(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """`ok`: durable and equal to the leader's up to `match`. Else: go back to `match`, of `match_term`.

    `commit`: it knows to be decided up to here, or the leader would have to trust that news of that arrived.
    `lacks`: it is being repaired, and may vote as ever when the log goes on to here (state.py's `thaw`).
    """

    term: int
    ok: bool
    match: int
    match_term: int = 0
    round: int = 0
    commit: int = 0
    lacks: int = 0


class InstallSnapshot(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """A piece of the state at `meta`, beginning at `position` of its bytes."""

    term: int
    meta: SnapshotMeta
    position: int
    data: Buffer
    done: bool


class SnapshotReply(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The follower has everything before `position` on disk; the next piece begins there.

    It answers the piece that began at `of`.
    """

    term: int
    index: int
    position: int
    of: int = 0


class TimeoutNow(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Campaign at once: the leader hands over."""

    term: int


Message = RequestVote | VoteReply | AppendEntries | AppendReply | InstallSnapshot | SnapshotReply | TimeoutNow


# ------------------------------------------------------------------------------------------- events
class Ticked(msgspec.Struct, frozen=True):
    pass


class Received(msgspec.Struct, frozen=True):
    frm: Node
    message: Message


class Persisted(msgspec.Struct, frozen=True):
    """Everything up to and including the Persist of this token is on disk, synced."""

    token: int


class PersistFailed(msgspec.Struct, frozen=True):
    """The disk was full: of what was not yet Persisted nothing is on it, and nothing will be."""


class LogRead(msgspec.Struct, frozen=True):
    """What a ReadLog asked for: dense items after `prev`, at least one; none when the disk could not."""

    to: Node
    prev: Position
    items: tuple[Item, ...]


class PeerLinked(msgspec.Struct, frozen=True):
    """A connection to that node was (re)made: what was on its way is lost, and it may have restarted."""

    node: Node


class SupportGiven(msgspec.Struct, frozen=True):
    """This host began (or ceased) to treat that peer as alive. See support.py."""

    peer: PeerId
    given: bool


class SupportGot(msgspec.Struct, frozen=True):
    """That peer began (or ceased) to treat this one as alive."""

    peer: PeerId
    got: bool


class LeaderGone(msgspec.Struct, frozen=True):
    """That peer restarted, or says that it does not lead the slot in this term: it is its leader no more."""

    peer: PeerId
    term: int


class SnapshotRead(msgspec.Struct, frozen=True):
    """A piece of this node's snapshot for `to`, or None when it is gone: begin again with a newer one."""

    to: Node
    meta: SnapshotMeta
    position: int
    data: Buffer
    done: bool


class SnapshotStored(msgspec.Struct, frozen=True):
    """A received piece is on disk; with `done`, the whole state replaced this slot's, log included."""

    meta: SnapshotMeta
    position: int  # behind the piece
    done: bool


class GenerationSeen(msgspec.Struct, frozen=True):
    """Somebody leads the slot in this term. Only another generation is news, see generations.py."""

    term: int


Event = (
    Ticked | Received | Persisted | PersistFailed | LogRead | PeerLinked | SupportGiven | SupportGot
    | LeaderGone | SnapshotRead | SnapshotStored | GenerationSeen
)  # fmt: skip


# ------------------------------------------------------------------------------------------ effects
class Persist(msgspec.Struct, frozen=True):
    """In one transaction: forget entries from `truncate_from` on, append `items`, write `hard`; then sync.

    Persists are done in their order. `Persisted(token)` says that this one and all before are on disk. When
    the disk refuses one, all behind it fail too (PersistFailed), and what is left to write comes again.
    `dropped` are the entries that `truncate_from` takes from memory: their payloads go too.
    """

    token: int
    hard: Hard | None
    truncate_from: int | None
    items: tuple[Item, ...]
    dropped: tuple[Item, ...] = ()


class Send(msgspec.Struct, frozen=True):
    to: Node
    message: Message


class Commit(msgspec.Struct, frozen=True):
    """These are decided, and durable here: apply them, in this order."""

    items: tuple[Item, ...]


class ReadLog(msgspec.Struct, frozen=True):
    """Items from this index on, for a follower that is behind what is in memory. Answer: LogRead."""

    to: Node
    from_index: int
    bytes_max: int


class ReadSnapshot(msgspec.Struct, frozen=True):
    """A piece of a snapshot of the applied state (`meta` None: of the newest). Answer: SnapshotRead."""

    to: Node
    meta: SnapshotMeta | None
    position: int


class StoreSnapshot(msgspec.Struct, frozen=True):
    """Put this piece aside; with `done`, replace the slot's state and log by it. Answer: SnapshotStored."""

    frm: Node
    meta: SnapshotMeta
    position: int
    data: Buffer
    done: bool


class TellRole(msgspec.Struct, frozen=True):
    """Role, leader or term changed. A leader knows all that was decided once it `serves`."""

    role: Role
    term: int
    leader: Node | None
    serves: bool


class TakenBack(msgspec.Struct, frozen=True):
    """Entries from this index on, proposed here and seen by nobody else, did not reach the disk."""

    from_index: int


class TellConfig(msgspec.Struct, frozen=True):
    """A configuration was committed."""

    config: Config
    index: int


class ReadReady(msgspec.Struct, frozen=True):
    """The reads registered under these refs may be answered from state applied up to `index`."""

    refs: tuple[object, ...]
    index: int


class ReadFailed(msgspec.Struct, frozen=True):
    """This node stopped leading before it could be sure: ask the leader."""

    refs: tuple[object, ...]


class Damaged(msgspec.Struct, frozen=True):
    """An entry differs from the leader's where the terms agree, or could not be read: replaced from there."""

    index: int


class Diverged(msgspec.Struct, frozen=True):
    """What was decided here is not what the slot's new generation has: begin again, with nothing."""


Effect = (
    Persist | Send | Commit | ReadLog | ReadSnapshot | StoreSnapshot | TellRole | TakenBack | TellConfig
    | ReadReady | ReadFailed | Damaged | Diverged
)  # fmt: skip
