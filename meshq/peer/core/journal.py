"""Journal: what changed in membership, kept for a while, so that one can follow it (`meshq events`).

Every change gets a number, dense from 1 in this run of the peer. A reader asks for what came after the last
number it saw, and its request waits until there is something. So nobody is pushed to, a slow reader costs
nothing, and one that comes too late is told how many it missed: the journal keeps the newest
MEMBER_EVENTS_KEPT and forgets the oldest. Numbers of another run of the peer mean nothing in this one: who
asks with another boot id gets everything that is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from meshq.errors import Overloaded, UsageError
from meshq.ids import PeerId, Session, show_id
from meshq.limits import MEMBER_EVENT_READERS_MAX, MEMBER_EVENTS_KEPT
from meshq.messages import Answer, Ask
from meshq.peer.core.context import Context
from meshq.peer.core.events import MemberSeen, MembershipNoticed, UdpSeen

PAGE = 100  # most in one answer
WAIT_MS_MAX = 10_000  # shorter than what a client lets an answer take, and than a session may be silent


@dataclass(frozen=True, slots=True)
class _Waiting:
    session: Session
    request: int
    until: float


@dataclass
class Journal:
    ctx: Context
    _kept: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MEMBER_EVENTS_KEPT))
    _last: int = 0  # the newest one's number
    _waiting: list[_Waiting] = field(default_factory=list)  # at most MEMBER_EVENT_READERS_MAX

    # ------------------------------------------------------------------------------------ what happened
    def on_member(self, before: MemberSeen | None, seen: MemberSeen) -> None:
        """A change of a member's state, of how it is reached, or of what it says of itself."""
        facts = _facts(seen, self._name_of(seen.peer))
        if before is not None:
            facts["was"] = {
                "state": before.state,
                "boot": before.boot.hex(),
                "addresses": list(before.addresses),
                "reach": before.reach or None,
            }
        self._add(seen.event, facts)

    def on_udp(self, seen: UdpSeen) -> None:
        name = self._name_of(seen.peer)
        facts = {"name": name, "id": show_id(seen.peer)}
        if seen.blocked:
            self._add("UdpBlocked", facts | {"text": udp_blocked(self.ctx.me.name, name)})
        else:
            self._add("UdpUnblocked", facts)

    def on_noticed(self, noticed: MembershipNoticed) -> None:
        """Something about this peer's own view."""
        self._add(noticed.event, noticed.facts)

    def on_clock(self, event: str, facts: Mapping[str, Any]) -> None:
        """What is thought of this host's clock."""
        self._add(event, {"name": self.ctx.me.name, "id": show_id(self.ctx.me.peer), **facts})

    def _add(self, event: str, facts: Mapping[str, Any]) -> None:
        self._last += 1
        self._kept.append({"seq": self._last, "at_ms": self.ctx.wall_ms, "event": event, **facts})
        waiting, self._waiting = self._waiting, []
        for w in waiting:  # all of them had seen everything before this one
            self._answer(w.session, w.request, self._last - 1)

    def _name_of(self, peer: PeerId) -> str | None:
        registered = self.ctx.registry.peers.get(peer)
        return registered.facts.name if registered else None

    # ---------------------------------------------------------------------------------------- who reads
    def on_ask(self, session: Session, message: Ask) -> None:
        """`after`: a number (without one: from now on), of the run `boot`; `wait_ms`: how long an answer may
        wait for news.

        Raises: UsageError, Overloaded when as many wait as may.
        """
        after, boot, wait_ms = (message.args.get(x) for x in ("after", "boot", "wait_ms"))
        if after is not None and (not isinstance(after, int) or isinstance(after, bool) or after < 0):
            raise UsageError("`after` must be the number of an event, or left out")
        if wait_ms is not None and (not isinstance(wait_ms, int) or not 0 <= wait_ms <= WAIT_MS_MAX):
            raise UsageError(f"`wait_ms` must be a number from 0 to {WAIT_MS_MAX}")
        if after is None:
            self._answer(session, message.request, self._last)
            return
        if (boot and boot != self.ctx.me.boot.hex()) or after > self._last:
            after = 0
        if after < self._last or not wait_ms:
            self._answer(session, message.request, after)
            return
        if len(self._waiting) >= MEMBER_EVENT_READERS_MAX:
            raise Overloaded("as many wait for this peer's events as may", retry_after_ms=1_000)
        self._waiting.append(_Waiting(session, message.request, self.ctx.now + wait_ms / 1000))

    def _answer(self, session: Session, request: int, after: int) -> None:
        first_kept = self._last - len(self._kept) + 1
        lost = max(first_kept - 1 - after, 0)
        found = list(islice(self._kept, max(after + 1 - first_kept, 0), None))[:PAGE]
        value = {
            "peer": show_id(self.ctx.me.peer),
            "name": self.ctx.me.name,
            "boot": self.ctx.me.boot.hex(),
            "last": found[-1]["seq"] if found else self._last,
            "newest": self._last,
            "lost": lost,
            "events": found,
        }
        self.ctx.send(session, Answer(request, value))

    def tick(self) -> None:
        """Nothing happened for as long as they would wait; who is gone waits no longer."""
        for w in [w for w in self._waiting if w.until <= self.ctx.now]:
            self._answer(w.session, w.request, self._last)
        sessions = self.ctx.sessions.states
        self._waiting = [w for w in self._waiting if w.until > self.ctx.now and w.session in sessions]


def _facts(seen: MemberSeen, name: str | None) -> dict[str, Any]:
    return {
        "name": name,
        "id": show_id(seen.peer),
        "state": seen.state,
        "incarnation": show_incarnation(seen.incarnation),
        "boot": seen.boot.hex(),
        "addresses": list(seen.addresses),
        "reach": seen.reach or None,
        "rtt_ms": seen.rtt_ms,
        "evidence": dict(seen.proof) if seen.proof else None,
        "text": seen.evidence or None,
    }


def udp_blocked(here: str, there: str | None) -> str:
    return f"UDP blocked between {here} and {there}: let port and protocol pass in both directions"


def show_incarnation(incarnation: tuple[int, int]) -> str | None:
    """`BOOT.VERSION`; None of a member that was never heard of."""
    return ".".join(map(str, incarnation)) if incarnation != (0, 0) else None
