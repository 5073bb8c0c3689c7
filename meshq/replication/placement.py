"""Placement: walk the slots from where they are toward where the ring wants them.

*The ring says where a slot should live, the registry says where it is.* In this version a slot has one copy,
so only a slot that was never written to can move, and it moves in two durable steps: its owner fences it
(nothing will ever be appended under that ownership), then the registry names the new owner. Between the two
the slot belongs to nobody for a moment; a crash between them leaves a fenced slot with its old owner, and the
next round asks again.

The peer that holds the registry runs this machine.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from meshq.ids import PeerId, Slot
from meshq.ring import Ownership, RingPeer, owners

ROUND_S = 5.0  # how often an answer that did not come is asked for again
MOVES_PER_ASK_MAX = 4_096  # slots asked for at a time; the rest in the next round


@dataclass(frozen=True, slots=True)
class AskRelease:
    """Ask this peer to give up these slots (slot, epoch) if they are empty."""

    peer: PeerId
    slots: tuple[tuple[Slot, int], ...]


@dataclass(frozen=True, slots=True)
class Assign:
    """Register the new owners: (slot, epoch that ends, new owner)."""

    moves: tuple[tuple[Slot, int, PeerId], ...]


@dataclass
class Placement:
    """Compares the ring's answer with the registry's and asks for what may move.

    `_kept` are ownerships whose owner said they hold records: they stay. It is bounded by the number of
    slots.
    """

    slots: int
    replicas: int
    _kept: set[tuple[Slot, int]] = field(default_factory=set)
    _wanted: list[PeerId] = field(default_factory=list)
    _asked_at: float = float("-inf")
    _changed: bool = True

    def on_ring_changed(self, peers: Sequence[RingPeer]) -> None:
        wanted = owners(peers, slots=self.slots, replicas=self.replicas)
        self._wanted = [o[0] for o in wanted] if peers else []
        self._changed = True

    def on_tick(
        self, current: Sequence[Ownership], reachable: Collection[PeerId], *, now: float
    ) -> list[AskRelease]:
        """Ask every reachable owner for the empty slots that a reachable peer should have instead."""
        if not self._wanted or (not self._changed and now < self._asked_at + ROUND_S):
            return []
        self._asked_at, self._changed = now, False
        asks: dict[PeerId, list[tuple[Slot, int]]] = {}
        for number, (own, want) in enumerate(zip(current, self._wanted, strict=True)):
            slot = Slot(number)
            movable = own.peer in reachable and want in reachable and (slot, own.epoch) not in self._kept
            if own.peer != want and movable:
                asks.setdefault(own.peer, []).append((slot, own.epoch))
        return [AskRelease(peer, tuple(slots[:MOVES_PER_ASK_MAX])) for peer, slots in asks.items()]

    def on_reachable_changed(self) -> None:
        self._changed = True

    def on_released(
        self,
        asked: Collection[tuple[Slot, int]],
        released: Collection[tuple[Slot, int]],
        current: Sequence[Ownership],
    ) -> Assign | None:
        """The owner fenced some of what it was asked for; what it kept holds records and stays where it
        is. A fenced slot that the ring by now wants where it is goes there under a new epoch: under the old
        one nobody could write to it any more.
        """
        free = set(released) & set(asked)
        live = {(s, e) for s, e in self._kept if current[s].epoch == e}
        self._kept = live | (set(asked) - free)
        moves = tuple(
            (slot, epoch, self._wanted[slot]) for slot, epoch in sorted(free) if current[slot].epoch == epoch
        )
        return Assign(moves) if moves else None
