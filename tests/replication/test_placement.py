"""Placement: one safe step at a time from where a slot is to where the ring wants it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshq.ids import PeerId, Slot
from meshq.replication.placement import (
    COPIES_MAX,
    LEVEL_COUNT,
    MOVES_MAX,
    TRANSFERS_MAX,
    ChangeMembers,
    MoveLeadership,
    Situation,
    genesis_config,
    members_of,
    steps,
)
from meshq.replication.quorum import Config, Node, config_of, leave_joint, step_toward

SLOT = Slot(7)
A, B, C, D, E = (Node(PeerId(name * 16), b"1" * 16) for name in (b"a", b"b", b"c", b"d", b"e"))
EVERYBODY = {n.peer: n for n in (A, B, C, D, E)}


def one(
    config: Config, wanted: list[Node], *, me: Node = A, alive: list[Node] | None = None, **more: object
) -> ChangeMembers | MoveLeadership | None:
    """The step for one slot whose members are all level unless told."""
    match = more.pop("match", dict.fromkeys(config.nodes(), 1_000))
    situation = Situation(SLOT, me, config, bool(more.pop("settled", True)), match, 1_000)  # type: ignore[arg-type]
    living = {n.peer for n in (alive if alive is not None else EVERYBODY.values())}
    nodes = more.pop("nodes", EVERYBODY)
    found = steps([situation], {SLOT: [n.peer for n in wanted]}, nodes, living, {})  # type: ignore[arg-type]
    return found[0] if found else None


@pytest.mark.parametrize(
    ("owners", "voters", "learners"),
    [([A], [A], []), ([A, B], [A], [B]), ([A, B, C], [A, B, C], []), ([A, B, C, D], [A, B, C], [D])],
)
def test_an_odd_number_votes_and_another_one_mirrors(
    owners: list[Node], voters: list[Node], learners: list[Node]
) -> None:
    assert members_of(owners) == (voters, learners, [])
    assert genesis_config(owners) == config_of(voters, learners)


def test_whoever_is_wanted_copies_first() -> None:
    assert one(config_of([A]), [A, B, C]) == ChangeMembers(SLOT, config_of([A], [B, C]))


def test_the_voters_change_at_once_and_only_when_all_of_them_are_level() -> None:
    config = config_of([A], [B, C])
    behind = {A: 1_000, B: 1_000, C: 1_000 - LEVEL_COUNT - 1}
    assert one(config, [A, B, C], match=behind) is None
    level = {A: 1_000, B: 1_000, C: 1_000 - LEVEL_COUNT}
    assert one(config, [A, B, C], match=level) == ChangeMembers(SLOT, config_of([A, B, C]))


def test_who_is_not_wanted_any_more_is_dropped_with_the_change() -> None:
    assert one(config_of([A, B, C], [D]), [A, B, D]) == ChangeMembers(SLOT, config_of([A, B, D]))
    assert one(config_of([A, B, C], [E]), [A, B, C]) == ChangeMembers(SLOT, config_of([A, B, C]))


def test_nothing_moves_while_the_slot_is_not_healthy() -> None:
    assert one(config_of([A, B, C]), [A, B, D], alive=[A, D]) is None, "no majority of it is alive"
    assert one(config_of([A, B, C]), [A, B, D], alive=[A, B, C]) is None, "the new one is not there"
    assert one(config_of([A, B, C]), [A, B, D], settled=False) is None, "a change is under way"
    assert one(config_of([A, B, C]), [A, B, D], nodes={A.peer: A, B.peer: B}) is None, "its disk is not known"


def test_a_dead_voter_is_replaced_by_the_others() -> None:
    assert one(config_of([A, B, C]), [A, B, D], alive=[A, B, D]) == ChangeMembers(
        SLOT, config_of([A, B, C], [D])
    )
    assert one(config_of([A, B, C], [D]), [A, B, D], alive=[A, B, D]) == ChangeMembers(
        SLOT, config_of([A, B, D])
    )


def test_a_wiped_disk_is_another_node_and_takes_the_old_ones_place() -> None:
    wiped = Node(B.peer, b"2" * 16)
    nodes = {**EVERYBODY, B.peer: wiped}
    assert one(config_of([A, B, C]), [A, B, C], nodes=nodes) == ChangeMembers(
        SLOT, config_of([A, B, C], [wiped])
    )
    assert one(config_of([A, B, C], [wiped]), [A, B, C], nodes=nodes) == ChangeMembers(
        SLOT, config_of([A, wiped, C])
    )


def test_nothing_moves_toward_what_could_not_decide() -> None:
    """C is dead, and not yet given up: with it as the only voter nothing would go on."""
    assert one(config_of([A, B, C]), [C, B], alive=[A, B]) is None
    behind = {A: 1_000, B: 0, C: 1_000}
    assert one(config_of([A, B, C], [D]), [B, C, D], alive=[A, B, D], match={**behind, D: 1_000}) is None
    assert one(config_of([A, B, C]), [B, C], alive=[A, B]) == MoveLeadership(SLOT, B), "B alone will do"


def test_who_leaves_hands_over_to_one_who_stays_and_then_goes() -> None:
    assert one(config_of([A, B, C], [D]), [C, B, D]) == MoveLeadership(SLOT, C)
    assert one(config_of([A, B, C], [D]), [C, B, D], me=C) == ChangeMembers(SLOT, config_of([B, C, D]))
    gone = config_of([A], [B])
    assert one(gone, [B]) == ChangeMembers(SLOT, config_of([B])), "nobody is there to lead it before"


def test_leadership_goes_to_the_first_owner_when_it_is_alive_and_level() -> None:
    config = config_of([A, B, C])
    assert one(config, [B, A, C]) == MoveLeadership(SLOT, B)
    assert one(config, [B, A, C], alive=[A, C]) is None
    assert one(config, [B, A, C], match={A: 1_000, B: 0, C: 1_000}) is None
    assert one(config, [A, B, C]) is None


def test_few_slots_move_at_a_time() -> None:
    situations = [Situation(Slot(i), A, config_of([A]), True, {A: 1}, 1) for i in range(100)]
    wanted = {Slot(i): [A.peer, B.peer, C.peer] for i in range(100)}
    alive = {n.peer for n in EVERYBODY.values()}
    assert len(steps(situations, wanted, EVERYBODY, {A.peer, B.peer, C.peer}, {})) == COPIES_MAX // 3
    assert len(steps(situations, wanted, EVERYBODY, alive, {})) == COPIES_MAX // 5, (
        "five may be leaders of some"
    )
    ready = [Situation(Slot(i), A, config_of([A], [B, C]), True, {A: 1, B: 1, C: 1}, 1) for i in range(100)]
    assert len(steps(ready, wanted, EVERYBODY, alive, {})) == MOVES_MAX
    copying = [Situation(s.slot, A, config_of([A], [B, C]), True, {A: 9_999}, 9_999) for s in situations]
    assert steps(copying, wanted, EVERYBODY, alive, {}) == [], "as many as may are catching up"
    led = [Situation(s.slot, A, config_of([A, B, C]), True, {A: 1, B: 1, C: 1}, 1) for s in situations]
    elsewhere = {Slot(i): [B.peer, A.peer, C.peer] for i in range(100)}
    assert len(steps(led, elsewhere, EVERYBODY, alive, {})) == TRANSFERS_MAX


@dataclass
class Walk:
    """A slot whose steps are carried out, with a majority of every configuration it goes through."""

    config: Config
    leader: Node
    seen: list[Config] = field(default_factory=list)

    def take(self, step: ChangeMembers | MoveLeadership) -> None:
        if isinstance(step, MoveLeadership):
            assert step.to in self.config.voters
            self.leader = step.to
            return
        new = step_toward(self.config, step.target)
        coming = set(new.voters) - set(self.config.voters)
        assert coming <= set(self.config.learners), "nobody votes who did not copy first"
        self.seen.append(new)
        self.config = leave_joint(new) if new.is_joint else new
        if self.leader not in self.config.voters:
            self.leader = self.config.voters[0]


nodes_lists = st.lists(st.sampled_from([A, B, C, D, E]), min_size=1, max_size=5, unique=True)


@given(nodes_lists, nodes_lists)
def test_it_comes_to_an_end_where_the_ring_wants_it(before: list[Node], wanted: list[Node]) -> None:
    config = genesis_config(before)
    walk = Walk(config, config.voters[0])
    for _ in range(10):
        step = one(walk.config, wanted, me=walk.leader)
        if step is None:
            break
        walk.take(step)
    assert walk.config == genesis_config(wanted)
    assert walk.leader == wanted[0]


def test_two_vote_with_a_witness_and_others_need_none() -> None:
    assert members_of([A, B], D) == ([A, B, D], [], [D])
    assert members_of([A, B, C], D) == ([A, B, C], [], [])
    assert members_of([A], D) == ([A], [], [])
    assert genesis_config([A, B], D) == config_of([A, B, D], [], [D])


def test_a_witness_is_taken_in_and_let_go_like_any_voter_and_is_handed_nothing() -> None:
    two = config_of([A], [B])
    coming = config_of([A], [B, D], [D])
    there = config_of([A, B, D], [], [D])
    have = dict.fromkeys((A, B, C, D), 9)

    def step(config: Config, witness: Node | None, **more: object) -> object:
        s = Situation(SLOT, A, config, True, have, 9, **more)  # type: ignore[arg-type]
        chosen = {SLOT: witness.peer} if witness else {}
        found = steps([s], {SLOT: [A.peer, B.peer]}, EVERYBODY, set(EVERYBODY), chosen)
        return found[0] if found else None

    assert step(two, D) == ChangeMembers(SLOT, coming)
    assert step(coming, D) == ChangeMembers(SLOT, there)
    assert step(there, D) is None
    assert step(there, None) == ChangeMembers(SLOT, two)
    assert step(there, D, unfit={A}) == MoveLeadership(SLOT, B)
    assert step(there, D, unfit={A, B}) is None, "a witness is no heir"
