"""The registry's state: peers, clients and topics, computed from genesis and the system slot's log.

Every peer holds a copy; `version` is the index of the last entry applied, and a copy only ever moves forward.
Certificates are checked here once more against the authority's key, so that a peer that holds the registry
cannot slip in one the authority never signed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import assert_never

from meshq.errors import MeshqError, Overloaded, Refused, SecurityError
from meshq.ids import MeshId, PeerId, peer_id_of
from meshq.levels import LEVEL_KNOWN, WITNESSES
from meshq.limits import CLIENTS_MAX, LEFT_PEERS_KEPT, PEERS_MAX
from meshq.messages import TopicInfo
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
from meshq.registry.facts import (
    CertificateFacts,
    Change,
    ClientsChanged,
    LevelRaised,
    PeersChanged,
    Registered,
)
from meshq.registry.topics import Topics
from meshq.ring import RingPeer, owners, witnesses_of

GENESIS_DISK = bytes(16)  # the id of the disk that a founding peer begins with, so that genesis can name it


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
        self._topics = Topics(slots)
        self.topics = self._topics.by_id
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
        return self._topics.by_name.get(name)

    def names(self, after: str = "", *, from_name: str = "") -> Iterator[str]:
        """Topic names in order: behind `after`, or beginning with what `from_name` begins with."""
        return self._topics.names(after, from_name=from_name)

    def made_at(self, command: AnyCommand) -> int | None:
        """The index at which what it asks for was done already: its answer was lost, and it is repeated."""
        return self._topics.made_at(command)

    def check_graves(self, topic: str, group: str) -> None:
        """Raises: Overloaded where this group cannot have dead letters, for enough others have."""
        self._topics.check_graves(topic, group)

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
                    return self._topics.create(command, index)
                case SetTopic():
                    return self._topics.change(command, index)
                case DeleteTopic():
                    return self._topics.delete(command)
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
                    self._topics.check_create(command)
                case SetTopic():
                    self._topics.check_set(command)
                case DeleteTopic():
                    self._topics.existing(command.topic_id)
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
