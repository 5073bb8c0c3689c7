"""What a peer's core is told (facts, past tense) and what it asks for (effects, commands)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct, field

from meshq.batch import Buffer
from meshq.entries import Mark, PayloadCorrupt, StoredBatch, Write
from meshq.errors import MeshqError, StoreCorrupt
from meshq.ids import PartitionKey, PeerId, Session, Slot
from meshq.messages import AnyMessage, ServerMessage
from meshq.replication.quorum import Node
from meshq.replication.words import LogRead, Position
from meshq.streams.delivery import Fetch, SubKey

CLIENTS, PEERS, LOCAL = "clients", "peers", "local"  # doors a session comes through


# ------------------------------------------------------------------------------------------- events
class MessageArrived(Struct, frozen=True):
    """A client's or another peer's message; `key` is the CURVE key its connection proved to hold."""

    session: Session
    key: bytes
    message: AnyMessage
    payloads: Sequence[Buffer] = ()


class MalformedArrived(Struct, frozen=True):
    session: Session
    key: bytes
    error: MeshqError


class SessionClosed(Struct, frozen=True):
    """`unsent`: what showed it, and certainly did not arrive."""

    session: Session
    unsent: ServerMessage | None = None


class WritesDone(Struct, frozen=True):
    """On disk, all of them; `room_bytes`: what may still be stored."""

    tokens: Sequence[int]
    room_bytes: int


class WritesFailed(Struct, frozen=True):
    """The disk refused: neither these nor any other write that was outstanding is on disk."""

    error: MeshqError
    room_bytes: int


class BatchesFetched(Struct, frozen=True):
    fetch: Fetch
    batches: Sequence[StoredBatch] | MeshqError


class TimeSought(Struct, frozen=True):
    """The offset of the first batch at or after the time that was asked for."""

    seek: SeekTime
    offset: int


class SlotLogRead(Struct, frozen=True):
    """What a ReadSlotLog asked for."""

    slot: Slot
    read: LogRead
    damage: StoreCorrupt | None = None  # why there is no more of it, although it is on the disk


class RowsRead(Struct, frozen=True):
    """What a ReadRows asked for."""

    slot: Slot
    to: Node | None
    rows: Mapping[bytes, bytes]


class PayloadsRead(Struct, frozen=True):
    """What a ReadPayloads asked for; `complete`: all of it, not only the first batches."""

    slot: Slot
    to: Node
    batches: Sequence[StoredBatch]
    complete: bool
    damage: PayloadCorrupt | None = None  # why there is no more of it


class PayloadsDeleted(Struct, frozen=True):
    """Those that end at or before `below`; None: all."""

    slot: Slot
    partition: PartitionKey
    below: int | None


class BatchesSurveyed(Struct, frozen=True):
    """What a SurveyBatches asked for."""

    slot: Slot
    partition: PartitionKey
    offset: int
    marks: Sequence[Mark]


class LinkUp(Struct, frozen=True):
    peer: PeerId


class LinkDown(Struct, frozen=True):
    peer: PeerId
    reason: str


class LinkMessage(Struct, frozen=True):
    """An answer or push from a peer this one has a link to."""

    peer: PeerId
    message: ServerMessage


class MemberSeen(Struct, frozen=True):
    """What gossip says of a peer: where it is and whether it lives (it does while it is only suspect).

    `event`: what happened, `MemberAlive` and so on. `since_ms` is wall time; `evidence` says who accuses it,
    in words, and `proof` the same in fields.
    """

    peer: PeerId
    addresses: tuple[str, ...]
    alive: bool
    state: str = ""
    since_ms: int = 0
    incarnation: tuple[int, int] = (0, 0)
    evidence: str = ""
    event: str = ""
    reach: str = ""  # directly, by help of others, or over the connection only
    boot: bytes = b""
    rtt_ms: float | None = None
    proof: Mapping[str, Any] = field(default_factory=dict)
    level: int | None = None  # the highest feature level it knows; None: it was never heard of
    weight: float | None = None  # what it wants on the ring; None: it does not say
    zone: str = ""


class MembershipNoticed(Struct, frozen=True):
    """Something about this peer's own view of the others, by name, for those who follow it."""

    event: str
    facts: Mapping[str, Any]


class UdpSeen(Struct, frozen=True):
    """Whether datagrams of that peer arrive while it answers over its connection."""

    peer: PeerId
    blocked: bool


class RoundTripsMeasured(Struct, frozen=True):
    """By datagram, in ms, of the members that have answered so."""

    rtt_ms: Mapping[PeerId, float]


