"""Placing: at the registry's holder, act on what placement decides; at an owner, answer the request to let
go.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from meshq.errors import MeshqError, RemoteProtocolError
from meshq.ids import PeerId, Session, Slot
from meshq.messages import ReleaseSlots, SlotsReleased
from meshq.peer.core.context import Context
from meshq.peer.core.links import Links
from meshq.peer.core.registrar import Registrar
from meshq.peer.core.slots import Slots
from meshq.registry.commands import AssignSlots
from meshq.replication.placement import Placement

TAKE_BACK_S = 30.0  # a slot that is fenced this long belongs to nobody: several rounds of placement went by


@dataclass
class Placing:
    ctx: Context
    links: Links
    registrar: Registrar
    slots: Slots
    placement: Placement = field(init=False)
    # By request; only the newest of each peer counts.
    _asked: dict[int, tuple[PeerId, tuple[tuple[Slot, int], ...]]] = field(default_factory=dict)
    _ring_changed: bool = True
    _stuck: set[tuple[Slot, int]] = field(default_factory=set)
    _look_at: float = 0.0

    def __post_init__(self) -> None:
        registry = self.ctx.registry
        self.placement = Placement(registry.slots, registry.replicas)

    def on_peers_changed(self) -> None:
        """The ring is computed at the next tick: a copy that catches up hears of many peers in one turn."""
        self._ring_changed = True

    def tick(self) -> None:
        self._take_back()
        if not self.registrar.is_holder:
            return
        if self._ring_changed:
            self._ring_changed = False
            self.placement.on_ring_changed(self.ctx.registry.ring_peers())
        asks = self.placement.on_tick(self.ctx.registry.owners, self.links.reachable(), now=self.ctx.now)
        for ask in asks:
            if ask.peer == self.ctx.me.peer:
                asked = ask.slots
                self.slots.release(asked, lambda free, asked=asked: self._on_free(asked, free))  # type: ignore[misc]
                continue
            request = self.ctx.next_request()
            self._forget_asked(ask.peer)
            if self.links.send(ask.peer, ReleaseSlots(request, list(ask.slots))):
                self._asked[request] = (ask.peer, ask.slots)

    def on_release(self, session: Session, message: ReleaseSlots) -> None:
        """The holder asks this peer. Raises: RemoteProtocolError for slots this mesh does not have."""
        if any(slot >= self.ctx.registry.slots for slot, _ in message.slots):
            raise RemoteProtocolError("a slot this mesh does not have")
        asked = [(Slot(slot), epoch) for slot, epoch in message.slots]
        self.slots.release(
            asked,
            lambda free: self.ctx.send(session, SlotsReleased(message.request, [(s, e) for s, e in free])),
        )

    def on_released(self, peer: PeerId, message: SlotsReleased) -> None:
        asked_of, asked = self._asked.pop(message.request, (None, ()))
        if asked_of == peer:
            self._on_free(asked, [(Slot(slot), epoch) for slot, epoch in message.slots])

    def on_link_down(self, peer: PeerId) -> None:
        self._forget_asked(peer)

    def _take_back(self) -> None:
        """Use again what was fenced here and nobody took (the holder stopped before it assigned it, say).

        Should the holder assign such a slot in the same moment, the log's order decides: both commands name
        the epoch they end, and the second one finds it ended.
        """
        if self.ctx.now < self._look_at:
            return
        self._look_at = self.ctx.now + TAKE_BACK_S
        me, mine = self.ctx.me.peer, enumerate(self.ctx.registry.owners)
        fenced = [(Slot(s), own.epoch) for s, own in mine if own.peer == me]
        stuck = {(slot, epoch) for slot, epoch in fenced if self.slots.is_fenced(slot, epoch)}
        again, self._stuck = stuck & self._stuck, stuck
        if again:
            self.registrar.propose(AssignSlots([(s, epoch, me) for s, epoch in sorted(again)]), _nothing)

    def _forget_asked(self, peer: PeerId) -> None:
        self._asked = {r: a for r, a in self._asked.items() if a[0] != peer}

    def _on_free(self, asked: tuple[tuple[Slot, int], ...], free: list[tuple[Slot, int]]) -> None:
        assign = self.placement.on_released(asked, free, self.ctx.registry.owners)
        if assign is not None:
            self.registrar.propose(AssignSlots(list(assign.moves)), _nothing)


def _nothing(_: int | MeshqError) -> None:
    """A refused assignment is asked for again in the next round."""
