"""The registry's state: peers, clients and topics, computed from genesis and the system slot's log.

Every peer holds a copy; `version` is the index of the last entry applied, and a copy only ever moves forward.
Certificates are checked here once more against the authority's key, so that a peer that holds the registry
cannot slip in one the authority never signed.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol, assert_never

from msgspec.structs import replace

from meshq.errors import MeshqError, Overloaded, Refused, SecurityError, TopicExists, TopicGone, UsageError
from meshq.ids import MeshId, PeerId, TopicId, peer_id_of
from meshq.levels import LEVEL_KNOWN, WITNESSES
from meshq.limits import CLIENTS_MAX, DEAD_LETTER_TOPICS_MAX, LEFT_PEERS_KEPT, PEERS_MAX, TOPICS_MAX
from meshq.messages import Retain, TopicInfo
from meshq.registry.commands import (
    LEAVING,
    LEFT,
    MEMBER,
    AnyCommand,
    CreateTopic,
    DeleteTopic,
    PlacePeer,
    RegisterClient,
    RegisterPeer,
    SetLevel,
    SetStanding,
    SetTopic,
)
from meshq.ring import RingPeer, owners, slot_of, witnesses_of
from meshq.topics import check_topic, dead_letters_of, source_of

SET_MAX = 4_096  # changes of topics' settings that are not made twice; as many wait at most at a few peers
DELETED_MAX = 65_536  # topics' ids that are not made again; a proposal is repeated within seconds
GENESIS_DISK = bytes(16)  # the id of the disk that a founding peer begins with, so that genesis can name it


class CertificateFacts(Protocol):
    """What the registry reads in a certificate (security.certificates.Certificate fits)."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def signing_key(self) -> bytes: ...
    @property
    def curve_key(self) -> bytes: ...
    @property
    def capabilities(self) -> Sequence[tuple[str, str]]: ...
    @property
    def not_after_s(self) -> int: ...
    @property
    def weight(self) -> float: ...
    @property
    def zone(self) -> str: ...
    @property
    def witness(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Registered:
    """A peer or client with a certificate; `version`: when it was registered."""

    facts: CertificateFacts
    certificate: bytes
    version: int


# What a command changed, for whoever acts on it.
@dataclass(frozen=True, slots=True)
class PeersChanged:
    peer: PeerId


@dataclass(frozen=True, slots=True)
class ClientsChanged:
    key: bytes


@dataclass(frozen=True, slots=True)
class TopicChanged:
    info: TopicInfo


@dataclass(frozen=True, slots=True)
class TopicRemoved:
    info: TopicInfo


@dataclass(frozen=True, slots=True)
class LevelRaised:
    level: int


Change = PeersChanged | ClientsChanged | TopicChanged | TopicRemoved | LevelRaised


class Registry:
    """Applied state. `verify` turns signed certificate bytes into their facts or raises SecurityError;
    `level`: the feature level the mesh was made with.
    """

    def __init__(
        self,
        mesh: MeshId,
        *,
        slots: int,
        replicas: int,
        founders: Sequence[bytes],
        verify: Callable[[bytes], CertificateFacts],
        level: int = LEVEL_KNOWN,
    ) -> None:
        self.mesh = mesh
        self.slots = slots
        self.replicas = replicas
        self.version = 0
        self.level = level
        self.peers: dict[PeerId, Registered] = {}
        self.peer_of_key: dict[bytes, PeerId] = {}
        self.placed: dict[PeerId, tuple[float, str]] = {}  # weight and zone; of registered peers
        self.leaving: dict[PeerId, int] = {}  # since which index
        self.left: dict[PeerId, Registered] = {}  # as they were; the newest ones, LEFT_PEERS_KEPT
        self.clients: dict[bytes, Registered] = {}
        self._client_names: set[str] = set()
        self.topics: dict[TopicId, TopicInfo] = {}
        self._by_name: dict[str, TopicInfo] = {}
        self._graves: Counter[str] = Counter()  # by topic: how many have dead letters of its groups
        self._names: list[str] = []  # sorted, for listing in pages
        self._set: dict[bytes, int] = {}  # changes of topics and when; the newest ones, SET_MAX
        self._deleted: dict[TopicId, None] = {}  # the newest ones; bounded by DELETED_MAX
        self._verify = verify
        for certificate in founders:
            self._register_peer(RegisterPeer(certificate), 0)
        self.founders = tuple(self.peers)
        self.genesis_owners = owners(self.ring_peers(), slots=slots, replicas=replicas)
        self.genesis_witnesses = witnesses_of(self.genesis_owners, self.ring_peers(), self.ring_witnesses())

    def ring_peers(self) -> list[RingPeer]:
        """Whom slots are placed on: who is leaving is none of them, nor is a witness."""
        return [p for p in self._staying() if not self.is_witness(p.peer)]

    def ring_witnesses(self) -> list[RingPeer]:
        return [p for p in self._staying() if self.is_witness(p.peer)]

    def _staying(self) -> list[RingPeer]:
        return [RingPeer(peer, *self.place(peer)) for peer in sorted(self.peers.keys() - self.leaving.keys())]

    def is_witness(self, peer: PeerId) -> bool:
        return self.peers[peer].facts.witness

    def place(self, peer: PeerId) -> tuple[float, str]:
        """Weight and zone of a registered peer."""
        facts = self.peers[peer].facts
        return self.placed.get(peer) or (facts.weight, facts.zone)

    def standing(self, peer: PeerId) -> str:
        if peer in self.left:
            return "left"
        return "leaving" if peer in self.leaving else "member"

    def topic(self, name: str) -> TopicInfo | None:
        return self._by_name.get(name)

    def names(self, after: str = "", *, from_name: str = "") -> Iterator[str]:
        """Topic names in order: behind `after`, or beginning with what `from_name` begins with."""
        start = bisect_left(self._names, after or from_name.rstrip("."))
        if after and start < len(self._names) and self._names[start] == after:
            start += 1
        for i in range(start, len(self._names)):
            yield self._names[i]

    def apply(self, index: int, command: AnyCommand) -> list[Change] | MeshqError:
        """The next committed command: what changed, or why it was refused."""
        self.version = index
        try:
            match command:
                case RegisterPeer():
                    return self._register_peer(command, index)
                case RegisterClient():
                    return self._register_client(command, index)
                case CreateTopic():
                    return self._create_topic(command, index)
                case SetTopic():
                    return self._set_topic(command, index)
                case DeleteTopic():
                    return self._delete_topic(command)
                case SetStanding():
                    return self._set_standing(command, index)
                case PlacePeer():
                    return self._place_peer(command)
                case SetLevel():
                    return self._set_level(command)
                case _:
                    assert_never(command)
        except MeshqError as refusal:
            return refusal

    def refusal(self, command: AnyCommand) -> MeshqError | None:
        """Whether it would be refused as things stand, so that what is refused anyway costs no entry of a log
        that is kept for ever. Applying decides again.
        """
        try:
            match command:
                case RegisterPeer():
                    facts = self._check_peer(command)
                    if peer_id_of(facts.signing_key) in self.left:  # applied where a log has it already
                        raise Refused(f"{facts.name!r} has left the mesh for good: join anew, with new keys")
                case RegisterClient():
                    self._check_client(command)
                case CreateTopic():
                    self._check_create(command)
                case SetTopic():
                    self._check_set(command)
                case DeleteTopic():
                    self._existing(command.topic_id)
                case SetStanding():
                    self._check_standing(command)
                case PlacePeer():
                    self._check_registered(command.peer)
                case SetLevel():
                    self._check_level(command)
                case _:
                    assert_never(command)
        except MeshqError as refusal:
            return refusal
        return None

    def made_at(self, command: AnyCommand) -> int | None:
        """The index at which this very topic is as it was last set, or at which this very change was made:
        its proposal came before, and its answer was lost. Its id says so, because whoever proposes it draws
        one.
        """
        if isinstance(command, SetTopic):
            return self._set.get(command.change)
        if not isinstance(command, CreateTopic):
            return None
        info = self.topics.get(TopicId(command.topic_id))
        return info.version if info is not None and info.name == command.name else None

    def _check_peer(self, command: RegisterPeer) -> CertificateFacts:
        facts = self._verify(command.certificate)
        if facts.kind != "peer":
            raise SecurityError(f"the certificate of {facts.name!r} is a {facts.kind}'s, not a peer's")
        peer = peer_id_of(facts.signing_key)
        if any(r.facts.name == facts.name for p, r in self.peers.items() if p != peer):
            raise Refused(f"a peer named {facts.name!r} is registered already: choose another with --name")
        # A key decides whose a connection is: nobody registers the one that somebody else connects with.
        if self.peer_of_key.get(facts.curve_key, peer) != peer or facts.curve_key in self.clients:
            raise Refused(f"the CURVE key of {facts.name!r} is somebody else's: make new keys")
        old = self.peers.get(peer)
        if old is not None and old.facts.witness != facts.witness:
            raise Refused(f"{facts.name!r} is a witness, or is none, for life: let it leave, and join anew")
        if facts.witness and self.level < WITNESSES:
            raise Refused(f"a witness needs feature level {WITNESSES}, the mesh has {self.level}")
        if peer not in self.peers and len(self.peers) >= PEERS_MAX:
            raise Overloaded(f"the mesh has {PEERS_MAX} peers, which is its limit")
        return facts

    def _register_peer(self, command: RegisterPeer, index: int) -> list[Change]:
        facts = self._check_peer(command)
        peer = peer_id_of(facts.signing_key)
        if peer in self.peers:
            self.peer_of_key.pop(self.peers[peer].facts.curve_key, None)
        self.left.pop(peer, None)
        self.peers[peer] = Registered(facts, command.certificate, index)
        self.peer_of_key[facts.curve_key] = peer
        return [PeersChanged(peer)]

    def _check_registered(self, peer: bytes) -> PeerId:
        if PeerId(peer) not in self.peers:
            raise Refused("that peer is not registered (any more)")
        return PeerId(peer)

    def _check_standing(self, command: SetStanding) -> PeerId:
        peer = self._check_registered(command.peer)
        if command.standing == LEFT and peer not in self.leaving:
            raise Refused(f"{self.peers[peer].facts.name!r} is not leaving: its slots are still there")
        if command.standing == LEFT and command.since not in (0, self.leaving[peer]):
            raise Refused(
                f"{self.peers[peer].facts.name!r} stayed, and is leaving anew: that is not over yet"
            )
        others = self.peers.keys() - self.leaving.keys() - {peer}
        if command.standing == LEAVING and all(self.is_witness(p) for p in others):
            raise Refused(
                f"{self.peers[peer].facts.name!r} is the last peer of the mesh that keeps records: what it "
                "holds would be nowhere. Let another host join first: `meshq invite`"
            )
        return peer

    def _set_standing(self, command: SetStanding, index: int) -> list[Change]:
        peer = self._check_standing(command)
        if command.standing == MEMBER:
            self.leaving.pop(peer, None)
        elif command.standing == LEAVING:
            self.leaving.setdefault(peer, index)
        else:
            del self.leaving[peer]
            self.placed.pop(peer, None)
            gone = self.left[peer] = self.peers.pop(peer)
            del self.peer_of_key[gone.facts.curve_key]
            if len(self.left) > LEFT_PEERS_KEPT:
                del self.left[next(iter(self.left))]
        return [PeersChanged(peer)]

    def _place_peer(self, command: PlacePeer) -> list[Change]:
        peer, place = self._check_registered(command.peer), (command.weight, command.zone)
        if self.place(peer) == place:
            return []
        self.placed[peer] = place
        return [PeersChanged(peer)]

    def _check_level(self, command: SetLevel) -> None:
        if command.level <= self.level:
            raise Refused(f"the mesh has feature level {self.level} already")

    def _set_level(self, command: SetLevel) -> list[Change]:
        self._check_level(command)
        self.level = command.level
        return [LevelRaised(command.level)]

    def _check_client(self, command: RegisterClient) -> CertificateFacts:
        facts = self._verify(command.certificate)
        if facts.kind != "client":
            raise SecurityError(f"the certificate of {facts.name!r} is a {facts.kind}'s, not a client's")
        if facts.curve_key in self.peer_of_key:
            raise Refused("that key is a peer's")
        old = self.clients.get(facts.curve_key)
        if old is None and len(self.clients) >= CLIENTS_MAX:
            raise Overloaded(f"the mesh has {CLIENTS_MAX} clients, which is its limit")
        if facts.name in self._client_names and (old is None or old.facts.name != facts.name):
            raise Refused(f"a client named {facts.name!r} is registered already: choose another name")
        return facts

    def _register_client(self, command: RegisterClient, index: int) -> list[Change]:
        facts = self._check_client(command)
        old = self.clients.get(facts.curve_key)
        if old is not None:
            self._client_names.discard(old.facts.name)
        self.clients[facts.curve_key] = Registered(facts, command.certificate, index)
        self._client_names.add(facts.name)
        return [ClientsChanged(facts.curve_key)]

    def _check_create(self, command: CreateTopic) -> None:
        check_topic(command.name)
        if command.name in self._by_name:
            raise TopicExists(f"topic {command.name!r} exists already")
        self._check_dead_letters(command)
        if len(self.topics) >= TOPICS_MAX:
            raise Overloaded(f"the mesh has {TOPICS_MAX} topics, which is its limit")
        if TopicId(command.topic_id) in self.topics:
            raise UsageError("that topic id is in use")
        if TopicId(command.topic_id) in self._deleted:
            raise TopicGone(f"topic {command.name!r} was deleted as it was made")

    def _check_dead_letters(self, command: CreateTopic) -> None:
        """A record and its dead letter have to be in one slot."""
        source = source_of(command.name)
        if source is None:
            return
        of = self._by_name.get(source[0])
        if of is None or self._start(of.topic_id) != self._start(command.topic_id):
            raise Refused(
                f"topic {command.name!r} would be the dead letters of group {source[1]!r}: the mesh makes it "
                "when there are some"
            )
        self.check_graves(*source)

    def check_graves(self, topic: str, group: str) -> None:
        """Raises: Overloaded where this group cannot have dead letters, for enough others have."""
        if dead_letters_of(topic, group) in self._by_name:
            return
        if self._graves[topic] >= DEAD_LETTER_TOPICS_MAX:
            raise Overloaded(
                f"{DEAD_LETTER_TOPICS_MAX} groups on topic {topic!r} have dead letters, which is the limit: "
                f"delete one of them (`meshq group delete`), or the letters of one (`meshq topic delete`)",
                retry_after_ms=1_000,
            )

    def _start(self, topic_id: bytes) -> int:
        return slot_of(TopicId(topic_id), 0, self.slots)

    def _create_topic(self, command: CreateTopic, index: int) -> list[Change]:
        if self.made_at(command) is not None:
            return []
        self._check_create(command)
        topic_id = TopicId(command.topic_id)
        info = TopicInfo(
            command.name, topic_id, command.partitions, index, command.record_bytes_max, command.copies_min,
            command.retain,
        )  # fmt: skip
        insort(self._names, command.name)
        if (source := source_of(command.name)) is not None:
            self._graves[source[0]] += 1
        return [self._keep(info)]

    def _check_set(self, command: SetTopic) -> TopicInfo:
        old = self._existing(command.topic_id)
        if command.partitions is not None and command.partitions < old.partitions:
            raise UsageError(f"topic {old.name!r} has {old.partitions} partitions; they can only grow")
        return old

    def _set_topic(self, command: SetTopic, index: int) -> list[Change]:
        if self.made_at(command) is not None:
            return []
        old = self._check_set(command)
        self._note_set(command.change, index)
        partitions = command.partitions or old.partitions
        size = command.record_bytes_max or old.record_bytes_max
        copies = command.copies_min or old.copies_min
        retain = _retained(old.retain, command)
        return [self._keep(TopicInfo(old.name, old.topic_id, partitions, index, size, copies, retain))]

    def _note_set(self, change: bytes, index: int) -> None:
        if change:
            self._set[change] = index
            if len(self._set) > SET_MAX:
                del self._set[next(iter(self._set))]

    def _delete_topic(self, command: DeleteTopic) -> list[Change]:
        """With the dead letters of its groups."""
        gone, found = [self._existing(command.topic_id)], 0
        while found < len(gone):
            gone += self._dead_letters(gone[found].name)
            found += 1
        for info in gone:
            if len(self._deleted) >= DELETED_MAX:
                del self._deleted[next(iter(self._deleted))]
            self._deleted[TopicId(info.topic_id)] = None
            del self.topics[TopicId(info.topic_id)]
            del self._by_name[info.name]
            if (source := source_of(info.name)) is not None:
                self._graves[source[0]] -= 1
                if not self._graves[source[0]]:
                    del self._graves[source[0]]
            del self._names[bisect_left(self._names, info.name)]
        return [TopicRemoved(info) for info in gone]

    def _dead_letters(self, name: str) -> list[TopicInfo]:
        names = takewhile(lambda n: n < "_dead/", self.names(from_name="_dead."))  # "/" comes behind "."
        return [self._by_name[n] for n in names if (source := source_of(n)) and source[0] == name]

    def _existing(self, topic_id: bytes) -> TopicInfo:
        info = self.topics.get(TopicId(topic_id))
        if info is None:
            raise TopicGone("that topic does not exist (any more)")
        return info

    def _keep(self, info: TopicInfo) -> TopicChanged:
        self.topics[TopicId(info.topic_id)] = info
        self._by_name[info.name] = info
        return TopicChanged(info)


def _retained(old: Retain, command: SetTopic) -> Retain:
    """With what the command names."""
    named = {
        "age_ms": command.retain_age_ms,
        "bytes": command.retain_bytes,
        "records": command.retain_records,
        "compact": command.compact,
        "tombstone_age_ms": command.tombstone_age_ms,
    }
    return replace(old, **{name: value for name, value in named.items() if value is not None})
