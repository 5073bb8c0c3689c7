"""An event loop on a daemon thread, and calls into it from other threads that wait for their end.

A call keeps its own deadline on the loop. Should the loop be late beyond a grace, the caller is told so; but
only after the loop was given the chance to see what had already arrived.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from meshq.errors import OutcomeUnknown, Unavailable

T = TypeVar("T")
GRACE_S: Final = 5.0  # beyond a call's own deadline, should the loop be late
TURNS: Final = 10  # of the loop, from a receipt in a socket to who waits for a flush: five, and as many spare


class LoopThread:
    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="meshq", daemon=True)
        self.is_running = True
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T], timeout: float | None, *, unknown: bool = False) -> T:
        """The coroutine's result. It keeps its own deadline; should it not, this raises soon after."""
        if not self.is_running:
            coroutine.close()
            raise Unavailable("this client was closed: connect again")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(None if timeout is None else timeout + GRACE_S)
        except concurrent.futures.TimeoutError:
            if not future.done():
                self._let_settle()
            if future.done() and not future.cancelled():
                return future.result()  # or its own TimeoutError
            future.cancel()
            raise (OutcomeUnknown if unknown else Unavailable)(f"no answer within {timeout} s") from None
        except BaseException:
            future.cancel()
            raise

    def _let_settle(self) -> None:
        """After a stall of the whole process the answer may wait in a socket: let the loop look first."""
        settling = asyncio.run_coroutine_threadsafe(_turns(), self._loop)
        concurrent.futures.wait([settling], GRACE_S)

    def run(self, function: Callable[[], T], timeout: float) -> T:
        async def run() -> T:
            return function()

        return self.call(run(), timeout)

    def post(self, function: Callable[[], None]) -> None:
        if self.is_running:
            self._loop.call_soon_threadsafe(function)

    def stop(self) -> None:
        if self.is_running:
            self.is_running = False
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(GRACE_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        finally:
            self._loop.close()


async def _turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)
