"""Membership simulated: many machines, one heap of events, one random source; the same seed, the same trace.

The network loses, delays, duplicates and reorders; hosts are cut off, stopped, moved, restarted. What is done
to a world and measured in it is in `scenarios.py`, the tables of docs/membership.md come from `simulate.py`.
"""

from __future__ import annotations

import hashlib
import heapq
import hmac
import random
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from meshq.gossip import wire
from meshq.gossip.machine import Membership
from meshq.gossip.settings import LAN, Settings
from meshq.gossip.transitions import Belief
from meshq.gossip.words import (
    AddressesChanged,
    AddressSuggested,
    DatagramReceived,
    Effect,
    Event,
    LinkAnswered,
    LinkBroken,
    LinkCarried,
    LinkUp,
    Member,
    MemberDead,
    ProbeLink,
    Registered,
    SendDatagram,
    State,
    Tick,
)
from meshq.ids import PeerId

UDP_BYTES = 28 + wire.SEAL_BYTES  # IPv4, UDP and the seal
QUEUE_MAX = 400  # datagrams a stopped process's socket keeps: 416 KiB (Linux's default) of 1 KiB each
READS = 64  # of them its loop reads before it looks at its timers (`transport.udp`)
_EVENT = struct.Struct(">dBHHI")
_TICK, _DATAGRAM, _CALL = 0, 1, 2


def peer_id(n: int) -> PeerId:
    return PeerId(n.to_bytes(16, "big"))


def number(peer: bytes) -> int:
    return int.from_bytes(peer, "big")


def address_of(n: int, host: int = 0) -> str:
    return f"10.{host}.{n // 250}.{n % 250}:7700"


def sign_as(peer: PeerId) -> Callable[[bytes], bytes]:
    """Stands in for Ed25519: a MAC under a key that only tests know."""
    return lambda data: hmac.digest(peer, data, "sha512")


def verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
    return hmac.compare_digest(sign_as(peer)(data), signature)


def member(
    n: int,
    *,
    boot: int = 1,
    now: float = 0.0,
    registered: Iterable[int] = (),
    addresses: list[str] | None = None,
    settings: Settings = LAN,
    seed: int = 0,
    links_carry: bool = False,
) -> Membership:
    m = Membership(
        peer_id(n),
        name=f"peer{n}",
        addresses=[address_of(n)] if addresses is None else addresses,
        boot_epoch=boot,
        boot_id=n.to_bytes(8, "big") + boot.to_bytes(8, "big"),
        sign=sign_as(peer_id(n)),
        verify=verify,
        rng=random.Random(f"{seed} {n} {boot}"),
        now=now,
        settings=settings,
        links_carry=links_carry,
    )
    m.handle(Registered([peer_id(x) for x in registered]), now=now)
    return m


