"""One schedule: hosts, network and clients on one heap of events, drawn from one random source.

    safety phase     clients write and read, an operator changes members, faults strike (faults.py)
    liveness phase   faults end for a majority; within LIVENESS_S every slot decides a new record and every
                     live member applies it

The oracle looks on after every step. The same seed gives the same events in the same order, and `trace` is
their hash.
"""

from __future__ import annotations

import gc
import heapq
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from math import inf

from meshq.entries import EntryKind
from meshq.errors import MeshqError
from meshq.ids import PeerId
from meshq.replication.generations import generation_of
from meshq.replication.machine import Replica
from meshq.replication.progress import Pace
from meshq.replication.quorum import Config, Node, config_of
from meshq.replication.settings import Settings
from meshq.replication.support import Beat, SupportSettings
from meshq.replication.words import (
    Event,
    GenerationSeen,
    Item,
    Message,
    PeerLinked,
    Received,
    Role,
    TellRole,
    Ticked,
)
from tests.simulation.disk import NOBODY, Image, Wrong
from tests.simulation.host import Copy, Host, configs_at, node_of, peer_of
from tests.simulation.network import Link, Network, Weather
from tests.simulation.oracle import Oracle, record_body, show

LIVENESS_S = 10.0
SAFETY_S = 120.0  # the safety phase ends then, however little happened
UNDECIDED_MAX = 60  # entries; a peer too refuses what it can't decide soon
BUSY_MAX = 200_000  # events of one phase, some forty times what is usual
_TICKED = Ticked()


@dataclass(frozen=True, slots=True)
class Plan:
    """What one schedule is like. `draw` makes it of a seed; each fault is in about half of them."""

    hosts: int
    slots: int
    voters: int
    weather: Weather
    faults: frozenset[str]
    fault_s: float  # mean time between faults
    client_s: float  # mean time between a client's calls
    burst: int
    events: int  # of the safety phase
    drift: float
    fsync_s: float
    append_bytes: int  # of a message: 1 is one entry
    in_flight: int
    alarms: float  # how often membership suspects somebody for nothing
    quick: bool  # support and elections in a third of the time: more leaders, each with less done
    witness: bool = False  # the last host is one: slots have two of the others, and it


