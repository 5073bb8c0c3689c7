"""News that rides on datagrams which are sent anyway. SWIM, section 4.1.

Each item is passed on a bounded number of times by each peer, the least told first, so that fresh news does
not wait behind old; what is newer about a member replaces what is older about it.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshq.gossip import wire
from meshq.gossip.wire import Claim, Signed
from meshq.ids import PeerId


@dataclass(slots=True)
class _Item:
    news: Signed | Claim
    size: int
    sent: int
    serial: int


class Broadcasts:
    """At most one item a member, so as many as there are members."""

    def __init__(self) -> None:
        self._items: dict[PeerId, _Item] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, peer: PeerId, news: Signed | Claim) -> None:
        self._serial += 1
        self._items[peer] = _Item(news, wire.size_of(news), 0, self._serial)

    def drop(self, peer: PeerId) -> None:
        self._items.pop(peer, None)

    def take(self, room: int, limit: int) -> tuple[list[Signed], list[Claim]]:
        """What fits, each counted as told once more; dropped after `limit` times."""
        records: list[Signed] = []
        claims: list[Claim] = []
        if not self._items:
            return records, claims
        for peer, item in sorted(self._items.items(), key=lambda x: (x[1].sent, -x[1].serial)):
            if item.size > room:
                continue
            room -= item.size
            item.sent += 1
            if item.sent >= limit:
                del self._items[peer]
            if isinstance(item.news, Claim):
                claims.append(item.news)
            else:
                records.append(item.news)
        return records, claims
