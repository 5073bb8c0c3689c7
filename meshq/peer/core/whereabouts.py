"""Where everything is: who leads which slot, as far as this peer has heard, and what clients are told of it.

Leaders tell every peer they have a link to. Of two that claim a slot the one of the higher term is right; a
slot nobody was heard of is looked for where the ring would have its leader.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from meshq.ids import SYSTEM_SLOT, PeerId, Slot
from meshq.limits import ADDRESSES_MAX
from meshq.messages import Leads, PeerRoute, Routes
from meshq.peer.core.context import Context
from meshq.peer.core.hosts import Host
from meshq.peer.core.links import Links
from meshq.peer.core.placing import Placing
from meshq.peer.core.slots import Slots
from meshq.replication.generations import generation_of
from meshq.replication.words import GenerationSeen


@dataclass
class Whereabouts:
    ctx: Context
    links: Links
    slots: Slots
    placing: Placing
    changed: bool = False  # clients have not been told yet
    _leaders: dict[Slot, tuple[int, PeerId]] = field(default_factory=dict)  # with terms; bounded by slots
    news: dict[Slot, int] = field(default_factory=dict)  # slots led here since the last flush

    def on_role(self, host: Host) -> None:
        """A leader is told of when it serves, by itself: who came sooner would be sent away again."""
        if host.leads:
            self._note(host.slot, host.replica.term, self.ctx.me.peer)
            self.news[host.slot] = host.replica.term

    def on_leads(self, peer: PeerId, message: Leads) -> None:
        for slot, term in message.slots:
            if slot < self.ctx.registry.slots or slot == SYSTEM_SLOT:
                self._note(Slot(slot), term, peer)
                host = self.slots.hosts.get(Slot(slot))
                if host is not None and generation_of(term) > generation_of(host.replica.term):
                    self.slots.tell(host, GenerationSeen(term))

    def on_peer_up(self, peer: PeerId) -> None:
        self.links.send(peer, Leads(sorted((int(h.slot), h.replica.term) for h in self.slots.led())))

    def flush(self) -> None:
        """Tell every peer what is led here since the last time."""
        message = Leads(sorted((int(slot), term) for slot, term in self.news.items()))
        self.news.clear()
        for peer in sorted(self.links.reachable() - {self.ctx.me.peer}):
            self.links.send(peer, message)

    def registry_leader(self) -> PeerId | None:
        """Who leads the system slot."""
        known = self._leaders.get(SYSTEM_SLOT)
        return known[1] if known else None

    def leader_of(self, slot: Slot) -> PeerId:
        known = self._leaders.get(slot)
        if known is not None and known[1] in self.ctx.registry.peers:
            return known[1]
        guesses = (*self.placing.wanted.get(slot, ()), *self.ctx.registry.genesis_owners[slot])
        return next((p for p in guesses if p in self.ctx.registry.peers), self.ctx.me.peer)

    def counts(self) -> Counter[PeerId]:
        """How many slots each peer leads, as far as is known here."""
        return Counter(self.leader_of(Slot(i)) for i in range(self.ctx.registry.slots))

    def routes(self) -> Routes:
        registry = self.ctx.registry
        order = {peer: i for i, peer in enumerate(sorted(registry.peers))}
        rows = [self._route(peer) for peer in order]
        slots = [Slot(i) for i in range(registry.slots)]
        owners = [order[self.leader_of(slot)] for slot in slots]
        return Routes(registry.version, rows, owners, [self._leaders.get(s, (0, b""))[0] for s in slots])

    def _route(self, peer: PeerId) -> PeerRoute:
        facts = self.ctx.registry.peers[peer].facts
        link = self.links.states.get(peer)
        here = peer == self.ctx.me.peer
        addresses = self.ctx.my_addresses if here else (link.addresses if link else ())
        alive = here or (link is not None and link.alive)
        return PeerRoute(peer, facts.name, facts.curve_key, list(addresses)[:ADDRESSES_MAX], alive)

    def _note(self, slot: Slot, term: int, peer: PeerId) -> None:
        known = self._leaders.get(slot)
        if known is None or term > known[0] or (term == known[0] and peer != known[1]):
            self._leaders[slot] = (term, peer)
            self.changed = True
