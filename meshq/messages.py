"""What crosses the wire between clients and peers and between peers: frozen, typed, decoded at one place.

A message is frames: `MQ` (the verb), one msgpack-encoded struct of this module, then payload frames where the
struct says so. Structs are arrays with a leading number for their kind, so a later version can add fields
at the end with defaults. `decode_request` and `decode_answer` are the only ways in: whatever arrives, they
return a struct or raise RemoteProtocolError.
`docs/protocol.md` is the specification.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from meshq.batch import Buffer
from meshq.errors import MeshqError, RemoteProtocolError, from_wire
from meshq.limits import ASK_BYTES_MAX, DATAGRAM_BYTES_MAX, REASON_CHARS_MAX, TOMBSTONE_AGE_MS

VERB = b"MQ"
VERSION_MIN = 1
VERSION_MAX = 1  # of the protocol; a newer peer answers in what both speak
Id16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
Key32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Name = Annotated[str, Meta(max_length=255)]
Text = Annotated[str, Meta(max_length=2_000)]
Reason = Annotated[str, Meta(max_length=REASON_CHARS_MAX)]
U16 = Annotated[int, Meta(ge=0, lt=1 << 16)]
U32 = Annotated[int, Meta(ge=0, lt=1 << 32)]
U63 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Items = 4_096  # most items a list in a message may have


class Message(Struct, frozen=True, array_like=True):
    pass


# ------------------------------------------------------------------------------------------ session
class Hello(Message, frozen=True, tag=1):
    """First on every connection. `mesh` empty: whichever mesh this is."""

    version_min: U16
    version_max: U16
    mesh: Annotated[bytes, Meta(max_length=16)] = b""
    name: Name = ""
    disk: Id16 = bytes(16)  # a peer's: which disk it has, how often that was started, and this run's boot id
    epoch: U63 = 0  # 0: not a peer
    boot: Id16 = bytes(16)


class Welcome(Message, frozen=True, tag=2):
    version: U16
    mesh: Id16
    peer: Id16
    boot: Id16  # another one on a later Welcome: the peer was restarted in between
    now_ms: U63
    disk: Id16 = bytes(16)  # with its peer id: who it is as a voter
    epoch: U63 = 0  # how often that disk was started
    rolled_back: bool = False  # a later start of the disk in the Hello was seen: it forgot what it promised


class Ping(Message, frozen=True, tag=3):
    token: U63


class Pong(Message, frozen=True, tag=4):
    token: U63
    now_ms: U63 = 0  # the sender's clock; 0: it does not tell


class Failure(Message, frozen=True, tag=5):
    """The answer to a request that failed (or request 0: to a message that could not be read)."""

    request: U63
    status: U16
    name: Name
    text: Text
    retry_after_ms: U32 = 0


class PeerRoute(Struct, frozen=True, array_like=True):
    """Where a peer is. Addresses are `HOST:PORT` (IPv6 in brackets) of its base port, best first."""

    peer: Id16
    name: Name
    server_key: Key32  # its CURVE key, for every socket
    addresses: Annotated[list[Name], Meta(max_length=8)]
    alive: bool = True


class Routes(Message, frozen=True, tag=6):
    """Which peer leads which slot; pushed after Welcome and whenever it changes.

    Replaces the one before, but where another peer told of a leader of a higher term.
    """

    version: U63  # registry index it was made at; never decreases on one connection
    peers: Annotated[list[PeerRoute], Meta(max_length=Items)]
    owners: Annotated[list[U16], Meta(max_length=1 << 16)]  # by slot: its leader's place in `peers`
    terms: Annotated[list[U63], Meta(max_length=1 << 16)] = []  # by slot: as of which term; 0 is a guess


# ------------------------------------------------------------------------------------------- topics
class Retain(Struct, frozen=True, array_like=True):
    """How long the records of a topic are kept. Numbers are for each of its partitions; 0 is no limit.

    `age_ms` since the leader appended them. `compact`: of the records of a key only the last is kept; one
    with an empty value (a tombstone) says that there is none, and goes itself after `tombstone_age_ms`.
    """

    age_ms: U63 = 0
    bytes: U63 = 0
    records: U63 = 0
    compact: bool = False
    tombstone_age_ms: U63 = TOMBSTONE_AGE_MS


KEEP_ALL: Final = Retain()


class TopicInfo(Struct, frozen=True, array_like=True):
    """Partition p lives in slot `ring.slot_of(topic_id, p, slots)`; `version`: its registry index."""

    name: Name
    topic_id: Id16
    partitions: U32
    version: U63
    record_bytes_max: U32
    copies_min: U16 = 1
    retain: Retain = KEEP_ALL


class Resolve(Message, frozen=True, tag=10):
    """Name -> TopicInfo, creating the topic when it may be. Answer: Resolved or Failure."""

    request: U63
    topic: Name
    create: bool = False


class Resolved(Message, frozen=True, tag=11):
    request: U63
    info: TopicInfo


class Watch(Message, frozen=True, tag=12):
    """Tell me all topics that match, now and as they come, change and go. Answers: TopicsChanged, or Failure.

    `prefixes` instead of `pattern` (peers only): every topic whose name begins with one of these bytes.
    `version`: of the newest topic the asker has heard of; a peer whose copy of the registry is older says
    Unavailable, because what is missing in it may be there all the same.
    """

    request: U63
    pattern: Name
    prefixes: Annotated[list[Name], Meta(max_length=Items)] = []
    version: U63 = 0


class TopicsChanged(Message, frozen=True, tag=13):
    """`complete` on the first answer's last message. `now_ms`: the peer's clock, what `latest` means here."""

    request: U63
    now_ms: U63
    topics: Annotated[list[TopicInfo], Meta(max_length=Items)]
    gone: Annotated[list[Id16], Meta(max_length=Items)] = []
    complete: bool = True


class Unwatch(Message, frozen=True, tag=14):
    request: U63


# --------------------------------------------------------------------------------------- publishing
ACKS_QUORUM, ACKS_LEADER, ACKS_NONE = 0, 1, 2


class ProduceItem(Struct, frozen=True, array_like=True):
    """One batch, in the payload frame of its place. `version`: TopicInfo.version, so that a peer that has
    not heard of the topic yet says so (retriable) instead of calling it gone."""

    request: U63
    topic_id: Id16
    partition: U32
    version: U63
    acks: Annotated[int, Meta(ge=ACKS_QUORUM, le=ACKS_NONE)] = ACKS_QUORUM


class Produce(Message, frozen=True, tag=20):
    items: Annotated[list[ProduceItem], Meta(max_length=64)]


class Accepted(Struct, frozen=True, array_like=True):
    """`base_offset`: of the batch's first record; none unless its receipt waited for the quorum."""

    request: U63
    base_offset: U63 | None
    copies: U16


