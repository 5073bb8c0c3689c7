"""What a caller holds of a record in an outbox: a receipt of its own disk now, the mesh's later.

The outbox remembers whom to tell only for as long as somebody holds the receipt, so a million records that
wait cost no memory here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

from meshq.client.records import Receipt
from meshq.errors import MeshqError, OutcomeUnknown


class Fate:
    """What became of one record: `taken`, then `queued` or `failed`; then `committed` or `parked`."""

    __slots__ = (
        "__weakref__", "_callbacks", "_held", "_loop", "_waiting", "error", "receipt", "state", "told",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, held: set[Fate]) -> None:
        self._loop = loop
        self._held = held  # kept for what somebody asked to be called for
        self._waiting: list[asyncio.Future[None]] = []
        self._callbacks: list[Callable[[], None]] = []
        self.state = "taken"
        self.receipt: Receipt | None = None
        self.error: MeshqError | None = None
        self.told = False  # somebody was told the error

    def become(self, state: str, *, receipt: Receipt | None = None, error: MeshqError | None = None) -> None:
        self.state, self.receipt, self.error = state, receipt, error
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
        if state in ("committed", "parked"):
            callbacks, self._callbacks = self._callbacks, []
            self._held.discard(self)
            for callback in callbacks:
                callback()

    def call(self, callback: Callable[[], None]) -> None:
        """When it is decided in the mesh."""
        if self.state in ("committed", "parked"):
            callback()
        else:
            self._held.add(self)
            self._callbacks.append(callback)

    @property
    def is_awaited(self) -> bool:
        return any(not f.done() for f in self._waiting)

    def changed(self) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting = [f for f in self._waiting if not f.done()]  # others waited for so long, and gave up
        self._waiting.append(future)
        return future

    def raise_error(self) -> None:
        assert self.error is not None
        self.told = True
        raise type(self.error)(str(self.error), retry_after_ms=self.error.retry_after_ms)


class QueuedReceipt(Receipt):
    """The record is durable on this host's disk; where it is stored in the mesh, `committed()` tells.

    Here `partition` is -1, `offset` None, `copies` 0. `state` is `queued`, then `committed`, or `parked` when
    the mesh refused it for good.
    """

    number: int
    _fate: Fate

    @classmethod
    def of(cls, topic: str, number: int, fate: Fate) -> QueuedReceipt:
        made = cls(topic, -1, None, 0)
        made.number, made._fate = number, fate
        return made

    @property
    def state(self) -> str:
        return self._fate.state

    async def committed(self, timeout: float | None = None) -> Receipt:
        """Wait until the mesh has stored it; where. Raises: TimeoutError (it still waits, and will be sent);
        OutcomeUnknown when it is parked and may have been stored, else the error it was parked for."""
        async with asyncio.timeout(timeout):
            while self._fate.state in ("taken", "queued"):
                await self._fate.changed()
        if self._fate.receipt is None:
            self._fate.raise_error()
        assert self._fate.receipt is not None
        return self._fate.receipt

    def add_done_callback(self, callback: Callable[[QueuedReceipt], None]) -> None:
        """Call it, on the loop, when `state` is neither `taken` nor `queued` any more."""
        self._fate.call(lambda: callback(self))

    def __repr__(self) -> str:
        return f"QueuedReceipt(topic={self.topic!r}, number={self.number}, state={self.state!r})"


class PendingQueued:
    """Await it for the QueuedReceipt: the record is on this disk then. Raises: DiskFull, StoreError."""

    __slots__ = ("_fate", "_topic", "number")

    def __init__(self, topic: str, number: int, fate: Fate) -> None:
        self._topic, self.number, self._fate = topic, number, fate

    def __await__(self) -> Generator[Any, None, QueuedReceipt]:
        while self._fate.state == "taken":
            yield from self._fate.changed()
        if self._fate.state == "failed":
            self._fate.raise_error()
        return QueuedReceipt.of(self._topic, self.number, self._fate)

    def done(self) -> bool:
        return self._fate.state != "taken"


def parked_error(error: MeshqError, number: int, *, maybe_stored: bool) -> MeshqError:
    """What who waits for a parked record is told."""
    text = f"{error}. It is parked as {number} in the outbox: look with `meshq outbox show`"
    if maybe_stored:
        return OutcomeUnknown(f"it may have been stored by an earlier sending, and then: {text}")
    return type(error)(text)
