"""One peer core alone: every event by hand, every effect in sight. Its disk writes when it is told to."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from meshq import batch
from meshq.batch import Buffer
from meshq.entries import Entry, Payload, StoredBatch
from meshq.errors import MeshqError
from meshq.ids import LOCAL_SLOT, SYSTEM_SLOT, PartitionKey, Session, Slot, TopicId
from meshq.messages import Ask, Failure, Hello, Message, Produce, ProduceItem, Read, ReadItem, TopicInfo
from meshq.peer.core import events as e
from meshq.peer.core.context import CoreSettings, Me
from meshq.peer.core.core import PeerCore
from meshq.peer.core.hosts import Tail
from meshq.peer.papers import verifier
from meshq.registry import commands
from meshq.registry.state import GENESIS_DISK, Registry
from meshq.replication import words
from meshq.replication.quorum import Node
from meshq.replication.words import Item
from meshq.security.authority import Authority
from meshq.security.certificates import Verb, issue
from meshq.security.identity import Identity
from meshq.streams.publish import payload_key_of
from meshq.streams.rows import applied_index

AUTHORITY = Authority(b"a" * 32)
WALL_MS = 1_700_000_000_000
ROOM = 1 << 40
SLOTS = 4


@functools.cache
def identity(name: str) -> Identity:
    rng = random.Random(name)
    return Identity(name, rng.randbytes(32), rng.randbytes(32))


@functools.cache
def certificate(name: str) -> bytes:
    who = identity(name)
    return issue(
        AUTHORITY, kind="peer", name=name, signing_key=who.signing_key, curve_key=who.curve_public,
        serial=bytes(16), now=WALL_MS / 1000,
    ).encode()  # fmt: skip


def client_certificate(name: str, *capabilities: tuple[Verb, str], valid_s: int | None = None) -> bytes:
    return issue(
        AUTHORITY, kind="client", name=name, curve_key=identity(name).curve_public, serial=bytes(16),
        now=WALL_MS / 1000, capabilities=capabilities, valid_s=valid_s,
    ).encode()  # fmt: skip


@dataclass
class Single:
    """A core of peer `me` in a mesh of founders a and b, where a holds the registry.

    `wrote` keeps what the disk has; `out` what was ordered and not looked at yet.
    """

    name: str = "a"
    founders: Sequence[str] = ("a",)
    settings: CoreSettings = field(default_factory=CoreSettings)
    now: float = 0.0
    out: list[e.Effect] = field(default_factory=list)
    waiting: list[e.Persist] = field(default_factory=list)
    entries: dict[Slot, list[Entry]] = field(default_factory=dict)
    rows: dict[Slot, dict[bytes, bytes]] = field(default_factory=dict)
    payloads: dict[PartitionKey, list[Payload]] = field(default_factory=dict)
    room: int = ROOM
    hold: bool = False  # writes wait for `write()`

    def __post_init__(self) -> None:
        self._requests = 0
        self._ids = random.Random(1)
        self._rng = random.Random(2)
        self.start()

    # ---------------------------------------------------------------------------------------------- its life
    def start(self) -> None:
        """From what the disk has."""
        who = identity(self.name)
        holder = identity(self.founders[0]).peer_id
        boot = self._ids.randbytes(16)
        registry = Registry(
            AUTHORITY.mesh_id,
            slots=SLOTS,
            replicas=3,
            founders=[certificate(n) for n in self.founders],
            verify=verifier(AUTHORITY.key),
        )
        me = Me(who.peer_id, self.name, who.curve_public, boot, holder)
        self.core = PeerCore(
            me, registry, settings=self.settings, random_id=lambda: self._ids.randbytes(16), rng=self._rng
        )
        self.waiting.clear()
        if SYSTEM_SLOT in self.entries or SYSTEM_SLOT in self.rows:
            rows = self.rows.get(SYSTEM_SLOT, {})
            self.core.restore_registry(rows, self.entries.get(SYSTEM_SLOT, []))
        self.core.restore_local(self.rows.get(LOCAL_SLOT, {}))
        for slot in sorted((set(self.rows) | set(self.entries)) - {SYSTEM_SLOT, LOCAL_SLOT}):
            log, rows = self.entries.get(slot, []), self.rows.get(slot, {})
            applied = applied_index(rows)
            tail = [Item(x, self._payload(x)) for x in log if x.index > applied]
            self.core.restore_slot(slot, rows, tail=Tail(tail), aside={})
        self._carry_out(self.core.start(now=self.now, wall_ms=self.wall_ms, room_bytes=self.room))

    @property
    def wall_ms(self) -> int:
        return WALL_MS + int(self.now * 1000)

    def tell(self, event: e.Event) -> list[e.Effect]:
        """What came of it alone."""
        before = len(self.out)
        self._carry_out(self.core.handle(event, now=self.now, wall_ms=self.wall_ms))
        return self.out[before:]

    def tick(self, seconds: float = 0.0) -> list[e.Effect]:
        self.now += seconds
        return self.tell(e.Ticked())

    def _carry_out(self, effects: list[e.Effect]) -> None:
        self.out += effects
        self.waiting += [x for x in effects if isinstance(x, e.Persist)]
        if self.waiting and not self.hold:
            self.write()

    # ---------------------------------------------------------------------------------------------- its disk
    def _payload(self, entry: Entry) -> Buffer:
        key = payload_key_of(entry)
        if key is None:
            return b""
        stored = self.payloads[key.partition]
        return next(p.data for p in stored if p.base_offset == key.base_offset)

    def write(self) -> None:
        """Everything that waits is on disk."""
        writes, self.waiting = [x.write for x in self.waiting], []
        for w in writes:
            if w.truncate_from is not None:
                kept = [x for x in self.entries.get(w.slot, []) if x.index < w.truncate_from]
                self.entries[w.slot] = kept
            for partition, first, end in w.rewritten:
                stored = self.payloads.get(partition, [])
                stored[:] = [p for p in stored if not first <= p.base_offset < end]
            for gone in w.dropped:
                stored = self.payloads.get(gone.partition, [])
                stored[:] = [p for p in stored if p.base_offset != gone.base_offset]
            self.entries.setdefault(w.slot, []).extend(w.entries)
            rows = self.rows.setdefault(w.slot, {})
            for key, value in w.rows:
                rows.pop(key, None)
                if value is not None:
                    rows[key] = value
            for p in w.payloads:
                stored = self.payloads.setdefault(p.partition, [])
                stored.append(p)
                stored.sort(key=lambda x: x.base_offset)
        if writes:
            self.tell(e.WritesDone([w.token for w in writes], self.room))

    def refuse(self, error: MeshqError) -> list[e.Effect]:
        """The disk takes none of what waits."""
        self.waiting.clear()
        return self.tell(e.WritesFailed(error, self.room))

    def fetch(self) -> None:
        """Answer every fetch that was ordered."""
        for effect in self.take(e.FetchBatches):
            f = effect.fetch
            found = [
                StoredBatch(p.partition, p.base_offset, p.count, p.timestamp_ms, bytes(p.data))
                for p in self.payloads.get(f.partition, [])
                if p.base_offset + p.count > f.offset and p.base_offset < f.end
            ]
            self.tell(e.BatchesFetched(f, found))

    # ------------------------------------------------------------------------------------------- its clients
    def send(
        self,
        message: Message,
        *payloads: bytes,
        session: Session = (e.CLIENTS, b"1"),
        key: bytes | None = None,
    ) -> list[Any]:
        """What that session is sent, its disk included. Its key is this peer's own unless told."""
        before = len(self.out)
        key = identity(self.name).curve_public if key is None else key
        self.tell(e.MessageArrived(session, key, message, payloads))  # type: ignore[arg-type]
        return self.heard(session, before)

    def heard(self, session: Session = (e.CLIENTS, b"1"), since: int = 0) -> list[Any]:
        return [x.message for x in self.out[since:] if isinstance(x, e.SendSession) and x.session == session]

    def take(self, kind: type[Any]) -> list[Any]:
        """The effects of this kind, taken away."""
        found = [x for x in self.out if isinstance(x, kind)]
        self.out = [x for x in self.out if not isinstance(x, kind)]
        return found

    def hello(self, **about: Any) -> list[Any]:
        return self.send(Hello(1, 1, AUTHORITY.mesh_id), **about)

    def ask(
        self, what: str, *, session: Session = (e.CLIENTS, b"1"), key: bytes | None = None, **args: Any
    ) -> Any:
        """The answer's value, or the failure."""
        self._requests += 1
        (answer,) = [
            m
            for m in self.send(Ask(self._requests, what, args), session=session, key=key)
            if getattr(m, "request", None) == self._requests
        ]
        return answer if isinstance(answer, Failure) else answer.value

    def make_topic(self, name: str = "t", partitions: int = 1, **args: Any) -> TopicInfo:
        self.propose(
            commands.CreateTopic(name, self._ids.randbytes(16), partitions, args.get("size", 1 << 20))
        )
        follow(self)
        info = self.core.ctx.registry.topic(name)
        assert info is not None
        return info

    def propose(self, command: commands.AnyCommand) -> None:
        self.tell(e.ProposalMade(0, commands.encode(command)))

    def register(self, name: str, *capabilities: tuple[Verb, str], valid_s: int | None = None) -> bytes:
        """A client's key."""
        self.propose(commands.RegisterClient(client_certificate(name, *capabilities, valid_s=valid_s)))
        return identity(name).curve_public

    def produce(
        self,
        info: TopicInfo,
        *values: bytes,
        partition: int = 0,
        request: int = 1,
        version: int | None = None,
        producer: bytes = batch.NO_PRODUCER,
        sequence: int = 0,
        **about: Any,
    ) -> list[Any]:
        item = ProduceItem(request, info.topic_id, partition, info.version if version is None else version)
        payload = make_batch(*values, producer=producer, sequence=sequence)
        return self.send(Produce([item]), payload, **about)

    def read(
        self,
        info: TopicInfo,
        start: int = 0,
        value: int = 0,
        *,
        partition: int = 0,
        sub: int = 1,
        **about: Any,
    ) -> list[Any]:
        item = ReadItem(info.topic_id, partition, info.version, start, value)
        return self.send(Read(sub, [item]), **about)