class Produced(Message, frozen=True, tag=21):
    """Receipts: each batch is on disk as promised. Answers come in any order, several in one message."""

    receipts: Annotated[list[Accepted], Meta(max_length=Items)]


# ------------------------------------------------------------------------------------------ reading
EARLIEST, LATEST, OFFSET, TIMESTAMP = 0, 1, 2, 3


class ReadItem(Struct, frozen=True, array_like=True):
    """`start`: EARLIEST, LATEST, OFFSET (`value`) or TIMESTAMP (`value` in ms: first record from then).

    `generation`: the slot's, in which what comes before the offset was read. Where the partition was shorter
    when a later one began, the reading begins at that end, below what was asked for: the rest is lost.
    """

    topic_id: Id16
    partition: U32
    version: U63
    start: U16
    value: U63 = 0
    generation: U63 | None = None


class Read(Message, frozen=True, tag=30):
    """Push me these partitions under subscription `sub` (numbers of the client's choice, per connection).

    May be sent again to add partitions; credit is per `sub` and connection. Answers: ReadStarted, ReadEnded.
    """

    sub: U63
    items: Annotated[list[ReadItem], Meta(max_length=Items)]


class Started(Struct, frozen=True, array_like=True):
    topic_id: Id16
    partition: U32
    offset: U63  # of the first record that will be pushed
    end: U63  # the high watermark now
    generation: U63 = 0  # of the slot: who has read in a higher one does not take this
    lease: U63 = 0  # of an ordered group: the partition is this member's, under it; 0: it is not


