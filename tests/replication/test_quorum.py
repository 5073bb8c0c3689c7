"""Majorities, held against a twin that knows no arithmetic and tries every subset."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshq.errors import StoreCorrupt, UsageError
from meshq.ids import PeerId
from meshq.replication.quorum import (
    Config,
    Node,
    config_of,
    decode_config,
    encode_config,
    leave_joint,
    step_toward,
)

NODES = [Node(PeerId(bytes([n]) * 16), bytes([n % 2])) for n in range(7)]

some_nodes = st.sets(st.sampled_from(NODES), max_size=7)
voters = some_nodes.filter(bool)
configs = st.builds(
    lambda v, o, rest: Config(tuple(sorted(v)), tuple(sorted(o)), tuple(sorted(rest - v))),
    voters,
    st.one_of(st.just(set()), voters),
    some_nodes,
)


def majorities(of: tuple[Node, ...]) -> list[set[Node]]:
    """Every set of them that is larger than what it leaves."""
    subsets = [set(c) for n in range(len(of) + 1) for c in combinations(of, n)]
    return [s for s in subsets if len(s) > len(set(of) - s)]


def twin_has_majority(config: Config, of: set[Node]) -> bool:
    sets = [config.voters] + ([config.outgoing] if config.outgoing else [])
    return all(any(m <= of for m in majorities(s)) for s in sets)


@given(configs, some_nodes)
def test_a_majority_is_what_the_twin_finds(config: Config, of: set[Node]) -> None:
    assert config.has_majority(of) == twin_has_majority(config, of)


@given(configs, some_nodes)
def test_it_is_lost_when_nobody_left_could_make_one(config: Config, against: set[Node]) -> None:
    rest = config.nodes() - against
    could = any(twin_has_majority(config, set(c)) for n in range(len(rest) + 1) for c in combinations(rest, n))
    assert config.has_lost(against) == (not could)


@given(configs, st.dictionaries(st.sampled_from(NODES), st.integers(0, 9)))
def test_what_is_decided_is_the_highest_index_a_majority_has(config: Config, match: dict[Node, int]) -> None:
    index = max(i for i in range(10) if i == 0 or twin_has_majority(config, {n for n in match if match[n] >= i}))
    assert config.committed(match) == index


@given(voters, voters, voters)
def test_two_majorities_of_a_change_always_meet(old: set[Node], new: set[Node], of: set[Node]) -> None:
    """Of the old and the joint configuration, and of the joint and the new one."""
    before, target = config_of(old), config_of(new)
    joint = step_toward(before, target)
    for other in (before, leave_joint(joint) if joint.is_joint else target):
        everybody = joint.nodes() | other.nodes()
        if joint.has_majority(of):
            assert not other.has_majority(everybody - of)


def test_nobody_decides_nothing() -> None:
    nobody = Config(())
    assert not nobody.has_majority(NODES)
    assert nobody.committed(dict.fromkeys(NODES, 5)) == 0


def test_a_change_of_learners_alone_is_one_step() -> None:
    before, after = config_of(NODES[:3]), config_of(NODES[:3], NODES[3:4])
    assert step_toward(before, after) == after


def test_one_change_at_a_time() -> None:
    joint = step_toward(config_of(NODES[:3]), config_of(NODES[1:4]))
    with pytest.raises(UsageError, match="one at a time"):
        step_toward(joint, config_of(NODES[:3]))


@pytest.mark.parametrize(
    ("of", "learners"), [([], []), (NODES[:1], NODES[:1]), ([*NODES, Node(PeerId(b"x" * 16), b"")], [])]
)
def test_a_configuration_has_voters_and_nobody_twice(of: list[Node], learners: list[Node]) -> None:
    with pytest.raises(UsageError):
        config_of(of, learners)


@given(configs)
def test_it_is_read_as_it_was_written(config: Config) -> None:
    assert decode_config(encode_config(config)) == config


@given(st.binary(max_size=40))
def test_other_bytes_are_refused(data: bytes) -> None:
    try:
        decode_config(data)
    except StoreCorrupt:
        pass
