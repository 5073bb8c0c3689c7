"""Datagrams on their way out: to which of a member's addresses, and filled up with news."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from meshq.gossip import wire
from meshq.gossip.broadcasts import Broadcasts
from meshq.gossip.known import Known
from meshq.gossip.wire import Claim, Gossip, Signed
from meshq.gossip.words import Effect, ProbeLink, SendDatagram
from meshq.ids import PeerId

if TYPE_CHECKING:
    import random

_DIRECT_S = 60.0  # how long the address a member was last heard from is preferred to those it advertises
_DIRECT_SHARE = 0.75  # ... and how often: it may work one way only
_ROOM = wire.PAYLOAD_BYTES_MAX - wire.EMPTY_BYTES


class Mail:
    """`retransmits`: how often each piece of news is passed on. `carried`: connections carry payloads too."""

    def __init__(self, broadcasts: Broadcasts, rng: random.Random, out: list[Effect], carried: bool) -> None:
        self._carried = carried
        self._broadcasts = broadcasts
        self._rng = rng
        self._out = out
        self.retransmits = 1

    def send(self, known: Known, head: Gossip, now: float, claims: Iterable[Claim] = ()) -> None:
        """One datagram, filled up with news unless it goes to one that is not there."""
        address = self.address_of(known, now)
        if address is None:
            return
        told = list(claims)
        records: list[Signed] = []
        if known.present:
            records, more = self.news(told)
            told += [c for c in more if c not in told]
        self.emit(address, wire.pack(head, records=records, claims=told))

    def by_link(self, known: Known, head: Gossip) -> None:
        """Ask over the connection, with all that a datagram would tell if connections carry that."""
        if not self._carried:
            self._out.append(ProbeLink(known.peer))
            return
        told = [known.claim] if known.claim else []
        records, more = self.news(told)
        told += [c for c in more if c not in told]
        self.carry(known.peer, wire.pack(head, records=records, claims=told))

    def carry(self, peer: PeerId, payloads: Iterable[bytes]) -> None:
        if self._carried:
            self._out += [ProbeLink(peer, x) for x in payloads]

    def send_to(self, address: str, head: Gossip) -> None:
        self._out.append(SendDatagram(address, wire.encode(head)))

    def emit(self, address: str | None, payloads: Iterable[bytes]) -> None:
        if address is not None:
            self._out += [SendDatagram(address, x) for x in payloads]

    def news(self, beside: Iterable[Signed | Claim]) -> tuple[list[Signed], list[Claim]]:
        """What fits beside that in one datagram."""
        room = _ROOM - sum(map(wire.size_of, beside))
        return self._broadcasts.take(room, self.retransmits)

    def address_of(self, known: Known, now: float) -> str | None:
        addresses = known.record.addresses if known.record else []
        fresh = known.direct is not None and now - known.direct_at < _DIRECT_S
        if fresh and (not addresses or self._rng.random() < _DIRECT_SHARE):
            return known.direct
        return self._rng.choice(addresses) if addresses else known.direct
