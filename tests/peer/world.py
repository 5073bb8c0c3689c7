"""A small deterministic world: real peer cores and client cores over a seeded network, disk and clock.

One heap of events, one random source; the same seed gives the same run. A link delivers in order with random
delays and can break at any moment, losing what is on its way. A disk syncs after a random delay; a crash
loses what was not synced, and the peer comes back from what was.
"""

from __future__ import annotations

import heapq
import itertools
import random
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from functools import partial
from typing import Any

from meshq import messages
from meshq.batch import RawRecord, read_header, read_records
from meshq.client import facts
from meshq.client.core import ClientCore
from meshq.entries import Entry, PayloadCorrupt, StoredBatch
from meshq.errors import DiskFull, MeshqError, StoreCorrupt, StoreError
from meshq.ids import SYSTEM_SLOT, PartitionKey, PeerId, Slot
from meshq.levels import LEVEL_KNOWN
from meshq.peer.core import events as e
from meshq.peer.core.context import CoreSettings, Me
from meshq.peer.core.core import PeerCore
from meshq.peer.disk import read_log, read_ranges, restore
from meshq.peer.papers import verifier
from meshq.registry import commands
from meshq.registry.state import Registry
from meshq.replication.words import Item, LogRead
from meshq.security.authority import Authority
from meshq.security.certificates import WITNESS, Certificate, issue
from meshq.security.identity import Identity
from meshq.streams.publish import payload_key_of
from tests.peer.disk import Disk

WALL_MS = 1_700_000_000_000
ROOM = 1 << 40
RESENT_S = 0.02
UNANSWERED_S = 1.0  # before a connection that nobody answers is given up


class World:
    def __init__(
        self,
        seed: int,
        *,
        peers: int = 1,
        slots: int = 8,
        settings: CoreSettings | None = None,
        level: int = LEVEL_KNOWN,
        witness: bool = False,
    ) -> None:
        """`witness`: the last peer is one."""
        self.settings = settings or CoreSettings()
        self.rng = random.Random(seed)
        self.now = 0.0
        self.trace = 0  # of all that was sent, and when
        self.wall_offset_ms = 0  # everybody's wall clock was set
        self.clients: list[Client] = []
        self.tcp_cut: set[tuple[str, str]] = set()  # hosts by name, a direction each
        self.udp_cut: set[tuple[str, str]] = set()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.authority = Authority(self.rng.randbytes(32))
        self.identities = [
            Identity(f"p{i}", self.rng.randbytes(32), self.rng.randbytes(32)) for i in range(peers)
        ]
        last = self.identities[-1]
        self.founders = [self.certify(i, witness=witness and i is last) for i in self.identities]
        self.slots, self.level = slots, level
        self.hosts = [Host(self, identity) for identity in self.identities]
        for host in self.hosts:
            host.start()

    def certify(self, identity: Identity, *, witness: bool = False) -> bytes:
        return issue(
            self.authority, kind="peer", name=identity.name, signing_key=identity.signing_key,
            curve_key=identity.curve_public, serial=bytes(16), now=WALL_MS / 1000,
            roles=(WITNESS,) if witness else (),
        ).encode()  # fmt: skip

    def join(self, name: str, *, at: Host | None = None, witness: bool = False) -> Host:
        """Another peer, with a certificate of the authority, registered at this one (the first)."""
        identity = Identity(name, self.rng.randbytes(32), self.rng.randbytes(32))
        self.identities.append(identity)
        self.hosts.append(host := Host(self, identity))
        (at or self.hosts[0]).tell(
            e.ProposalMade(0, commands.encode(commands.RegisterPeer(self.certify(identity, witness=witness))))
        )
        host.start()
        for other in self.hosts[:-1]:
            other.tell(host.seen())
        return host

    def note(self, message: Any, payloads: tuple[bytes, ...] = ()) -> None:
        said = b"".join([repr(self.now).encode(), messages.encode(message), *map(bytes, payloads)])
        self.trace = zlib.crc32(said, self.trace)

    def at(self, delay: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay, next(self._order), call))

    def run(self, until: Callable[[], bool], *, most_s: float = 300.0) -> None:
        """Until the condition holds; fails when it does not within this much simulated time."""
        end = self.now + most_s
        while not until():
            assert self._heap and self._heap[0][0] <= end, f"it did not happen in {most_s} simulated seconds"
            self.now, _, call = heapq.heappop(self._heap)
            call()

    def run_for(self, seconds: float) -> None:
        end = self.now + seconds
        self.at(seconds, lambda: None)
        self.run(lambda: self.now >= end)

    def wall_ms(self) -> int:
        return WALL_MS + int(self.now * 1000) + self.wall_offset_ms

    @staticmethod
    def is_cut(cut: set[tuple[str, str]], a: Identity, b: Identity) -> bool:
        """In one direction at least."""
        return (a.name, b.name) in cut or (b.name, a.name) in cut

    def host_of(self, key: bytes) -> Host:
        return next(h for h in self.hosts if h.identity.curve_public == key)


