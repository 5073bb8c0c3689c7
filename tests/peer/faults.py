"""What strikes whole simulated peers, beside the crashes and broken links that each schedule has of its own.

    clocks      each host's runs at its own rate from its own beginning; wall clocks are set to and fro
    connections stop passing bytes in one direction or both, and are held up or made anew
    datagrams   are lost alone, or together with the connections: membership then suspects, and buries
    pauses      a process stands still, and then goes on with what had come meanwhile
    crashes     keep a prefix of what was not synced; the last write of it may be torn
    disks       sync late, are full, and one of them rots: bits of stored batches flip, entries can't be read

A schedule has some of the kinds (swarm testing). Only one disk rots, since no more was promised: what is
whole nowhere can't be mended. With fewer than three peers none does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from meshq.entries import StoredBatch
from meshq.errors import MeshqError
from meshq.ids import SYSTEM_SLOT, PartitionKey
from meshq.peer.core import events as e
from tests.peer.world import Host, World

MEMBERSHIP_S = 0.2  # between two looks of membership at whom datagrams reach
BURIED_S = 1.5  # whom neither they nor connections reach for so long is said to be dead


class Nemesis:
    """Strikes for `seconds`, until `heal`."""

    def __init__(self, world: World, *, seconds: float) -> None:
        self.world, self.rng = world, world.rng
        share = self.rng.choice((0.0, 0.2, 0.4, 0.7))
        self.kinds = [kind for kind in FAULTS if self.rng.random() < share]
        self.rotten = self.rng.choice(world.hosts) if len(world.hosts) > 2 else None
        self.struck: list[str] = []
        self._healed = False
        self._lost_since: dict[tuple[Host, Host], float] = {}
        if "torn" in self.kinds:
            for host in world.hosts:
                host.tears = host is self.rotten
                host.keeps = True
        if "clocks" in self.kinds:
            self._set_clocks()
        if self.kinds:
            pause = self.rng.choice((0.05, 0.15, 0.5))
            at = 0.0
            while at < seconds:
                at += self.rng.expovariate(1 / pause)
                world.at(at, self._strike)
            world.at(MEMBERSHIP_S, self._membership)

    def _set_clocks(self) -> None:
        for host in self.world.hosts:
            host.set_clock(rate=1 + self.rng.uniform(-0.05, 0.05), ahead_s=self.rng.uniform(0, 1_000))
            host.clock_ms = self.rng.choice((0, self.rng.randint(-180_000, 180_000)))

    def _strike(self) -> None:
        if self._healed:
            return
        kind = self.rng.choice(self.kinds)
        host = self.rng.choice(self.world.hosts)
        if host.up:
            self.struck.append(kind)
            FAULTS[kind](self, host)

    def _later(self, mean_s: float, what: Callable[[], object]) -> None:
        self.world.at(self.rng.expovariate(1 / mean_s), lambda: None if self._healed else what())

    def heal(self) -> None:
        """All of it ends, and who is down starts."""
        self._healed = True
        self.world.tcp_cut.clear()
        self.world.udp_cut.clear()
        for host in self.world.hosts:
            host.paused_until = min(host.paused_until, self.world.now)
            host.disk.full, host.slow_s, host.tears = False, 0.0, False
            host.clock_ms = 0
            if not host.up and not host.has_left:
                host.start()
        for host in self.world.hosts:
            for other in self.world.hosts:
                if other is not host:
                    host.tell(other.seen())

    def mend(self, partitions: Iterable[PartitionKey]) -> None:
        """Read all that the rotten disk has: what nobody reads is not found damaged."""
        if self.rotten is not None and self.kinds:
            for partition in partitions:
                _Scan(self.rotten, partition).run()

    # ------------------------------------------------------------------------------------- processes
    def pause(self, host: Host) -> None:
        until = self.world.now + self.rng.choice((0.1, 0.5, 2.0)) * self.rng.random()
        host.paused_until = max(host.paused_until, until)

    def clocks(self, host: Host) -> None:
        host.clock_ms += self.rng.randint(-30_000, 30_000)

    def torn(self, host: Host) -> None:
        host.crash()
        self._later(0.2, lambda: host.up or host.start())

    # --------------------------------------------------------------------------------------- network
    def _ways(self, host: Host) -> list[tuple[Host, Host]]:
        others = [h for h in self.world.hosts if h is not host and self.rng.random() < 0.8]
        kind = self.rng.choice(("out", "in", "both", "both"))
        out = [(host, h) for h in others] if kind != "in" else []
        return out + ([(h, host) for h in others] if kind != "out" else [])

    def connections(self, host: Host) -> None:
        self._cut(self.world.tcp_cut, self._ways(host))

    def datagrams(self, host: Host) -> None:
        self._cut(self.world.udp_cut, self._ways(host))

    def split(self, host: Host) -> None:
        ways = self._ways(host)
        self._cut(self.world.tcp_cut, ways)
        self._cut(self.world.udp_cut, ways)

    def _cut(self, cut: set[tuple[str, str]], ways: list[tuple[Host, Host]]) -> None:
        names = {(a.identity.name, b.identity.name) for a, b in ways}
        cut |= names
        self._later(self.rng.choice((0.2, 1.5)), lambda: cut.difference_update(names))

    def _membership(self) -> None:
        """What gossip would say: whom datagrams do not reach both ways is suspected; whom nothing reaches
        for a while is dead.
        """
        world = self.world
        if self._healed:
            return
        world.at(MEMBERSHIP_S, self._membership)
        for a in world.hosts:
            for b in world.hosts:
                if a is not b and a.up and world.now >= a.paused_until:
                    self._look(a, b)

    def _look(self, a: Host, b: Host) -> None:
        world = self.world
        away = not b.up or world.now < b.paused_until
        udp = away or world.is_cut(world.udp_cut, a.identity, b.identity)
        tcp = away or world.is_cut(world.tcp_cut, a.identity, b.identity)
        since = self._lost_since.get((a, b))
        if not udp:
            if self._lost_since.pop((a, b), None) is not None:
                a.tell(b.seen())
        elif since is None:
            self._lost_since[(a, b)] = world.now
            a.tell(b.seen(state="suspect"))
        elif tcp and world.now - since > BURIED_S:
            a.tell(b.seen(state="dead"))

    # ----------------------------------------------------------------------------------------- disks
    def slow(self, host: Host) -> None:
        host.slow_s = self.rng.choice((0.1, 1.0))
        self._later(0.5, lambda: setattr(host, "slow_s", 0.0))

    def full(self, host: Host) -> None:
        host.disk.full = True
        self._later(0.3, lambda: setattr(host.disk, "full", False))

    def rot(self, _: Host) -> None:
        if self.rotten is not None:
            self.rotten.disk.flip(self.rng)

    def unreadable(self, _: Host) -> None:
        """An entry behind what is applied, seen at the next start."""
        host = self.rotten
        if host is None or not host.up:
            return
        logs = [(s, i) for s, log in host.disk.log.items() if s != SYSTEM_SLOT for i in sorted(log)[-3:]]
        if logs:
            host.disk.damaged.add(self.rng.choice(logs))
            host.crash()
            self._later(0.2, lambda: host.up or host.start())


class _Scan:
    """Reads a partition from its beginning to what is committed, damage or not."""

    def __init__(self, host: Host, partition: PartitionKey) -> None:
        self.host, self.partition, self.offset = host, partition, 0
        self.end = host.core.slots.partition(host.core.ctx.slot_of(partition), partition).end

    def run(self) -> None:
        self._next()
        self.host.world.run(lambda: self.offset >= self.end)

    def _next(self) -> None:
        if self.offset < self.end:
            self.host.core.ctx.lookups.read(self.partition, self.offset, self.end, 1 << 20, self._on_read)
            self.host.tell(e.Ticked())

    def _on_read(self, found: Sequence[StoredBatch] | MeshqError) -> None:
        if not isinstance(found, MeshqError):
            self.offset = found[-1].base_offset + found[-1].count
        self.host.world.at(0.01, self._next)


FAULTS: Final[dict[str, Callable[[Nemesis, Host], None]]] = {
    "clocks": Nemesis.clocks,
    "connections": Nemesis.connections,
    "datagrams": Nemesis.datagrams,
    "full": Nemesis.full,
    "pause": Nemesis.pause,
    "rot": Nemesis.rot,
    "slow": Nemesis.slow,
    "split": Nemesis.split,
    "torn": Nemesis.torn,
    "unreadable": Nemesis.unreadable,
}
