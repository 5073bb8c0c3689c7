"""Absences: who has been away, and for how long, as this peer knows.

A peer is there while it is supported, connected or alive to membership; any of them will do, since data moves
on this word. Everything else is absence: a member that is dead or stopped, and a founder that nobody ever
saw. It counts from when this run noticed, by a clock that nobody sets: a wall clock that jumps, a host that
slept and a peer that starts late evacuate nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from meshq.ids import PeerId
from meshq.peer.core.context import Context
from meshq.peer.core.links import Links, LinkState
from meshq.peer.core.slots import Slots


@dataclass
class Absences:
    ctx: Context
    links: Links
    slots: Slots
    _since: dict[PeerId, float] = field(default_factory=dict)  # bounded by the registered peers

    def tick(self) -> None:
        peers = self.ctx.registry.peers
        away = {peer for peer in peers if not self.is_there(peer)}
        self._since = {peer: self._since.get(peer, self.ctx.now) for peer in peers if peer in away}

    def is_there(self, peer: PeerId) -> bool:
        link = self.links.states.get(peer)
        connected = link is not None and link.state is LinkState.UP
        alive = link is not None and link.seen is not None and link.seen.alive
        return peer == self.ctx.me.peer or peer in self.slots.supports or connected or alive

    def longer_than(self, seconds: float) -> frozenset[PeerId]:
        return frozenset(p for p, since in self._since.items() if self.ctx.now - since >= seconds)
