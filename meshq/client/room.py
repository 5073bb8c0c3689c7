"""The bound on what a producer holds: bytes of records whose end is not known, and who waits for them to
become fewer.

Little room wakes who waits. While an application makes records nothing is heard or sent on this thread, so a
big gap filled in one go leaves the peers idle: waking at a quarter free cost a third of the rate, measured at
100-byte records.
"""

from __future__ import annotations

import asyncio
from typing import NoReturn

from meshq.errors import Overloaded


class Room:
    """`used` is counted up by the producer itself, on its hot path, and down by `release`."""

    __slots__ = ("_loop", "_topic", "_waiting", "_wakes_at", "limit", "used")

    def __init__(self, loop: asyncio.AbstractEventLoop, topic: str, *, limit: int, batch_bytes: int) -> None:
        self._loop = loop
        self._topic = topic
        self.limit = limit
        self.used = 0
        self._wakes_at = limit - min(limit // 4, 2 * batch_bytes)
        self._waiting: list[asyncio.Future[None]] = []

    def release(self, size: int) -> None:
        self.used -= size
        if self._waiting and self.used <= self._wakes_at:
            for future in self._waiting:
                if not future.done():
                    future.set_result(None)
            self._waiting.clear()

    async def wait(self, timeout: float) -> None:
        """Until some is free. Raises: Overloaded when that takes longer than the timeout."""
        future = self._loop.create_future()
        self._waiting.append(future)
        try:
            await asyncio.wait_for(future, timeout)
        except TimeoutError:
            self.refuse()

    def refuse(self) -> NoReturn:
        raise Overloaded(
            f"{self.used} bytes for {self._topic} are waiting to be stored, the limit is "
            f"{self.limit}: `await ready()` before the next send, or raise buffer_bytes",
            retry_after_ms=50,
        )
