"""A loop, a context with a ZAP handler, and stock pyzmq sockets in another context as the outside world."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import zmq
from zmq.utils import z85

from meshq.transport.context import make_context
from meshq.transport.feed import FeedServer
from meshq.transport.ingest import IngestServer
from meshq.transport.link import Link
from meshq.transport.server import RouterServer
from meshq.transport.zap import ZapHandler

DEADLINE_S = 12.0
ANY_PORT = "tcp://127.0.0.1:0"


FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


def new_keys() -> tuple[bytes, bytes]:
    public, secret = zmq.curve_keypair()
    return z85.decode(public), z85.decode(secret)


class World:
    def __init__(self) -> None:
        self.context = make_context()
        self.outside: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.public, self.secret = new_keys()
        self.admitted: set[tuple[str, bytes]] = set()
        self.open: list[Any] = []
        self.failures: dict[zmq.Socket[bytes], zmq.Socket[bytes]] = {}
        self.zap = self.own(ZapHandler(self.context, self.decide))

    def decide(self, domain: str, key: bytes, _address: str) -> str | None:
        return key.hex() if (domain, key) in self.admitted else None

    new_keys = staticmethod(new_keys)

    @staticmethod
    def loop_time() -> float:
        return time.monotonic()

    def own(self, thing: Any) -> Any:
        self.open.append(thing)
        return thing

    def close(self) -> None:
        for thing in reversed(self.open):
            thing.close()
        self.context.term()
        self.outside.destroy(linger=0)

    def admit(self, domain: str) -> tuple[bytes, bytes]:
        keys = new_keys()
        self.admitted.add((domain, keys[0]))
        return keys

    def _server(self, cls: Any, domain: str, options: dict[str, Any]) -> Any:
        given = {
            "endpoints": [ANY_PORT],
            "public_key": self.public,
            "secret_key": self.secret,
            "domain": domain,
        }
        return self.own(cls(self.context, **(given | options)))

    def router(self, on_message: Any = lambda *_: None, **options: Any) -> RouterServer:
        given = {"affinity": 1, "message_bytes_max": 1 << 20, "on_message": on_message}
        return self._server(RouterServer, "requests", given | options)  # type: ignore[no-any-return]

    def feed(self, on_subscribe: Any = lambda _key, prefix: [prefix], **options: Any) -> FeedServer:
        return self._server(FeedServer, "feed", {"on_subscribe": on_subscribe} | options)  # type: ignore[no-any-return]

    def ingest(self, on_message: Any = lambda *_: None, **options: Any) -> IngestServer:
        given = {"message_bytes_max": 1 << 20, "on_message": on_message}
        return self._server(IngestServer, "ingest", given | options)  # type: ignore[no-any-return]

    def link(self, endpoint: str, keys: tuple[bytes, bytes], log: list[Any], **options: Any) -> Link:
        given = {
            "server_key": self.public,
            "on_up": lambda: log.append("up"),
            "on_down": lambda reason: log.append(("down", reason)),
            "on_frames": lambda frames: log.append([bytes(f) for f in frames]),
            "message_bytes_max": 1 << 24,
        }
        made = Link(
            self.context, endpoint=endpoint, public_key=keys[0], secret_key=keys[1], **(given | options)
        )
        return self.own(made)  # type: ignore[no-any-return]

    def client(
        self, kind: int, endpoint: str, keys: tuple[bytes, bytes] | None, *, server_key: bytes | None = None,
        stranger: bool = False, **options: Any,
    ) -> zmq.Socket[bytes]:  # fmt: skip
        """A stock pyzmq socket; without keys it speaks NULL. A `stranger` can be waited for in `refused`."""
        socket = self.outside.socket(kind)
        self.own(socket)
        socket.setsockopt(zmq.LINGER, 0)
        if keys is not None:
            socket.setsockopt(zmq.CURVE_PUBLICKEY, keys[0])
            socket.setsockopt(zmq.CURVE_SECRETKEY, keys[1])
            socket.setsockopt(zmq.CURVE_SERVERKEY, server_key or self.public)
        for name, value in options.items():
            socket.setsockopt(getattr(zmq, name), value)
        if stranger:  # before it connects: some failures are told once
            address = f"inproc://test-{id(socket)}"
            socket.monitor(address, FAILURES)
            self.own(self.outside.socket(zmq.PAIR)).connect(address)
            self.failures[socket] = self.open[-1]
        socket.connect(endpoint)
        return socket

    async def until(self, condition: Callable[[], Any], what: str = "the condition") -> Any:
        deadline = time.monotonic() + DEADLINE_S
        while not (value := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"waited in vain for {what}")
            await asyncio.sleep(0.002)
        return value

    async def receive(self, socket: zmq.Socket[bytes]) -> list[bytes]:
        await self.until(lambda: socket.poll(0), "a message")
        return socket.recv_multipart()

    async def refused(self, socket: zmq.Socket[bytes]) -> int:
        """The event by which this stranger's socket hears that its handshake failed."""
        frames = await self.receive(self.failures[socket])
        return int.from_bytes(frames[0][:2], "little")


@pytest.fixture
def run() -> Iterator[Callable[[Callable[[World], Awaitable[None]]], None]]:
    """Run a scenario in a loop and a world of its own; everything must close cleanly afterwards."""

    def runner(scenario: Callable[[World], Awaitable[None]]) -> None:
        async def main() -> None:
            world = World()
            try:
                await asyncio.wait_for(scenario(world), 2 * DEADLINE_S)
            finally:
                world.close()

        asyncio.run(main())
        gc.collect()  # so that what was left open complains here

    yield runner
