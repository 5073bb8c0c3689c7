"""Who cannot lead, or could not store what is published, does not: publishing goes on elsewhere."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from meshq.errors import DiskFull
from meshq.ids import SYSTEM_SLOT
from meshq.messages import Accepted
from tests.peer.test_receipts import Bench
from tests.peer.world import Host, is_level


def first_owner(bench: Bench) -> Host:
    first = bench.leader.core.placing.wanted[bench.slot][0]
    (found,) = [h for h in bench.world.hosts if h.identity.peer_id == first]
    return found


def publish_for(bench: Bench, seconds: int) -> list[Any]:
    """A batch each half second, by producers of their own; those acknowledged before the next one."""
    done = []
    for number in range(2 * seconds):
        ticket = bench.begin_on(number)
        bench.world.run_for(0.5)
        if isinstance(bench.client.results.get(ticket), Accepted):
            done.append(ticket)
    return done


@pytest.mark.parametrize("seed", [1, 2])
def test_a_first_owner_whose_disk_was_rolled_back_is_not_handed_the_lead(seed: int) -> None:
    bench = Bench(seed, 3)
    first = first_owner(bench)
    first.core.slots.freeze()
    bench.world.run(lambda: any(bench.replica(h).serves for h in bench.world.hosts if h is not first))
    bench.world.run_for(3.0)
    assert len(publish_for(bench, 10)) == 20


@pytest.mark.parametrize("seed", [1, 2])
def test_a_first_owner_that_comes_back_full_gets_the_lead_when_it_has_room(seed: int) -> None:
    bench = Bench(seed, 3)
    first = first_owner(bench)
    first.crash()
    first.disk.full = True
    bench.world.run_for(5.0)
    first.start()
    bench.world.run_for(3.0)
    assert len(publish_for(bench, 10)) == 20
    assert bench.leader is not first
    first.disk.full = False
    bench.world.run(lambda: bench.replica(first).serves, most_s=20.0)


@pytest.mark.parametrize("seed", range(3))
def test_a_leader_whose_disk_is_full_hands_over_to_one_that_has_room(seed: int) -> None:
    bench = Bench(seed, 3)
    full = bench.leader
    assert full is first_owner(bench)
    full.disk.full = True
    bench.world.run(lambda: not bench.replica(full).serves, most_s=3.0)
    bench.world.run_for(2.0)
    assert len(publish_for(bench, 10)) == 20
    assert not [h for h in full.core.slots.led() if h.slot != SYSTEM_SLOT], "nor does it lead another slot"
    full.disk.full = False
    bench.world.run(lambda: bench.replica(full).serves and is_level(bench.world, bench.key), most_s=20.0)


def test_while_all_are_full_publishing_is_refused_and_goes_on_when_two_have_room() -> None:
    bench = Bench(1, 3)
    for host in bench.world.hosts:
        host.disk.full = True
    bench.world.run_for(3.0)
    assert isinstance(bench.send(timeout=3.0), DiskFull)
    for host in bench.others:
        host.disk.full = False
    assert isinstance(bench.send(), Accepted)


def test_a_leader_with_room_refuses_at_once_while_the_others_have_none() -> None:
    """Its own disk would take the record, and then it would wait there for nothing."""
    bench = Bench(1, 3)
    assert isinstance(bench.send(), Accepted)
    leader, last = bench.leader, bench.replica(bench.leader).last.index
    for host in bench.others:
        host.disk.full = True
    bench.world.run(lambda: len(leader.core.slots.full) == 2)
    refused = bench.send(timeout=3.0)
    assert isinstance(refused, DiskFull) and "too few of the voters" in str(refused)
    assert bench.leader is leader and bench.replica(leader).last.index == last, "nothing was appended"
    bench.others[0].disk.full = False
    assert isinstance(bench.send(), Accepted), "two of three are enough"


@pytest.mark.parametrize("seed", range(3))
def test_a_peer_that_stops_hands_over_to_one_that_has_room(seed: int) -> None:
    bench = Bench(seed, 3)
    world, stopping = bench.world, bench.leader
    full, roomy = bench.others
    full.disk.full = True
    world.run(lambda: full.identity.peer_id in stopping.core.slots.full)
    led = {h.slot for h in stopping.core.slots.led()}
    end, left = world.now + 2.0, 1
    while left and world.now < end:  # as the shell does it
        left, effects = stopping.core.hand_over(now=world.now, wall_ms=world.wall_ms())
        stopping._do(effects)
        world.run_for(0.02)
    assert left == 0
    world.run(lambda: all(roomy.core.slots.hosts[s].leads for s in led))


def test_hand_overs_that_come_to_nothing_are_tried_ever_less_often() -> None:
    """It cannot lead and nobody knows why, so each costs the slot a second."""
    bench = Bench(1, 3)
    first = first_owner(bench)
    first.crash()
    bench.world.run_for(5.0)
    first.start()
    bench.replica(first)._elections.may_campaign = lambda: False
    bench.world.run(lambda: any(bench.replica(h).serves for h in bench.world.hosts if h is not first))
    leader = bench.leader
    begun: list[float] = []

    def look() -> None:
        if bench.replica(leader).is_handing_over:
            begun.append(bench.world.now)
        bench.world.at(0.05, look)

    look()
    accepted = publish_for(bench, 120)
    assert bench.leader is leader
    starts = [at for i, at in enumerate(begun) if not i or at > begun[i - 1] + 0.1]
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert 4 <= len(starts) <= 6, starts
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(gaps)), gaps
    assert len(begun) <= 22 * len(starts), "none is longer than a second"
    assert len(accepted) >= 240 - 4 * len(starts)
    del bench.replica(first)._elections.may_campaign
    bench.world.run(lambda: bench.replica(first).serves, most_s=320.0)
