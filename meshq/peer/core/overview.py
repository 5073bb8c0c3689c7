"""Overview: what `status` and `peers` tell: this peer, the mesh as it sees it, and every peer of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from meshq.ids import SYSTEM_SLOT, PeerId, show_id
from meshq.peer.core.clocks import Clocks
from meshq.peer.core.context import Context
from meshq.peer.core.declared import Declared
from meshq.peer.core.health import Health
from meshq.peer.core.journal import show_incarnation, udp_blocked
from meshq.peer.core.links import LinkFacts, Links
from meshq.peer.core.registrar import Registrar
from meshq.peer.core.slots import Slots
from meshq.peer.core.whereabouts import Whereabouts
from meshq.registry.facts import CertificateFacts
from meshq.security.text import show_key


@dataclass
class Overview:
    ctx: Context
    links: Links
    registrar: Registrar
    slots: Slots
    whereabouts: Whereabouts
    declared: Declared
    health: Health
    clocks: Clocks

    def status(self, done: Callable[[dict[str, Any]], None]) -> None:
        """Of this peer at once, of the mesh when the others have answered. Raises: Overloaded."""
        registry, me, leader = self.ctx.registry, self.ctx.me, self.registrar.leader()
        leads = registry.peers.get(leader) if leader is not None else None
        value = {
            "mesh": show_id(registry.mesh),
            "peer": show_id(me.peer),
            "name": me.name,
            **self._place(me.peer),
            "mesh_level": registry.level,
            "registry": {
                "holder": leads.facts.name if leads else None,
                "version": registry.version,
                "reachable": self.registrar.is_reachable(),
                "voters": self.registrar.voter_names(),
            },
            "peers": len(registry.peers),
            "peers_reachable": len(self.links.reachable()),
            "topics": len(registry.topics),
            "clock": self.clocks.facts(self._records_ahead_ms()),
            "disk": {"room_bytes": self.ctx.disk.room_bytes, "pending_bytes": self.ctx.disk.pending_bytes},
            "outbox": self.ctx.outbox,
            "sessions": len(self.ctx.sessions.states),
            "readers": self.ctx.deliveries.count(),
            "counters": dict(sorted((self.ctx.counters | self.ctx.outside).items())),
        }
        self.health.look(lambda health: done({**value, "slots": self._slots(health), "health": health}))

    def _records_ahead_ms(self) -> int:
        """How far the newest entry led here is in the future: so long times in its slot stand still."""
        newest = max((h.replica.log.last_timestamp_ms for h in self.slots.led()), default=0)
        return newest - self.ctx.mesh_ms

    def _slots(self, health: dict[str, Any]) -> dict[str, int]:
        """Here, and of the whole mesh what is not as it should be."""
        hosts = [h for h in self.slots.hosts.values() if h.slot != SYSTEM_SLOT]
        return {
            "total": self.ctx.registry.slots,
            "replicas": len(hosts),
            "led": sum(h.leads for h in hosts),
            **{k: len(health[k]) for k in ("under_replicated", "moving", "leaderless", "led_out_of_reach")},
            "written": self.slots.written(),
        }

    def peers(self) -> list[dict[str, Any]]:
        """All registered ones, by name, and those that have left."""
        rows, counts, voters = [], self.whereabouts.counts(), self.registrar.voters()
        for peer, registered in sorted(self.ctx.registry.peers.items(), key=lambda x: x[1].facts.name):
            here = peer == self.ctx.me.peer
            link = self.links.states.get(peer)
            addresses = self.ctx.my_addresses if here else (link.addresses if link else ())
            rows.append(
                {
                    "name": registered.facts.name,
                    "id": show_id(peer),
                    "standing": self.ctx.registry.standing(peer),
                    **self._place(peer),
                    **(self._own_state() if here else _state(link, self.ctx.me.name, registered.facts.name)),
                    "address": addresses[0] if addresses else None,
                    "addresses": list(addresses),
                    "clock_offset_ms": self.clocks.ahead_ms(peer),
                    "link": "self" if here else (link.state.value if link else "down"),
                    "reason": link.reason if link and link.state.value == "down" else None,
                    "slots": counts[peer],
                    "holds_registry": peer in voters,
                    "certificate_until_s": registered.facts.not_after_s,
                    "server_key": show_key(registered.facts.curve_key),
                }
            )
        return rows + [_left(peer, registered.facts) for peer, registered in self.ctx.registry.left.items()]

    def _place(self, peer: PeerId) -> dict[str, Any]:
        registered = peer in self.ctx.registry.peers  # not yet, as far as this copy goes
        weight, zone = self.ctx.registry.place(peer) if registered else (None, "")
        witness = registered and self.ctx.registry.is_witness(peer)
        level = self.declared.level(peer)
        return {"witness": witness, "weight": weight, "zone": zone or None, "level": level}

    def _own_state(self) -> dict[str, Any]:
        return {
            "state": "alive",
            "since_ms": self.ctx.since_ms,
            "incarnation": show_incarnation(self.ctx.my_incarnation),
            "evidence": None,
            "udp": None,
            "rtt_ms": None,
        }


def _state(link: LinkFacts | None, here: str, there: str) -> dict[str, Any]:
    """How another peer is seen. Round trips are of datagrams, and of the connection where none come back."""
    if link is None or link.seen is None or not link.seen.state:
        state = "alive" if link is not None and link.alive else "dead"
        return {"state": state, **dict.fromkeys(("since_ms", "incarnation", "evidence", "udp", "rtt_ms"))}
    seen = link.seen
    blocked = link.udp_blocked and seen.alive
    return {
        "state": seen.state,
        "since_ms": seen.since_ms or None,
        "incarnation": show_incarnation(seen.incarnation),
        "evidence": seen.evidence or (udp_blocked(here, there) if blocked else None),
        "udp": "blocked" if blocked else "open" if link.gossip_rtt_ms is not None else None,
        "rtt_ms": link.rtt_ms if blocked or link.gossip_rtt_ms is None else link.gossip_rtt_ms,
    }


def _left(peer: PeerId, facts: CertificateFacts) -> dict[str, Any]:
    """One that has left, with the fields of the others."""
    nothing = (
        "weight", "zone", "level", "since_ms", "incarnation", "evidence", "udp", "rtt_ms", "address",
        "reason", "clock_offset_ms",
    )  # fmt: skip
    return {
        "name": facts.name,
        "id": show_id(peer),
        "witness": facts.witness,
        "standing": "left",
        "state": "left",
        **dict.fromkeys(nothing),
        "addresses": [],
        "link": "down",
        "slots": 0,
        "holds_registry": False,
        "certificate_until_s": facts.not_after_s,
        "server_key": show_key(facts.curve_key),
    }
