"""Sessions: who is connected, what they may, and how much they hold here.

A session begins with Hello and ends when its connection is gone or has been silent too long. Authorization
does not rest on the session: every message is checked by the key its connection proved, against the registry
as it is now.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from meshq.errors import Overloaded
from meshq.ids import PartitionKey, Session
from meshq.limits import (
    READERS_PER_SESSION_MAX,
    SESSION_IDLE_MS,
    SESSIONS_MAX,
    SESSIONS_PER_KEY_MAX,
    SUBSCRIPTIONS_PER_PEER_MAX,
    SUBSCRIPTIONS_PER_SESSION_MAX,
)
from meshq.peer.core.events import LOCAL, PEERS, SeekTime
from meshq.security.authorization import Principal


def is_peers(session: Session, principal: Principal) -> bool:
    """Whether it is a peer that asks, at the door where peers do: no client acts as one."""
    return session[0] == PEERS and principal.kind == "peer"


@dataclass(slots=True)
class Watching:
    pattern: str
    prefixes: tuple[str, ...]


@dataclass(slots=True)
class SessionState:
    """`reads` by the client's subscription number, `watches` by its request number; `seeks`: readers whose
    first offset is being looked up by time.
    """

    principal: Principal  # whose it is, and its rights as they were when it began
    heard: float
    name: str = ""
    reads: dict[int, set[PartitionKey]] = field(default_factory=dict)
    watches: dict[int, Watching] = field(default_factory=dict)
    seeks: dict[tuple[int, PartitionKey], SeekTime] = field(default_factory=dict)  # of partitions in `reads`
    readers: int = 0

    def has_room(self) -> bool:
        """For one more subscription. A peer subscribes for many: its own clients' and its plain feed's."""
        peer = self.principal.kind == "peer"
        most = SUBSCRIPTIONS_PER_PEER_MAX if peer else SUBSCRIPTIONS_PER_SESSION_MAX
        return len(self.reads) + len(self.watches) < most

    def check_subscription(self, known: bool) -> None:
        if not known and not self.has_room():
            raise Overloaded("this connection has as many subscriptions as it may: open another one")

    def add_reader(self, sub: int, partition: PartitionKey) -> None:
        """Raises: Overloaded at the limits of a connection."""
        self.check_subscription(sub in self.reads)
        partitions = self.reads.setdefault(sub, set())
        if partition in partitions:
            return
        if self.readers >= READERS_PER_SESSION_MAX:
            raise Overloaded(f"a connection reads at most {READERS_PER_SESSION_MAX} partitions of one peer")
        partitions.add(partition)
        self.readers += 1

    def drop_reader(self, sub: int, partition: PartitionKey) -> None:
        partitions = self.reads.get(sub, set())
        if partition in partitions:
            partitions.remove(partition)
            self.readers -= 1
        self.seeks.pop((sub, partition), None)

    def drop_subscription(self, sub: int) -> None:
        for partition in list(self.reads.pop(sub, ())):
            self.readers -= 1
            self.seeks.pop((sub, partition), None)


@dataclass
class Sessions:
    """Open sessions; the bound is SESSIONS_MAX a door, the answer `Overloaded`."""

    on_closed: Callable[[Session], None]
    states: dict[Session, SessionState] = field(default_factory=dict)

    def open(self, session: Session, principal: Principal, name: str, now: float) -> SessionState:
        if session not in self.states and self._is_full(session[0]):
            raise Overloaded("this peer has as many connections as it may", retry_after_ms=5_000)
        if sum(x.principal.key == principal.key for x in self.states.values()) >= SESSIONS_PER_KEY_MAX:
            raise Overloaded("this key has as many connections here as it may", retry_after_ms=5_000)
        if session in self.states:
            self.close(session)
        state = self.states[session] = SessionState(principal, now, name)
        return state

    def _is_full(self, door: str) -> bool:
        """Each door has its own bound, so that clients cannot take the places of peers."""
        if len(self.states) < SESSIONS_MAX:
            return False
        return sum(s[0] == door for s in self.states) >= SESSIONS_MAX

    def close(self, session: Session) -> None:
        if self.states.pop(session, None) is not None:
            self.on_closed(session)

    def tick(self, now: float) -> None:
        limit = now - SESSION_IDLE_MS / 1000
        for session in [s for s, x in self.states.items() if x.heard < limit and s[0] != LOCAL]:
            self.close(session)
