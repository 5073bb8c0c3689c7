"""What is done to a simulated mesh, and what is measured meanwhile. Each takes a World and returns facts.

Times are from the moment a fault begins (or ends, for healing) until the simulated fact holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from meshq.gossip import wire
from meshq.gossip.settings import Settings
from meshq.gossip.wire import Gossip
from meshq.gossip.words import LeaveRequested, LinkCarried, MemberDead, MemberSuspect, State
from tests.gossip.simulation import World, number, peer_id

PAUSE_S = 2.0
PAUSE_EVERY_S = 8.0  # between two pauses of one member, on average
FOR_EVER_S = 1e9


def without_lifeguard(s: Settings) -> Settings:
    """Plain SWIM: no look at oneself, one length of suspicion, no buddy. Nacks are sent and mean nothing."""
    return replace(s, awareness_max=0, confirmations=0, suspect_factor=1.0, buddy=False)


def without_discarding(s: Settings) -> Settings:
    """Who stood still does not notice. (In neither paper; a peer here does.)"""
    return replace(s, stall_s=FOR_EVER_S)


@dataclass(frozen=True)
class Found:
    suspected: list[float]  # until the first suspicion, of each trial
    dead: list[float]  # until everyone knows


def detection(world: World, trials: int, *, linked: bool = False, restarted: bool = True) -> Found:
    """Kill one after another. `restarted`: each is back before the next goes; else they stay away."""
    found = Found([], [])
    world.run(2)
    for trial in range(trials):
        n = 3 + trial % (world.size - 2) if world.size > 3 else 3
        world.run(world.rng.random())
        world.log.clear()
        began = world.now
        world.kill(n, linked=linked)
        world.run(60, lambda n=n: world.all_see(State.DEAD, n), look_s=0.02)
        suspected = world.first(MemberSuspect, n, began)
        last = max((t for t, _, x in world.deaths() if x == n), default=float("inf"))
        # Who lost datagrams had made suspect already is not suspected once more: then it took no time.
        found.suspected.append(suspected - began if suspected is not None else 0.0)
        found.dead.append(last - began)
        if restarted:
            world.start(n)
            world.run(30, lambda n=n: world.all_see(State.ALIVE, n))
    return found


@dataclass(frozen=True)
class Quiet:
    """Counted over members that did not pause; a death is counted once, however many believed it."""

    seconds: float
    false_deaths: int
    false_suspicions: int  # by anybody of any of them
    datagrams: float  # a second and member, sent
    bytes: float

    @property
    def deaths_hourly(self) -> float:
        return self.false_deaths * 3_600 / self.seconds


def quiet(world: World, seconds: float, *, slow: str = "") -> Quiet:
    """Nobody dies. `slow`: a third now and then is stopped for 2 s (`pause`), stopped and deaf as a suspended
    machine is (`freeze`), or has its datagrams held while its timers run (`hold`).
    """
    world.run(2)
    world.log.clear()
    world.datagrams = world.bytes = 0
    slow_ones = set(range(1, world.size + 1, 3)) if slow else set()

    def stumble(n: int) -> None:
        if slow == "hold":
            world.hold(n, PAUSE_S)
        else:
            world.pause(n, PAUSE_S, deaf=slow == "freeze")
        world.call(PAUSE_S + world.rng.expovariate(1 / PAUSE_EVERY_S), lambda: stumble(n))

    for n in slow_ones:
        world.call(world.rng.expovariate(1 / PAUSE_EVERY_S), lambda n=n: stumble(n))
    world.run(seconds)
    per = seconds * world.size
    suspected = sum(
        isinstance(e, MemberSuspect) and number(e.member.peer) not in slow_ones for _, _, e in world.log
    )
    return Quiet(seconds, false_deaths(world, slow_ones), suspected, world.datagrams / per, world.bytes / per)


def false_deaths(world: World, not_counted: set[int]) -> int:
    """Incarnations of members that were there and were called dead by anybody."""
    called = {
        (number(e.member.peer), e.member.boot_epoch, e.member.version)
        for _, _, e in world.log
        if isinstance(e, MemberDead)
    }
    return sum(n not in not_counted for n, _, _ in called)


@dataclass(frozen=True)
class Recovery:
    """`after_s`: until all lists were true again. `false_deaths`: of those that were there and reachable."""

    after_s: float
    false_deaths: int


def one_way_cut(world: World, seconds: float = 20.0) -> Recovery:
    """One member's datagrams reach nobody in half of the mesh; it hears them all, and the others hear it."""
    world.run(2)
    world.log.clear()
    world.cut = lambda a, b: a == 2 and b > world.size // 2
    world.run(seconds + world.rng.random())
    false = false_deaths(world, set())
    return Recovery(_heal(world), false)