class Pipe:
    """One direction of a connection: in order, each with its own delay, nothing after `broken`. While that
    direction is cut it is held up, as TCP would send it again.
    """

    def __init__(self, world: World, way: tuple[str, str], deliver: Callable[..., None]) -> None:
        self.world, self.way, self.deliver = world, way, deliver
        self.broken = False
        self._last = 0.0
        self._sent: deque[tuple[Any, ...]] = deque()

    def send(self, *args: Any) -> None:
        at = max(self._last, self.world.now + self.world.rng.uniform(0.0001, 0.01))
        self._last = at
        self.world.note(*args)
        self._sent.append(args)
        self.world.at(at - self.world.now, self._arrive)

    def _arrive(self) -> None:
        if not self.broken and self.way in self.world.tcp_cut:
            self.world.at(RESENT_S, self._arrive)
        elif not self.broken:
            self.deliver(*self._sent.popleft())


class Host:
    """A peer: its core, its disk, its links to other peers, and the sessions it serves."""

    def __init__(self, world: World, identity: Identity) -> None:
        self.world, self.identity = world, identity
        self.disk = Disk()
        self.up = self.has_left = False
        self.settings = world.settings
        self.clock_ms = 0  # how far its wall clock is off
        self.rate, self.ahead_s = 1.0, 0.0  # of its own clock
        self.paused_until = 0.0  # it stands still, and hears the rest afterwards
        self._unheard: deque[e.Event] = deque()
        self.slow_s = 0.0  # how much longer its disk takes
        self.keeps = self.tears = False  # what a crash does to what is not synced
        self.stopped_by: MeshqError | None = None  # by its own word, and it is not started again
        self.run = 0
        self.core: PeerCore
        self.counted: Counter[str] = Counter()  # by runs before this one
        self._wound_at = 0.0
        self.pipes: dict[tuple[str, bytes], Pipe] = {}  # to the holders of our sessions
        self.links: dict[PeerId, tuple[Pipe, Pipe, tuple[str, bytes]]] = {}

    # ------------------------------------------------------------------------------- life and death
    def start(self) -> None:
        self.up, self.run = True, self.run + 1
        self.disk.refuses = False
        self._unheard.clear()
        self.disk.epoch += 1
        self.pipes.clear()
        self.links.clear()
        w = self.world
        me = Me(
            self.identity.peer_id, self.identity.name, self.identity.curve_public, w.rng.randbytes(16),
            w.identities[0].peer_id, self.disk.id, self.disk.epoch, self.run,
        )  # fmt: skip
        registry = Registry(
            w.authority.mesh_id,
            slots=w.slots,
            replicas=3,
            founders=w.founders,
            verify=verifier(w.authority.key),
            level=w.level,
        )
        self.core = PeerCore(
            me, registry, settings=self.settings, random_id=lambda: w.rng.randbytes(16), rng=w.rng
        )
        self._restore()
        self._do(self.core.start(now=self.local(), wall_ms=self.wall_ms(), room_bytes=ROOM))
        run, self._wound_at = self.run, 0.0
        w.at(0, lambda: self._tick(run))
        for other in w.hosts:
            if other is not self:
                self.tell(other.seen())

    def _restore(self) -> None:
        restore(self.core, self.disk)  # type: ignore[arg-type]

    def declare(self, settings: CoreSettings) -> None:
        """What its member record says from now on, when the others have heard it."""
        self.settings = settings
        for other in self.world.hosts:
            other.tell(self.seen())

    def seen(self, state: str = "") -> e.MemberSeen:
        s, address = self.settings, f"{self.identity.name}:7700"
        return e.MemberSeen(
            self.identity.peer_id, (address,), state != "dead", state,
            level=s.level, weight=s.weight, zone=s.zone,
        )  # fmt: skip

    def local(self) -> float:
        """Its own clock, which nobody sets: of another beginning than the world's, and not quite as fast."""
        return self.world.now * self.rate + self.ahead_s

    def set_clock(self, *, rate: float, ahead_s: float) -> None:
        """A clock never goes back while a process lives: one that runs ends first."""
        was_up = self.up
        if was_up:
            self.crash()
        self.rate, self.ahead_s = rate, ahead_s
        if was_up:
            self.start()

    def wall_ms(self) -> int:
        return self.world.wall_ms() + self.clock_ms

    def bury(self) -> None:
        """It is down, and membership says so."""
        for other in self.world.hosts:
            other.tell(e.MemberSeen(self.identity.peer_id, (), False, state="dead"))

    def crash(self) -> None:
        self.up = False
        self.counted.update(self.core.ctx.counters)
        self._lose_what_is_not_synced()
        for pipe in self.pipes.values():
            pipe.broken = True
        for session in list(self.pipes):
            self.drop_session(session)
        for peer in list(self.links):
            self.cut(peer)
        for other in self.world.hosts:
            if self.identity.peer_id in other.links:
                other.cut(self.identity.peer_id)
        for client in self.world.clients:
            client.on_host_gone(self)

    def _lose_what_is_not_synced(self) -> None:
        """A prefix of it may be there all the same, and its last write torn."""
        rng, waiting = self.world.rng, self.disk.waiting
        if self.keeps and waiting and not self.disk.full:
            before = {(slot, x.index) for slot, x in self.disk.entries()}
            self.disk.sync(rng.choice((0, rng.randint(0, len(waiting)))))
            came = sorted(at for slot, x in self.disk.entries() if (at := (slot, x.index)) not in before)
            torn = [at for at in came if at[0] != SYSTEM_SLOT]
            if self.tears and torn and rng.random() < 0.5:
                self.disk.damaged.add(torn[-1])
        self.disk.waiting.clear()

    def wipe(self) -> None:
        """It is down, and its disk is replaced by an empty one. The registry is not what is wiped here."""
        log = self.disk.log[SYSTEM_SLOT]
        self.disk = Disk(id=self.world.rng.randbytes(16))
        self.disk.log[SYSTEM_SLOT] = log

    def _tick(self, run: int) -> None:
        if self.up and run == self.run:
            self.tell(e.RoomMeasured(0 if self.disk.full else self.disk.room))
            self.tell(e.Ticked())
            self._wind(run)

    def _wind(self, run: int) -> None:
        """Like the shell's timer."""
        at = max((self.core.deadline() - self.ahead_s) / self.rate, self.world.now + 1e-4)
        if at < self._wound_at or self._wound_at <= self.world.now:
            self._wound_at = at
            self.world.at(at - self.world.now, lambda: self._ring(at, run))

    def _ring(self, at: float, run: int) -> None:
        if at == self._wound_at:
            self._tick(run)

    def tell(self, event: e.Event) -> None:
        if self.up and (self.world.now < self.paused_until or self._unheard):
            self._unheard.append(event)
            if len(self._unheard) == 1:
                self._hear_later()
        elif self.up:
            self._handle(event)

    def _hear_later(self) -> None:
        run = self.run
        self.world.at(max(self.paused_until - self.world.now, 0.0), lambda: self._hear(run))

    def _hear(self, run: int) -> None:
        """It goes on, with what came while it stood still, in that order."""
        while self.up and run == self.run and self._unheard and self.world.now >= self.paused_until:
            self._handle(self._unheard.popleft())
        if self.up and run == self.run and self._unheard:
            self._hear_later()

    def _handle(self, event: e.Event) -> None:
        if self.up:
            try:
                effects = self.core.handle(event, now=self.local(), wall_ms=self.wall_ms())
            except StoreError:  # the peer stops, and is started again as systemd does it
                self.counted["stopped"] += 1
                self.crash()
                self.world.at(0.5, self.start)
                return
            self._do(effects)
            self._wind(self.run)

    # -------------------------------------------------------------------------------------- effects
    def _do(self, effects: list[e.Effect]) -> None:
        run = self.run
        for effect in effects:
            match effect:
                case e.SendSession():
                    pipe = self.pipes.get(effect.session)
                    if pipe is None:
                        self.world.at(0, lambda s=effect.session: self.tell(e.SessionClosed(s)))
                    else:
                        data = messages.encode(effect.message)
                        pipe.send(messages.decode_answer(data), tuple(bytes(p) for p in effect.payloads))
                case e.Persist() if self.disk.refuses:
                    pass
                case e.ResumeWrites():
                    self.disk.refuses = False
                case e.Persist():
                    self.disk.waiting.append(effect.write)
                    if len(self.disk.waiting) == 1:
                        sync_s = self.slow_s + self.world.rng.uniform(0.001, 0.03)
                        self.world.at(sync_s, lambda: self._sync(run))
                case e.FetchBatches():
                    self.world.at(0.0005, lambda f=effect: self._fetch(f, run))
                case e.SeekTime():
                    self.world.at(0, lambda s=effect: self._seek(s, run))
                case e.ReadSlotLog():
                    self.world.at(0.0005, lambda r=effect: self._read_log(r, run))
                case e.ReadRows():
                    rows = dict(self.disk.rows[effect.slot])
                    self.world.at(
                        0.0005, lambda r=effect, x=rows: self._answer(run, e.RowsRead(r.slot, r.to, x))
                    )
                case e.ReadPayloads():
                    self.world.at(0.0005, lambda r=effect: self._read_payloads(r, run))
                case e.OpenLink():
                    self.world.at(0.001, lambda p=effect.peer: self._link(p, run))
                case e.CloseLink():
                    self._let_go(effect.peer)
                case e.SurveyBatches():
                    self.world.at(0.0005, lambda x=effect: self._survey(x, run))
                case e.DeletePayloads():
                    self.world.at(self.world.rng.uniform(0.001, 0.1), lambda x=effect: self._delete(x, run))
                case e.PeerLeft():
                    self.has_left = True
                    self.world.at(0.5, self.crash)  # as the shell stops it
                case e.StopPeer():
                    self.stopped_by = effect.error
                    self.crash()
                case e.SendPeer():
                    if effect.peer in self.links:
                        message = messages.decode_request(messages.encode(effect.message))
                        self.links[effect.peer][0].send(message, effect.payloads)
                case _:
                    pass

    def _sync(self, run: int) -> None:
        if not self.up or run != self.run or not self.disk.waiting:
            return
        if self.disk.full:
            self.disk.waiting.clear()
            self.disk.refuses = True
            self.tell(e.WritesFailed(DiskFull("the disk is full"), 0))
        else:
            self.tell(e.WritesDone(self.disk.sync(), self.disk.room))

    def _fetch(self, effect: e.FetchBatches, run: int) -> None:
        if run != self.run:
            return
        f, found = effect.fetch, list[StoredBatch]()
        try:
            if self.core.fetching.is_awaited(effect):
                found = self.disk.read_batches(f.partition, f.offset, end=f.end, bytes_max=f.bytes_max)
        except StoreError as damage:
            self.tell(e.BatchesFetched(f, damage))
        else:
            self.tell(e.BatchesFetched(f, found))

    def _read_log(self, read: e.ReadSlotLog, run: int) -> None:
        found, damage = list[Item](), None
        has_gone = partial(self._is_without, read.slot)
        try:
            found = read_log(self.disk, read.slot, read.prev.index + 1, read.bytes_max, has_gone)  # type: ignore[arg-type]
        except StoreCorrupt as why:
            damage = why
        self._answer(run, e.SlotLogRead(read.slot, LogRead(read.to, read.prev, tuple(found)), damage))

    def _answer(self, run: int, event: e.Event) -> None:
        if run == self.run:
            self.tell(event)

    def _read_payloads(self, read: e.ReadPayloads, run: int) -> None:
        found, complete, damage = list[StoredBatch](), False, None
        try:
            found, complete = read_ranges(self.disk, read.ranges, read.bytes_max)  # type: ignore[arg-type]
        except PayloadCorrupt as why:
            damage = why
        self._answer(run, e.PayloadsRead(read.slot, read.to, tuple(found), complete, damage))

    def _is_without(self, slot: Slot, entry: Entry) -> bool:
        """As DiskShell knows it."""
        slots, key = self.core.slots, payload_key_of(entry)
        there = key is not None and slots.was_rewritten(slot, entry)
        return slots.has_gone(slot, entry) or (there and key is not None and self.disk.is_compacted(key))

    def _survey(self, s: e.SurveyBatches, run: int) -> None:
        marks = self.disk.survey(s.partition, s.offset, count_max=s.count_max)
        self._answer(run, e.BatchesSurveyed(s.slot, s.partition, s.offset, marks))

    def _seek(self, seek: e.SeekTime, run: int) -> None:
        stored = sorted(self.disk.payloads[seek.partition], key=lambda p: p.base_offset)
        found = [
            p.base_offset for p in stored if p.timestamp_ms >= seek.timestamp_ms and p.base_offset < seek.end
        ]
        if run == self.run:
            self.tell(e.TimeSought(seek, found[0] if found else seek.end))

    # ---------------------------------------------------------------------------------------- links
    def _link(self, peer: PeerId, run: int) -> None:
        other = next(h for h in self.world.hosts if h.identity.peer_id == peer)
        if not self.up or run != self.run:
            return
        if not other.up:
            self.tell(e.LinkDown(peer, "refused"))
            return
        if self.world.is_cut(self.world.tcp_cut, self.identity, other.identity):
            self.world.at(UNANSWERED_S, lambda: self._answer(run, e.LinkDown(peer, "no answer")))
            return
        session = (e.PEERS, self.world.rng.randbytes(5))
        key = self.identity.curve_public
        if key not in other.core.ctx.registry.peer_of_key:  # it shows its certificate at the door
            other.core.on_presented(self.certificate())
        way = self.identity.name, other.identity.name
        there = Pipe(self.world, way, lambda m, p: other.tell(e.MessageArrived(session, key, m, p)))
        back = Pipe(self.world, way[::-1], lambda m, _: self.tell(e.LinkMessage(peer, m)))
        other.pipes[session] = back
        self.links[peer] = (there, back, session)
        self.tell(e.LinkUp(peer))

    def certificate(self) -> Certificate:
        return verifier(self.world.authority.key)(self.world.certify(self.identity))

    def cut(self, peer: PeerId) -> None:
        self._let_go(peer)
        self.tell(e.LinkDown(peer, "cut"))

    def _let_go(self, peer: PeerId) -> None:
        if peer in self.links:
            there, back, session = self.links.pop(peer)
            there.broken = back.broken = True
            next(h for h in self.world.hosts if h.identity.peer_id == peer).pipes.pop(session, None)

    def _delete(self, effect: e.DeletePayloads, run: int) -> None:
        if self.up and run == self.run:
            below = 1 << 63 if effect.below is None else effect.below
            stored = self.disk.payloads[effect.partition]
            stored[:] = [p for p in stored if p.base_offset + p.count > below]
            self.tell(e.PayloadsDeleted(effect.slot, effect.partition, effect.below))

    def drop_session(self, session: tuple[str, bytes]) -> None:
        self.pipes.pop(session, None)

    def records(self, partition: PartitionKey) -> list[tuple[int, int]]:
        """(base offset, count) of every batch on disk, in order."""
        stored = sorted(self.disk.payloads[partition], key=lambda p: p.base_offset)
        return [(p.base_offset, read_header(p.data).count) for p in stored]