class ReadStarted(Message, frozen=True, tag=31):
    sub: U63
    items: Annotated[list[Started], Meta(max_length=Items)]


class Credit(Message, frozen=True, tag=32):
    """I can take this much more. A batch is pushed whole while both are above zero, and may overdraw once."""

    sub: U63
    bytes: U63
    records: U63


class DeliverItem(Struct, frozen=True, array_like=True):
    """One batch, in the payload frame of the same place. Records of it below `first` were read before."""

    topic_id: Id16
    partition: U32
    base_offset: U63
    timestamp_ms: U63  # when the leader appended it: what retention and time seeks use
    first: U63


class Deliver(Message, frozen=True, tag=33):
    sub: U63
    items: Annotated[list[DeliverItem], Meta(max_length=64)]


class ReadEnded(Message, frozen=True, tag=34):
    """No more of this partition from here, and why: NotOwner (ask the owner), TopicGone, Forbidden, ..."""

    sub: U63
    topic_id: Id16
    partition: U32
    status: U16
    name: Name
    text: Text


class Unread(Message, frozen=True, tag=35):
    """Stop these partitions, or with none named the whole subscription."""

    sub: U63
    items: Annotated[list[tuple[Id16, U32]], Meta(max_length=Items)] = []


class ExpiredItem(Struct, frozen=True, array_like=True):
    """`count` records below `next` went by the topic's retention before they were handed out."""

    topic_id: Id16
    partition: U32
    count: U63
    next: U63


class Expired(Message, frozen=True, tag=36):
    """Of a reader: it goes on at `next`. Of a group: told to each of its members that is there, and to the
    first one that comes if none is."""

    sub: U63
    items: Annotated[list[ExpiredItem], Meta(max_length=Items)]


# ------------------------------------------------------------------------------------------- groups
QUEUE, ORDERED, KEYED = 1, 2, 3  # modes
ACK, NACK, RELEASE, EXTEND, REJECT = 0, 1, 2, 3, 4  # verdicts


class Join(Message, frozen=True, tag=70):
    """Take part in a group: hand me records of these partitions under `sub`, as Read does with all of them.

    `member`: the same on all connections of one subscription, drawn at random. `start`: where a partition
    begins that the group has not been in yet. At most `in_flight` records and about `in_flight_bytes` are out
    at this peer at a time; sent again it counts anew, and items are added. Answers: ReadStarted, ReadEnded;
    ended by Unread.
    """

    sub: U63
    group: Name
    member: Id16
    mode: U16
    ack_wait_ms: U32  # a record that is not settled in this time is handed out again
    max_deliver: U32  # handed out so often in vain it becomes a dead letter; 0: as often as it takes
    in_flight: U32
    in_flight_bytes: U63
    items: Annotated[list[ReadItem], Meta(max_length=Items)]


class HandItem(Struct, frozen=True, array_like=True):
    """Records of one batch, in the payload frame of the same place: (first, end, how often handed out)."""

    topic_id: Id16
    partition: U32
    base_offset: U63
    timestamp_ms: U63
    lease: U63  # by which they are settled
    ranges: Annotated[list[tuple[U63, U63, U32]], Meta(max_length=Items)]


class HandOut(Message, frozen=True, tag=71):
    """These records are this member's until `ack_wait_ms` from now."""

    sub: U63
    items: Annotated[list[HandItem], Meta(max_length=64)]


