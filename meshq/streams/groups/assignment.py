"""Which member of an ordered group should have which partition: the same answer at every leader that is
asked.

No coordinator hands the partitions out. Each leader computes the whole table from what it sees, the members
of the group, and acts on the rows that are its own; leaders that see the same members agree, and those that
do not (yet) still never share a partition out twice, because each has one leader and a lease in its log.

Every pair of member and partition has a score by hash. Pairs are taken from the highest score down, a pair
counting if its partition is free and its member below its cap (rendezvous hashing, Thaler and Ravishankar
1996, with bounded loads, Mirrokni et al. 2018). The caps are tight: everybody gets P // M, and the first P %
M one more, so loads differ by one at most. Because a score is the pair's alone, somebody who comes takes
partitions from others and somebody who goes leaves them to others; what else moves does so for the caps'
sake. That is little while there are many partitions a member; docs/groups.md has how much, and why it cannot
be little where there are more members than partitions."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

_MASK: Final = (1 << 64) - 1


def assign(members: Iterable[bytes], partitions: int) -> list[bytes]:
    """By partition: the member that should have it. Without members nobody does: an empty list."""
    ids = sorted(set(members))
    if not ids:
        return []
    least, more = divmod(partitions, len(ids))
    load: dict[bytes, int] = dict.fromkeys(ids, 0)
    found: list[bytes] = [b""] * partitions
    left = partitions
    for _, partition, member in sorted(_pairs(ids, partitions), reverse=True):
        if found[partition] or load[member] > least or (load[member] == least and not more):
            continue
        more -= load[member] == least
        load[member] += 1
        found[partition] = member
        left -= 1
        if not left:
            break
    return found


def _pairs(ids: list[bytes], partitions: int) -> Iterable[tuple[int, int, bytes]]:
    places = [_mixed(p + 1) for p in range(partitions)]
    for member in ids:
        seed = int.from_bytes(blake2b(member, digest_size=8, person=b"meshq group").digest(), "big")
        for partition, place in enumerate(places):
            yield _mixed(seed ^ place), partition, member


def _mixed(x: int) -> int:
    """A bijection of 64 bits whose output looks like chance (the finalizer of MurmurHash3). A real hash of
    every pair would take five times as long, and a leader does this between two records."""
    x = ((x ^ x >> 33) * 0xFF51AFD7ED558CCD) & _MASK
    x = ((x ^ x >> 33) * 0xC4CEB9FE1A85EC53) & _MASK
    return x ^ x >> 33
