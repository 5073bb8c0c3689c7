"""A mesh in memory that speaks the server's side of messages.py: what the client is tested against.

Its state is durable (a peer may restart and keeps topics, logs and producers), its sessions are not. The
checks on sequences are written down anew here, from the protocol, so that client and server are not wrong
together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from meshq import batch as batches
from meshq import topics
from meshq.batch import Buffer
from meshq.errors import (
    MeshqError,
    NotOwner,
    OutOfOrderSequence,
    SequenceConflict,
    TopicGone,
    UnknownProducer,
    UnknownTopic,
)
from meshq.messages import (
    EARLIEST,
    LATEST,
    OFFSET,
    VERB,
    Accepted,
    Answer,
    Ask,
    Credit,
    Deliver,
    DeliverItem,
    Hello,
    Message,
    PeerRoute,
    Ping,
    Pong,
    Produce,
    Produced,
    ProduceItem,
    Read,
    ReadEnded,
    ReadItem,
    ReadStarted,
    Resolve,
    Resolved,
    Routes,
    Started,
    TopicInfo,
    TopicsChanged,
    Unread,
    Unwatch,
    Watch,
    Welcome,
    decode_request,
    encode,
    failure,
)
from meshq.ring import slot_of

MESH_ID = b"fake mesh 16 byt"
SLOTS = 16
KEPT = 32
FORGET_MS = 15 * 60_000
PartKey = tuple[bytes, int]


@dataclass
class Stored:
    base: int
    count: int
    timestamp_ms: int
    data: bytes


@dataclass
class ProducerState:
    next: int = 0
    used_ms: int = 0
    receipts: deque[tuple[int, int, int]] = field(
        default_factory=lambda: deque(maxlen=KEPT)
    )  # first, crc, base


@dataclass
class Log:
    low: int = 0
    end: int = 0
    stored: list[Stored] = field(default_factory=list)
    producers: dict[bytes, ProducerState] = field(default_factory=dict)


@dataclass(eq=False)
class Session:
    peer: FakePeer
    send: Callable[[Message, tuple[Buffer, ...]], None]
    greeted: bool = False
    watches: dict[int, Watch] = field(default_factory=dict)
    credit: dict[int, list[int]] = field(default_factory=dict)  # sub -> bytes, records
    readers: dict[tuple[int, PartKey], int] = field(default_factory=dict)  # -> position


@dataclass(eq=False)
class FakePeer:
    mesh: FakeMesh
    number: int
    up: bool = True
    sessions: list[Session] = field(default_factory=list)

    @property
    def key(self) -> bytes:
        return self.mesh.keys.get(self.number, bytes([self.number + 1]) * 32)

    @property
    def address(self) -> str:
        return self.mesh.addresses.get(self.number, f"10.0.0.{self.number + 1}:7700")

    # ---------------------------------------------------------------------------------------------- a session
    def hear(self, session: Session, message: Message, payloads: list[Buffer]) -> None:
        mesh = self.mesh
        mesh.heard.append((self.number, message))
        match message:
            case Hello():
                session.greeted = True
                session.send(Welcome(1, mesh.mesh_id, bytes([self.number]) * 16, bytes(16), mesh.now_ms), ())
                session.send(mesh.routes(), ())
            case Ping():
                session.send(Pong(message.token), ())
            case Resolve():
                self._answer(
                    session, message.request, lambda: Resolved(message.request, mesh.resolve(message))
                )
            case Watch():
                session.watches[message.request] = message
                found = [t for t in mesh.topics.values() if _means(message, t.name)]
                session.send(TopicsChanged(message.request, mesh.now_ms, found), ())
            case Unwatch():
                session.watches.pop(message.request, None)
            case Produce():
                for item, payload in zip(message.items, payloads, strict=True):
                    self._answer(session, item.request, lambda i=item, p=payload: self._produce(i, bytes(p)))
                mesh.push_all()
            case Read():
                for item in message.items:
                    self._read(session, message.sub, item)
                mesh.push_all()
            case Credit():
                credit = session.credit.setdefault(message.sub, [0, 0])
                credit[0] += message.bytes
                credit[1] += message.records
                mesh.push_all()
            case Unread():
                keys = message.items or [k for s, k in session.readers if s == message.sub]
                for key in keys:
                    session.readers.pop((message.sub, tuple(key)), None)
                if not message.items:
                    session.credit.pop(message.sub, None)
            case Ask():
                self._answer(session, message.request, lambda: Answer(message.request, mesh.asked(message)))

    def _answer(self, session: Session, request: int, make: Callable[[], Message | None]) -> None:
        try:
            answer = make()
        except MeshqError as e:
            session.send(failure(request, e), ())
            return
        if answer is not None:
            session.send(answer, ())

    def _check_owner(self, topic_id: bytes, partition: int) -> None:
        if topic_id in self.mesh.gone:
            raise TopicGone("deleted")
        if self.mesh.owner_of((topic_id, partition)) is not self:
            raise NotOwner("ask the owner")

    def _produce(self, item: ProduceItem, payload: bytes) -> Message | None:
        refusal = self.mesh.refuse(item, payload)
        if refusal is not None:
            raise refusal
        self._check_owner(item.topic_id, item.partition)
        info = next(t for t in self.mesh.topics.values() if t.topic_id == item.topic_id)
        header = batches.check(payload, record_bytes_max=info.record_bytes_max)
        log = self.mesh.logs.setdefault((item.topic_id, item.partition), Log())
        state = log.producers.get(header.producer_id)
        if state is not None and state.used_ms + FORGET_MS < self.mesh.now_ms:
            del log.producers[header.producer_id]
            state = None
        if state is None and header.first_sequence:
            raise UnknownProducer("never heard of it")
        state = state or log.producers.setdefault(header.producer_id, ProducerState())
        for first, crc, base in state.receipts:
            if first == header.first_sequence:
                if crc != header.body_crc:
                    raise SequenceConflict("other bytes")
                return Produced([Accepted(item.request, base, 1)])
        if header.first_sequence != state.next:
            raise OutOfOrderSequence(f"{header.first_sequence} instead of {state.next}")
        base = log.end
        log.end += header.count
        log.stored.append(Stored(base, header.count, self.mesh.now_ms, payload))
        state.next += header.count
        state.used_ms = self.mesh.now_ms
        state.receipts.append((header.first_sequence, header.body_crc, base))
        after = self.mesh.after_append(item)
        if after is not None:
            raise after
        return Produced([Accepted(item.request, base, 1)])

    def _read(self, session: Session, sub: int, item: ReadItem) -> None:
        key = (item.topic_id, item.partition)
        try:
            refusal = self.mesh.refuse_read(item)
            if refusal is not None:
                raise refusal
            self._check_owner(*key)
        except MeshqError as e:
            session.send(ReadEnded(sub, *key, e.status, type(e).__name__, str(e)), ())
            return
        log = self.mesh.logs.setdefault(key, Log())
        match item.start:
            case 0:
                offset = log.low
            case 1:
                offset = log.end
            case 2:
                offset = max(item.value, log.low)
            case _:
                later = [s.base for s in log.stored if s.timestamp_ms >= item.value]
                offset = max(min(later, default=log.end), log.low)
        assert item.start in (EARLIEST, LATEST, OFFSET, 3)
        session.readers[sub, key] = offset
        session.send(ReadStarted(sub, [Started(*key, offset, log.end)]), ())

    def push(self) -> None:
        """Deliver to every reader that has credit, a batch a message."""
        for session in self.sessions:
            for (sub, key), position in list(session.readers.items()):
                credit = session.credit.setdefault(sub, [0, 0])
                for stored in self.mesh.logs[key].stored:
                    end = stored.base + stored.count
                    if end <= position or credit[0] <= 0 or credit[1] <= 0:
                        continue
                    first = max(position, stored.base)
                    credit[0] -= len(stored.data)
                    credit[1] -= end - first
                    position = session.readers[sub, key] = end
                    item = DeliverItem(*key, stored.base, stored.timestamp_ms, first)
                    session.send(Deliver(sub, [item]), (stored.data,))


class FakeMesh:
    """Peers that share one durable state. `refuse`, `refuse_read`, `after_append` are the test's to
    replace.
    """

    def __init__(self, peers: int = 1) -> None:
        self.mesh_id = MESH_ID
        self.now_ms = 1_000_000
        self.peers = [FakePeer(self, i) for i in range(peers)]
        self.addresses: dict[int, str] = {}
        self.keys: dict[int, bytes] = {}
        self.owners = [i % peers for i in range(SLOTS)]
        self.version = 1
        self.topics: dict[str, TopicInfo] = {}
        self.gone: set[bytes] = set()
        self.logs: dict[PartKey, Log] = {}
        self.heard: list[tuple[int, Message]] = []
        self.refuse: Callable[[ProduceItem, bytes], MeshqError | None] = lambda item, payload: None
        self.after_append: Callable[[ProduceItem], MeshqError | None] = lambda item: None
        self.refuse_read: Callable[[ReadItem], MeshqError | None] = lambda item: None
        self.refuse_resolve: Callable[[str], MeshqError | None] = lambda name: None
        self.asked: Callable[[Ask], Any] = lambda ask: {"what": ask.what, **ask.args}

    def routes(self) -> Routes:
        peers = [
            PeerRoute(bytes([p.number]) * 16, f"peer{p.number + 1}", p.key, [p.address]) for p in self.peers
        ]
        return Routes(self.version, peers, self.owners)

    def move(self, owners: list[int]) -> None:
        self.owners = owners
        self.version += 1
        for peer in self.peers:
            for session in peer.sessions:
                if session.greeted:
                    session.send(self.routes(), ())

    def owner_of(self, key: PartKey) -> FakePeer:
        return self.peers[self.owners[slot_of(key[0], key[1], SLOTS)]]  # type: ignore[arg-type]

    def add_topic(self, name: str, partitions: int = 1, record_bytes_max: int = 1 << 20) -> TopicInfo:
        old = self.topics.get(name)
        topic_id = old.topic_id if old else (b"%d-%s" % (len(self.topics) + len(self.gone), name.encode()))
        self.version += 1
        info = TopicInfo(name, topic_id[:16].ljust(16, b"."), partitions, self.version, record_bytes_max)
        self.topics[name] = info
        self._tell_watchers(info, [])
        return info

    def delete_topic(self, name: str) -> None:
        info = self.topics.pop(name)
        self.gone.add(info.topic_id)
        self._tell_watchers(info, [info.topic_id])

    def resolve(self, message: Resolve) -> TopicInfo:
        refusal = self.refuse_resolve(message.topic)
        if refusal is not None:
            raise refusal
        if message.topic not in self.topics:
            if not message.create:
                raise UnknownTopic(message.topic)
            self.add_topic(message.topic)
        return self.topics[message.topic]

    def records(self, topic: str, partition: int = 0) -> list[bytes]:
        """The values of a partition, checked to stand at dense offsets."""
        log = self.logs.get((self.topics[topic].topic_id, partition), Log())
        values: list[bytes] = []
        for stored in log.stored:
            assert stored.base == len(values)
            values += [r.value for r in batches.read_records(stored.data)]
        assert log.end == len(values)
        return values

    def store(self, topic: str, values: list[bytes], partition: int = 0) -> None:
        """Append without a producer."""
        info = self.topics[topic]
        body = batches.seal([batches.RawRecord(None, v) for v in values], base_timestamp_ms=self.now_ms)
        log = self.logs.setdefault((info.topic_id, partition), Log())
        log.stored.append(Stored(log.end, len(values), self.now_ms, batches.frame(body)))
        log.end += len(values)
        self.push_all()

    def push_all(self) -> None:
        for peer in self.peers:
            peer.push()

    def _tell_watchers(self, info: TopicInfo, gone: list[bytes]) -> None:
        for peer in self.peers:
            for session in peer.sessions:
                for request, watch in session.watches.items():
                    if _means(watch, info.name):
                        news = [] if gone else [info]
                        session.send(TopicsChanged(request, self.now_ms, news, gone), ())


def _means(watch: Watch, name: str) -> bool:
    return name.startswith(tuple(watch.prefixes)) if watch.prefixes else topics.matches(watch.pattern, name)


class FakeOpener:
    """Links to a FakeMesh for a ClientDriver: everything goes through bytes and the loop, in order."""

    def __init__(self, mesh: FakeMesh) -> None:
        self.mesh = mesh
        self.links: list[FakeLink] = []
        self.opened: list[int] = []
        self.closed = False

    def open(
        self,
        server_key: bytes,
        endpoints: list[str],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        on_frames: Callable[[list[Buffer]], None],
    ) -> FakeLink:
        peer = self.mesh.peers[server_key[0] - 1]
        self.opened.append(peer.number)
        link = FakeLink(peer, on_up, on_down, on_frames)
        self.links = [x for x in self.links if not x.closed] + [link]
        return link

    def close(self) -> None:
        self.closed = True

    def cut(self, peer: FakePeer, reason: str = "the connection was lost") -> None:
        for link in [x for x in self.links if x.peer is peer]:
            link.cut(reason)


class FakeLink:
    def __init__(
        self,
        peer: FakePeer,
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        on_frames: Callable[[list[Buffer]], None],
    ) -> None:
        self.peer = peer
        self.closed = False
        self.deaf = False  # takes nothing
        self.session = Session(peer, self._deliver)
        self._on_down = on_down
        self._on_frames = on_frames
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._begin, on_up)

    def _begin(self, on_up: Callable[[], None]) -> None:
        if self.closed:
            return
        if not self.peer.up:
            self.cut("nobody listens there")
            return
        self.peer.sessions.append(self.session)
        on_up()

    def send(self, frames: list[Buffer]) -> bool:
        if self.deaf:
            return False
        copied = [bytes(f) for f in frames]
        self._loop.call_soon(self._hear, copied)
        return True

    def _hear(self, frames: list[bytes]) -> None:
        if not self.closed:
            assert frames[0] == VERB
            self.peer.hear(self.session, decode_request(frames[1]), list(frames[2:]))

    def _deliver(self, message: Message, payloads: tuple[Buffer, ...]) -> None:
        frames: list[Buffer] = [VERB, encode(message), *payloads]
        self._loop.call_soon(lambda: None if self.closed else self._on_frames(frames))

    def cut(self, reason: str) -> None:
        if not self.closed:
            self.close()
            self._on_down(reason)

    def close(self) -> None:
        self.closed = True
        if self.session in self.peer.sessions:
            self.peer.sessions.remove(self.session)
