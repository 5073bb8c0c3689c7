"""Links over TCP: a CURVE connection to a peer's `requests` socket, its addresses tried in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from meshq.batch import Buffer
from meshq.client.driver import LinkLike
from meshq.limits import MESSAGE_BYTES_MAX
from meshq.transport.context import make_context
from meshq.transport.link import CONNECT_TIMEOUT_S, Link


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
        self._first = asyncio.get_running_loop().call_soon(self._try_next)

    def send(self, frames: list[Buffer]) -> bool:
        return self._link is not None and self._link.send(frames)

    def close(self) -> None:
        self._first.cancel()
        if self._link is not None:
            self._link.close()

    def _try_next(self) -> None:
        if self._left:
            self._link = self._connect(self._left.pop(0), self._go_up, self._go_down)
        else:
            self._on_down("; ".join(self._reasons) or "no address of it is known")

    def _go_up(self) -> None:
        self._up = True
        self._on_up()

    def _go_down(self, reason: str) -> None:
        if self._up:
            self._on_down(reason)
            return
        self._reasons.append(reason)
        self._try_next()
