"""A disk that fails: what that leads to begins only after everything was taken back."""

from __future__ import annotations

from meshq.errors import DiskFull
from meshq.ids import Slot
from tests.peer.single import Single


def test_what_a_failure_leads_to_begins_only_after_everything_was_taken_back() -> None:
    peer = Single()
    order: list[str] = []
    disk = peer.core.ctx.disk
    peer.hold = True

    def first_failed(_: object) -> None:
        order.append("first")
        disk.when_settled(lambda: order.append("what follows"))

    disk.submit(Slot(1), done=lambda: None, failed=first_failed)
    disk.submit(Slot(3), done=lambda: None, failed=lambda _: order.append("second"))
    peer._carry_out(peer.core._take())
    peer.refuse(DiskFull("no"))
    assert order == ["first", "second", "what follows"]
