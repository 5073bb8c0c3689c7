"""The shell of links to other peers: one DEALER each, on the peers' own I/O thread.

A peer whose key another one has not heard of yet is refused there; it then shows its certificate at that
one's door, and the core's next try gets in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import zmq

from meshq import messages
from meshq.batch import Buffer
from meshq.errors import MeshqError, RemoteProtocolError
from meshq.ids import PeerId
from meshq.limits import MESSAGE_BYTES_MAX
from meshq.messages import AnyMessage
from meshq.peer.core.events import Event, LinkDown, LinkMessage, LinkUp, OpenLink
from meshq.peer.doors import present
from meshq.peer.endpoints import tcp
from meshq.peer.settings import DOOR, PEERS
from meshq.security.directory import Loaded
from meshq.transport.context import PEERS_THREAD
from meshq.transport.link import REFUSED_KEY, Link

log = logging.getLogger(__name__)


class PeerLinks:
    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], papers: Loaded, tell: Callable[[Event], None]
    ) -> None:
        self._context, self._papers, self._tell = context, papers, tell
        self._links: dict[PeerId, Link] = {}
        self._turn: dict[PeerId, int] = {}  # which of a peer's addresses is next
        self._presenting: dict[PeerId, asyncio.Task[None]] = {}

    def open(self, effect: OpenLink) -> None:
        self.close_link(effect.peer)
        turn = self._turn.get(effect.peer, 0)
        self._turn[effect.peer] = turn + 1
        address = effect.addresses[turn % len(effect.addresses)]
        peer, identity = effect.peer, self._papers.identity

        def on_down(reason: str) -> None:
            self._links.pop(peer, None)
            if reason == REFUSED_KEY:
                self._show_certificate(effect, address)
            self._tell(LinkDown(peer, f"{address}: {reason}"))

        def on_up() -> None:
            self._turn[peer] = turn  # this address works
            self._tell(LinkUp(peer))

        try:
            endpoint = tcp(address, PEERS)
        except MeshqError as e:
            self._tell(LinkDown(peer, str(e)))
            return
        self._links[peer] = Link(
            self._context,
            endpoint=endpoint,
            server_key=effect.server_key,
            public_key=identity.curve_public,
            secret_key=identity.curve_secret,
            on_up=on_up,
            on_down=on_down,
            on_frames=lambda frames: self._on_frames(peer, frames),
            message_bytes_max=MESSAGE_BYTES_MAX,
            affinity=PEERS_THREAD,
        )

    def send(self, peer: PeerId, message: AnyMessage, payloads: Sequence[Buffer] = ()) -> None:
        """What cannot be queued is dropped with its link: whoever waits for an answer asks again."""
        link = self._links.get(peer)
        if link is None:
            return
        if not link.send([messages.VERB, messages.encode(message), *payloads]) and link.up:
            self.close_link(peer)
            self._tell(LinkDown(peer, "its queue is full"))

    def close_link(self, peer: PeerId) -> None:
        link = self._links.pop(peer, None)
        if link is not None:
            link.close()

    async def close(self) -> None:
        for peer in list(self._links):
            self.close_link(peer)
        for task in self._presenting.values():
            task.cancel()
        await asyncio.gather(*self._presenting.values(), return_exceptions=True)

    def _on_frames(self, peer: PeerId, frames: list[Buffer]) -> None:
        try:
            if len(frames) < 2:
                raise RemoteProtocolError("a message of one frame")
            message = messages.decode_answer(frames[1])
        except RemoteProtocolError as e:
            self.close_link(peer)
            self._tell(LinkDown(peer, str(e)))
            return
        self._tell(LinkMessage(peer, message))

    def _show_certificate(self, effect: OpenLink, address: str) -> None:
        if effect.peer in self._presenting:
            return
        task = asyncio.get_running_loop().create_task(self._present(effect, address))
        self._presenting[effect.peer] = task
        task.add_done_callback(lambda _: self._presenting.pop(effect.peer, None))

    async def _present(self, effect: OpenLink, address: str) -> None:
        try:
            await present(self._context, tcp(address, DOOR), effect.server_key, self._papers)
        except MeshqError as e:
            log.warning("The door of %s refused: %s", address, e, extra={"event": "PresentRefused"})
        except Exception:  # tried again when the next connection is refused
            log.exception("Our certificate could not be shown", extra={"event": "PresentFailed"})