class World:
    def __init__(
        self, seed: int, plan: Plan, *, strict: bool = True, tell: Callable[..., None] | None = None
    ):
        self.rng = rng = random.Random(seed)
        self.plan = plan
        self.now = 0.0
        self.events = 0
        self.trace = 0
        self.acked = 0
        self.live_s = 0.0  # how long it took after all was healed
        self.reads = 0
        self.keep_entries = rng.randint(4, 30)
        self.piece_bytes = rng.choice((16, 24, 1 << 20))
        self.mirrors = (rng.choice((0.2, 2.0)), rng.choice((2, 8)))
        self.teller = tell
        self.oracle = Oracle(plan.slots, self._has_it, strict=strict, is_whole=self._is_whole)
        self.network = Network(plan.hosts, plan.weather, rng)
        self.heap: list[tuple[float, int, Callable[..., None], tuple]] = []
        self._seq = 0
        self._number = 0
        self._ref = 0
        self.paused = [0.0] * plan.hosts
        self.stuck_disks: set[int] = set()
        self.gone: set[int] = set()  # hosts that a person believes to be gone for good
        self.recovered = 0  # slots, by one who went on alone
        self.wanted: list[tuple[list[int], list[int]]] = []  # (voters, learners) by slot, hosts
        self.finals: dict[int, tuple[int, float]] = {}  # by slot: (index, when it was proposed)
        self.clients_run = True
        self.on_leader: Callable[[Host], None] = lambda host: None  # somebody was elected
        self.on_change: Callable[[Host], None] = lambda host: None  # and proposed other members
        self.healed_at = inf
        self.recovery_s = LIVENESS_S
        self.hosts = [self._make_host(n) for n in range(plan.hosts)]
        self.oracle.witnesses = {self.hosts[-1].peer} if plan.witness else set()
        self._by_peer = {h.peer: h for h in self.hosts}
        self._found()
        for host in self.hosts:
            host.start()
            self.at(0.0, self._support_tick, host, host.boots)
        for a in range(plan.hosts):
            for b in range(a):
                self.at(0.001, self._relink, a, b)
        self.at(rng.random() * 0.1, self._client)
        self.at(rng.random() * 0.2, self._membership)
        self.at(0.5, self._operator)

    def _make_host(self, number: int) -> Host:
        rng, drift = self.rng, self.plan.drift
        settings = Settings(
            append_bytes=self.plan.append_bytes,
            in_flight_bytes=rng.choice((500, 1 << 20)),
            in_flight_count=self.plan.in_flight,
            memory_bytes=rng.choice((0, 1_000, 1 << 20)),
            lag_count=8,
        )
        host = Host(self, number, rng, settings)
        if self.plan.quick:
            host.settings = replace(settings, election_s=0.1, spread_s=0.1, quorum_s=0.2, resend_s=0.2)
            host.support_settings = SupportSettings(beat_s=0.03, support_s=0.3, suspect_s=0.12, stall_s=0.15)
        host.rate = 1.0 + rng.uniform(-drift, drift)
        host.ahead_s = rng.uniform(0, 1_000)
        host.wall_ahead_ms = rng.randint(-3_600_000, 3_600_000) + 4_000_000
        host.partners = tuple(peer_of(n) for n in range(self.plan.hosts) if n != number)
        return host

    def _found(self) -> None:
        """Every directory holds the slots' first configurations."""
        plan = self.plan
        for slot in range(plan.slots):
            count = plan.hosts - plan.witness
            order = [(slot + n) % count for n in range(count)]
            voters, learners = order[: plan.voters - plan.witness], order[plan.voters :][:1]
            if plan.witness:
                voters.append(plan.hosts - 1)
            self.wanted.append((voters, learners))
            genesis = self._config([node_of(n) for n in voters], [node_of(n) for n in learners])
            for host in self.hosts:
                host.disk.images[slot] = Image((0, genesis if host.number in voters + learners else NOBODY))

    def _config(self, voters: Collection[Node], learners: Collection[Node]) -> Config:
        witnesses = [n for n in (*voters, *learners) if n.peer in self.oracle.witnesses]
        return config_of(voters, learners, witnesses)

    # --------------------------------------------------------------------------------------------- loop
    def at(self, t: float, what: Callable[..., None], *args: object) -> None:
        self._seq += 1
        heapq.heappush(self.heap, (t, self._seq, what, args))

    def run(self) -> None:
        """Raises: Wrong, or whatever a machine raises.

        Little of what a schedule makes is garbage before its end: looking for that cost a fifth of the time.
        """
        collects = gc.isenabled()
        gc.disable()
        try:
            self._run()
        finally:
            if collects:
                gc.enable()

    def _run(self) -> None:
        self._run_until(lambda: self.events >= self.plan.events or self.now > SAFETY_S)
        self.heal()
        self._run_until(self._is_live)
        self.live_s = self.now - self.healed_at
        self._check_end()

    def _run_until(self, over: Callable[[], bool]) -> None:
        heap, pop = self.heap, heapq.heappop
        count = 0
        while True:
            count += 1
            if count & 15 == 0 and over():
                return
            if count > BUSY_MAX:
                raise Wrong(f"{count} events and no end: somebody is busy with nothing")
            t, _, what, args = pop(heap)
            self.now = t
            what(*args)

    def _step(self, host: Host, copy: Copy, event: Event) -> None:
        """One event at one replica."""
        self.events += 1
        if self.teller is not None:
            self.teller(self, host, copy, event)
        host.handle(copy, event)
        r = copy.replica
        self.trace = hash(
            (self.trace, self.now, host.number, copy.slot, r.term, r.commit_index, r.last.index)
        )

    # ------------------------------------------------------------------------------- the hosts' environment
    def tell(self, host: Host, slot: int, what: object) -> None:
        if type(what) is TellRole and what.role is Role.LEADER and not what.serves:
            self.on_leader(host)
        if self.teller is not None:
            self.teller(self, host, slot, what)

    def send(self, host: Host, copy: Copy, to: Node, message: Message) -> None:
        there = self._by_peer[to.peer]
        link = self.network.links[host.number][there.number]
        for t in self.network.arrivals(link, self.now):
            self.at(t, self._deliver, link, link.broken, there, copy.slot, to, copy.node, message)

    def _deliver(
        self, link: Link, broken: int, host: Host, slot: int, to: Node, frm: Node, message: Message
    ) -> None:
        if link.broken != broken or not host.up or host.disk_number != to.disk[0]:
            return
        if self.paused[host.number] > self.now:
            args = (link, broken, host, slot, to, frm, message)
            self.at(self.paused[host.number], self._deliver, *args)
            return
        self._step(host, host.copies[slot], Received(frm, message))

    def send_beat(self, host: Host, peer: PeerId, beat: Beat) -> None:
        if host.is_stalled():
            raise Wrong(f"n{host.number}'s disk is stalled, and it says that it is alive")
        there = self._by_peer[peer]
        link = self.network.links[host.number][there.number]
        for t in self.network.arrivals(link, self.now):
            self.at(t, self._deliver_beat, link, link.broken, there, host, beat)

    def _deliver_beat(self, link: Link, broken: int, host: Host, frm: Host, beat: Beat) -> None:
        if link.broken != broken or not host.up:
            return
        if self.paused[host.number] > self.now:
            self.at(self.paused[host.number], self._deliver_beat, link, broken, host, frm, beat)
            return
        self.events += 1
        host.on_support(host.support.on_beat(frm.peer, beat, now=host.local(self.now)))
        back = self.network.links[host.number][frm.number]
        self._check_support(host, frm, back)

    def _check_support(self, host: Host, frm: Host, back: Link) -> None:
        """Whom a host treats as alive has heard it not long ago: support needs both directions."""
        since = max(back.cut_at, self.paused[host.number])  # while it stands still it cannot take it back
        if back.cut and since + 3.0 < self.now and frm.peer in host.support.given():
            raise Wrong(f"n{host.number} supports n{frm.number}, which has not heard it for 3 s")

    def _support_tick(self, host: Host, boots: int) -> None:
        if not host.up or host.boots != boots:
            return
        if self.paused[host.number] > self.now:
            self.at(self.paused[host.number], self._support_tick, host, boots)
            return
        self.events += 1
        host.support.on_disk(stalled=host.is_stalled())
        host.on_support(host.support.on_tick(now=host.local(self.now)))
        t = (host.support.due - host.ahead_s) / host.rate
        self.at(max(t, self.now + 0.001), self._support_tick, host, boots)

    def _membership(self) -> None:
        """What gossip would say: whom datagrams do not reach both ways is suspected. Now and then it errs."""
        self.at(self.now + 0.2, self._membership)
        for host in self.hosts:
            if not host.up or self.paused[host.number] > self.now:
                continue
            for other in self.hosts:
                there, back = self._ways(host, other)
                lost = not other.up or self.paused[other.number] > self.now or there.udp_cut or back.udp_cut
                if other is not host:
                    host.support.on_suspected(other.peer, lost or self.rng.random() < self.plan.alarms)

    def _ways(self, a: Host, b: Host) -> tuple[Link, Link]:
        links = self.network.links
        return links[a.number][b.number], links[b.number][a.number]

    def want_sync(self, host: Host) -> None:
        delay = self.plan.fsync_s * (0.5 + self.rng.random())
        if host.number in self.stuck_disks:
            delay += self.rng.random() * 2.0
        self.at(self.now + delay, self._synced, host, host.boots)

    def _synced(self, host: Host, boots: int) -> None:
        if not host.up or host.boots != boots:
            return
        if self.paused[host.number] > self.now:
            self.at(self.paused[host.number], self._synced, host, boots)
            return
        self.events += 1
        done = host.disk.end_sync(self.now)
        if host.disk.since is not None:
            self.want_sync(host)
        host.on_synced(done)
        self.trace = hash((self.trace, self.now, host.number, len(done)))

    def answer(self, host: Host, copy: Copy, event: Event) -> None:
        self.at(self.now + self.rng.random() * 0.002, self._answer, host, copy, event)

    def _answer(self, host: Host, copy: Copy, event: Event) -> None:
        if not copy.live:
            return
        if self.paused[host.number] > self.now:
            self.at(self.paused[host.number], self._answer, host, copy, event)
            return
        self._step(host, copy, event)

    def set_timer(self, host: Host, copy: Copy) -> None:
        due = copy.replica.deadline()
        if due < copy.timer:
            copy.timer = due
            t = (due - host.ahead_s) / host.rate + 1e-6  # rounding must not make it early
            self.at(t if t > self.now else self.now, self._timer, host, copy, due)

    def _timer(self, host: Host, copy: Copy, due: float) -> None:
        if not copy.live or copy.timer != due:
            return
        if self.paused[host.number] > self.now:
            self.at(self.paused[host.number], self._timer, host, copy, due)
            return
        copy.timer = inf
        if copy.replica.deadline() <= host.local(self.now):
            self._step(host, copy, _TICKED)
        self.set_timer(host, copy)

    def on_committed(self, host: Host, copy: Copy, items: tuple[Item, ...], news: int) -> None:
        if copy.replica.role is Role.LEADER:
            term = copy.replica.term
            self.acked += sum(i.entry.kind is EntryKind.PUBLISH and i.entry.term == term for i in items)

    # ------------------------------------------------------------------------------------------ connections
    def _relink(self, a: int, b: int) -> None:
        if not (self.hosts[a].up and self.hosts[b].up):
            return
        self.network.restore_link(a, b)
        for here, there in ((a, b), (b, a)):
            host, node = self.hosts[here], self.hosts[there].node
            for copy in list(host.copies):
                self._step(host, copy, PeerLinked(node))

    def break_link(self, a: int, b: int, *, back_s: float) -> None:
        self.network.break_link(a, b)
        self.at(self.now + back_s, self._relink, a, b)

    # ------------------------------------------------------------------------------------------------ hosts
    def crash(self, host: Host, *, noticed: bool = True) -> None:
        """kill -9 or a power cut: of what was not synced a prefix is there, or nothing."""
        if not host.up:
            return
        keep = self.rng.choice((0, self.rng.randint(0, len(host.disk.queue))))
        host.crash(keep)
        self.paused[host.number] = 0.0
        for other in self.hosts:
            if other is not host:
                self.network.break_link(host.number, other.number)
                if noticed:
                    self.at(
                        self.now + self.rng.random() * 0.1, self._gone, other, other.boots, host, host.boots
                    )

    def _gone(self, host: Host, boots: int, lost: Host, lost_boots: int) -> None:
        if host.up and host.boots == boots and not (lost.up and lost.boots == lost_boots):
            if self.paused[host.number] > self.now:
                self.at(self.paused[host.number], self._gone, host, boots, lost, lost_boots)
                return
            host.on_support(host.support.on_gone(lost.peer))

    def start(self, host: Host) -> None:
        if host.up or host.number in self.gone:
            return
        host.start()
        self.at(self.now, self._support_tick, host, host.boots)
        for other in self.hosts:
            if other is not host:
                self.at(self.now + 0.001 + self.rng.random() * 0.05, self._relink, host.number, other.number)

    def wipe(self, host: Host) -> None:
        self.crash(host)
        host.wipe()

    # ---------------------------------------------------------------------------------------------- clients
    def leaders(self, slot: int) -> list[tuple[Host, Copy]]:
        """Who believes to lead and serves: it may be several, of several terms."""
        return [
            (h, h.copies[slot])
            for h in self.hosts
            if h.up and self.paused[h.number] <= self.now and h.copies[slot].leads
        ]

    def _client(self) -> None:
        if not self.clients_run:
            return
        rng, plan = self.rng, self.plan
        self.at(self.now + rng.random() * 2 * plan.client_s, self._client)
        slot = rng.randrange(plan.slots)
        leaders = self.leaders(slot)
        if not leaders:
            return
        host, copy = leaders[0] if len(leaders) == 1 else rng.choice(leaders)
        self.events += 1
        draw = rng.random()
        if draw < 0.15:
            self._read(host, copy)
        elif draw < 0.17 and "transfer" in plan.faults:
            self._transfer(host, copy)
        elif copy.replica.last.index - copy.replica.commit_index < UNDECIDED_MAX:
            self._propose(host, copy, rng.randint(1, plan.burst))

    def _propose(self, host: Host, copy: Copy, count: int) -> int:
        """The index of the last of them, 0 when it hands over just now."""
        index = 0
        for _ in range(count):
            self._number += 1
            payload = self._number.to_bytes(4, "big") * self.rng.randint(1, 40)
            body = record_body(self._number, copy.next_offset, payload)
            try:
                entry = copy.replica.propose(EntryKind.PUBLISH, body, payload, wall_ms=host.wall_ms())
            except MeshqError:
                break
            copy.next_offset += 1
            index = entry.index
        host.flush(copy)
        return index

    def _read(self, host: Host, copy: Copy) -> None:
        self._ref += 1
        try:
            copy.replica.read(self._ref)
        except MeshqError:
            return
        self.oracle.on_read(copy.slot, self._ref, copy.replica.term)
        self.reads += 1
        host.flush(copy)

    def read_at(self, host: Host) -> None:
        """Somebody reads at this host wherever it believes to lead."""
        if host.up and self.now < self.healed_at:
            for copy in host.copies:
                if copy.leads:
                    self._read(host, copy)

    def _transfer(self, host: Host, copy: Copy) -> None:
        config = copy.replica.config
        to = [n for n in config.voters if n != copy.node and n not in config.witnesses]
        if to:
            copy.replica.transfer(self.rng.choice(to), now=self.now)
            host.flush(copy)

    # --------------------------------------------------------------------------------------------- operator
    def _operator(self) -> None:
        """Walk every slot's members toward what is wanted, a step at a time."""
        self.at(self.now + 0.2, self._operator)
        for host in self.hosts:
            host.check_configs()
            if host.up and self.paused[host.number] <= self.now:
                for copy in host.copies:
                    if copy.receipts:
                        host.give_receipts(copy)
            self._tell_generations(host)
            self._mend_witness(host)
        for slot, (voters, learners) in enumerate(self.wanted):
            for host, copy in self.leaders(slot):
                self._step_toward(host, copy, voters, learners)

    def _mend_witness(self, host: Host) -> None:
        """What of its log is damaged it gets from a keeper, as `peer/core/rereading.py` does it."""
        if host.peer not in self.oracle.witnesses or not host.up or self.paused[host.number] > self.now:
            return
        for copy in host.copies:
            for index in sorted(host.disk.images[copy.slot].damaged):
                if index <= copy.applied.position.index:
                    self._mend_entry(host, copy, index)

    def _mend_entry(self, host: Host, copy: Copy, index: int) -> None:
        image, generation = host.disk.images[copy.slot], generation_of(copy.replica.term)
        for there in self.hosts:
            link = self.network.links[there.number][host.number] if there is not host else None
            if link is None or not there.up or not link.up or link.cut or there.node == host.node:
                continue
            other, replica = there.disk.images[copy.slot], there.copies[copy.slot].replica
            same = generation_of(replica.term) == generation and not replica.is_stale
            if same and other.start.index < index <= other.applied.position.index and not other.damaged:
                image.items[index - image.start.index - 1] = other.items[index - other.start.index - 1]
                image.damaged.discard(index)
                return

    def _tell_generations(self, host: Host) -> None:
        """Leaders tell everybody what they lead, members or not."""
        if not host.up or self.paused[host.number] > self.now:
            return
        led = [
            (c.slot, c.replica.term)
            for c in host.copies
            if generation_of(c.replica.term) and c.replica.serves
        ]
        for there in self.hosts if led else ():
            link = self.network.links[host.number][there.number] if there is not host else None
            if (
                link is not None
                and there.up
                and link.up
                and not link.cut
                and self.paused[there.number] <= self.now
            ):
                for slot, term in led:
                    self._step(there, there.copies[slot], GenerationSeen(term))

    # ------------------------------------------------------------------------------------------- recovering
    def lose(self, hosts: list[Host]) -> None:
        """They are gone: nobody starts them until somebody finds them again."""
        for host in hosts:
            self.gone.add(host.number)
            self.crash(host)

    def recover(self, draw: Callable[[], int]) -> bool:
        """What `meshq recover` does: of every slot that lost its majority the most advanced copy that is left
        goes on, if all that are left are there. Whether there was anything to do.
        """
        there = [h for h in self.hosts if h.number not in self.gone]
        if any(not h.up or self.paused[h.number] > self.now or h.rolled_back for h in there):
            return False
        found = 0
        for slot in range(self.plan.slots):
            copies = [(h, h.copies[slot]) for h in there if h.node in h.copies[slot].replica.config.nodes()]
            left = {h.node for h in there}
            term = max((c.replica.term for _, c in copies), default=0)
            if any(self._is_led(c.replica, left, term) for _, c in copies):
                continue
            copies = [(h, c) for h, c in copies if h.peer not in self.oracle.witnesses]
            if not copies:
                continue
            host, copy = max(copies, key=lambda x: (x[1].replica.last.term, x[1].replica.last.index))
            if generation_of(copy.replica.term) < generation_of(term):
                self._step(host, copy, GenerationSeen(term))
            r = copy.replica
            if not r.is_quiet or r.follows_a_live_leader:
                continue
            host.recover(copy, left, draw())
            found += 1
        self.recovered += found
        return found > 0

    @staticmethod
    def _is_led(r: Replica, left: Collection[Node], term: int) -> bool:
        """By this one, or by whom those that are left may elect: nobody in a generation that is over."""
        of_today = generation_of(r.last.term) == generation_of(term)
        return r.role is Role.LEADER or (of_today and r.config.has_majority(left))

    def _step_toward(self, host: Host, copy: Copy, voters: list[int], learners: list[int]) -> None:
        now = copy.replica.config
        if now.is_joint:
            return
        fit = {h.node for h in self.hosts if not h.rolled_back}
        want = [self.hosts[n].node for n in voters]
        bad = sum(self.is_bad(copy.slot, node) for node in want)
        if not fit.issuperset(want) or 2 * bad >= len(want):
            return  # nobody promised that those decide whose disks are harmed already
        target = self._config(want, [self.hosts[n].node for n in learners if n not in voters])
        if now == target:
            return
        lacking = set(want) - now.nodes()
        if lacking:  # they begin as learners
            keep = set(now.voters)
            target = self._config(now.voters, (set(now.learners) | set(target.nodes())) - keep)
        try:
            copy.replica.propose_config(target, wall_ms=host.wall_ms())
        except MeshqError:
            return
        self.on_change(host)
        host.flush(copy)

    # ----------------------------------------------------------------------------------- what is known of all
    def configs(self, slot: int) -> list[Config]:
        """Every configuration that some node might act by."""
        found: list[Config] = []
        for host in self.hosts:
            found += [config for _, config in host.disk.images[slot].configs()]
            if host.up:
                found.append(host.copies[slot].replica.config)
        return [c for c in found if c.voters]

    def is_bad(self, slot: int, node: Node) -> bool:
        """Whether what this node once acknowledged may be gone."""
        host = self._by_peer[node.peer]
        if host.disk_number != node.disk[0] or host.rolled_back or host.disk.images[slot].damaged:
            return True
        return host.disk.images[slot].hard.repair_until > 0 or (host.up and host.copies[slot].replica.frozen)

    def can_spare(self, host: Host) -> bool:
        """Whether a majority of every configuration is left without this host and all that is bad."""
        for slot in range(self.plan.slots):
            for config in self.configs(slot):
                for voters in (config.voters, config.outgoing):
                    bad = sum(n.peer == host.peer or self.is_bad(slot, n) for n in voters)
                    if voters and 2 * bad >= len(voters):
                        return False
        return True

    def is_mirrored(self, slot: int, host: Host) -> bool:
        """Whether it decides alone, and a learner has all of that on disk: what is lost comes from there."""
        image = host.disk.images[slot]
        configs = {c for c in self.configs(slot) if host.node in c.nodes()}
        if len(configs) != 1 or host.disk.queue or image.damaged or not image.items:
            return False
        (config,) = configs
        if config.voters != (host.node,) or config.outgoing or host.rolled_back:
            return False
        end = (image.hard.term, image.last_index)
        return any(
            not self.is_bad(slot, n)
            and n not in config.witnesses
            and self._by_peer[n.peer].disk.images[slot].end >= end
            for n in config.learners
        )

    def _has_it(self, slot: int, node: Node, index: int, chain: bytes) -> bool:
        if self.is_bad(slot, node):
            return True
        return self._by_peer[node.peer].disk.images[slot].has(index, chain)

    def _is_whole(self, slot: int, node: Node, after: int) -> bool:
        image = self._by_peer[node.peer].disk.images[slot]
        if self.is_bad(slot, node):
            return True
        if image.start.index > after:
            return False
        lacking = image.items[after - image.start.index :]
        return all(i.payload for i in lacking if i.entry.kind is EntryKind.PUBLISH)

    def deciding_configs(self, copy: Copy, index: int) -> list[Config]:
        """By which the leader of the copy's term can have decided this entry, if it leads still."""
        leader = copy.replica.leader
        if leader is None:
            return []
        host = self._by_peer[leader.peer]
        there = host.copies[copy.slot].replica if host.up else None
        if there is None or there.role is not Role.LEADER or there.term != copy.replica.term:
            return []
        return configs_at(there, index)

    # ---------------------------------------------------------------------------------------- liveness phase
    def heal(self) -> None:
        """Faults end, but for a host that a majority can do without."""
        self.healed_at = self.now
        self.recovery_s = LIVENESS_S + self._catching_up_s()
        self.clients_run = False
        self.gone.clear()
        self.network.heal()
        self.network.weather.loss = min(self.network.weather.loss, 0.02)
        self.network.weather.late = 0.0  # what holds a link up for longer than support lasts is a fault
        self.stuck_disks.clear()
        for host in self.hosts:
            self.paused[host.number] = min(self.paused[host.number], self.now)
            host.full = False
            if host.rolled_back:
                self.wipe(host)
            self.start(host)
            for copy in host.copies:
                copy.replica.set_may_lead(True)
        for a in range(len(self.hosts)):
            for b in range(a):
                if not self.network.links[a][b].up:
                    self.at(self.now + 0.01, self._relink, a, b)
        self.excluded: set[int] = set()
        candidates = [h for h in self.hosts if self.can_spare(h)]
        if self.rng.random() < 0.2:  # datagrams may stay blocked for good: membership is only a hint
            host = self.rng.choice(self.hosts)
            for other in self.hosts:
                for link in self._ways(host, other):
                    link.udp_cut = True
        if candidates and self.rng.random() < 0.6:
            self._exclude(self.rng.choice(candidates))
        self.at(self.now + 0.05, self._final)

    def _exclude(self, host: Host) -> None:
        self.excluded.add(host.number)
        others = [n for n in range(len(self.hosts)) if n != host.number]
        kind = self.rng.choice(("down", "cut off", "deaf", "mute", "stalled", "stopped"))
        if kind == "down":
            self.crash(host, noticed=self.rng.random() < 0.5)
        elif kind == "stalled":
            self.stuck_disks.add(host.number)
        elif kind == "stopped":
            self.paused[host.number] = self.now + 10 * LIVENESS_S
        for n in others:
            if kind in ("cut off", "deaf"):
                self.network.cut(n, host.number, self.now)
            if kind in ("cut off", "mute"):
                self.network.cut(host.number, n, self.now)

    def _final(self) -> None:
        self.at(self.now + 0.1, self._final)
        for slot in range(self.plan.slots):
            index, since = self.finals.get(slot, (0, -inf))
            if index and (len(self.oracle.decided(slot)) >= index or self.now - since < 1.0):
                continue
            leaders = self.leaders(slot)  # one whose disk is slow may go on to lead
            if leaders:
                index = self._propose(*max(leaders, key=lambda x: x[1].replica.term), 1)
                self.finals[slot] = (index, self.now)

    def _is_live(self) -> bool:
        late = [text for slot in range(self.plan.slots) if (text := self._what_is_late(slot))]
        if late and self.now > self.healed_at + self.recovery_s:
            raise Wrong(f"{self.recovery_s:.1f} s after all was healed: " + "; ".join(late))
        return not late

    def _catching_up_s(self) -> float:
        """What a replica needs for what it lacks, where so few appends are on the way at a time."""
        plan, weather = self.plan, self.network.weather
        one_s = 2 * (weather.delay_s + weather.jitter_s) + 2 * plan.fsync_s
        ends = [len(self.oracle.decided(slot)) for slot in range(self.plan.slots)]
        lacks = [ends[c.slot] - c.applied.position.index for h in self.hosts for c in h.copies]
        return one_s * max(lacks, default=0) / plan.in_flight

    def _what_is_late(self, slot: int) -> str:
        index, _ = self.finals.get(slot, (0, 0.0))
        if not index:
            return f"slot {slot} has no leader that serves"
        if len(self.oracle.decided(slot)) < index:
            return f"slot {slot} does not decide entry {index}"
        leader = max(self.leaders(slot), key=lambda x: x[1].replica.term, default=None)
        if leader is None:
            return f"slot {slot} lost its leader"
        if leader[1].receipts:
            return f"slot {slot} holds back the receipt for entry {leader[1].receipts[0]}"
        for node in sorted(leader[1].replica.config.nodes()):
            host = self._by_peer[node.peer]
            if self._has_to_wait(leader[1].replica, node, index):
                continue
            if host.number not in self.excluded and host.node == node:
                at = host.copies[slot].applied.position.index
                if at < index:
                    return f"{show(node)} has applied slot {slot} up to {at} of {index}"
                if host.copies[slot].replica.frozen:
                    return f"{show(node)} has all of slot {slot}, and does not vote"
        return ""

    @staticmethod
    def _has_to_wait(leader: Replica, node: Node, index: int) -> bool:
        """A witness that needs a snapshot, for a keeper that is away and has not all of it."""
        p = leader._leading.followers.get(node)
        waits = node in leader.config.witnesses and p is not None and p.pace is Pace.SNAPSHOT
        return waits and leader._leading.feeding.everywhere() < index

    def _check_end(self) -> None:
        """Everybody's state is what the oracle says, on disk too."""
        for host in self.hosts:
            for slot in host.disk.images:
                self.oracle.check_state(slot, host.node, host.disk.images[slot].applied)
                if host.up:
                    self.oracle.check_state(slot, host.node, host.copies[slot].applied)