def elect(peer: Single) -> None:
    """Have the other founders support this peer and vote for it in every slot, while nothing is held."""
    me = Node(identity(peer.name).peer_id, GENESIS_DISK)
    others = [identity(n).peer_id for n in peer.founders if n != peer.name]
    slots = peer.core.slots
    for _ in range(40):
        for other in others:
            slots.supported_by.add(other)
            for host in slots.hosts.values():
                slots.tell(host, words.SupportGot(other, True))
        peer.tick(0.05)
        asked = peer.take(e.SendPeer)
        for host in list(slots.hosts.values()):
            term = host.replica.term
            for other in others:
                node = Node(other, GENESIS_DISK)
                slots.tell(host, words.Received(node, words.VoteReply(term + 1, True, True)))
                slots.tell(host, words.Received(node, words.VoteReply(term, True)))
                ok = words.AppendReply(term, True, host.replica.last.index)
                slots.tell(host, words.Received(node, ok))
        peer.tick()
        if all(h.leads for h in slots.hosts.values()):
            return
    raise AssertionError(f"{me} was not elected: {asked}")


def follow(peer: Single) -> None:
    """The other founders have all that this peer leads on disk."""
    for host in peer.core.slots.led():
        ok = words.AppendReply(host.replica.term, True, host.replica.last.index)
        for node in host.replica.config.nodes() - {peer.core.slots.me}:
            peer.core.slots.tell(host, words.Received(node, ok))


def make_batch(*values: bytes, producer: bytes = batch.NO_PRODUCER, sequence: int = 0) -> bytes:
    body = batch.seal([batch.RawRecord(None, v) for v in values or (b"x",)], base_timestamp_ms=0)
    return batch.frame(body, producer_id=producer, epoch=0, first_sequence=sequence)


def key_of(info: TopicInfo, partition: int = 0) -> PartitionKey:
    return PartitionKey(TopicId(info.topic_id), partition)