class SettleItem(Struct, frozen=True, array_like=True):
    """What became of records: (first, end, lease).

    ACK: done. NACK: again after the delay (none: one that grows with the attempts). RELEASE: again, and this
    time does not count. EXTEND: the time they are this member's begins anew. REJECT: never again, they become
    dead letters, for this reason.
    """

    request: U63
    topic_id: Id16
    partition: U32
    verdict: U16
    ranges: Annotated[list[tuple[U63, U63, U63]], Meta(max_length=Items)]
    delay_ms: U32 | None = None
    reason: Reason = ""


class Settle(Message, frozen=True, tag=72):
    """Each item is answered on its own, by Settled or Failure; it may be sent again, to whoever leads."""

    sub: U63
    items: Annotated[list[SettleItem], Meta(max_length=Items)]


class Settled(Message, frozen=True, tag=73):
    """It holds, whatever happens to peers: by request, the records of which it does not, (first, end), for
    they are not this member's (any more)."""

    results: Annotated[
        list[tuple[U63, Annotated[list[tuple[U63, U63]], Meta(max_length=1 << 16)]]], Meta(max_length=Items)
    ]


class GrantedItem(Struct, frozen=True, array_like=True):
    topic_id: Id16
    partition: U32
    lease: U63  # by which records are settled
    offset: U63  # of the first record that will be pushed: everything below is done
    attempts: U32 = 1  # leases in a row that began with it


class Granted(Message, frozen=True, tag=74):
    """Ordered groups: these partitions are this member's. Their records follow, as Deliver."""

    sub: U63
    items: Annotated[list[GrantedItem], Meta(max_length=Items)]


class RevokedItem(Struct, frozen=True, array_like=True):
    """`over`: the lease has ended. Else finish what was begun, acknowledge it, and RELEASE the partition."""

    topic_id: Id16
    partition: U32
    lease: U63
    over: bool = False


class Revoked(Message, frozen=True, tag=75):
    """Ordered groups: these partitions are to go to another member, or have gone."""

    sub: U63
    items: Annotated[list[RevokedItem], Meta(max_length=Items)]


# ----------------------------------------------------------------------------------- administration
class Ask(Message, frozen=True, tag=40):
    """An administrative request by name: `what` and its arguments are listed in docs/protocol.md."""

    request: U63
    what: Name
    args: dict[str, Any] = {}


class Answer(Message, frozen=True, tag=41):
    request: U63
    value: Any


# ------------------------------------------------------------------------------------ between peers
class ProposeRegistry(Message, frozen=True, tag=53):
    """Commit this command (an encoded registry command), if you lead the system slot. Answer: Answer with its
    index, or Failure; NotOwner means that it was not committed by this leader, and may be tried at another.
    """

    request: U63
    command: bytes


class Replicate(Message, frozen=True, tag=56):
    """Messages of many slots' logs (replication/wire.py); payload frames as they say."""

    messages: Annotated[list[msgspec.Raw], Meta(max_length=Items)]


class Beat(Message, frozen=True, tag=57):
    """Support between two peers (replication/support.py).

    `echo` is the receiver's newest beat heard (0: none), of its run `echo_epoch`; `supports`: the sender
    treats the receiver as alive. `led` and `believed` are checksums: of what the sender leads among the
    receiver's slots, and of what it believes that the receiver leads. `slots` lists what it leads, (slot,
    term), when the receiver was seen to believe something else. `full`: the sender has no room for records;
    `frozen`: its disk was rolled back, and it leads nothing.
    """

    epoch: U63
    seq: U63
    echo: U63
    echo_epoch: U63
    supports: bool
    led: U32
    believed: U32
    slots: Annotated[list[tuple[U16, U63]], Meta(max_length=1 << 16)] | None = None
    full: bool = False
    frozen: bool = False


class Leads(Message, frozen=True, tag=58):
    """The sender leads these slots: (slot, term). What is not listed is as it was."""

    slots: Annotated[list[tuple[U16, U63]], Meta(max_length=1 << 16)]


