"""The order of keys at a member of a keyed group: what comes back, or is too late, holds up what is behind
it.

The mesh hands several records of one key to a member together. If one of them is given back, or its time is
over, the mesh takes those behind it back too; but they may wait here already. They are not taken: the key
begins again where it stopped, here or elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from meshq.messages import ACK, EXTEND, REJECT

if TYPE_CHECKING:
    from meshq.client.group import Lot


TAKEN_MAX: Final = 20_000  # keys; those whose time is over are forgotten


class _Taken(NamedTuple):
    """The newest record of a key that the application has and did not settle."""

    lot: Lot
    offset: int


class KeyOrder:
    """Of one subscription. `here`: its lots with records that nobody has taken yet."""

    def __init__(self) -> None:
        self._taken: dict[tuple[bytes, int, bytes], _Taken] = {}  # TAKEN_MAX, but for those still in time

    def may_take(self, lot: Lot, key: bytes | None, offset: int, now: float, here: Iterable[Lot]) -> bool:
        """Whether the application may have this one next. From then on it has it."""
        if key is None:
            return lot.until > now
        where = (lot.topic_id, lot.hand.partition, key)
        before = self._taken.get(where)
        if lot.until <= now or (before is not None and before.lot.until <= now):
            self._taken.pop(where, None)
            _bar(lot, key, here)
        if key in lot.barred:
            return False
        if len(self._taken) >= TAKEN_MAX:
            self._taken = {k: x for k, x in self._taken.items() if x.lot.until > now}
        self._taken[where] = _Taken(lot, offset)
        lot.taken[offset] = key
        return True

    def settled(self, lot: Lot, offset: int, verdict: int, now: float, here: Iterable[Lot]) -> None:
        if verdict == EXTEND:
            return
        key = lot.taken.pop(offset, None)
        if key is None:
            return
        where = (lot.topic_id, lot.hand.partition, key)
        taken = self._taken.get(where)
        if taken is not None and taken.lot is lot and taken.offset == offset:
            del self._taken[where]
        if verdict not in (ACK, REJECT) or lot.until <= now:
            _bar(lot, key, here)


def _bar(lot: Lot, key: bytes, here: Iterable[Lot]) -> None:
    """What of this key is here already is not to be taken; what comes from now on is."""
    lot.barred.add(key)
    for other in here:
        if (other.topic_id, other.hand.partition) == (lot.topic_id, lot.hand.partition):
            other.barred.add(key)
