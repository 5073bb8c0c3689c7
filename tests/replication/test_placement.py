"""Placement: only what was never written to moves, and its owner lets go before another one is named."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from meshq.ids import PeerId, Slot
from meshq.replication import placement
from meshq.replication.placement import ROUND_S, AskRelease, Assign, Placement
from meshq.ring import Ownership, RingPeer, owners

SLOTS = 16


def peer(n: int) -> PeerId:
    return PeerId(n.to_bytes(16, "big"))


def ring(count: int) -> list[RingPeer]:
    return [RingPeer(peer(n)) for n in range(count)]


def wanted(count: int) -> list[PeerId]:
    return [o[0] for o in owners(ring(count), slots=SLOTS, replicas=3)]


@dataclass
class Mesh:
    """The registry's owners, what is written and fenced at them, and who can be reached."""

    placement: Placement = field(default_factory=lambda: Placement(SLOTS, 3))
    current: list[Ownership] = field(default_factory=lambda: [Ownership(p, 0) for p in wanted(1)])
    written: set[Slot] = field(default_factory=set)
    fenced: set[tuple[Slot, int]] = field(default_factory=set)
    reachable: set[PeerId] = field(default_factory=set)
    index: int = 0
    now: float = 0.0

    def tick(self, seconds: float = 0.0) -> list[AskRelease]:
        self.now += seconds
        return self.placement.on_tick(self.current, self.reachable, now=self.now)

    def grow(self, count: int) -> None:
        self.reachable = {peer(n) for n in range(count)}
        self.placement.on_ring_changed(ring(count))

    def let_go(self, ask: AskRelease) -> Assign | None:
        """The owner fences what is empty; the assignment is not committed yet."""
        free = [x for x in ask.slots if x[0] not in self.written]
        assert all(self.current[slot] == Ownership(ask.peer, epoch) for slot, epoch in ask.slots)
        self.fenced.update(free)
        return self.placement.on_released(ask.slots, free, self.current)

    def commit(self, assign: Assign | None) -> None:
        self.index += 1
        for slot, epoch, who in assign.moves if assign else ():
            assert slot not in self.written, "a written slot never moves"
            assert (slot, epoch) in self.fenced, "the owner let go before another one is named"
            if self.current[slot].epoch == epoch:
                self.current[slot] = Ownership(who, self.index)

    def round(self) -> None:
        for ask in self.tick(ROUND_S):
            self.commit(self.let_go(ask))

    def owner(self) -> list[PeerId]:
        return [own.peer for own in self.current]


def test_a_peer_that_joins_gets_its_share_of_an_unwritten_mesh() -> None:
    mesh = Mesh()
    mesh.grow(3)
    mesh.round()
    assert mesh.owner() == wanted(3)
    assert mesh.tick(ROUND_S) == [], "and then there is nothing to do"


def test_a_written_slot_stays_and_is_asked_for_once() -> None:
    mesh = Mesh()
    mesh.written = {Slot(s) for s in range(SLOTS)}
    mesh.grow(3)
    (ask,) = mesh.tick()
    assert mesh.let_go(ask) is None
    assert mesh.tick(ROUND_S) == []
    assert mesh.owner() == wanted(1)
    mesh.grow(4)
    assert all(slot not in {s for s, _ in ask.slots} for a in mesh.tick() for slot, _ in a.slots)


def test_nothing_is_asked_of_who_cannot_be_reached_nor_for_them() -> None:
    mesh = Mesh()
    mesh.grow(3)
    mesh.reachable = {peer(1), peer(2)}
    assert mesh.tick() == []
    mesh.reachable = {peer(0), peer(1)}
    (ask,) = mesh.tick(ROUND_S)
    assert ask.peer == peer(0)
    assert {wanted(3)[slot] for slot, _ in ask.slots} == {peer(1)}


def test_an_answer_that_does_not_come_is_asked_for_again_each_round() -> None:
    mesh = Mesh()
    mesh.grow(3)
    first = mesh.tick()
    assert mesh.tick(ROUND_S - 0.1) == []
    assert mesh.tick(0.1) == first
    mesh.placement.on_reachable_changed()
    assert mesh.tick() == first, "at once when somebody can be reached again"


def test_an_assignment_that_was_lost_is_made_in_the_next_round() -> None:
    mesh = Mesh()
    mesh.grow(2)
    (ask,) = mesh.tick()
    assert mesh.let_go(ask) is not None
    mesh.round()
    assert mesh.owner() == wanted(2)


def test_an_answer_for_what_moved_meanwhile_or_was_not_asked_is_void() -> None:
    mesh = Mesh()
    mesh.grow(2)
    (ask,) = mesh.tick()
    mesh.commit(mesh.let_go(ask))
    assert mesh.placement.on_released(ask.slots, ask.slots, mesh.current) is None
    staying = next(Slot(s) for s in range(SLOTS) if mesh.current[s].epoch == 0)
    assert mesh.placement.on_released((), [(staying, 0)], mesh.current) is None


def test_a_fenced_slot_that_is_wanted_where_it_is_goes_there_under_a_new_epoch() -> None:
    mesh = Mesh()
    mesh.grow(2)
    (ask,) = mesh.tick()
    mesh.grow(1)  # the ring changed its mind while the owner was fencing
    mesh.tick()
    assign = mesh.let_go(ask)
    mesh.commit(assign)
    for slot, epoch in ask.slots:
        assert mesh.current[slot].peer == peer(0)
        assert mesh.current[slot].epoch > epoch, "under the old one nobody could write to it"


def test_one_ask_is_bounded(monkeypatch: Any) -> None:
    monkeypatch.setattr(placement, "MOVES_PER_ASK_MAX", 2)
    mesh = Mesh()
    mesh.grow(4)
    (ask,) = mesh.tick()
    assert len(ask.slots) == 2
    for _ in range(SLOTS):
        mesh.round()
    assert mesh.owner() == wanted(4)


def test_without_peers_nothing_is_asked() -> None:
    mesh = Mesh()
    mesh.placement.on_ring_changed([])
    assert mesh.tick() == []


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("grow"), st.integers(1, 5)),
        st.tuples(st.just("reach"), st.sets(st.integers(0, 4))),
        st.tuples(st.just("write"), st.integers(0, SLOTS - 1)),
        st.tuples(st.just("round"), st.lists(st.sampled_from(["commit", "lose", "late"]), max_size=5)),
    ),
    max_size=25,
)


@given(STEPS)
def test_it_converges_and_never_moves_what_was_written(steps: list[Any]) -> None:
    mesh = Mesh()
    late: list[Assign | None] = []
    count = 1
    for step in steps:
        match step:
            case ("grow", more):
                count = max(count, more)  # peers are never unregistered
                mesh.grow(count)
            case ("reach", some):
                mesh.reachable = {peer(n) for n in some}
            case ("write", number):
                own = mesh.current[number]
                if (Slot(number), own.epoch) not in mesh.fenced:
                    mesh.written.add(Slot(number))
            case ("round", fates):
                for ask, fate in zip(mesh.tick(ROUND_S), fates, strict=False):
                    assign = mesh.let_go(ask)
                    if fate == "commit":
                        mesh.commit(assign)
                    elif fate == "late":
                        late.append(assign)
                while late and "commit" in fates:
                    mesh.commit(late.pop())
    mesh.grow(count)
    for _ in range(3):
        mesh.round()
    for slot, want in enumerate(wanted(count)):
        assert mesh.current[slot].peer == want or slot in mesh.written
    assert len(mesh.placement._kept) <= SLOTS