def committed(host: Host, partition: PartitionKey) -> list[bytes]:
    """The values below the high watermark that this host's disk has, by offset."""
    return [r.value for r in committed_records(host, partition)]


def committed_records(host: Host, partition: PartitionKey) -> list[RawRecord]:
    slot = host.core.ctx.slot_of(partition)
    end = host.core.slots.partition(slot, partition).end
    log: list[RawRecord] = []
    for payload in sorted(host.disk.payloads[partition], key=lambda p: p.base_offset):
        if payload.base_offset < end:
            assert payload.base_offset == len(log), "offsets are dense and start at 0"
            log += read_records(payload.data)
    return log


def is_level(world: World, partition: PartitionKey) -> bool:
    """Whether the slot is led, and all who take part have all that is decided."""
    slot = world.hosts[0].core.ctx.slot_of(partition)
    replicas = [h.core.slots.hosts[slot].replica for h in world.hosts if slot in h.core.slots.hosts]
    return sum(r.serves for r in replicas) == 1 and len({r.commit_index for r in replicas}) == 1


class Client:
    """A client core and what became of its tickets."""

    def __init__(self, world: World, *, seed_peer: int = 0) -> None:
        self.world = world
        self.key = world.identities[seed_peer].curve_public  # as a program on that peer's host
        self.home = home = world.identities[seed_peer]
        seed = facts.Seed(home.curve_public, (f"tcp://{home.name}:7700",), home.name)
        self.core = ClientCore([seed], mesh_id=world.authority.mesh_id, name="c", rng=world.rng)
        self.results: dict[int, Any] = {}
        self.doubts: dict[int, Any] = {}
        self.read: dict[tuple[str, int], list[tuple[int, bytes]]] = defaultdict(list)  # offset and value
        self.ended: list[Any] = []
        self.expired: list[facts.TellExpired] = []
        self._links: dict[bytes, tuple[Pipe, Pipe, Host, tuple[str, bytes]]] = {}
        self._tickets = itertools.count(1)
        self._timer = 0.0
        world.clients.append(self)
        self.tell(facts.Ticked())

    def tell(self, event: Any) -> None:
        for effect in self.core.handle(event, now=self.world.now):
            self._do(effect)
        self._arm()

    def _arm(self) -> None:
        deadline = self.core.deadline()
        if deadline is not None and not (self.world.now < self._timer <= deadline):
            self._timer = max(deadline, self.world.now + 1e-6)
            self.world.at(self._timer - self.world.now, lambda: self.tell(facts.Ticked()))

    def ask(self, make: Callable[[int, float], Any], timeout: float = 30.0) -> int:
        ticket = next(self._tickets)
        self.tell(make(ticket, self.world.now + timeout))
        return ticket

    def wait(self, ticket: int) -> Any:
        self.world.run(lambda: ticket in self.results)
        return self.results[ticket]

    def _do(self, effect: Any) -> None:
        match effect:
            case facts.OpenLink():
                self.world.at(0.001, lambda: self._open(effect.server_key))
            case facts.CloseLink():
                self._close(effect.server_key)
            case facts.Send():
                if effect.server_key in self._links:
                    message = messages.decode_request(messages.encode(effect.message))
                    self._links[effect.server_key][0].send(message, tuple(effect.payloads))
            case facts.Settle():
                self.results[effect.ticket] = effect.value
            case facts.Fail():
                self.results[effect.ticket] = effect.error
            case facts.Doubt():
                self.doubts[effect.ticket] = effect.error
            case facts.Hand():
                self.on_hand(effect)
            case facts.TellExpired():
                self.on_expired(effect)
            case facts.EndSubscription():
                self.ended.append(effect.error)
            case _:
                pass

    def on_expired(self, told: facts.TellExpired) -> None:
        self.expired.append(told)

    def on_hand(self, hand: facts.Hand) -> None:
        """The application reads the new records of a batch, and is through with them a little later."""
        records = enumerate(read_records(hand.payload), hand.base_offset)
        new = [(offset, r.value) for offset, r in records if offset >= hand.first]
        self.read[(hand.topic, hand.partition)] += new
        done = facts.Consumed(hand.sub, hand.source, len(hand.payload), hand.records)
        self.world.at(self.world.rng.uniform(0, 0.02), lambda: self.tell(done))

    def _open(self, key: bytes) -> None:
        host = self.world.host_of(key)
        if not host.up:
            self.tell(facts.LinkDown(key, "refused"))
            return
        if self.world.is_cut(self.world.tcp_cut, self.home, host.identity):
            self.world.at(UNANSWERED_S, lambda: self.tell(facts.LinkDown(key, "no answer")))
            return
        session = (e.CLIENTS, self.world.rng.randbytes(5))
        way = self.home.name, host.identity.name
        there = Pipe(self.world, way, lambda m, p: host.tell(e.MessageArrived(session, self.key, m, p)))
        back = Pipe(self.world, way[::-1], lambda m, p: self.tell(facts.Received(key, m, p)))
        host.pipes[session] = back
        self._links[key] = (there, back, host, session)
        self.tell(facts.LinkUp(key))

    def _close(self, key: bytes) -> None:
        """Our side lets go: what we sent before still arrives, what they send does not."""
        if key in self._links:
            _, back, host, session = self._links.pop(key)
            back.broken = True
            host.drop_session(session)

    def cut(self, key: bytes) -> None:
        """The connection breaks: what is on its way is lost, or (like a last packet) may still arrive
        there.
        """
        if key in self._links:
            there, back, host, session = self._links.pop(key)
            back.broken = True
            there.broken = self.world.rng.random() < 0.7
            host.drop_session(session)
            self.tell(facts.LinkDown(key, "cut"))

    def links(self) -> list[bytes]:
        return list(self._links)

    def on_host_gone(self, host: Host) -> None:
        for key, (there, back, other, _) in list(self._links.items()):
            if other is host:
                there.broken = back.broken = True
                del self._links[key]
                self.tell(facts.LinkDown(key, "reset"))
