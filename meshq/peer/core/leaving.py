"""Leaving slots: what this peer has of a slot that has gone elsewhere is deleted.

A leader stops writing to a node with the entry that leaves it out, so the node does not learn that it is out;
and its own log never says that it is the newest word. So a node that has a slot which the ring places
elsewhere asks who leads it, now and then. Only a leader that serves answers, with a committed configuration
that is newer than what the node knows and does not contain it; a node that was added again meanwhile knows a
newer one and keeps what it has.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from meshq.errors import RemoteProtocolError, StoreCorrupt
from meshq.ids import PeerId, Slot
from meshq.messages import MembershipAsked, NotMember
from meshq.peer.core.context import Context
from meshq.peer.core.hosts import Host
from meshq.peer.core.links import Links
from meshq.peer.core.placing import Placing
from meshq.peer.core.slots import Slots
from meshq.peer.core.whereabouts import Whereabouts
from meshq.replication.quorum import Node, decode_config, encode_config
from meshq.replication.words import Role

ASK_S = 5.0


@dataclass
class Leaving:
    ctx: Context
    links: Links
    slots: Slots
    placing: Placing
    whereabouts: Whereabouts
    _ask_at: float = 0.0

    def tick(self) -> None:
        if self.ctx.now < self._ask_at:
            return
        self._ask_at = self.ctx.now + ASK_S
        asked: dict[PeerId, list[tuple[int, bytes, int]]] = defaultdict(list)
        for host in self.slots.hosts.values():
            if self._may_be_out(host):
                about = (int(host.slot), self.ctx.me.disk, host.replica.config_index)
                asked[self.whereabouts.leader_of(host.slot)].append(about)
        for peer, slots in asked.items():
            if peer != self.ctx.me.peer:
                self.links.send(peer, MembershipAsked(slots))

    def _may_be_out(self, host: Host) -> bool:
        wanted = self.placing.wanted.get(host.slot)
        holds = host.replica.log.last.index > 0 or host.incoming is not None or bool(host.touched)
        here = wanted is None or self.ctx.me.peer in wanted
        return holds and not here and host.replica.role is not Role.LEADER

    def on_asked(self, peer: PeerId, message: MembershipAsked) -> None:
        answer: list[tuple[int, bytes, int, bytes]] = []
        for slot, disk, index in message.slots:
            host = self.slots.hosts.get(Slot(slot))
            if host is None or not host.replica.is_settled or host.replica.config_index < index:
                continue
            if Node(peer, disk) not in host.replica.config.nodes():
                config = encode_config(host.replica.config)
                answer.append((slot, disk, host.replica.config_index, config))
        if answer:
            self.links.send(peer, NotMember(answer))

    def on_answer(self, message: NotMember) -> None:
        """Raises: RemoteProtocolError."""
        for slot, disk, index, encoded in message.slots:
            host = self.slots.hosts.get(Slot(slot))
            if host is None or disk != self.ctx.me.disk or not self._may_be_out(host):
                continue
            try:
                config = decode_config(encoded)
            except StoreCorrupt as e:
                raise RemoteProtocolError(str(e)) from None
            mine = host.replica.config_index
            newer = index > mine or (index == mine and host.replica.config == config)
            if newer and self.slots.me not in config.nodes() and not config.is_joint:
                self.slots.emptying.empty(host, index, config)