class CarryGossip(Message, frozen=True, tag=60):
    """What a gossip datagram would have told, for one whose datagrams do not get through. No answer but such
    a message the other way."""

    payload: Annotated[bytes, Meta(max_length=DATAGRAM_BYTES_MAX)]


class MembershipAsked(Message, frozen=True, tag=65):
    """The sender keeps these slots although the ring does not place them there: (slot, its disk, index of the
    newest configuration it knows). Whoever leads one without that disk answers NotMember."""

    slots: Annotated[list[tuple[U16, Id16, U63]], Meta(max_length=Items)]


class NotMember(Message, frozen=True, tag=66):
    """Committed configurations without the receiver: (slot, its disk, index of the configuration, the
    configuration). What it has of the slot is not needed any more."""

    slots: Annotated[
        list[tuple[U16, Id16, U63, Annotated[bytes, Meta(max_length=8_192)]]], Meta(max_length=Items)
    ]


class HasLeft(Message, frozen=True, tag=67):
    """The receiver has left the mesh, by the registry's entry of this index: what it connects is refused from
    then on, so it would not hear of that otherwise."""

    version: U63


BulkyMessage = (
    Watch | Produce | Read | Unread | Join | Settle | ProposeRegistry | Replicate | Beat | Leads
    | MembershipAsked | NotMember
)  # fmt: skip
ClientMessage = (
    Hello | Ping | Resolve | Watch | Unwatch | Produce | Read | Credit | Unread | Join | Settle | Ask
)  # fmt: skip
PeerMessage = (
    ProposeRegistry | Replicate | Beat | Leads | CarryGossip | MembershipAsked | NotMember | HasLeft
)  # fmt: skip
ServerMessage = (
    Welcome | Pong | Failure | Routes | Resolved | TopicsChanged | Produced | ReadStarted | Deliver
    | ReadEnded | Expired | HandOut | Settled | Granted | Revoked | Answer
)  # fmt: skip
AnyMessage = ClientMessage | PeerMessage | ServerMessage

_encoder = msgspec.msgpack.Encoder()
_to_server: msgspec.msgpack.Decoder[ClientMessage | PeerMessage] = msgspec.msgpack.Decoder(
    ClientMessage | PeerMessage
)
# The arguments of an Ask are free in form, and 6 MiB of empty maps become 440 MiB of objects: only messages
# whose lists are counted while they are read may be big.
_bulky_to_server: msgspec.msgpack.Decoder[BulkyMessage] = msgspec.msgpack.Decoder(BulkyMessage)
_to_client: msgspec.msgpack.Decoder[ServerMessage] = msgspec.msgpack.Decoder(ServerMessage)


encode: Final[Callable[[Message], bytes]] = _encoder.encode


def decode_request(data: Buffer) -> ClientMessage | PeerMessage:
    """What a peer may be sent. Raises: RemoteProtocolError."""
    try:
        return (_to_server if len(data) <= ASK_BYTES_MAX else _bulky_to_server).decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as e:
        raise RemoteProtocolError(f"a message that cannot be read: {e}") from None


def decode_answer(data: Buffer) -> ServerMessage:
    """What a peer answers or pushes. Raises: RemoteProtocolError."""
    try:
        return _to_client.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as e:
        raise RemoteProtocolError(f"a message that cannot be read: {e}") from None


def failure(request: int, error: MeshqError) -> Failure:
    """The answer that carries this error."""
    retry_after_ms = min(max(0, error.retry_after_ms), (1 << 32) - 1)
    return Failure(request, error.status, type(error).__name__, str(error)[:2_000], retry_after_ms)


def error_of(answer: Failure | ReadEnded) -> MeshqError:
    """The error that this answer carries, to be raised here."""
    retry = answer.retry_after_ms if isinstance(answer, Failure) else 0
    return from_wire(answer.status, answer.name, answer.text, retry)