@dataclass
class World:
    """`size` machines, numbered from 1. `warm`: they know each other; else all know the first's address.
    `links`: each has a connection to each, which carries payloads; `udp_blocked`: those have nothing else.
    """

    size: int
    seed: int = 1
    loss: float = 0.0
    duplicates: float = 0.0
    delay_s: float = 0.001
    settings: Settings = LAN
    warm: bool = True
    links: bool = False
    udp_blocked: set[int] = field(default_factory=set)
    now: float = 0.0
    peers: dict[int, Membership] = field(default_factory=dict)
    boots: dict[int, int] = field(default_factory=dict)
    down: set[int] = field(default_factory=set)
    paused: dict[int, list[tuple[bytes, int]]] = field(default_factory=dict)
    held: dict[int, list[tuple[int, int, bytes]]] = field(default_factory=dict)
    cut: Callable[[int, int], bool] = lambda a, b: False
    log: list[tuple[float, int, Effect]] = field(default_factory=list)
    datagrams: int = 0
    bytes: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self._heap: list[tuple[float, int, int, int, int, object]] = []
        self._serial = 0
        self._wakes: dict[int, float] = {}
        self._trace = hashlib.blake2b(digest_size=16)
        self._ids = {n: peer_id(n) for n in range(1, self.size + 1)}
        self.sources = {n: address_of(n) for n in range(1, self.size + 1)}
        self.numbers = {a: n for n, a in self.sources.items()}
        for n in range(1, self.size + 1):
            self.start(n, tell=not self.warm)
        if self.warm:
            self._introduce()

    # ------------------------------------------------------------------------------------------------ faults
    def start(self, n: int, *, tell: bool = True) -> None:
        """A start, or a restart with nothing remembered but where the first one (or the second) is."""
        self.down.discard(n)
        self.paused.pop(n, None)
        self.held.pop(n, None)
        self.boots[n] = self.boots.get(n, 0) + 1
        everybody = range(1, self.size + 1)
        self.peers[n] = member(
            n,
            boot=self.boots[n],
            now=self.now,
            registered=everybody,
            settings=self.settings,
            seed=self.seed,
            links_carry=self.links,
        )
        for other in everybody if self.links else ():
            self.tell(n, LinkUp(peer_id(other)))
            if other in self.peers:
                self.tell(other, LinkUp(peer_id(n)))
        self._push(self.now + self.rng.random() * self.settings.probe_s, _TICK, n)
        if tell:
            for seed in (1, 2):
                if seed != n and seed <= self.size:
                    self.tell(n, AddressSuggested(address_of(seed), keep=True))

    def kill(self, n: int, *, linked: bool = False) -> None:
        """`linked`: the others' connections to it break, as those of a process that died do."""
        self.down.add(n)
        if linked:
            for other in self.up():
                self.call(self.rng.random() * 0.01, lambda o=other: self.tell(o, LinkBroken(peer_id(n))))

    def pause(self, n: int, seconds: float, *, deaf: bool = False) -> None:
        """Its process stands still. `deaf`: and its host with it, so that what is sent to it is lost."""
        if n not in self.paused and n not in self.down:
            self.paused[n] = []
            self.call(seconds, lambda: self._resume(n, deaf))

    def _resume(self, n: int, deaf: bool) -> None:
        waiting = self.paused.pop(n, [])
        if deaf:
            waiting.clear()
        for start in range(0, max(len(waiting), 1), READS):
            for payload, source in waiting[start : start + READS]:
                self.tell(n, DatagramReceived(payload, peer_id(source), self.sources[source]))
            self.tell(n, Tick())

    def hold(self, n: int, seconds: float) -> None:
        """Its datagrams wait, in both directions, while its timers run on: slow message processing as in
        Lifeguard, section V, or a network card that hangs.
        """
        if n not in self.held and n not in self.down:
            self.held[n] = []
            self.call(seconds, lambda: self._release(n))

    def _release(self, n: int) -> None:
        for source, target, payload in self.held.pop(n, []):
            self._push(self.now + self.rng.random() * 0.001, _DATAGRAM, source, target, payload)

    def move(self, n: int, address: str) -> None:
        """Its old address is nobody's."""
        self.numbers = {a: x for a, x in self.numbers.items() if x != n} | {address: n}
        self.sources[n] = address
        self.tell(n, AddressesChanged((address,)))

    def call(self, seconds: float, what: Callable[[], object]) -> None:
        self._push(self.now + seconds, _CALL, 0, 0, what)

    # ------------------------------------------------------------------------------------------------ running
    def tell(self, n: int, event: Event) -> list[Effect]:
        if n in self.down or n in self.paused:
            return []
        effects = self.peers[n].handle(event, now=self.now)
        for effect in effects:
            if isinstance(effect, SendDatagram):
                self._send(n, effect)
            elif isinstance(effect, ProbeLink):
                self._ask_over_link(n, number(effect.peer), effect.payload)
            else:
                self.log.append((self.now, n, effect))
        due = self.peers[n].deadline()
        if due < self._wakes.get(n, float("inf")):
            self._push(due, _TICK, n)
        return effects

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False, look_s: float = 0.05) -> float:
        """Let time pass, at most so much; returns how much it was until the condition held."""
        begin, end = self.now, self.now + seconds
        look = begin
        while True:
            if self.now >= look:
                if until():
                    return self.now - begin
                look = self.now + look_s
            if not self._heap or self._heap[0][0] >= end:
                self.now = end
                return seconds
            at, _, kind, a, b, what = heapq.heappop(self._heap)
            self.now = max(self.now, at)
            self._note(at, kind, a, b, what)
            if kind == _TICK:
                self._on_tick(a, at)
            elif kind == _CALL:
                what()  # type: ignore[operator]
            elif self.held and (a in self.held or b in self.held):
                held = self.held[b if b in self.held else a]
                if len(held) < QUEUE_MAX:
                    held.append((a, b, what))  # type: ignore[arg-type]
            elif b in self.paused:
                if len(self.paused[b]) < QUEUE_MAX:
                    self.paused[b].append((what, a))  # type: ignore[arg-type]
            elif a not in self.down:
                self.tell(b, DatagramReceived(what, self._ids[a], self.sources[a]))  # type: ignore[arg-type]

    def _note(self, at: float, kind: int, a: int, b: int, what: object) -> None:
        payload = what if isinstance(what, bytes) else b""
        self._trace.update(_EVENT.pack(at, kind, a, b, len(payload)) + payload)

    def _on_tick(self, n: int, at: float) -> None:
        if at != self._wakes[n]:
            return  # an earlier one took its place
        self._wakes[n] = float("inf")
        if n in self.down or n in self.paused:
            return
        if self.peers[n].deadline() <= self.now:
            self.tell(n, Tick())
        else:
            self._push(self.peers[n].deadline(), _TICK, n)

    def _push(self, at: float, kind: int, a: int, b: int = 0, what: object = None) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (at, self._serial, kind, a, b, what))
        if kind == _TICK:
            self._wakes[a] = at

    def _send(self, source: int, effect: SendDatagram) -> None:
        target = self.numbers.get(effect.address)
        size = len(effect.payload)
        self.datagrams += 1
        self.bytes += size + UDP_BYTES
        assert size <= wire.PAYLOAD_BYTES_MAX
        if target is None or self.cut(source, target):
            return
        if self.udp_blocked and (source in self.udp_blocked or target in self.udp_blocked):
            return
        random = self.rng.random
        for _ in range(1 + (random() < self.duplicates)):
            if random() >= self.loss:
                delay_s = (0.1 + 1.8 * random()) * self.delay_s
                self._push(self.now + delay_s, _DATAGRAM, source, target, effect.payload)

    def _ask_over_link(self, source: int, target: int, payload: bytes) -> None:
        """Reliable and in order, as long as both are there."""
        if not self.links or self.cut(source, target) or self.cut(target, source):
            return

        def arrive() -> None:
            if target in self.down or target in self.paused:
                return
            if payload:
                self.tell(target, LinkCarried(payload, peer_id(source)))
            self.call(self.delay_s, lambda: self.tell(source, LinkAnswered(peer_id(target))))

        self.bytes += len(payload) + UDP_BYTES
        self.call(self.delay_s, arrive)

    def _introduce(self) -> None:
        signed = {n: m._own.signed for n, m in self.peers.items()}
        for n, m in self.peers.items():
            for other, known in ((number(p), k) for p, k in m._table.known.items()):
                known.record, known.signed = self.peers[other].own, signed[other]
                known.belief = Belief.ALIVE
            assert len(m._table.known) == self.size - 1, n

    # ------------------------------------------------------------------------------------------------ looking
    @property
    def trace(self) -> str:
        return self._trace.hexdigest()

    def up(self) -> list[int]:
        return [n for n in self.peers if n not in self.down]

    def state(self, observer: int, n: int) -> State:
        return self.peers[observer]._table.known[peer_id(n)].state

    def member(self, observer: int, n: int) -> Member:
        found = self.peers[observer].member(peer_id(n))
        assert found is not None
        return found

    def sees(self, n: int) -> dict[int, State]:
        return {number(m.peer): m.state for m in self.peers[n].members()}

    def all_see(self, state: State, n: int) -> bool:
        return all(self.state(o, n) is state for o in self.up() if o != n)

    def met(self) -> bool:
        """All that are up are alive to all, or suspect for the moment."""
        present = (State.ALIVE, State.SUSPECT)
        return all(self.state(o, n) in present for o in self.up() for n in self.up() if o != n)

    def converged(self) -> bool:
        return all(
            self.all_see(State.DEAD if n in self.down else State.ALIVE, n) for n in range(1, self.size + 1)
        )

    def first(self, kind: type[Effect], n: int, since: float) -> float | None:
        """When the first one said so of n."""
        times = [
            t
            for t, _, e in self.log
            if t >= since and isinstance(e, kind) and number(e.member.peer) == n  # type: ignore[union-attr]
        ]
        return min(times, default=None)

    def deaths(self) -> list[tuple[float, int, int]]:
        """(when, who said so, of whom)"""
        return [(t, o, number(e.member.peer)) for t, o, e in self.log if isinstance(e, MemberDead)]
