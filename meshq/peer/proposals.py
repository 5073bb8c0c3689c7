"""Commands this host's shell wants in the registry, each awaited until it is committed or refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from meshq.errors import MeshqError
from meshq.peer.core.events import Event, ProposalMade, Settle


class Proposals:
    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        self._waiting: dict[int, asyncio.Future[int]] = {}  # by ticket; the registrar bounds what it takes
        self._ticket = 0

    async def propose(self, command: bytes) -> int:
        """The index it was committed at. Raises what it was refused with."""
        self._ticket += 1
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[self._ticket] = future
        self._tell(ProposalMade(self._ticket, command))
        return await future

    def settle(self, effect: Settle) -> None:
        future = self._waiting.pop(effect.ticket)
        if future.done():
            return
        if isinstance(effect.result, MeshqError):
            future.set_exception(effect.result)
        else:
            future.set_result(effect.result)

    def cancel(self) -> None:
        """Nobody will answer any more."""
        for future in self._waiting.values():
            future.cancel()
