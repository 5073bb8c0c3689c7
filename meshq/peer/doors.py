"""The door, both sides: the socket where tokens and certificates are shown, and the calls that show them.

The door has its own port and its own limits; any CURVE key may knock (it proves only that the caller holds
it), and nothing but a JoinRequest or a Present is read there. So a connection may send little more than one
of them, and does not stay.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import zmq

from meshq.batch import Buffer
from meshq.errors import MeshqError, Overloaded, SecurityError, Unavailable
from meshq.ids import PeerId
from meshq.limits import DOOR_CALLERS_MAX, DOOR_FRAME_BYTES_MAX
from meshq.peer.core.core import PeerCore
from meshq.registry import commands
from meshq.registry.commands import RegisterPeer
from meshq.security import door
from meshq.security.certificates import Certificate, SignedCertificate, new_serial, verify_signature
from meshq.security.directory import DataDirectory, Loaded, create_joined
from meshq.security.identity import Identity
from meshq.security.tokens import Token
from meshq.transport.allowance import Allowance
from meshq.transport.context import CLIENTS_THREAD, make_context
from meshq.transport.link import NOT_A_PEER, Link
from meshq.transport.server import RouterServer
from meshq.transport.sparingly import Sparingly

log = logging.getLogger(__name__)
CALL_S = 10.0
VISIT_BYTES_MAX = 4 * DOOR_FRAME_BYTES_MAX  # one caller in all: handshake and one request


class Door:
    """Serves joins (on a peer that holds the authority) and certificates shown (on any)."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoints: Sequence[str],
        papers: Loaded,
        directory: DataDirectory,
        core: PeerCore,
        propose: Callable[[bytes], Awaitable[int]],
        on_presented: Callable[[Certificate], None],
    ) -> None:
        self._papers, self._directory, self._core, self._propose = papers, directory, core, propose
        self._on_presented = on_presented
        self._callers: set[asyncio.Task[None]] = set()
        self._logged = Sparingly()
        self._server = RouterServer(
            context,
            endpoints=endpoints,
            public_key=papers.identity.curve_public,
            secret_key=papers.identity.curve_secret,
            domain="door",
            affinity=CLIENTS_THREAD,
            message_bytes_max=DOOR_FRAME_BYTES_MAX,
            on_message=self._on_message,
            frames_max=1,
            allowance=Allowance(VISIT_BYTES_MAX),
        )

    @property
    def counters(self) -> Mapping[str, int]:
        return self._server.counters

    def close(self) -> None:
        """Idempotent."""
        for task in self._callers:
            task.cancel()
        self._server.close()

    def _on_message(self, session: bytes, key: bytes, frames: list[Buffer]) -> None:
        if len(self._callers) >= DOOR_CALLERS_MAX:
            self._server.counters["refused_Overloaded"] += 1
            busy = Overloaded("too many callers at this door: try again", retry_after_ms=1_000)
            self._server.send(session, [door.refused(busy)])
            return
        task = asyncio.get_running_loop().create_task(self._serve(session, key, bytes(frames[0])))
        self._callers.add(task)
        task.add_done_callback(self._callers.discard)

    async def _serve(self, session: bytes, key: bytes, data: bytes) -> None:
        try:
            reply = await self._answer(key, data)
        except MeshqError as e:
            self._server.counters[f"refused_{type(e).__name__}"] += 1
            if (unsaid := self._logged.say(asyncio.get_running_loop().time())) is not None:
                log.info("Refused at the door: %s", e, extra={"event": "DoorRefused", "unsaid": unsaid})
            reply = door.refused(e)
        except Exception:
            log.exception("The door failed to answer", extra={"event": "DoorFailed"})
            reply = door.refused(Unavailable("this peer failed to answer; its log says why"))
        self._server.send(session, [reply])

    async def _answer(self, key: bytes, data: bytes) -> bytes:
        request = door.decode_request(data)
        now = time.time()
        if isinstance(request, door.Present):
            authority_key = self._papers.genesis.authority_key
            certificate = door.check_present(
                request, authority_key=authority_key, connection_key=key, now=now
            )
            if certificate.peer_id in self._core.ctx.registry.left:
                raise SecurityError(f"{certificate.name!r} has left the mesh: join again with a new token")
            self._on_presented(certificate)
            return door.admitted()
        authority = self._papers.authority
        if authority is None:
            raise SecurityError(
                "this peer does not hold the mesh's authority: use a token of the peer that made the mesh"
            )
        registry = self._core.ctx.registry
        names = {r.facts.name: peer for peer, r in registry.peers.items()}
        pending = door.check_join(
            request,
            authority=authority,
            invites=self._directory.invites,
            existing_names=names,
            connection_key=key,
            serial=new_serial(),
            now=now,
            level=registry.level,
        )
        claimed = door.claim_join(pending, invites=self._directory.invites, now=now)
        await self._propose(commands.encode(RegisterPeer(claimed.signed.encode())))
        log.info("Admitted %s", claimed.certificate.name, extra={"event": "PeerJoined"})
        certificates = [SignedCertificate.decode(r.certificate) for r in registry.peers.values()]
        return door.finish_join(
            claimed,
            genesis=self._papers.signed_genesis,
            keyring=self._papers.keyring,
            certificates=certificates,
        )


