"""An outbox without `async`: the receipts it gives, and the calls that look into it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from meshq.client.loop_thread import GRACE_S, LoopThread
from meshq.client.records import Receipt

if TYPE_CHECKING:
    from meshq.client.outbox.outbox import Outbox as AsyncOutbox
    from meshq.client.outbox.receipts import QueuedReceipt as AsyncQueuedReceipt
    from meshq.client.outbox.words import Parked


class QueuedReceipt(Receipt):
    """As the asynchronous one: on this host's disk now, in the mesh later."""

    _thread: LoopThread
    _queued: AsyncQueuedReceipt

    @property
    def state(self) -> str:
        return self._queued.state

    def committed(self, timeout: float | None = None) -> Receipt:  # type: ignore[override]
        """Raises: as the asynchronous one's."""
        return self._thread.call(self._queued.committed(timeout), timeout)

    def __repr__(self) -> str:
        return repr(self._queued)


def without_async(thread: LoopThread, receipt: Receipt) -> Receipt:
    """The receipt as a program without an event loop can use it."""
    if receipt.partition >= 0:  # it says where in the mesh it is
        return receipt
    made = QueuedReceipt(*receipt)
    made._thread, made._queued = thread, receipt  # type: ignore[assignment]  # no other says less
    return made


class Outbox:
    """As the asynchronous one."""

    def __init__(self, thread: LoopThread, outbox: AsyncOutbox) -> None:
        self._thread, self._outbox = thread, outbox

    def status(self) -> dict[str, Any]:
        return self._thread.run(self._outbox.status, GRACE_S)

    def parked(self) -> list[Parked]:
        return self._thread.run(self._outbox.parked, GRACE_S)

    def retry(self, ids: Iterable[int] | None = None) -> int:
        return self._thread.call(self._outbox.retry(ids), None)

    def drop(self, ids: Iterable[int] | None = None) -> int:
        return self._thread.call(self._outbox.drop(ids), None)

    def drained(self, timeout: float | None = None) -> bool:
        return self._thread.call(self._outbox.drained(timeout), timeout)
