"""Who votes in the system slot: few and odd, those who are there, and nobody for ever."""

from __future__ import annotations

import dataclasses

import pytest

from meshq.ids import SYSTEM_SLOT, PeerId
from meshq.replication.placement import ChangeMembers, MoveLeadership, Situation
from meshq.replication.quorum import Config, Node, config_of
from meshq.replication.system import system_genesis, system_step

PEERS = [PeerId(bytes([n]) * 16) for n in range(1, 10)]
NODES = {p: Node(p, bytes(16)) for p in PEERS}


def nodes(*numbers: int) -> list[Node]:
    return [NODES[PEERS[n - 1]] for n in numbers]


def peers(*numbers: int) -> list[PeerId]:
    return [PEERS[n - 1] for n in numbers]


def at(config: Config, me: int = 1, last: int = 10, behind: tuple[int, ...] = ()) -> Situation:
    """As its leader sees it, everybody level but these."""
    late = nodes(*behind)
    match = {n: 0 if n in late else last for n in config.nodes()}
    return Situation(SYSTEM_SLOT, nodes(me)[0], config, True, match, last)


def target(
    s: Situation, known: list[PeerId], alive: list[PeerId] | None = None, leaving: list[PeerId] | None = None
) -> Config | None:
    step = system_step(s, known, NODES, known if alive is None else alive, leaving or [])
    assert step is None or isinstance(step, ChangeMembers)
    return step.target if step else None


@pytest.mark.parametrize(("founders", "voters"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (9, 5)])
def test_the_first_founders_vote_an_odd_number_and_the_others_copy(founders: int, voters: int) -> None:
    config = system_genesis([NODES[p] for p in PEERS[:founders]], first=nodes(founders)[0])
    assert nodes(founders)[0] in config.voters
    assert (len(config.voters), len(config.nodes())) == (voters, founders)
    assert config == system_genesis([NODES[p] for p in reversed(PEERS[:founders])], first=nodes(founders)[0])


def test_a_mesh_of_one_becomes_three_voters_as_others_join() -> None:
    one = config_of(nodes(1))
    assert target(at(one), peers(1)) is None
    two = target(at(one), peers(1, 2))
    assert two == config_of(nodes(1), nodes(2))
    assert target(at(two), peers(1, 2)) is None
    three = target(at(two), peers(1, 2, 3))
    assert three == config_of(nodes(1), nodes(2, 3))
    assert target(at(three, last=1_000, behind=(3,)), peers(1, 2, 3)) is None, "it copies first"
    assert target(at(three), peers(1, 2, 3)) == config_of(nodes(1, 2, 3))


def test_of_many_five_vote_and_all_others_copy() -> None:
    config = config_of(nodes(1, 2, 3), nodes(4, 5, 6, 7))
    settled = target(at(config), peers(*range(1, 8)))
    assert settled == config_of(nodes(1, 2, 3, 4, 5), nodes(6, 7))
    assert target(at(settled), peers(*range(1, 8))) is None


def test_a_voter_that_is_away_stays_until_it_is_given_up() -> None:
    config = config_of(nodes(1, 2, 3), nodes(4))
    assert target(at(config), peers(1, 2, 3, 4), alive=peers(1, 2, 4)) is None
    assert target(at(config), peers(1, 2, 4)) == config_of(nodes(1, 2, 4))


def test_nobody_who_is_away_is_let_in_or_made_a_voter() -> None:
    config = config_of(nodes(1), nodes(2))
    assert target(at(config), peers(1, 2, 3), alive=peers(1, 2)) is None
    config = config_of(nodes(1), nodes(2, 3))
    assert target(at(config), peers(1, 2, 3), alive=peers(1, 2)) is None


def test_a_wiped_disk_is_another_node_and_takes_its_place_once_it_is_level() -> None:
    config = config_of(nodes(1, 2, 3))
    new = Node(PEERS[2], b"x" * 16)
    now = {**NODES, PEERS[2]: new}
    step = system_step(at(config), peers(1, 2, 3), now, peers(1, 2, 3))
    assert isinstance(step, ChangeMembers) and step.target == config_of(nodes(1, 2, 3), [new])
    step = system_step(at(step.target), peers(1, 2, 3), now, peers(1, 2, 3))
    assert isinstance(step, ChangeMembers) and step.target == config_of([*nodes(1, 2), new])


def test_nothing_is_changed_while_the_last_change_is_not_decided_or_most_are_away() -> None:
    s = at(config_of(nodes(1, 2, 3)))
    assert target(dataclasses.replace(s, settled=False), peers(1, 2, 3, 4)) is None
    assert target(s, peers(1, 2, 3, 4), alive=peers(1, 4)) is None


def test_who_is_leaving_copies_until_it_has_left_and_does_not_vote() -> None:
    config = config_of(nodes(1, 2, 3), nodes(4))
    assert target(at(config), peers(1, 2, 3, 4), leaving=peers(3)) == config_of(nodes(1, 2, 4), nodes(3))
    assert target(at(config_of(nodes(1, 2, 4), nodes(3))), peers(1, 2, 4)) == config_of(nodes(1, 2, 4))
    assert target(at(config_of(nodes(1), nodes(2))), peers(1, 2), leaving=peers(1)) == config_of(
        nodes(2), nodes(1)
    )


def test_where_nobody_stays_nothing_is_changed() -> None:
    assert target(at(config_of(nodes(1, 2, 3))), peers(1, 2, 3), leaving=peers(1, 2, 3)) is None


def test_the_leader_that_is_leaving_lets_a_voter_lead() -> None:
    config = config_of(nodes(1, 2, 3), nodes(4))
    step = system_step(at(config), peers(1, 2, 3, 4), NODES, peers(1, 2, 3, 4), peers(1))
    assert step == MoveLeadership(SYSTEM_SLOT, nodes(2)[0])
