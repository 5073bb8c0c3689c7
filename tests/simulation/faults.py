"""What strikes in a schedule, and how a seed becomes one.

A schedule has a few kinds of faults, half of them or most ("swarm testing", Groce et al. 2012): where all of
them are always there, the frequent ones hide what the rare ones would do. Some strike at random times, some
just when it hurts: whoever has come to lead, or has proposed a change of members, is struck at once. A disk
is harmed only while a majority of every configuration can do without it, because more was never promised.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from meshq.replication.quorum import VOTERS_MAX
from tests.simulation.disk import Image
from tests.simulation.host import Host
from tests.simulation.network import Weather
from tests.simulation.world import Plan, World

AIMED = {"change", "new_leader", "transfer"}  # not struck at random times
LOOKS = 60  # how often it is looked for the moment at which damage hurts most
EVENTS = 4_500  # of the safety phase: with the liveness phase some 5,000
HOSTS = (1, 2, 3, 3, 3, 3, 5, 5)
WITH_WITNESS = (3, 3, 4)


def draw(seed: int, *, events: int = EVENTS, hosts: int | None = None, witness: bool = False) -> Plan:
    """`witness`: two or three hosts that keep records, and one that is a witness."""
    rng = random.Random(seed * 7_919 + 1)
    count = hosts or rng.choice(WITH_WITNESS if witness else HOSTS)
    voters = 3 if witness else {1: 1, 2: 1, 3: 3}.get(count) or rng.choice((3, 5))
    weather = Weather(
        loss=rng.choice((0.0, 0.0, 0.02, 0.15)),
        twice=rng.choice((0.0, 0.0, 0.05, 0.3)),
        delay_s=rng.choice((0.0002, 0.001, 0.01)),
        jitter_s=rng.choice((0.0005, 0.005, 0.03)),
        late=rng.choice((0.0, 0.0, 0.02)),
        in_order=rng.random() < 0.5,
    )
    share = rng.choice((0.15, 0.3, 0.5, 0.7))
    plan = Plan(
        hosts=count,
        slots=rng.randint(1, 4),
        voters=voters,
        weather=weather,
        faults=frozenset(f for f in sorted(FAULTS) if f != "recover" and rng.random() < share),
        fault_s=rng.choice((0.03, 0.1, 0.3, 1.0)),
        client_s=rng.choice((0.005, 0.02, 0.05)),
        burst=rng.choice((1, 3, 12)),
        events=events,
        drift=rng.choice((0.0, 0.01, 0.1)),
        fsync_s=rng.choice((0.0005, 0.005, 0.03)),
        append_bytes=rng.choice((1, 200, 1 << 20)),
        in_flight=rng.choice((1, 2, 64)),
        alarms=rng.choice((0.0, 0.0, 0.02, 0.2)),
        quick=rng.random() < 0.5,
        witness=witness,
    )
    if rng.random() < 0.3:
        plan = replace(plan, faults=plan.faults | {"recover"})
    return plan


class Nemesis:
    """Strikes at random times until the world heals."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng
        self._kinds = sorted(world.plan.faults & FAULTS.keys() - AIMED)
        self._where_it_hurts = self._rng.choice((0.1, 0.4, 0.8))
        world.on_leader, world.on_change = self._on_leader, self._on_change
        self._copies: dict[int, tuple[int, dict[int, Image], int]] = {}  # by host: an old directory
        if self._kinds:
            world.at(self._pause(), self._strike)

    def _pause(self) -> float:
        return self._rng.expovariate(1 / self._world.plan.fault_s)

    def _strike(self) -> None:
        world = self._world
        if world.now >= world.healed_at:
            return
        world.at(world.now + self._pause(), self._strike)
        kind = self._rng.choice(self._kinds)
        host = self._rng.choice(world.hosts)
        leaders = world.leaders(self._rng.randrange(world.plan.slots))
        if leaders and self._rng.random() < self._where_it_hurts:
            host = leaders[-1][0]
        world.tell(host, -1, f"fault: {kind}")
        world.events += 1
        FAULTS[kind](self, host)

    def _later(self, mean_s: float, what: Callable[..., None], *args: object) -> None:
        """If the world has not been healed by then: that mends everything."""
        self._world.at(self._world.now + self._rng.expovariate(1 / mean_s), self._unless_healed, what, args)

    def _unless_healed(self, what: Callable[..., None], args: tuple[object, ...]) -> None:
        if self._world.now < self._world.healed_at:
            what(*args)

    # ------------------------------------------------------------------------------------------ just then
    def _on_leader(self, host: Host) -> None:
        """It has been elected, and nothing of its term is decided yet."""
        if "new_leader" in self._world.plan.faults and self._rng.random() < 0.5:
            self._soon(host)

    def _on_change(self, host: Host) -> None:
        """It has proposed other members: it is struck, or another one, which may be one of them."""
        if "change" in self._world.plan.faults and self._rng.random() < 0.4:
            self._soon(host if self._rng.random() < 0.6 else self._rng.choice(self._world.hosts))

    def _soon(self, host: Host) -> None:
        """After a few deliveries or writes, whichever take longer."""
        world = self._world
        a_moment = max(world.plan.weather.delay_s + world.plan.weather.jitter_s, world.plan.fsync_s)
        self._later(a_moment * self._rng.choice((0.2, 1.0, 3.0)), self._strike_at, host)

    def _strike_at(self, host: Host) -> None:
        self._world.tell(host, -1, "fault: just then")
        self._rng.choice((Nemesis.crash, Nemesis.isolate))(self, host)

    # --------------------------------------------------------------------------------------------- processes
    def crash(self, host: Host) -> None:
        self._world.crash(host, noticed=self._rng.random() < 0.7)
        self._later(self._rng.choice((0.05, 1.0)), self._world.start, host)

    def crash_all(self, host: Host) -> None:
        for host in self._world.hosts:
            self.crash(host)

    def pause(self, host: Host) -> None:
        until = self._world.now + self._rng.choice((0.1, 0.5, 3.0)) * self._rng.random()
        self._world.paused[host.number] = until = max(self._world.paused[host.number], until)
        self._world.at(until, self._world.read_at, host)  # whoever waited for it asks before it knows

    def shy(self, host: Host) -> None:
        """It is asked not to lead for a while: its disk fills up, or it is about to leave."""
        for copy in host.copies:
            copy.replica.set_may_lead(False)
        self._later(1.0, self._bold, host)

    def _bold(self, host: Host) -> None:
        for copy in host.copies:
            copy.replica.set_may_lead(True)

    # ----------------------------------------------------------------------------------------------- network
    def _cut(self, pairs: list[tuple[int, int]]) -> None:
        """Connections; mostly datagrams too, but either may fail alone."""
        datagrams = self._rng.random() < 0.7
        for a, b in pairs:
            self._world.network.cut(a, b, self._world.now)
            self._world.network.links[a][b].udp_cut |= datagrams
        self._later(self._rng.choice((0.3, 2.0)), self._mend, pairs)

    def _mend(self, pairs: list[tuple[int, int]]) -> None:
        for a, b in pairs:
            link = self._world.network.links[a][b]
            link.cut = link.udp_cut = False

    def udp(self, host: Host) -> None:
        """Datagrams are blocked, connections are not: membership is wrong about it."""
        pairs = [(host.number, h.number) for h in self._world.hosts if h is not host]
        for a, b in pairs:
            self._world.network.links[a][b].udp_cut = True
        self._later(2.0, self._mend, pairs)

    def one_way(self, host: Host) -> None:
        others = [h.number for h in self._world.hosts if h is not host and self._rng.random() < 0.7]
        out = self._rng.random() < 0.5
        self._cut([(host.number, n) if out else (n, host.number) for n in others])

    def isolate(self, host: Host) -> None:
        others = [h.number for h in self._world.hosts if h is not host]
        self._cut([p for n in others for p in ((host.number, n), (n, host.number))])

    def split(self, host: Host) -> None:
        """Two halves; now and then with a bridge that hears both."""
        numbers = [h.number for h in self._world.hosts]
        self._rng.shuffle(numbers)
        bridge = self._rng.random() < 0.3
        middle = self._rng.randint(0, len(numbers))
        left, right = numbers[:middle], numbers[middle + bridge :]
        self._cut([p for a in left for b in right for p in ((a, b), (b, a))])

    def break_link(self, host: Host) -> None:
        others = [h for h in self._world.hosts if h is not host]
        if others:
            other = self._rng.choice(others)
            if host.up and other.up:
                self._world.break_link(host.number, other.number, back_s=self._rng.random() * 0.3)

    # -------------------------------------------------------------------------------------------------- disks
    def slow_disk(self, host: Host) -> None:
        self._world.stuck_disks.add(host.number)
        self._later(1.0, self._world.stuck_disks.discard, host.number)

    def full_disk(self, host: Host) -> None:
        host.full = True
        self._later(self._rng.choice((0.5, 3.0)), setattr, host, "full", False)

    def flip(self, host: Host) -> None:
        """A bit of a stored entry: seen at the next start, or when it is read for somebody."""
        found = [s for s, image in host.disk.images.items() if image.items]
        if not found:
            return
        slot = self._rng.choice(found)
        image = host.disk.images[slot]
        if not self._world.can_spare(host):
            self.crash(host)  # a single voter may be harmed as it lies, when its mirror has all of it
            if not self._world.is_mirrored(slot, host):
                return
        back = min(self._rng.choice((1, 3, 1_000)), len(image.items))
        image.damaged.add(image.last_index + 1 - self._rng.randint(1, back))
        if self._rng.random() < 0.8:
            self.crash(host)

    def flip_ahead(self, host: Host) -> None:
        """A bit at one of two voters that alone have what is decided; and when that one is about to have it
        again, the other one goes, and the third, which lacks it, is there.
        """
        self._look(LOOKS)

    def _look(self, looks: int) -> None:
        world, rng = self._world, self._rng
        slot = rng.randrange(world.plan.slots)
        for leader, copy in world.leaders(slot):
            config, others = copy.replica.config, [h for h in world.hosts if h is not leader]
            others = [h for h in others if h.up and h.node in config.voters]
            rng.shuffle(others)
            for ahead, behind in ((a, b) for a in others for b in others if a is not b):
                if not config.is_joint and self._is_ahead(slot, ahead, behind) and world.can_spare(ahead):
                    self._damage_ahead(slot, leader, ahead, behind)
                    return
        if looks:
            self._later(world.plan.fsync_s, self._look, looks - 1)

    def _is_ahead(self, slot: int, ahead: Host, behind: Host) -> bool:
        """What the one has not applied yet, the other has begun to get."""
        a, b = (h.disk.images[slot] for h in (ahead, behind))
        decided = len(self._world.oracle.decided(slot))
        return a.applied.position.index <= b.last_index < min(a.last_index, decided)

    def _damage_ahead(self, slot: int, leader: Host, ahead: Host, behind: Host) -> None:
        world, image = self._world, ahead.disk.images[slot]
        world.tell(ahead, -1, "fault: damage, with another one behind")
        first = image.applied.position.index + 1
        image.damaged.add(self._rng.choice((first, self._rng.randint(first, image.last_index))))
        world.crash(ahead, noticed=True)
        world.break_link(leader.number, behind.number, back_s=self._rng.choice((0.3, 2.0)))
        pairs = [(leader.number, behind.number), (behind.number, leader.number)]
        self._cut(pairs)
        world.at(world.now + 0.02, world.start, ahead)
        self._later(0.01, self._when_mended, slot, leader, ahead, behind, LOOKS)

    def _when_mended(self, slot: int, leader: Host, ahead: Host, behind: Host, looks: int) -> None:
        """The one that was damaged hears from the leader again, and has not everything yet."""
        world, rng = self._world, self._rng
        image = ahead.disk.images[slot]
        begun = ahead.up and not image.damaged and image.last_index > image.applied.position.index
        if looks and not begun and rng.random() < 0.98:
            again = (slot, leader, ahead, behind, looks - 1)
            self._later(world.plan.fsync_s / 2 + 0.001, self._when_mended, *again)
            return
        rng.choice((Nemesis.crash, Nemesis.isolate))(self, leader)
        pairs = [(a.number, b.number) for a, b in ((behind, ahead), (ahead, behind))]
        self._mend(pairs)
        world.break_link(behind.number, ahead.number, back_s=0.001)

    def wipe(self, host: Host) -> None:
        if self._world.can_spare(host):
            self._world.wipe(host)
            self._later(0.3, self._world.start, host)

    def take_copy(self, host: Host) -> None:
        self._copies[host.number] = (host.epoch, host.disk.copy_images(), host.disk_number)

    def roll_back(self, host: Host) -> None:
        """An old copy of the directory is put back; a while later somebody gives it a new name."""
        epoch, images, disk_number = self._copies.get(host.number, (0, {}, -1))
        if disk_number != host.disk_number or host.rolled_back or not self._world.can_spare(host):
            self.take_copy(host)
            return
        del self._copies[host.number]
        self._world.crash(host)
        host.epoch, host.disk.images, host.rolled_back = epoch, images, True
        self._later(0.1, self._world.start, host)
        self._later(2.0, self._rename, host)

    def _rename(self, host: Host) -> None:
        if host.rolled_back:
            self._world.wipe(host)
            self._later(0.1, self._world.start, host)

    # ------------------------------------------------------------------------------------ a lost majority
    def recover(self, host: Host) -> None:
        """So many are gone that slots can't go on; a person says so, and is wrong later: they come back. Or
        they never went, and go on by themselves where nobody else can see it.
        """
        world, rng = self._world, self._rng
        if world.gone or len(world.hosts) < 2:
            return
        count = rng.randint(max(1, len(world.hosts) // 2), len(world.hosts) - 1)
        lost = rng.sample(world.hosts, count)
        if any(world.is_bad(s, h.node) for h in world.hosts for s in range(world.plan.slots)):
            return  # a copy that is being repaired is one more loss
        if rng.random() < 0.5:
            world.lose(lost)
        else:
            world.gone |= {h.number for h in lost}
            self._cut_off(lost)
        self._later(0.5, self._try_recover, 0)

    def _cut_off(self, lost: list[Host]) -> None:
        """From the others, in the middle of what they do; until they are found again."""
        left = [h.number for h in self._world.hosts if h not in lost]
        for a, b in ((h.number, n) for h in lost for n in left):
            for here, there in ((a, b), (b, a)):
                self._world.network.cut(here, there, self._world.now)
                self._world.network.links[here][there].udp_cut = True

    def _try_recover(self, tries: int) -> None:
        world = self._world
        if not world.recover(lambda: self._rng.getrandbits(16)) and tries < 10:
            self._later(0.2, self._try_recover, tries + 1)
            return
        lost, still = sorted(world.gone), self._rng.random() < 0.5
        for n in lost:
            self._later(2.0 if still else 0.2, self._found_again, world.hosts[n])

    def _found_again(self, host: Host) -> None:
        self._world.gone.discard(host.number)
        self._world.start(host)
        self._mend([p for h in self._world.hosts for p in ((h.number, host.number), (host.number, h.number))])

    # ---------------------------------------------------------------------------------------------- members
    def members(self, host: Host) -> None:
        """Somebody wants other members for a slot."""
        world, rng = self._world, self._rng
        if world.plan.witness:
            world.wanted[rng.randrange(world.plan.slots)] = self._members_with_witness()
            return
        numbers = [h.number for h in world.hosts]
        rng.shuffle(numbers)
        least = world.plan.voters if world.plan.hosts < 5 else 3
        voters = rng.randint(least, min(VOTERS_MAX, 5 if world.plan.hosts == 5 else least))
        learners = rng.randint(0, len(numbers) - voters)
        world.wanted[rng.randrange(world.plan.slots)] = (
            numbers[:voters],
            numbers[voters : voters + learners],
        )

    def _members_with_witness(self) -> tuple[list[int], list[int]]:
        """Two keepers and the witness, mostly; else one with a mirror, or three that keep records."""
        witness, rng = len(self._world.hosts) - 1, self._rng
        keepers = list(range(witness))
        rng.shuffle(keepers)
        draw = rng.random()
        if draw < 0.6:
            return [*keepers[:2], witness], keepers[2 : 2 + rng.randint(0, 1)]
        if draw < 0.7:
            return keepers[:1], [*keepers[1:], witness][: rng.randint(1, 3)]
        return (keepers[:1], keepers[1:]) if len(keepers) == 2 or draw < 0.8 else (keepers, [])


FAULTS: dict[str, Callable[[Nemesis, Host], None]] = {
    "break_link": Nemesis.break_link,
    "change": lambda nemesis, host: None,  # where members are changed
    "crash": Nemesis.crash,
    "crash_all": Nemesis.crash_all,
    "flip": Nemesis.flip,
    "flip_ahead": Nemesis.flip_ahead,
    "full_disk": Nemesis.full_disk,
    "isolate": Nemesis.isolate,
    "members": Nemesis.members,
    "new_leader": lambda nemesis, host: None,  # where one is elected
    "one_way": Nemesis.one_way,
    "pause": Nemesis.pause,
    "recover": Nemesis.recover,
    "roll_back": Nemesis.roll_back,
    "shy": Nemesis.shy,
    "slow_disk": Nemesis.slow_disk,
    "split": Nemesis.split,
    "transfer": lambda nemesis, host: None,  # by the clients
    "udp": Nemesis.udp,
    "wipe": Nemesis.wipe,
}


def run(
    seed: int,
    *,
    events: int = EVENTS,
    hosts: int | None = None,
    witness: bool = False,
    strict: bool = True,
    tell: Callable[..., None] | None = None,
) -> World:
    """One schedule to its end. Raises: Wrong, or what a machine raised."""
    plan = draw(seed, events=events, hosts=hosts, witness=witness)
    world = World(seed, plan, strict=strict, tell=tell)
    Nemesis(world)
    world.run()
    return world
