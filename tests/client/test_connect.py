"""Over real CURVE sockets: connecting, being refused, and the synchronous twin."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import zmq
from zmq.utils import z85

from meshq.batch import Buffer
from meshq.client import loop_thread, sync
from meshq.client.connect import connect
from meshq.client.records import Receipt
from meshq.errors import (
    Forbidden,
    OutcomeUnknown,
    Overloaded,
    RegistryUnavailable,
    TooLarge,
    Unavailable,
    UsageError,
)
from meshq.ids import mesh_id_of
from meshq.limits import MESSAGE_BYTES_MAX
from meshq.messages import VERB, Message, decode_request, encode
from meshq.security.credentials import Credentials, CredentialsPeer
from meshq.transport.context import CLIENTS_THREAD, make_context
from meshq.transport.server import RouterServer
from meshq.transport.zap import ZapHandler

from .fake_peer import FakeMesh, Session

AUTHORITY = bytes(range(32))


def new_keys() -> tuple[bytes, bytes]:
    public, secret = zmq.curve_keypair()
    return z85.decode(public), z85.decode(secret)


class TcpMesh:
    """A FakeMesh of one peer behind a real listener; one client key is admitted."""

    def __init__(self) -> None:
        self.fake = FakeMesh()
        self.fake.mesh_id = mesh_id_of(AUTHORITY)
        self.client = new_keys()
        self._context = make_context()
        self._zap = ZapHandler(self._context, lambda d, key, a: "x" if key == self.client[0] else None)
        self._keys = new_keys()
        self._sessions: dict[bytes, Session] = {}
        self._server = self._listen("tcp://127.0.0.1:0")
        self.endpoint = self._server.bound[0]
        self.fake.keys[0] = self._keys[0]
        self.fake.addresses[0] = self.endpoint.removeprefix("tcp://")

    def _listen(self, endpoint: str) -> RouterServer:
        return RouterServer(
            self._context,
            endpoints=[endpoint],
            public_key=self._keys[0],
            secret_key=self._keys[1],
            domain="requests",
            affinity=CLIENTS_THREAD,
            message_bytes_max=MESSAGE_BYTES_MAX,
            on_message=self._on_message,
        )

    def _on_message(self, session: bytes, _key: bytes, frames: list[Buffer]) -> None:
        peer = self.fake.peers[0]
        if session not in self._sessions:
            self._sessions[session] = Session(peer, lambda m, p: self._send(session, m, p))
            peer.sessions.append(self._sessions[session])
        peer.hear(self._sessions[session], decode_request(bytes(frames[1])), frames[2:])

    def _send(self, session: bytes, message: Message, payloads: tuple[Buffer, ...]) -> None:
        self._server.send(session, [VERB, encode(message), *payloads])

    async def restart(self) -> None:
        self._server.close()
        self._sessions.clear()
        self.fake.peers[0].sessions.clear()
        async with asyncio.timeout(5):
            while True:  # libzmq lets go of the port a moment later
                try:
                    self._server = self._listen(self.endpoint)
                    return
                except UsageError:
                    await asyncio.sleep(0.002)

    def credentials(self, *, endpoint: str = "", keys: tuple[bytes, bytes] | None = None) -> Credentials:
        public, secret = keys or self.client
        at = endpoint or self.endpoint
        peer = CredentialsPeer("peer1", at, at, at, self._keys[0])
        return Credentials(AUTHORITY, "app", public, secret, (peer,))

    def close(self) -> None:
        self._server.close()
        self._zap.close()
        self._context.term()


@asynccontextmanager
async def tcp_mesh() -> AsyncIterator[TcpMesh]:
    mesh = TcpMesh()
    try:
        yield mesh
    finally:
        mesh.close()


@contextmanager
def tcp_mesh_in_a_thread() -> Iterator[TcpMesh]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def make() -> TcpMesh:
        return TcpMesh()

    async def close(mesh: TcpMesh) -> None:
        mesh.close()

    mesh = asyncio.run_coroutine_threadsafe(make(), loop).result(5)
    try:
        yield mesh
    finally:
        asyncio.run_coroutine_threadsafe(close(mesh), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def unused_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


async def test_publishes_and_reads_over_a_socket() -> None:
    async with tcp_mesh() as tcp, connect(tcp.credentials()) as mesh:
        records = mesh.subscribe("t", start="earliest")
        assert await mesh.publish("t", b"x" * 100_000) == Receipt("t", 0, 0, 1)
        record = await anext(records)
        assert record.value == b"x" * 100_000


async def test_a_restarted_peer_is_connected_to_again() -> None:
    async with tcp_mesh() as tcp, connect(tcp.credentials()) as mesh, mesh.subscribe("t") as records:
        await records.ready()
        for i in range(3):
            await mesh.publish("t", b"%d" % i)
            await tcp.restart()
        assert [(await anext(records)).value for _ in range(3)] == [b"0", b"1", b"2"]
        assert tcp.fake.records("t") == [b"0", b"1", b"2"]


async def test_await_gives_a_mesh_to_close_oneself() -> None:
    async with tcp_mesh() as tcp:
        mesh = await connect(tcp.credentials(endpoint=tcp.endpoint.replace("127.0.0.1", "localhost")))
        await mesh.publish("t", b"")
        await mesh.close()
        await mesh.close()


async def test_names_each_address_and_reason_when_nobody_is_there() -> None:
    async with tcp_mesh() as tcp:
        endpoint = f"tcp://127.0.0.1:{unused_port()}"
        with pytest.raises(Unavailable, match=f"peer1 at {endpoint}: nobody listens there"):
            await connect(tcp.credentials(endpoint=endpoint), timeout=0.5)


async def test_says_that_the_key_was_refused() -> None:
    async with tcp_mesh() as tcp:
        with pytest.raises(Unavailable, match="the peer refused this key"):
            await connect(tcp.credentials(keys=new_keys()), timeout=0.5)


async def test_a_peer_of_another_mesh_is_not_taken() -> None:
    async with tcp_mesh() as tcp:
        tcp.fake.mesh_id = bytes(16)
        with pytest.raises(Unavailable, match="it belongs to another mesh"):
            await connect(tcp.credentials(), timeout=0.5)


async def test_data_needs_a_running_peer_and_its_admin_credentials(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=f"no peer is running on {tmp_path}.*meshq up --data"):
        await connect(data=tmp_path)
    async with tcp_mesh() as tcp:
        (tmp_path / "run.json").write_text("{}")
        tcp.credentials().save(tmp_path / "admin.meshq")
        async with connect(data=tmp_path) as mesh:
            await mesh.publish("t", b"")
        async with connect(str(tmp_path / "admin.meshq")) as mesh:
            await mesh.publish("t", b"")


def test_needs_exactly_one_way_to_find_the_mesh() -> None:
    with pytest.raises(UsageError, match="one of them"):
        connect()
    with pytest.raises(UsageError, match="one of them"):
        connect("app.meshq", data=".")


def test_the_synchronous_twin_does_the_same() -> None:
    with tcp_mesh_in_a_thread() as tcp, sync.connect(tcp.credentials()) as mesh:
        assert mesh.publish("t", b"zero") == Receipt("t", 0, 0, 1)
        with mesh.producer("t", linger_ms=1) as out:
            results = [out.send(b"%d" % i) for i in range(1_000)]
            assert [r.result().offset for r in results] == list(range(1, 1_001))
        with mesh.subscribe("t", start="earliest") as records:
            records.ready()
            assert [next(records).offset for _ in range(1_001)] == list(range(1_001))
            assert records.positions() == {("t", 0): 1_001}
            assert records.next(timeout=0.02) is None
            mesh.publish("t", b"last")
            found = records.next(timeout=5)
            assert found is not None and found.value == b"last"
        assert [t.name for t in mesh.topics()] == ["t"]
        assert mesh.ask("status") == {"what": "status"}
        with pytest.raises(StopIteration):
            next(records)


def test_the_synchronous_producer_tells_of_failures_and_of_a_full_buffer() -> None:
    with tcp_mesh_in_a_thread() as tcp, sync.connect(tcp.credentials()) as mesh:
        tcp.fake.refuse = lambda item, payload: Forbidden("not you")
        with pytest.raises(Forbidden):
            mesh.publish("t", b"")
        with pytest.raises(Forbidden, match="1 records"), mesh.producer("t") as out:
            out.send(b"x")
        with pytest.raises(UsageError, match="was closed"):
            out.send(b"x")
        tcp.fake.refuse = lambda item, payload: None
        with mesh.producer("t", buffer_bytes=5_000) as out:
            sent = 0
            while sent < 500:
                try:
                    out.send(b"x" * 100)
                    sent += 1
                except Overloaded:
                    out.ready()
        assert len(tcp.fake.records("t")) == 500


def test_closing_a_synchronous_mesh_sends_what_was_taken_and_tells_what_failed() -> None:
    with tcp_mesh_in_a_thread() as tcp:
        tcp.fake.add_topic("t", record_bytes_max=100)
        mesh = sync.connect(tcp.credentials())
        mesh.producer("t").send(b"taken")
        mesh.close()
        assert tcp.fake.records("t") == [b"taken"]

        mesh = sync.connect(tcp.credentials())
        out = mesh.producer("t")
        assert out.send(b"x").result().offset == 1
        too_large = [out.send(b"x" * 101) for _ in range(3)]
        with pytest.raises(TooLarge):
            too_large[1].result()
        with pytest.raises(TooLarge, match="2 records were refused"):
            mesh.close()
        with pytest.raises(Unavailable, match="client was closed"):
            out.send(b"nobody would ever send it")


def test_the_synchronous_producer_bounds_what_records_take_not_their_values_alone() -> None:
    with tcp_mesh_in_a_thread() as tcp, sync.connect(tcp.credentials()) as mesh:
        tcp.fake.refuse_resolve = lambda name: RegistryUnavailable("for now")
        out = mesh.producer("t", buffer_bytes=5_000)
        with pytest.raises(Overloaded):
            for _ in range(60):
                out.send(b"", key=b"k" * 100)
        tcp.fake.refuse_resolve = lambda name: None
        out.close()


def test_positions_count_what_an_interrupted_call_had_fetched() -> None:
    with tcp_mesh_in_a_thread() as tcp, sync.connect(tcp.credentials()) as mesh:
        mesh.publish("t", b"zero")
        with mesh.subscribe("t", start="earliest") as records:
            records._fetch(5)
            records._fetched.append(records._records[::-1])  # where Ctrl-C between the two steps leaves it
            records._records = []
            assert records.positions() == {("t", 0): 0}
            assert next(records).offset == 0
            assert records.positions() == {("t", 0): 1}


def test_a_flush_whose_loop_stalled_looks_once_more_and_never_says_certainly_not_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_thread, "GRACE_S", 0.2)
    asked, answer, stalled, go_on = (threading.Event() for _ in range(4))

    def hold(item: object, payload: bytes) -> None:
        asked.set()
        answer.wait(10)

    def stall() -> None:
        stalled.set()
        go_on.wait(10)

    def meddle(thread: loop_thread.LoopThread) -> None:
        """The loop stalls while the receipt is on its way, so that it waits in the socket."""
        asked.wait(10)
        thread.post(stall)
        stalled.wait(10)
        answer.set()

    settle = loop_thread.LoopThread._let_settle
    with tcp_mesh_in_a_thread() as tcp:
        tcp.fake.add_topic("t")
        tcp.fake.refuse = hold
        mesh = sync.connect(tcp.credentials())
        meddler = threading.Thread(target=meddle, args=(mesh._thread,))
        meddler.start()
        out = mesh.producer("t", timeout=0.3)
        out.send(b"stored")
        monkeypatch.setattr(
            loop_thread.LoopThread, "_let_settle", lambda self: (go_on.set(), settle(self))
        )  # fmt: skip
        out.flush()  # the receipt was there: no error
        meddler.join()

        monkeypatch.setattr(loop_thread.LoopThread, "_let_settle", settle)
        go_on.clear()
        mesh._thread.post(stall)
        out.send(b"stored, too")
        with pytest.raises(OutcomeUnknown):
            out.flush()
        go_on.set()
        with contextlib.suppress(OutcomeUnknown):  # its own deadline may have passed meanwhile
            mesh.close()


def test_a_closed_synchronous_mesh_says_so() -> None:
    with tcp_mesh_in_a_thread() as tcp:
        mesh = sync.connect(tcp.credentials())
        mesh.close()
        mesh.close()
        with pytest.raises(Unavailable, match="closed"):
            mesh.publish("t", b"")
        with pytest.raises(Unavailable, match="nobody listens"):
            sync.connect(tcp.credentials(endpoint=f"tcp://127.0.0.1:{unused_port()}"), timeout=0.3)
