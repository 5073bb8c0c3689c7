"""Plain ZeroMQ: the endpoints that any language's ZeroMQ reaches with nothing but a CURVE key pair.

REQ or DEALER on `requests` gets an answer, PUB to `ingest` gets none, SUB on `feed` gets records from now on,
at most once. Behind all three stands this peer's own client (`gateway`), so that any peer serves any topic:
what another peer owns is published and read there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from meshq.batch import Buffer
from meshq.client.mesh import Mesh
from meshq.errors import Forbidden, MeshqError, Overloaded, RemoteProtocolError, UnknownTopic
from meshq.ids import PeerId
from meshq.limits import HEADERS_MAX, INGEST_BUFFER_BYTES
from meshq.peer.core.core import PeerCore
from meshq.security.authorization import Principal
from meshq.topics import check_topic, is_internal

log = logging.getLogger(__name__)
Headers = Annotated[dict[str, bytes], Meta(max_length=HEADERS_MAX)]
_headers: msgspec.msgpack.Decoder[dict[str, bytes]] = msgspec.msgpack.Decoder(Headers)
VERBS = (b"PUB", b"PEERS")
TIMEOUT_S = 30.0
ENVELOPE_FRAMES_MAX = 8  # status 400
ENVELOPE_BYTES_MAX = 1_024  # status 400
BYTES_PER_KEY_MAX = INGEST_BUFFER_BYTES // 4  # waiting under one key, besides a first one that is larger
OVERHEAD_BYTES = 512  # what waits costs more than its bytes


class Plain:
    """Publishes for plain sockets; `who(key)` says whose a connection's key is, or raises; `exists(topic)`
    whether there is such a topic, for those that only an administrator makes.
    """

    def __init__(
        self,
        gateway: Mesh,
        who: Callable[[bytes], Principal],
        peers: Callable[[], object],
        exists: Callable[[str], bool],
    ) -> None:
        self._gateway, self._who, self._peers, self._exists = gateway, who, peers, exists
        self._tasks: set[asyncio.Task[None]] = set()  # bounded by the bytes they hold
        self._bytes = 0
        self._bytes_of: Counter[bytes] = Counter()  # of keys that have something waiting
        self.counters: dict[str, int] = {}

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def on_request(self, key: bytes, frames: list[Buffer], answer: Callable[[list[Buffer]], None]) -> None:
        """A request of plain frames: an envelope through the first empty frame, if the first is no verb."""
        envelope: list[Buffer] = []
        size = _size(frames)
        try:
            if bytes(frames[0]) not in VERBS:
                ends = next((i for i, f in enumerate(frames) if len(f) == 0), None)
                if ends is None:
                    raise RemoteProtocolError("the first frame is no verb (PUB, PEERS) and no envelope ends")
                if ends >= ENVELOPE_FRAMES_MAX or sum(map(len, frames[:ends])) > ENVELOPE_BYTES_MAX:
                    raise RemoteProtocolError(
                        f"an envelope has at most {ENVELOPE_FRAMES_MAX} frames and {ENVELOPE_BYTES_MAX} bytes"
                    )
                envelope, frames = frames[: ends + 1], frames[ends + 1 :]
            self._on_verb(key, size, frames, lambda parts: answer([*envelope, *parts]))
        except MeshqError as e:
            answer([*envelope, *_refusal(e)])

    def _on_verb(
        self, key: bytes, size: int, frames: list[Buffer], answer: Callable[[list[Buffer]], None]
    ) -> None:
        verb = bytes(frames[0]) if frames else b""
        if verb == b"PEERS":
            self._who(key)
            answer([b"200", msgspec.msgpack.encode(self._peers())])
        elif verb == b"PUB":
            if not 4 <= len(frames) <= 5:
                raise RemoteProtocolError('PUB is ["PUB", topic, key, value] and perhaps msgpack headers')
            headers = frames[4] if len(frames) == 5 else None
            self._publish(key, size, frames[1], frames[3], bytes(frames[2]) or None, headers, answer)
        else:
            raise RemoteProtocolError(f"no verb is called {verb[:32]!r}: PUB or PEERS")

    def on_ingest(self, key: bytes, frames: list[Buffer]) -> None:
        """[topic, value] or [topic, headers, value] of a PUB socket: nobody to answer, so failures are
        counted.
        """
        try:
            if not 2 <= len(frames) <= 3:
                raise RemoteProtocolError("PUB sends [topic, value] or [topic, headers, value]")
            headers = frames[1] if len(frames) == 3 else None
            self._publish(key, _size(frames), frames[0], frames[-1], None, headers, lambda _: None)
        except MeshqError as e:
            self._count(f"ingest_{type(e).__name__}")

    def _publish(
        self,
        key: bytes,
        size: int,
        topic_frame: Buffer,
        value: Buffer,
        record_key: bytes | None,
        headers: Buffer | None,
        answer: Callable[[list[Buffer]], None],
    ) -> None:
        principal = self._who(key)
        topic = check_topic(bytes(topic_frame).decode("ascii", "replace"))
        if not principal.may_publish(topic):
            raise Forbidden(f"{principal.name!r} may not publish to {topic!r}: it has no capability for it")
        if is_internal(topic) and not principal.admin and not self._exists(topic):
            raise UnknownTopic(f"there is no topic {topic!r}: an administrator has to make it")
        found = _read_headers(headers)
        self._hold(key, size)
        task = asyncio.get_running_loop().create_task(
            self._store(topic, bytes(value), record_key, found, answer)
        )
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._let_go(task, key, size))

    def _hold(self, key: bytes, size: int) -> None:
        """Raises: Overloaded when too much is waiting already, of this key or of all."""
        mine = self._bytes_of[key]  # a Counter does not keep what it is only asked for
        if self._bytes + size > INGEST_BUFFER_BYTES or (mine and mine + size > BYTES_PER_KEY_MAX):
            whose = "this key" if mine + size > BYTES_PER_KEY_MAX else "this peer"
            raise Overloaded(f"{whose} has as many plain publishes waiting as it may", retry_after_ms=100)
        self._bytes += size
        self._bytes_of[key] += size

    def _let_go(self, task: asyncio.Task[None], key: bytes, size: int) -> None:
        self._tasks.discard(task)
        self._bytes -= size
        self._bytes_of[key] -= size
        if not self._bytes_of[key]:
            del self._bytes_of[key]

    async def _store(
        self,
        topic: str,
        value: bytes,
        key: bytes | None,
        headers: dict[str, bytes] | None,
        answer: Callable[[list[Buffer]], None],
    ) -> None:
        try:
            receipt = await self._gateway.publish_directly(
                topic, value, key=key, headers=headers, timeout=TIMEOUT_S
            )
        except MeshqError as e:
            self._count(f"plain_{type(e).__name__}")
            answer(_refusal(e))
        else:
            self._count("plain_published")
            body = {"topic": receipt.topic, "partition": receipt.partition, "offset": receipt.offset}
            answer([b"200", msgspec.msgpack.encode({**body, "copies": receipt.copies})])

    def _count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1


def peers_rows(core: PeerCore) -> list[dict[str, object]]:
    """What ["PEERS"] answers: addresses and authority-signed certificates."""
    registry = core.ctx.registry
    return [
        {
            "name": route.name,
            "server_key": route.server_key,
            "addresses": route.addresses,
            "alive": route.alive,
            "certificate": registry.peers[PeerId(route.peer)].certificate,
        }
        for route in core.whereabouts.routes().peers
    ]


def _size(frames: Sequence[Buffer]) -> int:
    return sum(len(f) for f in frames) + OVERHEAD_BYTES


def _read_headers(frame: Buffer | None) -> dict[str, bytes] | None:
    if frame is None or len(frame) == 0:
        return None
    try:
        return _headers.decode(frame)
    except (msgspec.MsgspecError, RecursionError, ValueError) as e:
        raise RemoteProtocolError(f"headers must be a msgpack map of text to bytes: {e}") from None


def _refusal(e: MeshqError) -> list[Buffer]:
    return [str(e.status).encode(), type(e).__name__.encode(), str(e).encode()[:2_000]]