def split(world: World, seconds: float = 20.0) -> Recovery:
    """In halves, then together again."""
    half = world.size // 2
    world.run(2)
    world.cut = lambda a, b: (a <= half) != (b <= half)
    world.run(seconds + world.rng.random(), look_s=1.0)  # in the simulator all write to the dead at one time
    apart = all(
        world.state(a, b) is State.DEAD and world.state(b, a) is State.DEAD
        for a in range(1, half + 1)
        for b in range(half + 1, world.size + 1)
    )
    assert apart, "the halves had not found out"
    world.log.clear()
    after_s = _heal(world)
    world.log.clear()
    world.run(5)
    return Recovery(after_s, false_deaths(world, set()))


def mass_restart(world: World) -> Recovery:
    """All of them within a second, with nothing remembered but two addresses."""
    world.run(2)
    for n in range(1, world.size + 1):
        world.call(world.rng.random(), lambda n=n: world.start(n))
    world.run(1)
    world.log.clear()
    return Recovery(_until(world, world.converged), false_deaths(world, set()))


def churn(world: World, seconds: float = 30.0, every_s: float = 1.0) -> Recovery:
    """One after another of a third of them dies or leaves, and is back ten seconds later."""
    world.run(2)
    world.log.clear()
    churning = set(range(3, world.size + 1, 3))
    victims = sorted(churning)

    def go(turn: int) -> None:
        n = victims[turn % len(victims)]
        if n not in world.down:
            if turn % 2:
                world.tell(n, LeaveRequested())
            world.kill(n, linked=turn % 4 == 0)
            world.call(10.0, lambda: world.start(n))
        if turn * every_s < seconds:
            world.call(every_s, lambda: go(turn + 1))

    go(0)
    world.run(seconds + 11.0, look_s=1.0)
    return Recovery(_until(world, world.converged), false_deaths(world, churning))


def whole_lists(world: World, every_s: float) -> None:
    """Instead of comparing notes by pages: now and then each exchanges its whole list with another one, as
    memberlist does (push-pull), reliably, over a connection.
    """
    for m in world.peers.values():
        m._compare_notes = lambda now, m=m: setattr(m, "_next_sync", FOR_EVER_S)  # type: ignore[method-assign]

    def exchange(n: int) -> None:
        others = [x for x in world.up() if x != n and world.state(n, x) is State.ALIVE]
        if n not in world.down and others:
            other = world.rng.choice(others)
            if not world.cut(n, other) and not world.cut(other, n):
                for a, b in ((n, other), (other, n)):
                    for payload in _whole_list(world, a):
                        world.bytes += len(payload)
                        world.tell(b, LinkCarried(payload, peer_id(a)))
        world.call(every_s, lambda: exchange(n))

    for n in world.peers:
        world.call(world.rng.random() * every_s, lambda n=n: exchange(n))


def _whole_list(world: World, n: int) -> list[bytes]:
    m = world.peers[n]
    known = list(m._table.known.values())
    records = [m._own.signed, *(k.signed for k in known if k.signed)]
    return wire.pack(Gossip(hearsay=True), records=records, claims=[k.claim for k in known if k.claim])


def _heal(world: World) -> float:
    world.cut = lambda a, b: False
    return _until(world, world.converged)


def _until(world: World, condition: Callable[[], bool]) -> float:
    """Infinite when it did not come to be."""
    look_s = 0.05 if world.size <= 50 else 0.5  # to look costs the square of the size
    took_s = world.run(120, condition, look_s=look_s)
    return took_s if condition() else float("inf")


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