class _AnotherPeer(Unavailable):
    """Somebody listens there who does not have the key that was expected."""


async def _call(
    context: zmq.Context[zmq.Socket[bytes]],
    endpoint: str,
    server_key: bytes,
    identity: Identity,
    request: bytes,
) -> bytes:
    """Say one thing at a door and hear the answer. Raises: Unavailable with the reason."""
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def on_down(reason: str) -> None:
        if not answer.done():
            error = _AnotherPeer if reason == NOT_A_PEER else Unavailable
            answer.set_exception(error(f"{endpoint}: {reason}"))

    def on_frames(frames: list[Buffer]) -> None:
        if not answer.done():
            answer.set_result(bytes(frames[0]))

    link = Link(
        context,
        endpoint=endpoint,
        server_key=server_key,
        public_key=identity.curve_public,
        secret_key=identity.curve_secret,
        on_up=lambda: None if link.send([request]) else on_down("could not be sent"),
        on_down=on_down,
        on_frames=on_frames,
        message_bytes_max=door.JOIN_REPLY_BYTES_MAX,
    )
    try:
        async with asyncio.timeout(CALL_S):
            return await answer
    except TimeoutError:
        raise Unavailable(f"{endpoint}: no answer within {CALL_S:g} s") from None
    finally:
        link.close()


async def join(
    path: Path, token_text: str, name: str, *, witness: bool = False
) -> tuple[DataDirectory, dict[PeerId, tuple[str, ...]]]:
    """Become a member: prove the token at the inviter's door and write the data directory.

    Returns the directory and where the inviter was reached, to be remembered.
    Raises: UsageError, SecurityError as the door refused, Unavailable naming every address tried.
    """
    token = Token.parse(token_text)
    directory = DataDirectory(path)
    identity = directory.begin_join(name)
    request = door.join_request(token, identity, time.time(), nonce=door.new_nonce(), witness=witness)
    context = make_context()
    failures: list[Unavailable] = []
    try:
        for place in token.places:
            try:
                data = await _call(context, f"tcp://{place.door}", token.inviter_key, identity, request)
            except Unavailable as e:
                failures.append(e)
                continue
            joined = door.accept_reply(token, identity, data, time.time(), witness=witness)
            directory = create_joined(path, identity, joined)
            known = [verify_signature(c, joined.authority_key) for c in joined.certificates]
            return directory, {c.peer_id: (place.address,) for c in known if c.curve_key == token.inviter_key}
    finally:
        context.term()
    tried = "; ".join(map(str, failures))
    if any(isinstance(e, _AnotherPeer) for e in failures):
        raise SecurityError(
            "who answers there is not the peer that made this token (another mesh, or made anew): ask for a "
            f"new token ({tried})"
        )
    raise Unavailable(
        f"the inviting peer cannot be reached: {tried}. Is it running (`meshq up`) and do its ports get "
        "through the firewall? A token made with --advertise HOST:PORT carries another address"
    )


async def present(
    context: zmq.Context[zmq.Socket[bytes]], door_endpoint: str, server_key: bytes, papers: Loaded
) -> None:
    """Show our certificate to a peer that does not know us yet. Raises: SecurityError, Unavailable."""
    data = await _call(
        context, door_endpoint, server_key, papers.identity, door.present(papers.signed_certificate)
    )
    door.accept_admission(data)
