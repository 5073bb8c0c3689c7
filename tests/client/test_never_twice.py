"""No record is stored twice, whatever the network does: the machine against hostile links, seed by seed.

A cut link may leave its messages on their way: the peer hears them later, in order, between those of newer
links, and its answers go nowhere. Peers refuse at random, for now and for good, store and then answer with an
error, forget producers, hand slots to each other. In the end everything heals, and the logs are held against
what callers were told.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from meshq.batch import Buffer, RawRecord, seal
from meshq.client import pipeline
from meshq.client.core import ClientCore
from meshq.client.facts import (
    BatchSealed,
    CloseLink,
    Doubt,
    Effect,
    Event,
    Fail,
    LinkDown,
    LinkUp,
    OpenLink,
    Received,
    Seed,
    Send,
    Settle,
    Ticked,
)
from meshq.errors import (
    DiskFull,
    Forbidden,
    InternalError,
    MeshqError,
    OutcomeUnknown,
    Overloaded,
    TooLarge,
    Unavailable,
)
from meshq.messages import Accepted, Message, ProduceItem, decode_request, encode

from .fake_peer import MESH_ID, FakeMesh, FakePeer, Session

PARTITIONS = 3
ZOMBIE_LIFE_S = 50.0  # what TCP holds back for longer does not arrive


@dataclass(eq=False)
class Link:
    """Two queues in order; `cut`: the client has given it up, the peer perhaps not yet."""

    peer: FakePeer
    to_peer: deque[tuple[bytes, list[bytes]]] = field(default_factory=deque)
    to_client: deque[tuple[Message, tuple[Buffer, ...]]] = field(default_factory=deque)
    up: bool = False
    cut_at: float | None = None
    session: Session | None = None


@dataclass
class Published:
    number: int
    partition: int
    values: list[bytes]
    doubted: bool = False
    ended: list[Accepted | MeshqError] = field(default_factory=list)


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.mesh = FakeMesh(2)
        self.info = self.mesh.add_topic("t", PARTITIONS)
        self.mesh.refuse = lambda item, payload: self.maybe(self.refusals)
        self.mesh.after_append = lambda item: self.maybe(self.after)
        self.refusals: list[tuple[float, MeshqError]] = [
            (0.10, Overloaded("busy", retry_after_ms=300)),
            (0.05, DiskFull("full")),
            (0.05, Unavailable("not now")),
            (0.02 if seed % 2 else 0.0, TooLarge("too large")),
            (0.02 if seed % 3 else 0.0, Forbidden("not you")),
        ]
        self.after: list[tuple[float, MeshqError]] = [
            (0.05, OutcomeUnknown("no majority")),
            (0.03, InternalError("broken")),
        ]
        seeds = [Seed(p.key, (p.address,)) for p in self.mesh.peers]
        self.core = ClientCore(seeds, mesh_id=MESH_ID, name="", rng=random.Random(seed))
        self.links: list[Link] = []
        self.batches: dict[int, Published] = {}
        self.tell(Ticked())

    def maybe(self, odds: list[tuple[float, MeshqError]]) -> MeshqError | None:
        return next((error for chance, error in odds if self.rng.random() < chance), None)

    # ------------------------------------------------------------------------------------ the machine's shell
    def tell(self, event: Event) -> None:
        for effect in self.core.handle(event, now=self.now):
            self.execute(effect)

    def execute(self, effect: Effect) -> None:
        match effect:
            case OpenLink():
                assert self.current(effect.server_key) is None
                self.links.append(Link(self.mesh.peers[effect.server_key[0] - 1]))
            case CloseLink():
                link = self.current(effect.server_key)
                assert link is not None
                link.cut_at = self.now
            case Send():
                link = self.current(effect.server_key)
                assert link is not None and link.up
                link.to_peer.append((encode(effect.message), [bytes(p) for p in effect.payloads]))
            case Settle():
                self.batches[effect.ticket].ended.append(effect.value)
            case Fail():
                self.batches[effect.ticket].ended.append(effect.error)
            case Doubt():
                batch = self.batches[effect.ticket]
                assert not batch.ended and not batch.doubted and isinstance(effect.error, OutcomeUnknown)
                batch.doubted = True

    def current(self, server_key: bytes) -> Link | None:
        return next((x for x in self.links if x.peer.key == server_key and x.cut_at is None), None)

    # ---------------------------------------------------------------------------------------- what may happen
    def step(self) -> None:
        choice = self.rng.random()
        if choice < 0.12:
            self.publish()
        elif choice < 0.82:
            self.move_something()
        elif choice < 0.97:
            self.pass_time(self.rng.choice([0.001, 0.01, 0.1, 0.5, 2.0]))
        elif choice < 0.985:
            self.cut()
        elif choice < 0.995:
            self.mesh.move([self.rng.randrange(2) for _ in self.mesh.owners])
        else:
            self.pass_time(self.rng.choice([20.0, 200.0, 1_000.0]))

    def publish(self) -> None:
        ticket = len(self.batches)
        partition = self.rng.randrange(PARTITIONS)
        values = [b"%d.%d" % (ticket, i) for i in range(self.rng.randint(1, 3))]
        self.batches[ticket] = Published(ticket, partition, values)
        body = seal([RawRecord(None, v) for v in values], base_timestamp_ms=0)
        deadline = self.now + self.rng.choice([0.5, 5.0, 30.0])
        self.tell(BatchSealed(ticket, 0, self.info, partition, body, deadline, in_flight=self.in_flight))

    @property
    def in_flight(self) -> int:
        return 4

    def move_something(self) -> None:
        moves = [(link, way) for link in self.links for way in ("up", "there", "back") if self.can(link, way)]
        if moves:
            self.move(*self.rng.choice(moves))

    def can(self, link: Link, way: str) -> bool:
        if way == "up":
            return not link.up and link.cut_at is None
        if way == "there":
            return bool(link.to_peer)
        return bool(link.to_client) and link.cut_at is None

    def move(self, link: Link, way: str) -> None:
        if way == "up":
            link.up = True
            link.session = Session(link.peer, lambda m, p, x=link: x.to_client.append((m, p)))  # type: ignore[misc]
            link.peer.sessions.append(link.session)
            self.tell(LinkUp(link.peer.key))
        elif way == "there":
            data, payloads = link.to_peer.popleft()
            assert link.session is not None
            link.peer.hear(link.session, decode_request(data), list(payloads))
        else:
            message, got = link.to_client.popleft()
            self.tell(Received(link.peer.key, message, got))  # type: ignore[arg-type]

    def cut(self) -> None:
        live = [x for x in self.links if x.cut_at is None]
        if not live:
            return
        link = self.rng.choice(live)
        link.cut_at = self.now
        if link.session in link.peer.sessions:
            link.peer.sessions.remove(link.session)
        for _ in range(self.rng.randint(0, len(link.to_peer)) if self.rng.random() < 0.5 else 0):
            link.to_peer.pop()
        self.tell(LinkDown(link.peer.key, "cut"))

    def pass_time(self, seconds: float) -> None:
        """Never past what the machine wants to do, except that it may be a little late."""
        end = self.now + seconds
        while self.now < end:
            deadline = self.core.deadline()
            late = self.rng.choice([0.0, 0.0, 0.2])
            self.now = end if deadline is None else min(end, max(self.now, deadline) + late)
            self.mesh.now_ms = 1_000_000 + int(self.now * 1000)
            for link in self.links:
                if link.cut_at is not None and self.now > link.cut_at + ZOMBIE_LIFE_S:
                    link.to_peer.clear()
            self.links = [x for x in self.links if x.cut_at is None or x.to_peer]
            if deadline is not None and self.now >= deadline:
                self.tell(Ticked())
                after = self.core.deadline()
                assert after is None or after > self.now or self.core_has_room(after)

    def core_has_room(self, deadline: float) -> bool:
        """A second look at the same moment must settle it, else a driver would spin."""
        self.tell(Ticked())
        after = self.core.deadline()
        return after is None or after > self.now

    def heal(self) -> None:
        self.refusals = []
        self.after = []
        for _ in range(1_000):
            for _ in range(50):
                self.move_something()
            self.pass_time(2.0)
            if all(b.ended for b in self.batches.values()):
                return
        raise AssertionError("some batches never ended")

    # ---------------------------------------------------------------------------------------------- the check
    def check(self) -> None:
        stored = {p: self.mesh.records("t", p) for p in range(PARTITIONS)}
        every = [v for values in stored.values() for v in values]
        assert len(every) == len(set(every)), "stored twice"
        newest = dict.fromkeys(range(PARTITIONS), -1)
        for batch in self.batches.values():
            (end,) = batch.ended
            if isinstance(end, Accepted):
                log = stored[batch.partition]
                assert log[end.base_offset : end.base_offset + len(batch.values)] == batch.values
                assert end.base_offset > newest[batch.partition], "out of order"
                newest[batch.partition] = end.base_offset
            elif not isinstance(end, OutcomeUnknown):
                assert not set(batch.values) & set(every), f"{end!r}, but it was stored"


def play(seed: int, steps: int) -> World:
    world = World(seed)
    for _ in range(steps):
        world.step()
    world.heal()
    world.check()
    return world


@pytest.mark.parametrize("first", range(0, 120, 20))
def test_logs_agree_with_what_callers_were_told(first: int) -> None:
    ends: set[str] = set()
    for seed in range(first, first + 20):
        world = play(seed, 600)
        ends |= {type(b.ended[0]).__name__ for b in world.batches.values()}
        ends |= {"Doubt" for b in world.batches.values() if b.doubted}
    assert {"Accepted", "OutcomeUnknown", "Doubt", "DiskFull"} <= ends


def test_the_seeds_catch_a_machine_that_forgets_what_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mutants: were these rules not kept, the test above would say so."""
    monkeypatch.setattr(pipeline, "GIVE_UP_S", 1e9)
    with pytest.raises(AssertionError, match="stored twice"):
        for seed in range(100):
            play(seed, 600)
    monkeypatch.undo()
    monkeypatch.setattr(pipeline, "Unavailable", MeshqError)  # takes any error for a refusal
    with pytest.raises(AssertionError, match="stored"):
        for seed in range(100):
            play(seed, 600)


def test_a_calm_mesh_stores_everything_in_order_with_its_receipts() -> None:
    world = World(7)
    world.refusals, world.after = [], []
    for _ in range(200):
        world.publish()
        for _ in range(20):
            world.move_something()
    world.heal()
    world.check()
    assert all(isinstance(b.ended[0], Accepted) for b in world.batches.values())


def test_an_item_names_the_version_its_topic_was_resolved_at() -> None:
    world = World(8)
    seen: list[ProduceItem] = []
    world.mesh.refuse = lambda item, payload: seen.append(item)  # type: ignore[func-returns-value]
    world.publish()
    world.heal()
    assert [item.version for item in seen] == [world.info.version]