class LinkProbeWanted(Struct, frozen=True):
    """Membership did not hear that peer: does it answer over its link? `payload`: to be told it as well."""

    peer: PeerId
    payload: bytes = b""


class ProposalMade(Struct, frozen=True):
    """This host's shell (the door) wants a command in the registry; answered by Settle."""

    ticket: int
    command: bytes


class RoomMeasured(Struct, frozen=True):
    room_bytes: int


class Ticked(Struct, frozen=True):
    pass


Event = (
    MessageArrived | MalformedArrived | SessionClosed | WritesDone | WritesFailed | BatchesFetched
    | TimeSought | SlotLogRead | RowsRead | PayloadsRead | PayloadsDeleted | BatchesSurveyed | LinkUp
    | LinkDown | LinkMessage | MemberSeen | UdpSeen | RoundTripsMeasured | MembershipNoticed
    | LinkProbeWanted | ProposalMade | RoomMeasured | Ticked
)  # fmt: skip


# ------------------------------------------------------------------------------------------ effects
class SendSession(Struct, frozen=True):
    session: Session
    message: ServerMessage
    payloads: tuple[Buffer, ...] = ()


class Persist(Struct, frozen=True):
    write: Write


class ResumeWrites(Struct, frozen=True):
    """What failed has been taken back here: the disk may be tried again."""


class FetchBatches(Struct, frozen=True):
    fetch: Fetch


class SeekTime(Struct, frozen=True):
    sub: SubKey
    partition: PartitionKey
    timestamp_ms: int
    end: int


class ReadSlotLog(Struct, frozen=True):
    """Entries of a slot behind this place, with their payloads, for a node that lacks them.

    The entry at that place need not be on disk: it may be the last one that was trimmed.
    """

    slot: Slot
    to: Node
    prev: Position
    bytes_max: int


class ReadRows(Struct, frozen=True):
    """A slot's state rows as one transaction left them: for a node, or to begin with here."""

    slot: Slot
    to: Node | None


class ReadPayloads(Struct, frozen=True):
    """Batches of these ranges (partition, offset, end) in their order, for a node: at least one if any."""

    slot: Slot
    to: Node
    ranges: tuple[tuple[PartitionKey, int, int], ...]
    bytes_max: int


class DeletePayloads(Struct, frozen=True):
    """Those that end at or before `below`; None: all."""

    slot: Slot
    partition: PartitionKey
    below: int | None


class SurveyBatches(Struct, frozen=True):
    """Which batches are stored, from the one that holds `offset` on; at most so many."""

    slot: Slot
    partition: PartitionKey
    offset: int
    count_max: int


class OpenLink(Struct, frozen=True):
    peer: PeerId
    addresses: tuple[str, ...]
    server_key: bytes


class CloseLink(Struct, frozen=True):
    peer: PeerId


class SendPeer(Struct, frozen=True):
    peer: PeerId
    message: AnyMessage
    payloads: tuple[Buffer, ...] = ()


class HintMembership(Struct, frozen=True):
    """A link came up (`up`), ended (`broken`), or its peer answered a ping (`answered`)."""

    peer: PeerId
    what: Literal["up", "broken", "answered"]


class TellMembership(Struct, frozen=True):
    """What that peer told over a connection that it could not tell by datagram."""

    peer: PeerId
    payload: bytes


class PeersRegistered(Struct, frozen=True):
    """The registered peers changed: gossip may now believe these."""

    peers: tuple[PeerId, ...]


class TellRolledBack(Struct, frozen=True):
    """That peer has seen a later start of this disk: this peer promises nobody anything any more."""

    peer: PeerId


class ClockTold(Struct, frozen=True):
    """Something about this host's clock, for whoever reads the log."""

    event: str
    text: str
    wrong: bool


class Mended(Struct, frozen=True):
    """A damaged batch was found on this disk; with `error` it still is."""

    damage: PayloadCorrupt
    error: MeshqError | None


class PeerLeft(Struct, frozen=True):
    """The mesh has let this peer go: nothing is here any more that others need. It stops."""


class StopPeer(Struct, frozen=True):
    """This peer can't go on, and a restart alone would not mend that."""

    error: MeshqError


class Settle(Struct, frozen=True):
    """The end of a ProposalMade: the registry index it was committed at, or why not."""

    ticket: int
    result: int | MeshqError


Effect = (
    SendSession | Persist | ResumeWrites | FetchBatches | SeekTime | ReadSlotLog | ReadRows
    | ReadPayloads | DeletePayloads | SurveyBatches | OpenLink | CloseLink | SendPeer | HintMembership
    | TellMembership | PeersRegistered | TellRolledBack | ClockTold | Mended | PeerLeft | StopPeer | Settle
)  # fmt: skip
