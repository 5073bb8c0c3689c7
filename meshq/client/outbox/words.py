"""What the outbox's machine is told and what it orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from meshq.client.outbox.layout import BoundRow, LaneRow, ParkedRow, QueueRow, StateRow, TopicRow
from meshq.errors import MeshqError
from meshq.messages import Accepted, TopicInfo


@dataclass
class Loaded:
    """What an outbox holds when it is opened. Queued records stay on disk; `queued` says in which lanes."""

    state: StateRow
    topics: dict[int, TopicRow] = field(default_factory=dict)
    lanes: dict[bytes, LaneRow] = field(default_factory=dict)  # by layout.lane_key
    bound: list[tuple[bytes, BoundRow]] = field(default_factory=list)  # in the order of their keys
    parked: dict[int, Parked] = field(default_factory=dict)
    queued: list[tuple[int, int]] = field(default_factory=list)  # (topic, partition)
    queued_records: int = 0
    queued_bytes: int = 0
    damaged: list[tuple[bytes, bytes, bytes]] = field(default_factory=list)  # (database, key, value)


@dataclass(frozen=True, slots=True)
class Parked:
    """What the mesh refused for good. `maybe_stored`: an earlier sending of it may have been stored."""

    id: int
    topic: str
    partition: int
    records: int
    bytes: int
    reason: str
    text: str
    maybe_stored: bool
    parked_ms: int

    @classmethod
    def of(cls, number: int, row: ParkedRow) -> Parked:
        return cls(
            number, row.topic, row.partition, row.count, len(row.data), row.reason, row.text,
            row.maybe_stored, row.parked_ms,
        )  # fmt: skip


# ------------------------------------------------------------------------------------------- events
@dataclass(frozen=True, slots=True)
class TurnEnded:
    """What was taken is to go to disk."""


@dataclass(frozen=True, slots=True)
class Persisted:
    """That order is on disk. Orders come back in the order they were given."""

    token: int


@dataclass(frozen=True, slots=True)
class NotPersisted:
    """A fallible one is not, and never will be."""

    token: int
    error: MeshqError


@dataclass(frozen=True, slots=True)
class QueueRead:
    """The first records of a lane, and what they take on disk. `more`: there are others behind them."""

    topic: int
    partition: int
    rows: Sequence[tuple[int, QueueRow]]
    damaged: Sequence[tuple[int, bytes]]
    bytes: int
    more: bool


@dataclass(frozen=True, slots=True)
class TopicHeard:
    topic: int
    info: TopicInfo


@dataclass(frozen=True, slots=True)
class TopicNotHeard:
    topic: int
    error: MeshqError


@dataclass(frozen=True, slots=True)
class Committed:
    ticket: int
    receipt: Accepted


@dataclass(frozen=True, slots=True)
class Failed:
    """As facts.BatchSealed with a binding says."""

    ticket: int
    error: MeshqError


@dataclass(frozen=True, slots=True)
class Doubted:
    """Why that batch still waits."""

    ticket: int
    error: MeshqError


@dataclass(frozen=True, slots=True)
class RetryAsked:
    """Parked records are to be sent again, behind what waits."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class ParkedRead:
    id: int
    rows: Sequence[QueueRow]


@dataclass(frozen=True, slots=True)
class DropAsked:
    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class ParkAsked:
    """What is bound is to be parked: the key it was sent under is lost."""


@dataclass(frozen=True, slots=True)
class Connected:
    """From now on there is somebody to send to, by this key."""

    mesh_id: bytes
    client_key: bytes


@dataclass(frozen=True, slots=True)
class Ticked:
    pass


Event = (
    TurnEnded | Persisted | NotPersisted | QueueRead | TopicHeard | TopicNotHeard | Committed | Failed
    | Doubted | RetryAsked | ParkedRead | DropAsked | ParkAsked | Connected | Ticked
)  # fmt: skip


# ------------------------------------------------------------------------------------------ effects
Put = tuple[bytes, bytes, bytes]  # database, key, value


@dataclass(frozen=True, slots=True)
class Persist:
    """One transaction, behind those ordered before it. Fallible: may be given up when the disk is full; what
    is not is tried until it is done.
    """

    token: int
    puts: Sequence[Put]
    deletes: Sequence[tuple[bytes, bytes]] = ()
    fallible: bool = False


@dataclass(frozen=True, slots=True)
class ReadQueue:
    """The first records of a lane, as far as `bytes_max` reach (one at least)."""

    topic: int
    partition: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class ReadParked:
    id: int


@dataclass(frozen=True, slots=True)
class WantTopic:
    topic: int
    name: str
    fresh: bool


@dataclass(frozen=True, slots=True)
class SendBound:
    """`valid_s`: for so long the peers remember its producer; not to be sent after that."""

    ticket: int
    topic: str
    partition: int
    row: BoundRow
    sent_before: bool
    valid_s: float


@dataclass(frozen=True, slots=True)
class TellQueued:
    """The records numbered [first, end) are on this disk, or (with an error) are not."""

    first: int
    end: int
    error: MeshqError | None = None


@dataclass(frozen=True, slots=True)
class TellCommitted:
    """These records have the offsets from `base_offset` on. No numbers where an earlier run bound them."""

    numbers: Sequence[int]
    topic: str
    partition: int
    base_offset: int
    copies: int


@dataclass(frozen=True, slots=True)
class TellParked:
    numbers: Sequence[int]
    parked: Parked
    error: MeshqError


Effect = (
    Persist | ReadQueue | ReadParked | WantTopic | SendBound | TellQueued | TellCommitted | TellParked
)  # fmt: skip
