"""Where every partition should live: fixed slots, and owners of each slot by capped rendezvous.

A mesh has a fixed number of slots. A topic's partitions are laid on them by a stride near slots/φ (Fibonacci
hashing: Knuth, TAOCP 3, 6.4), so that the partitions of one topic sit far apart. Each slot then ranks the
peers by weighted rendezvous hashing (Thaler and Ravishankar 1996; weights: Schindelhauer and Schomaker 2005)
and takes the best ones that are under their cap (Mirrokni et al. 2018, bounded loads): a peer that joins or
leaves moves little beyond its fair share, and no peer carries more than the cap above its share.

All of it is arithmetic: same input, same answer, on every peer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import blake2b

from meshq.ids import PeerId, Slot, TopicId

CAP = 1.25  # no peer owns more than this times its fair share (measured in tests/test_ring.py)


@dataclass(frozen=True, slots=True)
class RingPeer:
    """A peer as placement sees it: capacity weight (1.0 is usual), failure zone ("": a zone of its own)."""

    peer: PeerId
    weight: float = 1.0
    zone: str = ""


@cache
def stride_of(slots: int) -> int:
    """The smallest number above slots/φ that is coprime to slots."""
    stride = int(slots * 2 / (1 + math.sqrt(5))) + 1
    while math.gcd(stride, slots) != 1:
        stride += 1
    return stride


@lru_cache(maxsize=4_096)  # asked for several times for each batch
def slot_of(topic_id: TopicId, partition: int, slots: int) -> Slot:
    """The slot a topic's partition lives in, for the topic's life."""
    start = int.from_bytes(blake2b(topic_id, digest_size=8).digest(), "big")
    return Slot((start + partition * stride_of(slots)) % slots)


def owners(peers: Sequence[RingPeer], *, slots: int, replicas: int) -> list[tuple[PeerId, ...]]:
    """By slot: the peers that should hold it, preferred leader first.

    `replicas` is lowered to the number of peers. Zones are spread softly: a slot takes a peer of a zone it
    already has only when no other zone has one under its cap.
    """
    if not peers:
        return [() for _ in range(slots)]
    count = min(replicas, len(peers))
    holds = _caps(peers, slots * count, slots)
    leads = _caps(peers, slots, slots)
    zones = {p.peer: p.zone or p.peer.hex() for p in peers}
    # In hash order, not by number, so that the same slots are not always left with what the others refused.
    ranked = {slot: _ranking(slot, peers) for slot in range(slots)}
    result: list[tuple[PeerId, ...]] = [()] * slots
    for slot in sorted(range(slots), key=_slot_order):
        first = next((p for p in ranked[slot] if leads[p] > 0 and holds[p] > 0), ranked[slot][0])
        leads[first] -= 1
        holds[first] -= 1
        chosen = [first]
        while len(chosen) < count:
            chosen.append(_next_owner(ranked[slot], chosen, holds, zones))
            holds[chosen[-1]] -= 1
        result[slot] = tuple(chosen)
    return result


def witnesses_of(
    owned: Sequence[Sequence[PeerId]], keepers: Sequence[RingPeer], witnesses: Sequence[RingPeer]
) -> list[PeerId | None]:
    """By slot: who votes with two owners, from a zone of its own where there is one. Others need nobody."""
    zones = {p.peer: p.zone or p.peer.hex() for p in (*keepers, *witnesses)}
    found: list[PeerId | None] = []
    for slot, two in enumerate(owned):
        taken = {zones[peer] for peer in two}
        ranked = _ranking(slot, witnesses) if len(two) == 2 else []
        ranked.sort(key=lambda peer: zones[peer] in taken)
        found.append(ranked[0] if ranked else None)
    return found


def _next_owner(
    ranking: Sequence[PeerId], chosen: list[PeerId], room: Mapping[PeerId, int], zones: Mapping[PeerId, str]
) -> PeerId:
    rest = [p for p in ranking if p not in chosen]
    taken = {zones[p] for p in chosen}
    free = [p for p in rest if room[p] > 0]
    apart = [p for p in free if zones[p] not in taken]
    return (apart or free or rest)[0]


def _caps(peers: Sequence[RingPeer], total: int, most: int) -> dict[PeerId, int]:
    """How many of `total` places each peer may take: its weighted share times CAP, at most one a slot."""
    # fsum: the same in whatever order the peers come. With no weight at all, caps are 0 and rankings decide.
    weight = math.fsum(p.weight for p in peers) or 1.0
    return {p.peer: min(most, math.ceil(total * p.weight / weight * CAP)) for p in peers}


def _ranking(slot: int, peers: Sequence[RingPeer]) -> list[PeerId]:
    scored = [(_score(slot, p), p.peer) for p in peers]
    scored.sort()
    return [peer for _, peer in scored]


def _score(slot: int, p: RingPeer) -> float:
    """Weighted rendezvous: -ln(u)/w, smallest wins; u is uniform in (0, 1) by hash of slot and peer."""
    raw = blake2b(slot.to_bytes(4, "big") + p.peer, digest_size=8, person=b"meshq ring").digest()
    u = (int.from_bytes(raw, "big") + 1) / (2**64 + 2)
    return -math.log(u) / p.weight if p.weight > 0 else math.inf


def _slot_order(slot: int) -> bytes:
    return blake2b(slot.to_bytes(4, "big"), digest_size=8, person=b"meshq order").digest()
