"""Links over TCP: a CURVE connection to a peer's `requests` socket, its addresses tried in turn.

libzmq would look up a host name in its I/O thread and hold up every other connection meanwhile, so names are
looked up here, beside the loop.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable

from meshq.batch import Buffer
from meshq.client.driver import LinkLike
from meshq.errors import UsageError
from meshq.limits import MESSAGE_BYTES_MAX
from meshq.transport.context import make_context
from meshq.transport.interfaces import format_address, parse_address
from meshq.transport.link import CONNECT_TIMEOUT_S, Link

_SCHEME = "tcp://"


class SocketOpener:
    """Opens links with one client's keys; one ZeroMQ context for all of them."""

    def __init__(self, *, public_key: bytes, secret_key: bytes) -> None:
        self._public_key = public_key
        self._secret_key = secret_key
        self._context = make_context()

    def open(
        self,
        server_key: bytes,
        endpoints: list[str],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        on_frames: Callable[[list[Buffer]], None],
    ) -> LinkLike:
        each_s = CONNECT_TIMEOUT_S / max(len(endpoints), 1)

        def connect(endpoint: str, on_up: Callable[[], None], on_down: Callable[[str], None]) -> Link:
            return Link(
                self._context,
                endpoint=endpoint,
                server_key=server_key,
                public_key=self._public_key,
                secret_key=self._secret_key,
                on_up=on_up,
                on_down=on_down,
                on_frames=on_frames,
                message_bytes_max=MESSAGE_BYTES_MAX,
                connect_timeout=max(each_s, 1.0),
            )

        return _Attempt(connect, endpoints, on_up, on_down)

    def close(self) -> None:
        """Once every link is closed."""
        self._context.destroy(linger=0)


class _Attempt:
    """One link, on the first address that works."""

    def __init__(
        self,
        connect: Callable[[str, Callable[[], None], Callable[[str], None]], Link],
        endpoints: list[str],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
    ) -> None:
        self._connect = connect
        self._left = list(endpoints)
        self._on_up = on_up
        self._on_down = on_down
        self._reasons: list[str] = []
        self._link: Link | None = None
        self._up = False
        self._task = asyncio.get_running_loop().create_task(self._try_next())

    def send(self, frames: list[Buffer]) -> bool:
        return self._link is not None and self._link.send(frames)

    def close(self) -> None:
        self._task.cancel()
        if self._link is not None:
            self._link.close()

    async def _try_next(self) -> None:
        while self._left:
            endpoint = self._left.pop(0)
            try:
                numeric = await _look_up(endpoint)
            except (OSError, UsageError) as e:
                self._reasons.append(f"{endpoint}: {e}")
                continue
            self._link = self._connect(numeric, self._go_up, self._go_down)
            return
        self._on_down("; ".join(self._reasons) or "no address of it is known")

    def _go_up(self) -> None:
        self._up = True
        self._on_up()

    def _go_down(self, reason: str) -> None:
        if self._up:
            self._on_down(reason)
            return
        self._reasons.append(reason)
        self._task = asyncio.get_running_loop().create_task(self._try_next())


async def _look_up(endpoint: str) -> str:
    """The endpoint with a numeric address. Raises: OSError, UsageError."""
    host, port = parse_address(endpoint.removeprefix(_SCHEME))
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        host = str(found[0][4][0])
    return _SCHEME + format_address(host, port)
