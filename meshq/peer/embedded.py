"""An embedded peer: a whole peer inside a program, with the client's own calls and no socket in between."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from meshq.client.mesh import Mesh
from meshq.errors import UsageError
from meshq.limits import OUTBOX_BYTES_MAX
from meshq.peer.presence import data_path
from meshq.peer.settings import load_settings
from meshq.peer.shell import PeerShell
from meshq.security.directory import DataDirectory


class Peer:
    """`async with meshq.Peer(data="~/.meshq") as peer: await peer.publish(...)`.

    Runs the peer of a data directory (made by `meshq init` or `meshq join`) in this process's loop. Every
    setting of `meshq.toml` may be given by name (`port=7710, seed=["10.0.0.1"], mdns=False`). All calls of a
    connection (`publish`, `producer`, `subscribe`, `ask`, `topics`) are those of `Mesh`.

    outbox: a directory of its own (not inside `data`), to which `publish` and every producer hand their
    records first, so that they never wait for other peers (docs/outbox.md); `outbox_bytes`: what it may hold

    Raises, when entered: UsageError, SecurityError, StoreError.
    """

    def __init__(
        self,
        data: str | Path | None = None,
        *,
        outbox: str | Path | None = None,
        outbox_bytes: int = OUTBOX_BYTES_MAX,
        **settings: Any,
    ) -> None:
        self._outbox, self._outbox_bytes = outbox, outbox_bytes
        self._directory = DataDirectory(data_path(data))
        self._given = settings
        self._shell: PeerShell | None = None

    async def start(self) -> Peer:
        if sys.platform != "linux":
            raise UsageError("peers run on Linux: here, connect to one with meshq.connect(credentials=...)")
        settings = load_settings(self._directory.settings, self._given)
        shell = PeerShell(self._directory, settings)
        await shell.start()
        if self._outbox is not None:
            try:
                shell.gateway.use_outbox(self._outbox, bytes_max=self._outbox_bytes)
            except BaseException:
                await shell.stop()
                raise
        self._shell = shell
        return self

    async def stop(self) -> None:
        shell, self._shell = self._shell, None
        if shell is not None:
            await shell.stop()

    async def close(self) -> None:
        """As `stop`: the connection of a peer ends with its peer."""
        await self.stop()

    async def wait_failed(self) -> None:
        """Until the peer had to stop by itself; raises why. Returns when it was stopped."""
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(self._running().failed)

    async def __aenter__(self) -> Peer:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def mesh(self) -> Mesh:
        """The connection to the mesh through this peer."""
        return self._running().gateway

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._running().neighbours.addresses

    def __getattr__(self, name: str) -> Any:
        # publish, producer, subscribe, ask, topics: the connection's own.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.mesh, name)

    def _running(self) -> PeerShell:
        if self._shell is None:
            raise UsageError("this peer is not running: use `async with meshq.Peer(...)`")
        return self._shell
