"""The gateway: a client inside the peer. Its link to this peer is a function call; to others, the peers'
listener.

The embedded peer's own calls and the plain endpoints go through it, so there is one way records are published
and read, whoever asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import zmq

from meshq.batch import Buffer
from meshq.errors import Unavailable
from meshq.limits import MESSAGE_BYTES_MAX
from meshq.security.identity import Identity
from meshq.transport.context import PEERS_THREAD
from meshq.transport.link import Link

OnFrames = Callable[[list[Buffer]], None]


class LocalLink:
    """A connection to this very peer: frames cross in a later turn of the loop, in order, both ways."""

    def __init__(
        self,
        number: int,
        to_peer: Callable[[bytes, list[Buffer]], None],
        on_up: Callable[[], None],
        on_frames: OnFrames,
        on_closed: Callable[[LocalLink], None],
    ) -> None:
        self.session = number.to_bytes(8, "big")
        self._to_peer, self._on_frames, self._on_closed = to_peer, on_frames, on_closed
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._loop.call_soon(self._if_open, on_up)

    def send(self, frames: Sequence[Buffer]) -> bool:
        self._loop.call_soon(self._if_open, self._to_peer, self.session, list(frames))
        return True

    def deliver(self, frames: list[Buffer]) -> None:
        self._loop.call_soon(self._if_open, self._on_frames, frames)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._on_closed(self)

    def _if_open(self, call: Callable[..., None], *args: object) -> None:
        if not self._closed:
            call(*args)


class GatewayLinks:
    """Opens the gateway's links: to our own key in process, to any other peer at its peers' port."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        identity: Identity,
        to_peer: Callable[[bytes, list[Buffer]], None],
        on_session_closed: Callable[[bytes], None],
        peers_endpoint: Callable[[str], str],
    ) -> None:
        self._context, self._identity = context, identity
        self._to_peer, self._on_session_closed = to_peer, on_session_closed
        self._peers_endpoint = peers_endpoint
        self._local: dict[bytes, LocalLink] = {}
        self._count = 0

    def open(
        self,
        server_key: bytes,
        endpoints: Sequence[str],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        on_frames: OnFrames,
    ) -> LocalLink | Link:
        if server_key == self._identity.curve_public:
            self._count += 1
            local = LocalLink(self._count, self._to_peer, on_up, on_frames, self._on_closed)
            self._local[local.session] = local
            return local
        if not endpoints:
            raise Unavailable("no address of it is known yet")
        self._count += 1
        return Link(
            self._context,
            endpoint=self._peers_endpoint(endpoints[self._count % len(endpoints)]),
            server_key=server_key,
            public_key=self._identity.curve_public,
            secret_key=self._identity.curve_secret,
            on_up=on_up,
            on_down=on_down,
            on_frames=on_frames,
            message_bytes_max=MESSAGE_BYTES_MAX,
            affinity=PEERS_THREAD,
        )

    def close(self) -> None:
        for link in list(self._local.values()):
            link.close()

    def _on_closed(self, link: LocalLink) -> None:
        """The peer lets go of the session at once: here nobody else would tell it."""
        del self._local[link.session]
        self._on_session_closed(link.session)

    def deliver(self, session: bytes, frames: list[Buffer]) -> None:
        """An answer of this peer to its own client."""
        link = self._local.get(session)
        if link is not None:
            link.deliver(frames)
