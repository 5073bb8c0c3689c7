"""The outboxes of one connection, each opened once however many producers use it.

LMDB and what stands on it are loaded when the first one is opened: a client without has no use for them.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshq.client.driver import ClientDriver
from meshq.client.outbox.terms import Terms
from meshq.errors import UsageError

if TYPE_CHECKING:
    from meshq.client.outbox.outbox import Outbox
    from meshq.client.outbox.producer import OutboxProducer


DRAIN_S: Final = 2.0  # on closing: what is on disk need not be waited for


class Outboxes:
    """`owner`: the mesh's id and the connection's key."""

    def __init__(self, driver: ClientDriver, owner: tuple[bytes, bytes]) -> None:
        self._driver, self._owner = driver, owner
        self._open: dict[Path, Outbox] = {}  # as the application names them

    def open(self, path: str | Path, terms: Terms) -> Outbox:
        """Where it is open already, as it is.

        Raises: StoreError, StoreCorrupt, DiskFull, WrongMesh, UsageError.
        """
        from meshq.client.outbox.outbox import Outbox

        size = terms.bytes_max
        if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
            raise UsageError(f"outbox_bytes must be a whole number above 0, not {size!r}")
        where = Path(path).expanduser().absolute()
        found = self._open.get(where)
        if found is None:
            found = Outbox(where, terms)
            try:
                found.attach(self._driver, *self._owner)
            except BaseException:
                found.abandon()
                raise
            self._open[where] = found
        return found

    def producer(self, outbox: Outbox, topic: str, timeout: float) -> OutboxProducer:
        from meshq.client.outbox.producer import OutboxProducer

        return OutboxProducer(outbox, topic, timeout=timeout)

    async def drain(self, timeout: float) -> None:
        """Give what waits the chance to leave while there is somebody to take it."""
        left = min(timeout, DRAIN_S)
        await asyncio.gather(*(o.drained(left, while_connected=True) for o in self._open.values()))

    async def close(self) -> None:
        await asyncio.gather(*(o.close() for o in self._open.values()))
