"""Room: whether records that are appended now could be stored, by this peer and by enough of the others.

A full disk refuses records, so where too few voters of a slot have room an entry would wait in the leader's
log for nothing: better say so before. Beats tell who is full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshq.errors import DiskFull, MeshqError, Overloaded
from meshq.limits import PENDING_BYTES_MAX

if TYPE_CHECKING:
    from meshq.peer.core.hosts import Host
    from meshq.peer.core.slots import Slots


def no_room(slots: Slots, host: Host, size: int) -> MeshqError | None:
    """Why a batch of this size cannot be appended to a slot led here."""
    if size > slots.disk.room_bytes:
        return DiskFull(
            "this peer's disk is at its watermark: delete topics, add space or raise `store_bytes_max`",
            retry_after_ms=1_000,
        )
    if not _can_decide(slots, host):
        return DiskFull(
            f"too few of the voters of slot {host.slot} have room for records: disks of some are at their "
            "watermarks. Delete topics, add space there or raise their `store_bytes_max` (a witness's: "
            "`witness_bytes_max`)",
            retry_after_ms=1_000,
        )
    if slots.disk.pending_bytes + size > PENDING_BYTES_MAX:
        return Overloaded("this peer has as much waiting for its disk as it may", retry_after_ms=50)
    return None


def _can_decide(slots: Slots, host: Host) -> bool:
    """Whether those that are there and have room are a majority. With nobody full that is not asked: who is
    away may be back in a moment, and where too many are this peer does not lead for long.
    """
    if not slots.full:
        return True
    config = host.replica.config
    able = [n for n in config.nodes() if n == slots.me or n.peer in slots.supports - slots.full]
    is_full = any(n.peer in slots.full for n in (*config.voters, *config.outgoing))
    return not is_full or config.has_majority(able)
