"""Where everything is, as clients are told: every registered peer with its addresses, and the owner of every
slot.
"""

from __future__ import annotations

from meshq.limits import ADDRESSES_MAX
from meshq.messages import PeerRoute, Routes
from meshq.peer.core.context import Context
from meshq.peer.core.links import Links


def routes_of(ctx: Context, links: Links) -> Routes:
    """What this peer knows now."""
    registry = ctx.registry
    order = {peer: i for i, peer in enumerate(sorted(registry.peers))}
    rows = []
    for peer in order:
        facts = registry.peers[peer].facts
        link = links.states.get(peer)
        here = peer == ctx.me.peer
        addresses = ctx.my_addresses if here else (link.addresses if link else ())
        alive = here or (link is not None and link.alive)
        rows.append(PeerRoute(peer, facts.name, facts.curve_key, list(addresses)[:ADDRESSES_MAX], alive))
    return Routes(registry.version, rows, [order[o.peer] for o in registry.owners])
