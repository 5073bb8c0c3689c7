"""What arrives in sessions: who says it, whether they may, and which part of the core it is for.

A session begins with Hello. Every message is judged by its connection's key, against the registry as it is
then; what goes wrong is answered where it was asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshq.batch import Buffer
from meshq.errors import Forbidden, MeshqError, RemoteProtocolError, UsageError
from meshq.ids import Session
from meshq.messages import (
    VERSION_MAX,
    VERSION_MIN,
    AnyMessage,
    Ask,
    Beat,
    CarryGossip,
    Credit,
    HasLeft,
    Hello,
    Join,
    Leads,
    MembershipAsked,
    NotMember,
    PeerMessage,
    Ping,
    Pong,
    Produce,
    ProposeRegistry,
    Read,
    Replicate,
    Resolve,
    Settle,
    Unread,
    Unwatch,
    Watch,
    Welcome,
)
from meshq.peer.core.events import PEERS, MessageArrived, TellMembership
from meshq.peer.core.sessions import is_peers
from meshq.security.authorization import Principal

if TYPE_CHECKING:
    from meshq.peer.core.core import PeerCore


@dataclass(frozen=True, slots=True)
class Requests:
    core: PeerCore

    def on_message(self, event: MessageArrived) -> None:
        session, message = event.session, event.message
        try:
            principal = self.core.ctx.principal(event.key)
            if isinstance(message, Hello):
                self._on_hello(session, principal, message)
                return
            state = self.core.ctx.sessions.states.get(session)
            if state is None:
                raise RemoteProtocolError("say Hello first (this connection has no session here)")
            state.heard = self.core.ctx.now
            self._dispatch(session, principal, message, tuple(event.payloads))
        except MeshqError as e:
            self.core.ctx.fail(session, getattr(message, "request", 0), e)

    def _on_hello(self, session: Session, principal: Principal, message: Hello) -> None:
        if message.version_min > VERSION_MAX or message.version_max < VERSION_MIN:
            raise UsageError(
                f"this peer speaks versions {VERSION_MIN} to {VERSION_MAX} of the protocol, the other side "
                f"{message.version_min} to {message.version_max}: upgrade the older one"
            )
        if message.mesh and message.mesh != self.core.ctx.registry.mesh:
            raise Forbidden("this peer belongs to another mesh")
        self.core.ctx.sessions.open(session, principal, message.name, self.core.ctx.now)
        me = self.core.ctx.me
        version = min(VERSION_MAX, message.version_max)
        mesh, now_ms = self.core.ctx.registry.mesh, self.core.ctx.wall_ms
        m, rolled_back = message, False
        if session[0] == PEERS and principal.peer_id is not None:
            rolled_back = self.core.disks.judge(principal.peer_id, m.disk, m.epoch, m.boot)
        welcome = Welcome(version, mesh, me.peer, me.boot, now_ms, me.disk, me.epoch, rolled_back)
        self.core.ctx.send(session, welcome)
        if session[0] != PEERS:
            self.core.ctx.send(session, self.core.whereabouts.routes())

    def _dispatch(
        self, session: Session, principal: Principal, message: AnyMessage, payloads: tuple[Buffer, ...]
    ) -> None:
        match message:
            case Produce():
                self.core.publishing.on_produce(session, principal, message, payloads)
            case Credit():
                self.core.consuming.on_heard((session, message.sub))
                self.core.reading.on_credit(session, message)
            case Ping():
                self.core.ctx.send(session, Pong(message.token, self.core.ctx.wall_ms))
            case Resolve():
                self.core.naming.on_resolve(session, principal, message)
            case Watch():
                self.core.naming.on_watch(session, principal, message)
            case Unwatch():
                self.core.naming.on_unwatch(session, message)
            case Read():
                self.core.reading.on_read(session, principal, message)
            case Unread():
                self.core.consuming.on_unread(session, message)
                self.core.reading.on_unread(session, message)
            case Join():
                self.core.consuming.on_join(session, principal, message)
            case Settle():
                self.core.consuming.on_settle(session, message)
            case Ask():
                self.core.admin.on_ask(session, principal, message)
            case (
                ProposeRegistry()
                | Replicate()
                | Beat()
                | Leads()
                | CarryGossip()
                | MembershipAsked()
                | NotMember()
                | HasLeft()
            ):
                self._on_peers_request(session, principal, message, payloads)
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} is not for a peer to receive")

    def _on_peers_request(
        self, session: Session, principal: Principal, message: PeerMessage, payloads: tuple[Buffer, ...]
    ) -> None:
        peer = principal.peer_id
        if peer is None or not is_peers(session, principal):
            raise Forbidden(f"{type(message).__name__} is between peers only")
        match message:
            case ProposeRegistry():
                self.core.registrar.on_propose(session, message)
            case Replicate():
                self.core.replicating.on_replicate(peer, message, payloads, self.core.slots)
            case Beat():
                self.core.liveness.on_beat(peer, message)
            case Leads():
                self.core.whereabouts.on_leads(peer, message)
            case MembershipAsked():
                self.core.leaving.on_asked(peer, message)
            case NotMember():
                self.core.leaving.on_answer(message)
            case HasLeft():
                self.core.draining.on_has_left(message)
            case CarryGossip():
                self.core.ctx.out.append(TellMembership(peer, message.payload))
