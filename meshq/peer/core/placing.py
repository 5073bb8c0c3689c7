"""Placing: at every leader, act on what placement decides for the slots led here.

The ring says where data slots live; the system slot has members of its own (replication/system.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import takewhile

from meshq.errors import MeshqError
from meshq.ids import SYSTEM_SLOT, PeerId, Slot
from meshq.peer.core.absences import Absences
from meshq.peer.core.context import Context
from meshq.peer.core.hosts import Host
from meshq.peer.core.links import Links
from meshq.peer.core.slots import Slots
from meshq.replication.placement import ChangeMembers, MoveLeadership, Situation, Step, is_at_rest, steps
from meshq.replication.quorum import Node
from meshq.replication.system import system_step
from meshq.ring import owners, witnesses_of

ROUND_S = 1.0
MOVING_S = 0.25  # while steps are found: what throttles them is how many copies are under way


@dataclass
class Placing:
    ctx: Context
    links: Links
    slots: Slots
    absences: Absences
    wanted: dict[Slot, tuple[PeerId, ...]] = field(default_factory=dict)
    witnesses: dict[Slot, PeerId] = field(default_factory=dict)  # of slots that want one
    moves: int = 0  # begun since the start, for `status`
    _gone: frozenset[PeerId] = frozenset()
    _ring_changed: bool = True
    _round_at: float = 0.0
    _unfit: set[PeerId] = field(default_factory=set)  # to lead: full, this one too, or rolled back
    _rested: tuple[set[PeerId], dict[PeerId, Node]] | None = None  # who was alive when nothing was left to do

    def on_peers_changed(self) -> None:
        """The ring is computed at the next tick: a copy that catches up hears of many peers in one turn."""
        self._ring_changed = True
        self._rested = None

    def on_slot_changed(self) -> None:
        """Who leads it, or who keeps copies."""
        self._rested = None

    def tick(self) -> None:
        if self.ctx.now < self._round_at:
            return
        gone = self.absences.longer_than(self.ctx.settings.evacuate_after_s)
        if self._ring_changed or gone != self._gone:
            self._ring_changed, self._gone = False, gone
            self._rested = None
            self._look_at_ring()
        self._look_at_disks()
        alive, nodes = self.slots.supports | {self.ctx.me.peer}, self.nodes()
        found = self._data_steps(alive, nodes) + self._system_steps(alive, nodes)
        self._round_at = self.ctx.now + (MOVING_S if found else ROUND_S)
        self._take(found)

    def _data_steps(self, alive: set[PeerId], nodes: dict[PeerId, Node]) -> list[Step]:
        if self._rested == (alive, nodes):
            return []
        situations = [self._situation(host) for host in self.slots.led() if host.slot != SYSTEM_SLOT]
        found = steps(situations, self.wanted, nodes, alive, self.witnesses)
        if not found and is_at_rest(situations, self.wanted, nodes, alive, self.witnesses):
            self._rested = alive, nodes
        return found

    def _system_steps(self, alive: set[PeerId], nodes: dict[PeerId, Node]) -> list[Step]:
        system = self.slots.hosts.get(SYSTEM_SLOT)
        if system is None or not system.leads:
            return []
        peers = set(self.ctx.registry.peers) - self._gone
        step = system_step(self._situation(system), peers, nodes, alive, self.ctx.registry.leaving)
        return [step] if step is not None else []

    def _take(self, found: list[Step]) -> None:
        for step in found:
            try:
                match step:
                    case ChangeMembers(slot, target):
                        self.slots.change(slot, target)
                        self.moves += 1
                    case MoveLeadership(slot, to):
                        self.slots.transfer(slot, to)
            except MeshqError:
                continue  # it stopped leading, or was overtaken: the next round looks again

    def _look_at_ring(self) -> None:
        registry = self.ctx.registry
        witnesses = [p for p in registry.ring_witnesses() if p.peer not in self._gone]
        everybody = registry.ring_peers()
        peers = [p for p in everybody if p.peer not in self._gone]
        if witnesses and len(peers) < 2:
            # Of one that is left, nobody else would have what is published, and with a witness somebody has:
            # who is away stays a member until another peer takes its place, or is made to leave.
            peers = everybody
        found = owners(peers, slots=registry.slots, replicas=registry.replicas)
        self.wanted = {Slot(i): o for i, o in enumerate(found)}
        chosen = witnesses_of(found, peers, witnesses)
        self.witnesses = {Slot(i): peer for i, peer in enumerate(chosen) if peer is not None}
        self._rank()

    def _look_at_disks(self) -> None:
        me = {self.ctx.me.peer} if self.ctx.disk.is_full else set()
        unfit = self.slots.full | self.slots.barred | me
        if unfit != self._unfit:
            self._unfit = unfit
            self._rested = None
            self._rank()

    def _rank(self) -> None:
        """Who campaigns first. With a full disk after the others, and yet: its log may be the longest."""
        me = self.ctx.me.peer
        for host in self.slots.hosts.values():
            order = self.wanted.get(host.slot)
            ahead = order and tuple(takewhile(lambda peer: peer != me, order))
            if order and me in self._unfit:
                ahead = tuple(peer for peer in order if peer != me)
            host.replica.set_ahead(ahead)

    def _situation(self, host: Host) -> Situation:
        r = host.replica
        unfit = {n for n in r.config.voters if n.peer in self._unfit} | r.left_alone(self.ctx.now)
        return Situation(
            host.slot, self.slots.me, r.config, r.is_settled, r.match(), r.last.index, r.catching_up(), unfit
        )

    def nodes(self) -> dict[PeerId, Node]:
        """The disk that each peer has, of those that were met."""
        nodes = {peer: Node(peer, x.disk) for peer, x in self.links.states.items() if x.disk}
        return {**nodes, self.ctx.me.peer: self.slots.me}
