"""Links to peers: which to hold, whether they live, and whose slot is whose.

One link, the *home*, is always kept: over it topics are resolved and watched. Known peers are tried in turn,
the next one a moment before the last is given up, and the first to welcome us is home until it is lost; then
any link that is up takes its place at once. Links to the leaders of slots are opened when something is to be
said to them, and closed after a minute in which nothing was.

A link lives from `opening` (the socket connects) over `greeting` (Hello is sent) to `ready` (Welcome came).
Silence for ten seconds ends it, whatever the socket believes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from meshq.client.backoff import delay_s
from meshq.client.common import Alarm, Common
from meshq.client.facts import CloseLink, OpenLink, Seed, Send
from meshq.errors import MeshqError, OutcomeUnknown, Unavailable
from meshq.ids import TopicId
from meshq.messages import VERSION_MAX, VERSION_MIN, Hello, Ping, Routes, Welcome
from meshq.ring import slot_of

PING_EVERY_S: Final = 5.0
SILENCE_S: Final = 10.0
OPENING_S: Final = 4.0  # longer than the socket gives itself, whose reasons are better
GREETING_S: Final = 5.0
IDLE_S: Final = 60.0
NEXT_CANDIDATE_S: Final = 0.3  # so long one peer is waited for before another is tried beside it


class Phase(Enum):
    DOWN = "down"
    OPENING = "opening"
    GREETING = "greeting"
    READY = "ready"


@dataclass(slots=True)
class _Link:
    server_key: bytes
    name: str
    seeded: tuple[str, ...] = ()
    routed: tuple[str, ...] = ()
    phase: Phase = Phase.DOWN
    since: float = 0.0  # when it came into this phase
    heard_at: float = 0.0
    pinged_at: float = 0.0
    used_at: float = 0.0
    wanted: bool = False
    attempt: int = 0
    retry_at: float = 0.0
    turns: int = 0  # how often it was opened: each time another address is first
    reason: str = "not tried yet"

    def endpoints(self) -> tuple[str, ...]:
        every = tuple(dict.fromkeys(self.routed + self.seeded))
        first = self.turns % len(every) if every else 0
        return every[first:] + every[:first]


@dataclass(slots=True)
class Changes:
    """What the other machines must hear of after an event."""

    lost: list[bytes] = field(default_factory=list)
    gained: list[bytes] = field(default_factory=list)
    home: bool = False
    routes: bool = False


class Routing:
    """`needed` tells whether something waits to be said to a peer, or is expected from it."""

    def __init__(
        self,
        common: Common,
        seeds: tuple[Seed, ...],
        *,
        mesh_id: bytes,
        name: str,
        needed: Callable[[bytes], bool],
    ) -> None:
        self._common = common
        self._mesh_id = mesh_id
        self._name = name
        self._needed = needed
        self._links = {s.server_key: _Link(s.server_key, s.name, s.endpoints) for s in seeds}
        self._seek_at = 0.0
        self.alarm = Alarm()
        self._changes = Changes()
        self.home: bytes | None = None
        self.routes: Routes | None = None
        self._leaders: list[tuple[int, bytes | None]] = []  # by slot: term and server key; bounded by slots

    # ------------------------------------------------------------------------------ what others ask
    def owner_of(self, topic_id: bytes, partition: int) -> bytes | None:
        """The server key of the peer that owns the partition's slot, when that is known."""
        if not self._leaders:
            return None
        return self._leaders[slot_of(TopicId(topic_id), partition, len(self._leaders))][1]

    def use(self, server_key: bytes, now: float) -> bool:
        """Whether the link is ready; when it is not, it will be opened as soon as its back-off allows."""
        link = self._links.get(server_key)
        if link is None:
            return False
        link.used_at = now
        if link.phase is Phase.READY:
            return True
        link.wanted = True
        if link.phase is Phase.DOWN:
            if now >= link.retry_at:
                self._open(link, now)
            else:
                self.alarm.by(link.retry_at)
        return False

    def is_ready(self, server_key: bytes) -> bool:
        link = self._links.get(server_key)
        return link is not None and link.phase is Phase.READY

    def take_changes(self) -> Changes | None:
        """None: nothing has changed since the last time."""
        changes = self._changes
        if not (changes.lost or changes.gained or changes.home or changes.routes):
            return None
        self._changes = Changes()
        return changes

    def why_not(self, server_key: bytes | None) -> str:
        """Why nothing can be sent to this peer (None: to any peer)."""
        if server_key is not None:
            link = self._links.get(server_key)
            return f"its leader is {_tell(link)}" if link else "its leader is not known yet"
        if self.home is not None:
            return "which peer owns it is not known yet"
        return "no peer could be reached: " + "; ".join(_tell(x) for x in list(self._links.values())[:16])

    # --------------------------------------------------------------------------------- what happens
    def start(self, now: float) -> None:
        self._seek(now)

    def on_link_up(self, server_key: bytes, now: float) -> None:
        link = self._links.get(server_key)
        if link is None or link.phase is not Phase.OPENING:
            return
        self._enter(link, Phase.GREETING, now)
        self._send(server_key, Hello(VERSION_MIN, VERSION_MAX, self._mesh_id, self._name))

    def on_link_down(self, server_key: bytes, reason: str, now: float) -> None:
        link = self._links.get(server_key)
        if link is not None and link.phase is not Phase.DOWN:
            self._lose(link, reason, now)

    def on_heard(self, server_key: bytes, now: float) -> bool:
        """Whether the link is one that may be heard of."""
        link = self._links.get(server_key)
        if link is None or link.phase not in (Phase.GREETING, Phase.READY):
            return False
        link.heard_at = now
        return True

    def on_welcome(self, server_key: bytes, message: Welcome, now: float) -> None:
        link = self._links[server_key]
        if self._mesh_id and message.mesh != self._mesh_id:
            self.drop(server_key, "it belongs to another mesh", now)
        elif not VERSION_MIN <= message.version <= VERSION_MAX:
            self.drop(server_key, f"it speaks protocol version {message.version}, unknown here", now)
        elif link.phase is Phase.GREETING:
            link.attempt = 0
            link.used_at = link.pinged_at = now
            link.reason = "up"
            self._enter(link, Phase.READY, now)
            self._changes.gained.append(server_key)
            self._seek(now)

    def on_refused(self, server_key: bytes, error: MeshqError, now: float) -> None:
        """A failure of no request: the peer does not know this session, or could not read what was said."""
        self.drop(server_key, f"it refused the session: {type(error).__name__}: {error}", now)

    def on_routes(self, message: Routes, now: float) -> None:
        if self.routes is not None and message.version < self.routes.version:
            return  # from a peer that is behind the one heard before
        changed = self._learn(message)
        self.routes = message
        for route in message.peers:
            link = self._links.setdefault(route.server_key, _Link(route.server_key, route.name))
            link.name = route.name
            link.routed = tuple(f"tcp://{a}" for a in route.addresses)
        named = {route.server_key for route in message.peers}
        for key, link in list(self._links.items()):
            if key not in named and not link.seeded and link.phase is Phase.DOWN:
                del self._links[key]
        self._changes.routes |= changed
        self._seek(now)

    def _learn(self, message: Routes) -> bool:
        """Who leads which slot: of two peers that differ, the one that tells of the higher term."""
        keys = {i: route.server_key for i, route in enumerate(message.peers)}
        terms = message.terms or [0] * len(message.owners)
        told = [(term, keys.get(place)) for place, term in zip(message.owners, terms, strict=False)]
        if len(told) != len(self._leaders):
            known = told
        else:
            there = set(keys.values())
            known = [
                old if old[0] > new[0] and old[1] in there else new
                for old, new in zip(self._leaders, told, strict=True)
            ]
        peers_changed = self.routes is None or self.routes.peers != message.peers
        changed = known != self._leaders or peers_changed
        self._leaders = known
        return changed

    def drop(self, server_key: bytes, reason: str, now: float) -> None:
        """Close this link and take it for lost."""
        link = self._links.get(server_key)
        if link is not None and link.phase is not Phase.DOWN:
            self._common.effects.append(CloseLink(server_key))
            self._lose(link, reason, now)

    def close(self) -> None:
        for link in self._links.values():
            if link.phase is not Phase.DOWN:
                self._common.effects.append(CloseLink(link.server_key))
                link.phase = Phase.DOWN

    # ----------------------------------------------------------------------------------------- time
    def on_tick(self, now: float) -> None:
        if not self.alarm.rings(now):
            return
        for link in list(self._links.values()):
            match link.phase:
                case Phase.DOWN:
                    self._on_down_tick(link, now)
                case Phase.OPENING:
                    self._end_at(link, link.since + OPENING_S, "no answer within 4 s", now)
                case Phase.GREETING:
                    self._end_at(link, link.since + GREETING_S, "connected, but no welcome within 5 s", now)
                case Phase.READY:
                    self._on_ready_tick(link, now)
        self._seek(now)

    def _on_down_tick(self, link: _Link, now: float) -> None:
        if not link.wanted:
            return
        link.wanted = self._needed(link.server_key)
        if link.wanted and now >= link.retry_at:
            self._open(link, now)
        elif link.wanted:
            self.alarm.by(link.retry_at)

    def _on_ready_tick(self, link: _Link, now: float) -> None:
        if link.server_key != self.home and now >= link.used_at + IDLE_S:
            if not self._needed(link.server_key):
                self._common.effects.append(CloseLink(link.server_key))
                link.phase, link.wanted = Phase.DOWN, False
                self._changes.lost.append(link.server_key)
                return
            link.used_at = now
        if now >= link.pinged_at + PING_EVERY_S:
            link.pinged_at = now
            self._send(link.server_key, Ping(int(now * 1000) & 0x7FFFFFFF))
        self.alarm.by(link.pinged_at + PING_EVERY_S)
        self._end_at(link, link.heard_at + SILENCE_S, "nothing was heard of it for 10 s", now)

    def _end_at(self, link: _Link, moment: float, reason: str, now: float) -> None:
        if now >= moment:
            self.drop(link.server_key, reason, now)
        else:
            self.alarm.by(moment)

    # ------------------------------------------------------------------------------- how it is done
    def _seek(self, now: float) -> None:
        """Have a home: a link that is ready, else try the next peer that may be tried."""
        if self.home is not None:
            return
        ready = next((x for x in self._links.values() if x.phase is Phase.READY), None)
        if ready is not None:
            self.home = ready.server_key
            self._changes.home = True
            return
        if now < self._seek_at:
            self.alarm.by(self._seek_at)
            return
        down = [x for x in self._links.values() if x.phase is Phase.DOWN]
        candidates = sorted((x for x in down if now >= x.retry_at), key=lambda x: x.attempt)
        if candidates:
            self._open(candidates[0], now)
            self._seek_at = now + NEXT_CANDIDATE_S
            self.alarm.by(self._seek_at)
        for link in down:
            if now < link.retry_at:
                self.alarm.by(link.retry_at)

    def _open(self, link: _Link, now: float) -> None:
        self._common.effects.append(OpenLink(link.server_key, link.endpoints()))
        link.turns += 1
        self._enter(link, Phase.OPENING, now)

    def _enter(self, link: _Link, phase: Phase, now: float) -> None:
        link.phase = phase
        link.since = link.heard_at = now
        # READY has many moments to mind: look at once, the tick finds the first.
        wait = {Phase.OPENING: OPENING_S, Phase.GREETING: GREETING_S}.get(phase, PING_EVERY_S)
        self.alarm.by(now + wait)

    def _lose(self, link: _Link, reason: str, now: float) -> None:
        """The one door out of a link that was not meant to end."""
        link.phase = Phase.DOWN
        link.reason = reason or "the link was lost"
        link.retry_at = now + delay_s(link.attempt, self._common.rng)
        link.attempt += 1
        if link.wanted:
            self.alarm.by(link.retry_at)
        self._changes.lost.append(link.server_key)
        if self.home == link.server_key:
            self.home = None
        if self.home is None:
            self._seek_at = now
            self._seek(now)

    def _send(self, server_key: bytes, message: Hello | Ping) -> None:
        self._common.effects.append(Send(server_key, message))


def _tell(link: _Link) -> str:
    where = ", ".join(link.endpoints()) or "no address"
    return f"{link.name or link.server_key[:4].hex()} at {where}: {link.reason}"


def no_link_error(what: str, why: str, *, sent: bool = False) -> MeshqError:
    """What a caller is told whose deadline passed: what it was, why, and what to do."""
    if sent:
        return OutcomeUnknown(f"{what} was sent, but no answer came in time: {why}")
    return Unavailable(f"{what} was not done in time: {why}. Look at `meshq status` and try again")
