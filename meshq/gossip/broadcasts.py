"""News that rides on datagrams which are sent anyway. SWIM, section 4.1.

Each item is passed on a bounded number of times by each peer, the least told first, so that fresh news does
not wait behind old; what is newer about a member replaces what is older about it.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshq.gossip import wire
from meshq.gossip.wire import Claim, Signed
from meshq.ids import PeerId

_CLAIM_BYTES_MIN = 40  # the smallest news there is: two ids of 16 bytes, their heads, three small fields


@dataclass(slots=True)
class _Item:
    news: Signed | Claim
    size: int
    sent: int


class Broadcasts:
    """At most one item a member, so as many as there are members.

    Kept in piles by how often each was told, so that a datagram is filled without sorting all of them.
    """

    def __init__(self) -> None:
        self._items: dict[PeerId, _Item] = {}
        self._piles: list[dict[PeerId, _Item]] = [{}]  # by `sent`; in each the latest put is the last

    def __len__(self) -> int:
        return len(self._items)

    def put(self, peer: PeerId, news: Signed | Claim) -> None:
        self.drop(peer)
        self._items[peer] = self._piles[0][peer] = _Item(news, wire.size_of(news), 0)

    def drop(self, peer: PeerId) -> None:
        item = self._items.pop(peer, None)
        if item is not None:
            del self._piles[item.sent][peer]

    def take(self, room: int, limit: int) -> tuple[list[Signed], list[Claim]]:
        """What fits, each counted as told once more; dropped after `limit` times."""
        records: list[Signed] = []
        claims: list[Claim] = []
        for peer in self._choose(room) if self._items else ():
            item = self._items[peer]
            self.drop(peer)
            item.sent += 1
            if item.sent < limit:
                self._keep(peer, item)
            if isinstance(item.news, Claim):
                claims.append(item.news)
            else:
                records.append(item.news)
        return records, claims

    def _choose(self, room: int) -> list[PeerId]:
        chosen: list[PeerId] = []
        for pile in self._piles:
            for peer in reversed(pile):
                if room < _CLAIM_BYTES_MIN:
                    return chosen
                if pile[peer].size <= room:
                    room -= pile[peer].size
                    chosen.append(peer)
        return chosen

    def _keep(self, peer: PeerId, item: _Item) -> None:
        while len(self._piles) <= item.sent:
            self._piles.append({})
        self._items[peer] = self._piles[item.sent][peer] = item
