"""The table of what a member can become: complete, true of the machine, and the only way."""

from __future__ import annotations

import pytest

from meshq.errors import InternalError
from meshq.gossip import wire
from meshq.gossip.machine import Membership
from meshq.gossip.settings import LAN
from meshq.gossip.transitions import TRANSITIONS, Belief, Cause, as_markdown, as_mermaid
from meshq.gossip.wire import Gossip
from meshq.gossip.words import DatagramReceived, Slept, State, Tick
from meshq.ids import PeerId
from tests.gossip.scripts import claim, hear, knowing, signed
from tests.gossip.simulation import peer_id

TWO = peer_id(2)


def believed(m: Membership) -> Belief:
    return m._table.known[TWO].belief


def a_mesh_that_believes(belief: Belief) -> Membership:
    m = knowing(3) if belief is Belief.UNHEARD else knowing(2, 3)
    match belief:
        case Belief.UNHEARD:
            hear(m, 3, Gossip(hearsay=True), records=[signed(2)])
        case Belief.SUSPECT:
            _accuse_by_its_own_probe(m)
        case Belief.DEAD:
            hear(m, 3, claims=[claim(2, 3, dead=True)])
        case Belief.LEFT:
            hear(m, 3, records=[signed(2, version=2, left=True)])
    assert believed(m) is belief
    return m


def _accuse_by_its_own_probe(m: Membership) -> None:
    m._table.on_probe_failed(m._table.known[TWO], 0.0)


def make_it_happen(m: Membership, cause: Cause) -> None:
    version = m._table.known[TWO].order[1]
    match cause:
        case Cause.RENEWED:
            hear(m, 3, records=[signed(2, version=version + 1)])
        case Cause.NOTED:
            hear(m, 3, Gossip(hearsay=True), records=[signed(2, version=version + 1)])
        case Cause.SAID_LEFT:
            hear(m, 3, records=[signed(2, version=version + 1, left=True)])
        case Cause.ANSWERED:
            hear(m, 2, Gossip(answered=9))
        case Cause.ACCUSED:
            hear(m, 3, claims=[claim(2, 3, version=version)])
        case Cause.DECLARED:
            hear(m, 3, claims=[claim(2, 3, dead=True, version=version)])
        case Cause.UNREFUTED:
            m._table.expire(100.0)
        case Cause.TAKEN_BACK:
            m.handle(Slept(1.0), now=0.0)
        case Cause.RECLAIMED:
            m._table.reclaim(LAN.reclaim_s + 1.0)


@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize("belief", Belief)
def test_the_machine_does_what_the_table_says_and_nothing_where_it_says_nothing(
    belief: Belief, cause: Cause
) -> None:
    m = a_mesh_that_believes(belief)
    make_it_happen(m, cause)
    assert believed(m) is TRANSITIONS.get((belief, cause), belief)


def test_what_is_not_in_the_table_is_a_fault_of_the_program() -> None:
    m = knowing(2)
    with pytest.raises(InternalError, match="UNREFUTED"):
        m._table._enter(m._table.known[TWO], Cause.UNREFUTED, None, 0.0)


def test_only_its_owners_newer_record_brings_back_one_that_is_dead() -> None:
    """SWIM, section 4.2."""
    back = {cause for (belief, cause), after in TRANSITIONS.items() if belief is Belief.DEAD}
    assert back == {Cause.RENEWED, Cause.NOTED, Cause.SAID_LEFT, Cause.RECLAIMED}
    assert {after for (b, c), after in TRANSITIONS.items() if c is Cause.RENEWED} == {Belief.ALIVE}


def test_picture_and_table_show_every_step() -> None:
    for (before, cause), after in TRANSITIONS.items():
        if before is not after:
            assert any(
                line.strip().startswith(f"{before} --> {after}:") and cause in line
                for line in as_mermaid().splitlines()
            )
    assert as_markdown().count("\n") == 2 + len(Cause)


def test_what_was_said_of_one_long_dead_is_dropped_and_its_record_kept() -> None:
    m = knowing(2, 3)
    hear(m, 3, claims=[claim(2, 3, dead=True)])
    died = m.member(TWO)
    assert died is not None
    m._next_probe = m._next_sync = m._next_reach = m._due = LAN.reclaim_s + 1.0
    m.handle(Tick(), now=LAN.reclaim_s + 1.0)
    after = m.member(TWO)
    assert after is not None
    assert (after.state, after.since, after.evidence, after.name) == (State.DEAD, died.since, None, "peer2")
    (payload,) = wire.pack(Gossip(ask=77))
    m.handle(DatagramReceived(payload, PeerId(TWO), "10.0.0.2:7700"), now=LAN.reclaim_s + 2.0)
    assert believed(m) is Belief.ALIVE  # with the record it had
