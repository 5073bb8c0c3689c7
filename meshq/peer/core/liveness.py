"""Liveness between peers: support's beats over the links, and what they mean for every slot.

A link that breaks and is refused when it is tried again means that the process is gone: that is said at once,
and need not be waited for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from meshq.ids import PeerId
from meshq.messages import Beat
from meshq.peer.core.context import Context
from meshq.peer.core.events import MemberSeen
from meshq.peer.core.links import Links
from meshq.peer.core.slots import Slots
from meshq.replication.support import LeadsOnly, Led, PeerRestarted, SendBeat, Support, SupportEffect
from meshq.replication.words import LeaderGone, Role, SupportGiven, SupportGot

STALL_S = 0.4


@dataclass
class Liveness:
    ctx: Context
    links: Links
    slots: Slots
    support: Support = field(init=False)
    _led: dict[PeerId, Led] = field(default_factory=dict)  # until roles or members change
    _believed: dict[PeerId, Led] = field(default_factory=dict)
    _partners: frozenset[PeerId] = frozenset()
    _partners_dirty: bool = True

    def __post_init__(self) -> None:
        self.support = Support(
            epoch=self.ctx.me.starts, now=self.ctx.now, led=self._led_of, believed=self._believed_of
        )

    # --------------------------------------------------------------------------------- what happens
    def on_roles_changed(self) -> None:
        self._led.clear()
        self._believed.clear()

    def on_peers_changed(self) -> None:
        self._partners_dirty = True

    def on_beat(self, peer: PeerId, beat: Beat) -> None:
        (self.slots.full.add if beat.full else self.slots.full.discard)(peer)
        (self.slots.barred.add if beat.frozen else self.slots.barred.discard)(peer)
        self._carry_out(self.support.on_beat(peer, beat, now=self.ctx.now))

    def on_gone(self, peer: PeerId) -> None:
        self._carry_out(self.support.on_gone(peer))

    def on_member(self, seen: MemberSeen) -> None:
        """Membership suspects it or does not: a hint that shortens the wait, and no more."""
        self.support.on_suspected(seen.peer, seen.state in ("suspect", "dead"))

    def tick(self) -> None:
        if self._partners_dirty:
            self._partners_dirty = False
            partners = frozenset(self.ctx.known_peers()) - {self.ctx.me.peer}
            self._carry_out(self.support.on_partners(partners))
        self.ctx.disk.look_at_room()
        self.support.on_disk(stalled=self.ctx.disk.waiting_s(self.ctx.now) > STALL_S)
        if self.ctx.now >= self.support.due:
            self._carry_out(self.support.on_tick(now=self.ctx.now))

    # ------------------------------------------------------------------------------- how it is done
    def _carry_out(self, effects: list[SupportEffect]) -> None:
        for effect in effects:
            match effect:
                case SendBeat(peer, beat):
                    full, frozen = self.ctx.disk.is_full, self.slots.frozen
                    if full or frozen:
                        beat = msgspec.structs.replace(beat, full=full, frozen=frozen)
                    self.links.send(peer, beat)
                case SupportGiven() | SupportGot():
                    self.slots.on_supported(effect)
                case PeerRestarted(peer):
                    self._on_leader_gone(peer, None)
                case LeadsOnly(peer, slots):
                    self._on_leader_gone(peer, slots)

    def _on_leader_gone(self, peer: PeerId, but: frozenset[tuple[int, int]] | None) -> None:
        for host in list(self.slots.hosts.values()):
            leader, term = host.replica.leader, host.replica.term
            if leader is not None and leader.peer == peer and (not but or (host.slot, term) not in but):
                self.slots.tell(host, LeaderGone(peer, term))

    def _led_of(self, peer: PeerId) -> Led:
        if peer not in self._led:
            self._led[peer] = tuple(
                sorted(
                    (h.slot, h.replica.term)
                    for h in self.slots.hosts.values()
                    if h.replica.role is Role.LEADER and any(n.peer == peer for n in h.replica.config.nodes())
                )
            )
        return self._led[peer]

    def _believed_of(self, peer: PeerId) -> Led:
        if peer not in self._believed:
            self._believed[peer] = tuple(
                sorted(
                    (h.slot, h.replica.term)
                    for h in self.slots.hosts.values()
                    if h.replica.leader is not None and h.replica.leader.peer == peer
                )
            )
        return self._believed[peer]
