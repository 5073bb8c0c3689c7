"""Which learners a receipt waits for where a single voter decides."""

from __future__ import annotations

from dataclasses import dataclass, field

from meshq.ids import PeerId
from meshq.replication.mirrors import PATIENCE_S, Mirrors
from meshq.replication.placement import LEVEL_COUNT
from meshq.replication.quorum import Config, Node, config_of, step_toward

ME, MIRROR, OTHER = (Node(PeerId(bytes([n]) * 16), b"d") for n in (1, 2, 3))
PAIR = config_of([ME], [MIRROR])


@dataclass
class Rig:
    mirrors: Mirrors = field(default_factory=Mirrors)
    config: Config = PAIR
    supports: set[PeerId] = field(default_factory=lambda: {MIRROR.peer, OTHER.peer})
    match: dict[Node, int] = field(default_factory=dict)

    def look(self, decided: int, have: int, now: float) -> set[Node]:
        self.match = {ME: decided, MIRROR: have}
        self.mirrors.look(self.config, self.match, decided, self.supports, now=now)
        return self.mirrors.nodes


def test_one_that_is_level_and_supported_is_waited_for() -> None:
    rig = Rig()
    assert rig.look(10, 9, 0.0) == {MIRROR}
    assert not rig.mirrors.have(rig.match, 10)
    rig.look(10, 10, 0.1)
    assert rig.mirrors.have(rig.match, 10)


def test_one_that_still_catches_up_is_not() -> None:
    rig = Rig()
    assert rig.look(10_000, 10, 0.0) == set()
    assert rig.mirrors.have(rig.match, 10_000)
    assert rig.look(10_000, 10_000 - LEVEL_COUNT, 0.5) == {MIRROR}


def test_one_that_falls_behind_under_load_still_is() -> None:
    rig = Rig()
    rig.look(10, 10, 0.0)
    for n in range(1, 50):
        assert rig.look(10 + 1_000 * n, 10 + 100 * n, 0.1 * n) == {MIRROR}


def test_without_support_it_is_not_until_it_is_level_again() -> None:
    rig = Rig()
    rig.look(10, 10, 0.0)
    rig.supports.clear()
    assert rig.look(1_000, 10, 0.1) == set()
    rig.supports.add(MIRROR.peer)
    assert rig.look(1_000, 10, 0.2) == set()
    assert rig.look(1_000, 1_000, 0.3) == {MIRROR}


def test_one_that_confirms_nothing_is_given_up_until_it_confirms_something() -> None:
    rig = Rig()
    rig.look(10, 10, 0.0)
    assert rig.look(11, 10, 100.0) == {MIRROR}, "nothing was asked of it in between"
    assert rig.look(12, 10, 100.0 + PATIENCE_S - 0.01) == {MIRROR}
    assert rig.look(12, 10, 100.0 + PATIENCE_S) == set()
    assert rig.look(13, 10, 110.0) == set(), "although it is level"
    assert rig.look(13, 11, 111.0) == {MIRROR}


def test_where_several_decide_there_is_none() -> None:
    three = config_of([ME, MIRROR, OTHER])
    for config in (three, step_toward(PAIR, three), config_of([ME])):
        rig = Rig()
        rig.look(10, 10, 0.0)
        rig.config = config
        assert rig.look(10, 10, 0.1) == set()
