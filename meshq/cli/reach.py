"""A connection for one verb: to this host's running peer, or anywhere by credentials."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshq.client.connect import connect
from meshq.client.mesh import Mesh
from meshq.errors import Unavailable, UsageError
from meshq.peer.presence import read_run
from meshq.security.directory import DataDirectory


class NotReachable(Exception):
    """No peer runs here, or none answered: exit code 3."""


class Failed(Exception):
    """The verb did not do all it was asked to: exit code 1."""


@dataclass(frozen=True, slots=True)
class Where:
    """How to reach the mesh; credentials win."""

    data: Path
    credentials: Path | None
    timeout: float
    timeout_given: bool = False


@contextlib.asynccontextmanager
async def connected(where: Where, name: str = "meshq", *, wait: bool = True) -> AsyncIterator[Mesh]:
    """`wait`: until a peer welcomes us.

    Raises: NotReachable, UsageError, SecurityError and StoreError for the credentials file.
    """
    async with contextlib.AsyncExitStack() as stack:
        try:
            if where.credentials is not None:
                connection = connect(
                    credentials=where.credentials, name=name, timeout=where.timeout, wait=wait
                )
            else:
                check_running(where.data)
                connection = connect(data=where.data, name=name, timeout=where.timeout, wait=wait)
            mesh = await stack.enter_async_context(connection)
        except Unavailable as e:
            raise NotReachable(str(e)) from e
        yield mesh


def check_running(data: Path) -> dict[str, Any]:
    """What the peer of this directory says of itself. Raises: NotReachable when none runs or is there."""
    try:
        return read_run(DataDirectory(data))
    except (Unavailable, UsageError) as e:
        raise NotReachable(str(e)) from e


def with_mesh(where: Where, work: Callable[[Mesh], Coroutine[Any, Any, Any]]) -> Any:
    """Run one piece of work on a connection of its own, to its end; its value."""

    async def run() -> Any:
        async with connected(where) as mesh:
            return await work(mesh)

    return asyncio.run(run())


def ask(where: Where, what: str, args: dict[str, Any] | None = None) -> Any:
    """The answer to one administrative request."""
    return with_mesh(where, lambda mesh: mesh.ask(what, args or {}))
