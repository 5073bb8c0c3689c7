"""Links: one connection from here to every other registered peer whose address is known.

A link that breaks is tried again with doubling pauses; news of the peer (another address, alive again) cuts a
pause short. When either end has other addresses, the link is asked whether it still carries: an address that
is gone tells nobody, and silence alone takes SILENCE_S to show. A link counts as up only when the other
side's Welcome has shown that it is the peer it should be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from meshq.batch import Buffer
from meshq.errors import RemoteProtocolError, StoreError
from meshq.ids import PeerId
from meshq.messages import (
    VERSION_MAX,
    VERSION_MIN,
    AnyMessage,
    CarryGossip,
    Failure,
    Hello,
    Ping,
    ServerMessage,
    Welcome,
)
from meshq.peer.core.context import Context
from meshq.peer.core.events import CloseLink, HintMembership, MemberSeen, OpenLink, SendPeer, UdpSeen

PAUSE_S_MIN = 0.1
PAUSE_S_MAX = 3.0  # between two tries of a link
PING_S = 2.0
SILENCE_S = 8.0
STEADY_S = 1.0  # one that was up for less is not tried again before the next tick
MOVED_S = 1.0  # how long a connection may be silent when one of its ends has moved


class LinkState(Enum):
    DOWN = "down"
    OPENING = "opening"
    UP = "up"


@dataclass(slots=True)
class LinkFacts:
    state: LinkState = LinkState.DOWN
    addresses: tuple[str, ...] = ()
    alive: bool = True
    pause_s: float = PAUSE_S_MIN
    try_at: float = 0.0
    heard: float = 0.0
    up_at: float = 0.0
    pinged: float = 0.0
    moved_at: float | None = None  # asked then whether it still carries; None: not in question
    reason: str = "not tried yet"
    rtt_ms: float | None = None
    boot: bytes = b""
    disk: bytes = b""
    seen: MemberSeen | None = None  # what gossip last said of it
    gossip_rtt_ms: float | None = None
    udp_blocked: bool = False


@dataclass
class Links:
    ctx: Context
    on_up: Callable[[PeerId], None]
    on_down: Callable[[PeerId], None]
    on_message: Callable[[PeerId, ServerMessage], None]
    on_welcome: Callable[[PeerId, Welcome], None]
    on_gone: Callable[[PeerId], None]  # nobody answers where it was: its process has ended
    states: dict[PeerId, LinkFacts] = field(default_factory=dict)  # one a registered peer

    def reachable(self) -> set[PeerId]:
        return {self.ctx.me.peer} | {p for p, x in self.states.items() if x.state is LinkState.UP}

    def send(self, peer: PeerId, message: AnyMessage, payloads: tuple[Buffer, ...] = ()) -> bool:
        """False when there is no link; otherwise it was sent (and may still be lost with the link)."""
        link = self.states.get(peer)
        if link is None or link.state is not LinkState.UP:
            return False
        self.ctx.out.append(SendPeer(peer, message, payloads))
        return True

    def on_member(self, seen: MemberSeen) -> bool:
        """Whether that was news to clients."""
        peer, addresses, alive = seen.peer, seen.addresses, seen.alive
        if peer == self.ctx.me.peer:
            return False
        link = self.states.setdefault(peer, LinkFacts())
        before = link.addresses, link.alive
        link.seen = seen
        if addresses != link.addresses or (alive and not link.alive):
            link.try_at, link.pause_s = 0.0, PAUSE_S_MIN
        if addresses != link.addresses:
            self._question(peer, link)
        link.addresses, link.alive = addresses or link.addresses, alive
        return before != (link.addresses, link.alive)

    def on_moved(self) -> None:
        """This host has other addresses: connections from those that are gone carry nothing any more."""
        for peer, link in self.states.items():
            self._question(peer, link)

    def _question(self, peer: PeerId, link: LinkFacts) -> None:
        if link.state is LinkState.UP:
            link.moved_at = self.ctx.now
            self.probe(peer)

    def on_udp(self, seen: UdpSeen) -> None:
        self.states.setdefault(seen.peer, LinkFacts()).udp_blocked = seen.blocked

    def on_round_trips(self, rtt_ms: Mapping[PeerId, float]) -> None:
        for peer, link in self.states.items():
            link.gossip_rtt_ms = rtt_ms.get(peer)

    def tick(self) -> None:
        known = self.ctx.known_peers()
        for peer, link in self.states.items():
            if peer not in known:
                continue
            if link.state is LinkState.DOWN and self.ctx.now >= link.try_at:
                self._open(peer, link)
            elif link.state is not LinkState.DOWN:
                self._keep_alive(peer, link)

    def _open(self, peer: PeerId, link: LinkFacts) -> None:
        known = self.ctx.known_peers()
        if peer in known and link.addresses:
            link.state, link.heard = LinkState.OPENING, self.ctx.now
            self.ctx.out.append(OpenLink(peer, link.addresses, known[peer].curve_key))

    def _keep_alive(self, peer: PeerId, link: LinkFacts) -> None:
        if link.moved_at is not None and link.heard > link.moved_at:
            link.moved_at = None
        if self.ctx.now - link.heard > SILENCE_S:
            self._break(peer, "nothing heard for too long")
        elif link.moved_at is not None and self.ctx.now - link.moved_at > MOVED_S:
            self._break(peer, "nothing heard since an address changed")
        elif link.state is LinkState.UP and self.ctx.now - link.pinged >= PING_S:
            link.pinged = self.ctx.now
            self.ctx.out.append(SendPeer(peer, Ping(int(self.ctx.now * 1e6))))

    def on_link_up(self, peer: PeerId) -> None:
        """The transport is there: say who we are and wait to be welcomed."""
        link = self.states.setdefault(peer, LinkFacts())
        link.state, link.heard = LinkState.OPENING, self.ctx.now
        me = self.ctx.me
        mesh = self.ctx.registry.mesh
        hello = Hello(VERSION_MIN, VERSION_MAX, mesh, me.name, me.disk, me.epoch, me.boot)
        self.ctx.out.append(SendPeer(peer, hello))

    def on_link_down(self, peer: PeerId, reason: str) -> None:
        """The transport lost it, or could not open it."""
        link = self.states.get(peer)
        was_steady = link is not None and link.state is LinkState.UP and self.ctx.now - link.up_at > STEADY_S
        self._go_down(peer, reason)
        if link is not None and was_steady:
            self._open(peer, link)  # at once: whether somebody is still there is worth knowing

    def _go_down(self, peer: PeerId, reason: str) -> None:
        link = self.states.setdefault(peer, LinkFacts())
        was_up = link.state is LinkState.UP
        link.state, link.reason, link.moved_at = LinkState.DOWN, reason, None
        if was_up:
            link.try_at = self.ctx.now
            self.ctx.out.append(HintMembership(peer, "broken"))
            self.on_down(peer)
            return
        link.try_at = self.ctx.now + link.pause_s
        link.pause_s = min(link.pause_s * 2, PAUSE_S_MAX)
        self.on_gone(peer)

    def _break(self, peer: PeerId, reason: str) -> None:
        self.ctx.out.append(CloseLink(peer))
        self._go_down(peer, reason)

    def on_link_message(self, peer: PeerId, message: ServerMessage) -> None:
        link = self.states.setdefault(peer, LinkFacts())
        link.heard = self.ctx.now
        if isinstance(message, Failure) and message.request == 0:
            # It refused our Hello, or has forgotten it: a new connection begins with another one.
            self._break(peer, message.text)
        elif isinstance(message, Welcome):
            if link.state is LinkState.DOWN:
                return  # of a connection that was given up
            if message.peer != peer or message.mesh != self.ctx.registry.mesh:
                self._break(peer, "another peer answers at its address")
                return
            link.state, link.pause_s, link.boot = LinkState.UP, PAUSE_S_MIN, message.boot
            link.up_at = self.ctx.now
            link.disk = message.disk
            self.on_welcome(peer, message)
            link.pinged = self.ctx.now
            self.ctx.out.append(HintMembership(peer, "up"))
            self.on_up(peer)
        elif link.state is LinkState.UP:
            try:
                self.on_message(peer, message)
            except (RemoteProtocolError, StoreError) as e:
                # What it sent does not fit what is here (a registry put back from an old copy): this link is
                # given up, the peer serves on, and `meshq peers` shows why.
                self.ctx.count("links_broken_by_content")
                self._break(peer, str(e))

    def forget(self, peer: PeerId) -> None:
        """It is no peer of the mesh any more."""
        if self.states.pop(peer, None) is not None:
            self.ctx.out.append(CloseLink(peer))

    def probe(self, peer: PeerId, payload: bytes = b"") -> None:
        """Ask now whether it is there; `answered` is the hint that it is. With what gossip has to tell it."""
        link = self.states.get(peer)
        if link is not None and link.state is LinkState.UP:
            self.ctx.out.append(SendPeer(peer, Ping(int(self.ctx.now * 1e6))))
            if payload:
                self.ctx.out.append(SendPeer(peer, CarryGossip(payload)))

    def on_pong(self, peer: PeerId, token: int) -> float:
        """The round trip, in seconds."""
        self.ctx.out.append(HintMembership(peer, "answered"))
        round_trip_s = self.ctx.now - token / 1e6
        self.states[peer].rtt_ms = round(round_trip_s * 1e3, 3)
        return round_trip_s
