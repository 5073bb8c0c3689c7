"""What the client's machine is told and what it orders: events are past-tense facts, effects are commands.

A *ticket* is a number the shell draws for something it waits for; every ticket ends in exactly one Settle or
Fail. A batch may get one Doubt before: its caller is told `OutcomeUnknown` now, and the end comes later. A
link is named by the server's CURVE key: there is at most one to each peer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from meshq.batch import Body, Buffer
from meshq.errors import MeshqError
from meshq.messages import ACKS_QUORUM, Message, ServerMessage, TopicInfo


class Seed(Struct, frozen=True):
    """A peer known before anything was heard: its CURVE key and endpoints (`tcp://HOST:PORT`)."""

    server_key: bytes
    endpoints: tuple[str, ...]
    name: str = ""


class Start(Struct, frozen=True):
    """Where a subscription begins: one of messages.EARLIEST, LATEST, OFFSET, TIMESTAMP and its value."""

    kind: int
    value: int = 0


class Group(Struct, frozen=True):
    """The group a subscription takes part in, and its terms. `member`: 16 bytes, who it is there."""

    name: str
    member: bytes
    mode: int
    ack_wait_ms: int
    max_deliver: int


# ------------------------------------------------------------------------------------------- events
class Ticked(Struct, frozen=True):
    """The machine's deadline passed (or might have)."""


class LinkUp(Struct, frozen=True):
    server_key: bytes


class LinkDown(Struct, frozen=True):
    server_key: bytes
    reason: str


class Received(Struct, frozen=True):
    server_key: bytes
    message: ServerMessage
    payloads: Sequence[Buffer] = ()


class Garbled(Struct, frozen=True):
    """Something came over this link that cannot be read."""

    server_key: bytes
    reason: str


class HomeWanted(Struct, frozen=True):
    """Settles with None as soon as a peer has welcomed us."""

    ticket: int
    deadline: float


class TopicWanted(Struct, frozen=True):
    """Settles with the TopicInfo; the topic is made when it may be, unless `create` is false.

    `fresh`: a peer is asked, whatever is remembered here.
    """

    ticket: int
    topic: str
    deadline: float
    fresh: bool = False
    create: bool = True


class TopicsWanted(Struct, frozen=True):
    """Settles with a list of the TopicInfo that match."""

    ticket: int
    pattern: str
    deadline: float


class AskRequested(Struct, frozen=True):
    """Settles with the answer's value."""

    ticket: int
    what: str
    args: Mapping[str, Any]
    deadline: float


class Binding(Struct, frozen=True):
    """What an outbox wrote down for a batch before it was first sent, and what it keeps for good.

    `sent_before`: in an earlier run perhaps, so that no refusal now says that it was never stored.
    """

    producer_id: bytes
    epoch: int
    sequence: int
    sent_before: bool = False


class BatchSealed(Struct, frozen=True):
    """Settles with messages.Accepted. Batches of one `lane` and partition keep their order.

    `in_flight`: how many batches of the lane and partition may be on their way at once.
    `binding`: numbered already. Then a failure is OutcomeUnknown (its `__cause__` is what was answered), or
    Unavailable when nothing is wrong with the batch itself, or a refusal; the last two mean that it was
    certainly not stored. A Doubt may come many times: why it is still waiting.
    """

    ticket: int
    lane: int
    info: TopicInfo
    partition: int
    body: Body
    deadline: float
    in_flight: int = 16
    acks: int = ACKS_QUORUM
    binding: Binding | None = None


class SubscribeRequested(Struct, frozen=True):
    """`ticket` settles with None once every partition there is has started; it fails when the mesh
    refuses. `credit_records`: 0 in a queue or keyed group is as many as suit its pace.
    """

    sub: int
    pattern: str
    start: Start
    credit_bytes: int
    credit_records: int
    ticket: int
    prefixes: tuple[str, ...] = ()  # instead of the pattern: topics that begin with one of these (peers only)
    group: Group | None = None


class Consumed(Struct, frozen=True):
    """The application took what was handed to it from `source` (as Hand named it)."""

    sub: int
    source: bytes
    bytes: int
    records: int


class RecordsSettled(Struct, frozen=True):
    """What became of records of a group's subscription: ranges (first, end, lease), by one of the verdicts in
    messages. Settles with the records, (first, end), of which it does not hold.
    """

    ticket: int
    sub: int
    topic_id: bytes
    partition: int
    verdict: int
    ranges: Sequence[tuple[int, int, int]]
    delay_ms: int | None
    deadline: float
    reason: str = ""


class AtWork(Struct, frozen=True):
    """The application is there, and takes what this subscription of a queue group is handed."""

    sub: int


class Unsubscribed(Struct, frozen=True):
    sub: int


class Closed(Struct, frozen=True):
    """The application is done: every ticket ends now."""


Event = (
    Ticked | LinkUp | LinkDown | Received | Garbled | HomeWanted | TopicWanted | TopicsWanted | AskRequested
    | BatchSealed | SubscribeRequested | Consumed | RecordsSettled | AtWork | Unsubscribed | Closed
)  # fmt: skip


# ------------------------------------------------------------------------------------------ effects
class OpenLink(Struct, frozen=True):
    server_key: bytes
    endpoints: tuple[str, ...]  # in the order to try them


class CloseLink(Struct, frozen=True):
    """Nothing more of this link is to be reported."""

    server_key: bytes


class Send(Struct, frozen=True):
    server_key: bytes
    message: Message
    payloads: tuple[Buffer, ...] = ()


class Settle(Struct, frozen=True):
    ticket: int
    value: Any


class Fail(Struct, frozen=True):
    ticket: int
    error: MeshqError


class Doubt(Struct, frozen=True):
    """Tell the caller `OutcomeUnknown`; the batch is still being sent, and Settle or Fail follows."""

    ticket: int
    error: MeshqError


class Place(Struct, frozen=True):
    """This partition's next record will be the one at `offset`."""

    sub: int
    topic: str
    partition: int
    offset: int


class Leased(Struct, frozen=True):
    """What of a batch a group's member was handed: (first, end, attempts)."""

    topic_id: bytes
    lease: int
    ranges: Sequence[tuple[int, int, int]]


class Hand(Struct, frozen=True):
    """A batch for the subscription; its records below `first` were handed out before.

    Once they are taken, Consumed reports the payload's size and `records` (what the batch cost in credit).
    """

    sub: int
    source: bytes
    topic: str
    partition: int
    base_offset: int
    timestamp_ms: int
    first: int
    records: int
    payload: Buffer
    leased: Leased | None = None  # of a group: only these records of it, and they are settled one by one


class TellExpired(Struct, frozen=True):
    """`count` records below `next` went by retention before this subscription (or its group) had them."""

    sub: int
    topic: str
    partition: int
    count: int
    next: int


class Grant(Struct, frozen=True):
    """Of an ordered group: this partition is ours under this lease, from `offset` on. `attempts`: how often
    it was that somebody's lease began there, in a row."""

    sub: int
    topic: str
    topic_id: bytes
    partition: int
    lease: int
    offset: int
    attempts: int


class Revoke(Struct, frozen=True):
    """It is to be given back: RELEASE it, once what was begun is acknowledged. `over`: it is not ours any
    more."""

    sub: int
    topic_id: bytes
    partition: int
    lease: int
    over: bool


class EndSubscription(Struct, frozen=True):
    """The mesh refuses it."""

    sub: int
    error: MeshqError


Effect = (
    OpenLink | CloseLink | Send | Settle | Fail | Doubt | Place | Hand | TellExpired | Grant | Revoke
    | EndSubscription
)  # fmt: skip
