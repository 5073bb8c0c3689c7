"""Comparing notes: what rumour lost is found here. The push-pull of memberlist, a datagram at a time.

Now and then a peer tells one live member which record it holds of some members, one datagram's worth, and
what is said against these. The other one sends what it holds newer, and asks for what it holds older. The
next time the next members' turn comes. So the cost does not grow with the mesh, only the time until all were
compared; after somebody came back it is done at the pace of gossip instead.
"""

from __future__ import annotations

from meshq.gossip import wire
from meshq.gossip.known import Known
from meshq.gossip.own import OwnRecord
from meshq.gossip.table import Table
from meshq.gossip.wire import Claim, Digest, Gossip, Signed
from meshq.ids import PeerId

_DIGESTS = 44  # fit one datagram with room for a claim or two


class Notes:
    def __init__(self, table: Table, own: OwnRecord) -> None:
        self._table = table
        self._own = own
        self._from = 0
        self._hurried = 0  # so many times without waiting

    def hurry(self) -> None:
        self._hurried = 2 + 2 * (1 + len(self._table.known) // _DIGESTS)

    def is_hurried(self) -> bool:
        """Counts down."""
        self._hurried = max(self._hurried - 1, 0)
        return self._hurried > 0

    def page(self) -> list[bytes]:
        """The next members' turn."""
        start = self._from % (1 + len(self._table.by_id))
        part = [self._own.record.peer, *self._table.by_id][start : start + _DIGESTS]
        self._from = start + len(part)
        known = [k for p in part if (k := self._table.known.get(PeerId(p)))]
        digests = [Digest(p, *self._order_of(PeerId(p), self._table.known.get(PeerId(p)))) for p in part]
        claims = [k.claim for k in known if k.claim]
        return wire.pack(Gossip(hearsay=True), claims=claims, digests=digests)

    def compare(self, heard: Gossip) -> tuple[list[Signed], list[Claim], list[PeerId]]:
        """(records they lack, claims they have not heard, members whose record is lacking here)"""
        if not heard.digests and not heard.wants:
            return [], [], []
        records = [x for x in (self.signed_of(PeerId(p)) for p in heard.wants) if x is not None]
        claims: list[Claim] = []
        lacking: list[PeerId] = []
        told = {(c.peer, c.order) for c in heard.claims}
        for digest in heard.digests:
            known = self._table.known.get(PeerId(digest.peer))
            ours = self._order_of(PeerId(digest.peer), known)
            signed = self.signed_of(PeerId(digest.peer))
            if ours < digest.order:
                lacking.append(PeerId(digest.peer))
                continue
            if ours > digest.order and signed is not None:
                records.append(signed)
            if known is not None and known.claim is not None and (known.peer, known.order) not in told:
                claims.append(known.claim)
        return records, claims, lacking

    def signed_of(self, peer: PeerId) -> Signed | None:
        if peer == self._own.record.peer:
            return self._own.signed
        known = self._table.known.get(peer)
        return known.signed if known else None

    def _order_of(self, peer: PeerId, known: Known | None) -> tuple[int, int]:
        if peer == self._own.record.peer:
            return self._own.record.order
        return known.order if known is not None else (1 << 63, 0)  # of strangers nothing is lacking
