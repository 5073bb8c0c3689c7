"""A disk that fails in the middle of moving slots leaves every log dense: the peer starts again."""

from __future__ import annotations

from meshq.errors import DiskFull
from meshq.ids import Slot
from tests.peer.single import Single


def test_what_a_failure_leads_to_begins_only_after_everything_was_taken_back() -> None:
    peer = Single()
    done: list[list[tuple[Slot, int]]] = []
    order: list[str] = []
    core = peer.core
    peer.hold = True
    core.slots.release(
        [(Slot(1), 0), (Slot(2), 0)], lambda free: (order.append("released"), done.append(free))
    )
    core.ctx.disk.submit(Slot(3), done=lambda: None, failed=lambda _: order.append("taken back"))
    peer._carry_out(core._take())
    peer.refuse(DiskFull("no"))
    assert done == [[]] and order == ["taken back", "released"]
