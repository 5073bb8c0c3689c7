"""From credentials to a Mesh: read them, make machine and driver, wait for the first welcome."""

from __future__ import annotations

import random
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from meshq.client.checking import check_seconds
from meshq.client.core import ClientCore
from meshq.client.driver import ClientDriver
from meshq.client.facts import Seed
from meshq.client.mesh import Mesh
from meshq.client.sockets import SocketOpener
from meshq.errors import Unavailable, UsageError
from meshq.limits import OUTBOX_BYTES_MAX
from meshq.security.credentials import Credentials

RUN_FILE: Final = "run.json"  # there while a peer runs on the directory
ADMIN_FILE: Final = "admin.meshq"


CredentialsSource = str | Path | Credentials


def connect(
    credentials: CredentialsSource | None = None,
    *,
    data: str | Path | None = None,
    name: str = "",
    timeout: float = 10.0,
    outbox: str | Path | None = None,
    outbox_bytes: int = OUTBOX_BYTES_MAX,
    wait: bool | None = None,
) -> Connecting:
    """`async with connect(...) as mesh`, or `mesh = await connect(...)` and later `await mesh.close()`.

    credentials: a file as `meshq client add` writes it; or `data`, the data directory of a peer on this host
    name: what the peers call this client in their logs
    outbox: a directory of this host's own, to which `publish` and every producer hand their records, so that
    they go on while the network is away (docs/outbox.md); `outbox_bytes`: what it may hold
    wait: for the first peer; by default unless there is an outbox. Without, it goes on trying by itself

    Raises (when awaited): UsageError, SecurityError, StoreError for the file; Unavailable naming every
    address tried when no peer welcomes it within `timeout` seconds.
    """
    if (credentials is None) == (data is None):
        raise UsageError(
            "connect needs either credentials= (a file from `meshq client add NAME`) or data= (the directory "
            "of a peer on this host), one of them"
        )
    if wait is None:
        wait = outbox is None
    return Connecting(
        credentials,
        data,
        name,
        check_seconds(timeout, "timeout"),
        outbox=outbox,
        outbox_bytes=outbox_bytes,
        wait=wait,
    )


class Connecting:
    """A connection that begins when it is awaited or entered."""

    def __init__(
        self,
        credentials: CredentialsSource | None,
        data: str | Path | None,
        name: str,
        timeout: float,
        *,
        outbox: str | Path | None = None,
        outbox_bytes: int = OUTBOX_BYTES_MAX,
        wait: bool = True,
    ) -> None:
        self._credentials = credentials
        self._data = data
        self._name = name
        self._timeout = timeout
        self._mesh: Mesh | None = None
        self._outbox, self._outbox_bytes, self._wait = outbox, outbox_bytes, wait

    def __await__(self) -> Generator[Any, None, Mesh]:
        return self._connect().__await__()

    async def __aenter__(self) -> Mesh:
        self._mesh = await self._connect()
        return self._mesh

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mesh is not None:
            await self._mesh.__aexit__(kind, error, trace)

    async def _connect(self) -> Mesh:
        credentials = load_credentials(self._credentials, self._data)
        opener = SocketOpener(public_key=credentials.public_key, secret_key=credentials.secret_key)
        core = ClientCore(
            [Seed(p.server_key, (p.requests,), p.name) for p in credentials.peers],
            mesh_id=credentials.mesh_id,
            name=self._name or credentials.name,
            rng=random.Random(random.SystemRandom().getrandbits(256)),
        )
        driver = ClientDriver(core, opener)
        mesh = Mesh(driver, owner=(credentials.mesh_id, credentials.public_key))
        try:
            if self._outbox is not None:
                mesh.use_outbox(self._outbox, bytes_max=self._outbox_bytes)
            driver.start()
            if self._wait:
                await mesh.connected(self._timeout)
        except BaseException:
            await mesh.close(0.0)
            raise
        return mesh


def load_credentials(credentials: CredentialsSource | None, data: str | Path | None = None) -> Credentials:
    """Raises: Unavailable when no peer runs on `data`; UsageError, SecurityError, StoreError for the file."""
    if isinstance(credentials, Credentials):
        return credentials
    if credentials is not None:
        return Credentials.load(Path(credentials).expanduser())
    directory = Path(data or "").expanduser()
    if not (directory / RUN_FILE).exists():
        raise Unavailable(f"no peer is running on {directory}: start it with `meshq up --data {directory}`")
    return Credentials.load(directory / ADMIN_FILE)
