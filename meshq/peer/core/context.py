"""What the parts of a peer's core share: who we are, the registry, the slots, the way out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from meshq.batch import Buffer
from meshq.errors import Forbidden, MeshqError
from meshq.ids import PartitionKey, PeerId, Session, Slot, TopicId
from meshq.levels import LEVEL_KNOWN
from meshq.limits import MOVE_BYTES_S, RECORD_BYTES_MAX
from meshq.messages import ReadEnded, ServerMessage, TopicInfo, failure
from meshq.peer.core.disk import Disk
from meshq.peer.core.events import Effect, SendSession
from meshq.peer.core.lookups import Lookups
from meshq.peer.core.sessions import Sessions
from meshq.registry.facts import CertificateFacts
from meshq.registry.state import GENESIS_DISK, Registry
from meshq.ring import slot_of
from meshq.security.authorization import Principal
from meshq.security.certificates import Certificate
from meshq.streams.delivery import Deliveries


@dataclass(frozen=True, slots=True)
class Me:
    """This peer: its id and name, its CURVE key, this run's boot id; the founder that comes first in the
    system slot's genesis; the disk it has, how often that was started, and how often the peer was, whatever
    disk it had.
    """

    peer: PeerId
    name: str
    curve_key: bytes
    boot: bytes
    registry_peer: PeerId
    disk: bytes = GENESIS_DISK
    epoch: int = 1
    starts: int = 1


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """`auto_create`: whether publishing to a topic that does not exist makes it (with one partition)."""

    auto_create: bool = True
    record_bytes_max: int = RECORD_BYTES_MAX
    partitions: int = 8  # of topics made by `topic create`
    evacuate_after_s: float = 300.0  # a peer that was away for so long is replaced
    move_bytes_s: int = MOVE_BYTES_S  # copies that this peer sends to new homes, in all
    weight: float | None = None  # what this peer wants on the ring; None: what its certificate says
    zone: str = ""
    level: int = LEVEL_KNOWN  # the highest feature level that this software knows


@dataclass
class Context:
    me: Me
    settings: CoreSettings
    registry: Registry
    random_id: Callable[[], bytes]
    out: list[Effect] = field(default_factory=list)
    now: float = 0.0
    wall_ms: int = 0
    mesh_ms: int = 0  # the same, or what it should be: the time of records
    clock_trusted: Callable[[], bool] = lambda: True  # whether this host's clock may decide what expires
    principals: dict[bytes, tuple[Principal, int]] = field(default_factory=dict)  # until the registry changes
    my_addresses: tuple[str, ...] = ()
    my_incarnation: tuple[int, int] = (0, 0)
    since_ms: int = 0  # when this run began
    presented: dict[bytes, Certificate] = field(
        default_factory=dict
    )  # shown at the door, not registered here
    counters: Counter[str] = field(default_factory=Counter)
    outside: dict[str, int] = field(default_factory=dict)  # what the shell counts, for `status`
    outbox: dict[str, Any] | None = None  # what waits in that of the program this peer is in, for `status`
    _request: int = 0
    disk: Disk = field(init=False)
    sessions: Sessions = field(init=False)
    deliveries: Deliveries = field(init=False)
    lookups: Lookups = field(init=False)

    def __post_init__(self) -> None:
        self.disk = Disk(self.out)
        self.deliveries = Deliveries()
        self.lookups = Lookups(self.out)
        self.sessions = Sessions(self.deliveries.on_session_gone)

    def next_request(self) -> int:
        """A number for a request of ours to another peer."""
        self._request += 1
        return self._request

    def send(self, session: Session, message: ServerMessage, payloads: tuple[Buffer, ...] = ()) -> None:
        self.out.append(SendSession(session, message, payloads))

    def fail(self, session: Session, request: int, error: MeshqError) -> None:
        self.count(f"refused_{type(error).__name__}")
        self.send(session, failure(request, error))

    def end_read(self, session: Session, sub: int, partition: PartitionKey, error: MeshqError) -> None:
        self.deliveries.on_unread((session, sub), [partition])
        state = self.sessions.states.get(session)
        if state is not None:
            state.drop_reader(sub, partition)
        name = type(error).__name__
        self.send(
            session,
            ReadEnded(sub, partition.topic_id, partition.partition, error.status, name, str(error)[:2_000]),
        )

    def count(self, name: str, by: int = 1) -> None:
        self.counters[name] += by

    def slot_of(self, partition: PartitionKey) -> Slot:
        return slot_of(partition.topic_id, partition.partition, self.registry.slots)

    def topic(self, topic_id: bytes) -> TopicInfo | None:
        return self.registry.topics.get(TopicId(topic_id))

    def known_peers(self) -> dict[PeerId, CertificateFacts]:
        """Registered here, or with a certificate that says so: a copy of the registry that is behind may know
        nobody yet of those from whom it has to come.
        """
        shown = {c.peer_id: c for c in self.presented.values() if c.peer_id not in self.registry.left}
        return {**shown, **{peer: r.facts for peer, r in self.registry.peers.items()}}

    def principal(self, key: bytes) -> Principal:
        """Whose key this is and what it may. Raises: Forbidden for a key nobody registered, or an expired
        one.
        """
        principal, not_after_s = self.principals.get(key) or self._registered(key)
        if self.wall_ms >= not_after_s * 1000:
            raise Forbidden(f"the certificate of {principal.name!r} has expired: make a new one")
        return principal

    def recheck_sessions(self) -> None:
        """End the sessions whose key has expired or has other rights now: they begin again with what
        holds.
        """
        for session, state in list(self.sessions.states.items()):
            try:
                same = self.principal(state.principal.key) == state.principal
                error = Forbidden("the rights of this key have changed: say Hello again")
            except Forbidden as e:
                same, error = False, e
            if not same:
                self.sessions.close(session)
                self.fail(session, 0, error)

    def forget_principals(self) -> None:
        self.principals.clear()

    def _registered(self, key: bytes) -> tuple[Principal, int]:
        peer = self.registry.peer_of_key.get(key)
        registered = self.registry.peers[peer] if peer is not None else self.registry.clients.get(key)
        shown = self.presented.get(key)
        if registered is None and shown is not None and shown.peer_id not in self.registry.left:
            return Principal.of(shown), shown.not_after_s
        if registered is None:
            raise Forbidden("this key is not registered with the mesh: make one with `meshq client add NAME`")
        certificate = cast(Certificate, registered.facts)  # what the registry's `verify` returned
        self.principals[key] = (
            Principal.of(certificate),
            certificate.not_after_s,
        )  # no more than are registered
        return self.principals[key]
