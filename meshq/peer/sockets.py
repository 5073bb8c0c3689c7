"""The peer's listening sockets: requests, feed, ingest and the peers' listener, and who may connect to each.

ZAP asks once, at the handshake; every message is judged again by its key in the core. A session whose queue
is full waits here, with a bound: past it the session is closed, and its client says hello again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import zmq

from meshq import messages
from meshq.batch import Buffer
from meshq.errors import MeshqError, RemoteProtocolError
from meshq.ids import Session
from meshq.limits import CREDIT_BYTES_MAX, MESSAGE_BYTES_MAX, UNREAD_BYTES_MAX, WHOLE_MESSAGE_BYTES_MAX
from meshq.peer.core.core import RECHECK_S, PeerCore
from meshq.peer.core.events import (
    CLIENTS,
    PEERS,
    Event,
    MalformedArrived,
    MessageArrived,
    SendSession,
    SessionClosed,
)
from meshq.peer.endpoints import listen
from meshq.peer.settings import FEED, INGEST, REQUESTS, Settings
from meshq.peer.settings import PEERS as PEERS_PORT
from meshq.security.authorization import Principal
from meshq.security.directory import Loaded
from meshq.transport.allowance import Allowance
from meshq.transport.context import CLIENTS_THREAD, PEERS_THREAD
from meshq.transport.feed import FeedServer
from meshq.transport.ingest import IngestServer
from meshq.transport.server import RouterServer, Sent
from meshq.transport.zap import ZapHandler

log = logging.getLogger(__name__)
SEND_QUEUE_MAX = 128  # messages of up to a megabyte that libzmq holds for one session; the rest waits here
BACKLOG_BYTES_MAX = (
    CREDIT_BYTES_MAX + 8 * MESSAGE_BYTES_MAX
)  # what a session may have waiting: its credit, and answers
# What one connection of a client may make libzmq hold. Peers are trusted not to, once they have shown who
# they are.
BOUNDS_OF_CLIENTS: Final[dict[str, Any]] = {
    "allowance": Allowance.of_known(),
    "whole_bytes_max": WHOLE_MESSAGE_BYTES_MAX,
}
UNREAD: Final[dict[str, Any]] = {"unread_bytes_max": UNREAD_BYTES_MAX}
BOUNDS_OF_PEERS: Final[dict[str, Any]] = {"allowance": Allowance.of_strangers()}
Answerer = Callable[[list[Buffer]], None]


@dataclass(slots=True)
class _Backlog:
    messages: deque[list[Buffer]] = field(default_factory=deque)
    bytes: int = 0


class PeerSockets:
    """Binds everything; `tell` hears messages of the protocol, `on_plain` those that are not."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        papers: Loaded,
        settings: Settings,
        core: PeerCore,
        *,
        tell: Callable[[Event], None],
        on_plain: Callable[[bytes, list[Buffer], Answerer], None],
        on_ingest: Callable[[bytes, list[Buffer]], None],
        on_interest_changed: Callable[[], None],
    ) -> None:
        """Raises: UsageError when a port is in use (then nothing stays open)."""
        self._core, self._tell, self._on_plain = core, tell, on_plain
        self._backlogs: dict[Session, _Backlog] = {}
        self.counters: Counter[str] = Counter()  # too_slow
        self._judged: dict[bytes, Principal | None] = {}  # of the feed's subscribers, when last looked at
        self._recheck: asyncio.TimerHandle | None = None
        self._zap = ZapHandler(context, self._admit)
        self._servers: dict[str, RouterServer] = {}
        self._feed: FeedServer | None = None
        self._ingest: IngestServer | None = None
        public_key, secret_key = papers.identity.curve_public, papers.identity.curve_secret
        try:
            for door, offset, affinity in (
                (CLIENTS, REQUESTS, CLIENTS_THREAD),
                (PEERS, PEERS_PORT, PEERS_THREAD),
            ):
                bounds = BOUNDS_OF_CLIENTS | UNREAD if door == CLIENTS else BOUNDS_OF_PEERS
                self._servers[door] = RouterServer(
                    context,
                    endpoints=listen(settings, offset),
                    domain=door,
                    affinity=affinity,
                    message_bytes_max=MESSAGE_BYTES_MAX,
                    hwm=SEND_QUEUE_MAX,
                    on_message=partial(self._on_message, door),
                    public_key=public_key,
                    secret_key=secret_key,
                    **bounds,
                )
            self._feed = FeedServer(
                context,
                endpoints=listen(settings, FEED),
                domain=CLIENTS,
                on_subscribe=self._approve,
                on_interest_changed=on_interest_changed,
                public_key=public_key,
                secret_key=secret_key,
                allowance=Allowance.of_known(),
            )
            self._ingest = IngestServer(
                context,
                endpoints=listen(settings, INGEST),
                domain=CLIENTS,
                message_bytes_max=MESSAGE_BYTES_MAX,
                on_message=on_ingest,
                public_key=public_key,
                secret_key=secret_key,
                **BOUNDS_OF_CLIENTS,
            )
        except BaseException:
            self.close()
            raise
        self.recheck()

    def recheck(self) -> None:
        """Cut subscribers whose key has expired or has other rights now: they come back to what holds."""
        judged: dict[bytes, Principal | None] = {}
        for key in self.feed.subscribers():
            try:
                judged[key] = self._core.ctx.principal(key)
            except MeshqError:
                judged[key] = None
            if judged[key] is None or judged[key] != self._judged.get(key, judged[key]):
                self.feed.disconnect(key)
        self._judged = judged
        self._recheck = asyncio.get_running_loop().call_later(RECHECK_S, self.recheck)

    @property
    def feed(self) -> FeedServer:
        assert self._feed is not None
        return self._feed

    def close(self) -> None:
        if self._recheck is not None:
            self._recheck.cancel()
        for server in (*self._servers.values(), self._feed, self._ingest):
            if server is not None:
                server.close()
        self._zap.close()

    # ------------------------------------------------------------------------------------------- in
    def _admit(self, domain: str, key: bytes, address: str) -> str | None:
        """ZAP's question. The door admits any key: what is said there proves itself."""
        if domain == "door":
            return key.hex()
        try:
            principal = self._core.ctx.principal(key)
        except MeshqError:
            return None
        return key.hex() if domain == CLIENTS or principal.kind == "peer" else None

    def _approve(self, key: bytes, prefix: bytes) -> list[bytes]:
        try:
            return self._core.ctx.principal(key).feed_subscriptions(prefix)
        except MeshqError:
            return []

    def _on_message(self, door: str, connection: bytes, key: bytes, frames: list[Buffer]) -> None:
        session = door, connection
        if bytes(frames[0][:3]) != messages.VERB:
            if door == CLIENTS:
                self._on_plain(key, frames, lambda parts: self._send(session, parts))
            return
        try:
            if len(frames) < 2:
                raise RemoteProtocolError("a message of one frame")
            message = messages.decode_request(frames[1])
        except RemoteProtocolError as e:
            self._tell(MalformedArrived(session, key, e))
            return
        self._tell(MessageArrived(session, key, message, frames[2:]))

    # ------------------------------------------------------------------------------------------ out
    def send(self, effect: SendSession) -> None:
        frames = [messages.VERB, messages.encode(effect.message), *effect.payloads]
        self._send(effect.session, frames, effect.message)

    def _send(
        self, session: Session, frames: list[Buffer], message: messages.ServerMessage | None = None
    ) -> None:
        server, backlog = self._servers[session[0]], self._backlogs.get(session)
        if session[0] == CLIENTS:
            server.on_given(session[1], sum(map(len, frames)))
        if backlog is None:
            sent = server.send(session[1], frames)
            if sent is Sent.OK:
                return
            if sent is Sent.GONE:
                self._tell(SessionClosed(session, message))
                return
            backlog = self._backlogs[session] = _Backlog()
            self._wait_for_room(session)
        backlog.messages.append(frames)
        backlog.bytes += sum(map(len, frames))
        if backlog.bytes > BACKLOG_BYTES_MAX:
            log.warning("A client does not read what it asked for: closed", extra={"event": "SessionTooSlow"})
            del self._backlogs[session]
            self.counters["too_slow"] += 1
            self._tell(SessionClosed(session))

    def _wait_for_room(self, session: Session) -> None:
        self._servers[session[0]].call_when_writable(lambda: self._flush(session))

    def _flush(self, session: Session) -> None:
        backlog = self._backlogs.get(session)
        if backlog is None:
            return
        while backlog.messages:
            sent = self._servers[session[0]].send(session[1], backlog.messages[0])
            if sent is Sent.FULL:
                self._wait_for_room(session)
                return
            if sent is Sent.GONE:
                del self._backlogs[session]
                self._tell(SessionClosed(session))
                return
            backlog.bytes -= sum(len(f) for f in backlog.messages.popleft())
        del self._backlogs[session]
