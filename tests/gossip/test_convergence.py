"""Many machines on a bad network: what SWIM and Lifeguard claim, seen in the simulator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from meshq.gossip.settings import LAN
from meshq.gossip.words import (
    LeaveRequested,
    MemberAlive,
    MemberChanged,
    MemberDead,
    MemberLeft,
    MemberSuspect,
    ReachChanged,
    State,
    VerdictsDiscarded,
)
from tests.gossip.scenarios import detection, percentile, quiet, without_discarding, without_lifeguard
from tests.gossip.simulation import World, address_of, number


def trace(seed: int) -> str:
    world = World(10, seed=seed, loss=0.2, duplicates=0.1)
    world.kill(4)
    world.run(5)
    return world.trace


def test_the_same_seed_gives_the_same_trace_in_another_process_too() -> None:
    """Whose hashes of strings and bytes differ."""
    script = "from tests.gossip.test_convergence import trace; print(trace(7))"
    for hashes in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": hashes},
        )
        assert run.stdout.strip() == trace(7)
    assert trace(7) != trace(8)


@pytest.mark.parametrize("size", [3, 10, 50])
def test_with_loss_all_find_each_other_from_one_seed(size: int) -> None:
    world = World(size, loss=0.2, warm=False)
    assert world.run(20, world.met) < 10


# ------------------------------------------------------------------------------------------------ detection
@pytest.mark.parametrize("size", [3, 10, 50])
def test_a_killed_process_is_suspected_in_half_a_second_and_dead_in_two(size: int) -> None:
    found = detection(World(size, loss=0.05), 6, linked=True)
    assert max(found.suspected) <= 0.5
    assert max(found.dead) <= 2.0


@pytest.mark.parametrize(
    ("size", "trials", "loss"), [(3, 30, 0.05), (10, 20, 0.05), (50, 5, 0.05), (3, 30, 0.3), (10, 8, 0.3)]
)
def test_a_host_cut_off_is_suspected_within_a_second_and_dead_within_three(
    size: int, trials: int, loss: float
) -> None:
    """SWIM, section 3.1: the expected time to first detection does not depend on the size."""
    found = detection(World(size, loss=loss), trials)
    assert percentile(found.suspected, 0.99) <= 1.0
    assert max(found.dead) <= 3.0


def test_a_member_costs_the_same_in_a_larger_mesh() -> None:
    """SWIM, section 3.1: the load of a member is constant."""
    small, large = (quiet(World(size), 3) for size in (50, 150))
    assert large.datagrams == pytest.approx(small.datagrams, rel=0.2)
    assert large.bytes == pytest.approx(small.bytes, rel=0.2)


def test_every_member_is_asked_within_two_rounds() -> None:
    """SWIM, section 4.3: time-bounded completeness."""
    size = 10
    world = World(size)
    world.run(2 * (size - 1) * LAN.probe_s + 0.5)
    for m in world.peers.values():
        assert all(x.heard is not None and x.via == "direct" for x in m.members())


# -------------------------------------------------------------------------------------------------- accuracy
@pytest.mark.parametrize("loss", [0.05, 0.2])
def test_loss_kills_nobody(loss: float) -> None:
    """SWIM, section 4.2: suspicion before death."""
    for size, seconds in ((3, 60), (10, 30)):
        assert quiet(World(size, loss=loss), seconds).false_deaths == 0


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 110))
def test_five_percent_loss_kills_nobody_in_ten_hours_of_fifty(seed: int) -> None:
    """An hour each."""
    assert quiet(World(50, seed=seed, loss=0.05), 3_600).false_deaths == 0


def test_datagrams_lost_now_and_then_make_nobody_suspect() -> None:
    """So what loss costs a member does not grow with the mesh: a suspicion is told to all."""
    assert quiet(World(50, loss=0.05), 10).false_suspicions == 0


@pytest.mark.parametrize("slow", ["pause", "freeze"])
def test_members_that_pause_kill_nobody_who_does_not(slow: str) -> None:
    """A third pauses two seconds at random; whom of the others do they kill?"""
    assert quiet(World(12), 60, slow=slow).false_deaths == 0


def test_with_lifeguard_slow_members_kill_twenty_times_fewer() -> None:
    """Lifeguard, section V: slow message processing, timers that run on."""
    ours = quiet(World(12), 60, slow="hold")
    plain = quiet(World(12, settings=without_lifeguard(LAN)), 60, slow="hold")
    assert plain.false_deaths >= 20 * max(ours.false_deaths, 1)


def test_without_noticing_that_it_was_deaf_a_peer_accuses_others_and_with_it_does_not() -> None:
    """What taking back its verdicts brings: fewer suspicions of those that were there all the time."""
    ours = quiet(World(12), 60, slow="freeze")
    without = quiet(World(12, settings=without_discarding(LAN)), 60, slow="freeze")
    assert ours.false_suspicions < without.false_suspicions / 5


def test_a_link_cut_between_two_does_not_kill_while_others_can_ask() -> None:
    """SWIM, section 3.1: the indirect probe."""
    world = World(5)
    world.cut = lambda a, b: {a, b} == {2, 3}
    world.run(30)
    assert not any(isinstance(x, MemberSuspect | MemberDead) for _, _, x in world.log)
    three = world.member(2, 3)
    assert three.via == "indirect"


def test_a_one_way_cut_kills_nobody_either() -> None:
    world = World(5)
    world.cut = lambda a, b: (a, b) == (2, 3)
    world.run(30)
    assert world.deaths() == []


def test_a_process_that_stood_still_is_back_within_two_seconds_of_waking_and_accuses_nobody() -> None:
    world = World(5)
    world.run(1)
    world.pause(3, 3.0)
    world.run(2.99)
    assert world.all_see(State.DEAD, 3)
    assert world.run(10, world.converged) < 2
    assert [x for x in world.log if x[1] == 3 and isinstance(x[2], MemberSuspect | MemberDead)] == []
    assert any(isinstance(x, VerdictsDiscarded) for _, n, x in world.log if n == 3)


# --------------------------------------------------------------------------------------- splits and restarts
def test_the_halves_of_a_split_call_each_other_dead_and_find_each_other_after_it() -> None:
    world = World(10, loss=0.1)
    world.cut = lambda a, b: (a <= 5) != (b <= 5)
    world.run(10)
    assert world.sees(1) == {n: State.ALIVE if n <= 5 else State.DEAD for n in range(2, 11)}
    assert world.sees(10) == {n: State.DEAD if n <= 5 else State.ALIVE for n in range(1, 10)}
    world.cut = lambda a, b: False
    assert world.run(30, world.converged) < 5
    healed = world.now
    world.run(10)
    assert not [x for x in world.deaths() if x[0] > healed]


def test_one_host_cut_off_from_two_is_back_soon_after_the_heal() -> None:
    world = World(3)
    world.cut = lambda a, b: 1 in (a, b)
    world.run(60)
    assert world.sees(1) == {2: State.DEAD, 3: State.DEAD}
    world.cut = lambda a, b: False
    assert world.run(30, world.converged) < 3


def test_a_restart_within_the_suspicion_is_seen_as_one_by_all() -> None:
    world = World(5)
    world.run(2)
    world.kill(3, linked=True)
    world.run(0.5)
    assert world.state(1, 3) is State.SUSPECT
    world.start(3)
    world.run(10, world.converged)
    news = {(n, type(x)) for _, n, x in world.log if n != 3}
    assert news == {(n, kind) for n in (1, 2, 4, 5) for kind in (MemberSuspect, MemberChanged, MemberAlive)}
    assert all(world.member(n, 3).boot_epoch == 2 for n in (1, 2, 4, 5))


def test_a_whole_mesh_that_restarts_finds_itself() -> None:
    world = World(10, loss=0.1)
    world.run(2)
    for n in range(1, 11):
        world.start(n)
    assert world.run(30, world.met) < 10


def test_new_addresses_reach_everybody() -> None:
    world = World(5)
    moved = address_of(4, host=9)
    world.run(1)
    world.move(4, moved)
    world.run(20, lambda: all(moved in world.member(n, 4).addresses for n in (1, 2, 3, 5)))
    world.run(5)
    assert world.converged()
    assert world.deaths() == []


def test_one_that_leaves_has_left_everywhere_at_once_and_is_not_called_dead() -> None:
    world = World(10, loss=0.2)
    world.run(2)
    world.log.clear()
    world.tell(7, LeaveRequested())
    world.run(0.05)
    world.kill(7)
    assert world.run(20, lambda: world.all_see(State.LEFT, 7)) < 2
    world.run(10)
    about = {(n, type(x)) for _, n, x in world.log if number(x.member.peer) == 7}  # type: ignore[union-attr]
    assert (1, MemberLeft) in about
    assert not any(kind is MemberDead for _, kind in about)
    world.start(7)
    assert world.run(20, world.met) < 6


def test_one_that_starts_late_learns_who_left_and_who_is_dead() -> None:
    world = World(5)
    world.tell(4, LeaveRequested())
    world.run(1)
    world.down |= {4, 5}
    world.run(10)
    world.log.clear()
    world.start(2)
    world.run(10)
    assert world.sees(2) == {1: State.ALIVE, 3: State.ALIVE, 4: State.LEFT, 5: State.DEAD}
    assert not any(number(x.member.peer) == 5 for _, _, x in world.log if isinstance(x, MemberAlive))


# ------------------------------------------------------------------------------------------------ blocked UDP
def test_one_whose_udp_is_blocked_is_alive_to_all_and_named_as_reached_over_connections() -> None:
    world = World(5, links=True, loss=0.05, udp_blocked={3})
    world.run(20)
    assert world.converged()
    assert world.deaths() == []
    assert {world.member(n, 3).reach for n in (1, 2, 4, 5)} == {"link"}
    assert all(world.peers[n].counts["udp_blocked"] for n in (1, 2, 4, 5))
    told = [
        (n, x.member.reach)
        for _, n, x in world.log
        if isinstance(x, ReachChanged) and x.member.name == "peer3"
    ]
    assert sorted(told) == [(n, "link") for n in (1, 2, 4, 5)]


def test_one_whose_udp_is_blocked_and_that_stood_still_is_back_by_refuting_over_connections() -> None:
    world = World(5, links=True, udp_blocked={3})
    world.run(5)
    world.pause(3, 3.0)
    world.run(2.99)
    assert world.all_see(State.DEAD, 3)
    assert world.run(10, world.converged) < 2
    assert world.member(1, 3).version > 1


def test_news_reaches_one_whose_udp_is_blocked() -> None:
    world = World(5, links=True, udp_blocked={3})
    world.run(5)
    world.kill(5)
    assert world.run(20, lambda: world.all_see(State.DEAD, 5)) < 5
    world.move(4, address_of(4, host=9))
    assert world.run(20, lambda: world.member(3, 4).addresses == (address_of(4, host=9),)) < 5
