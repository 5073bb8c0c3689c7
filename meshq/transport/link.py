"""This side of one connection to a peer: a CURVE DEALER that lives exactly as long as the connection does.

libzmq would reconnect in silence and keep what was queued for a peer that has been restarted since, with
other sessions and another state. Here a connection that ends is an event: reconnecting is off, the socket's
monitor says what happened, `on_down(reason)` comes once and the owner makes a new Link when it wants to try
again. So nothing sent on one connection ever arrives on another, and who waits for an answer knows when it
will not come.

libzmq would look up a host name in the I/O thread that all connections share, and hold them up while DNS is
silent; so names are looked up first (`names.py`), within the time that connecting may take.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import zmq

from meshq.batch import Buffer
from meshq.errors import UsageError
from meshq.limits import FRAMES_MAX, HANDSHAKE_MS
from meshq.transport.context import CLIENTS_THREAD, notice_silence
from meshq.transport.drain import DRAIN_MESSAGES_MAX, Drain, content, guarded, receive, send
from meshq.transport.interfaces import format_address, parse_address
from meshq.transport.names import Lookup, SockAddr, is_name

CONNECT_TIMEOUT_S: Final = 3.0
SEND_QUEUE_MAX: Final = 1_000  # messages; `send` says no
RECEIVE_QUEUE_MAX: Final = 1_000  # messages; over it, TCP pushes back
SILENCE_MS: Final = 6_000

_EVENT = struct.Struct("=HI")
_EVENTS: Final = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
)  # fmt: skip
REFUSED_KEY: Final = "the peer refused this key"
NOT_A_PEER: Final = "not a meshq peer, or another server key"
NOBODY: Final = "nobody listens there (connection refused, or no way to that address)"
LOST: Final = "the connection was lost"
_REASONS: Final[dict[int, str]] = {
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): REFUSED_KEY,
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): NOT_A_PEER,
    int(
        zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    ): NOT_A_PEER,  # a CURVE server that cannot open our hello just closes
    int(zmq.EVENT_DISCONNECTED): LOST,
    int(zmq.EVENT_CLOSED): NOBODY,
}
_numbers = itertools.count()


class Link:
    """One connection. Callbacks come from the loop, never from inside a call of ours; none after `close()`.

    `on_up()` at most once, when the handshake is done and our key was admitted; then `on_frames(frames)`
    per message; `on_down(reason)` at most once, after which the link is closed. `on_writable()` when a
    queue that made `send` return False has room again. `counters`: too_many_frames, on_*_failed.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        *,
        endpoint: str,
        server_key: bytes,
        public_key: bytes,
        secret_key: bytes,
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        on_frames: Callable[[list[Buffer]], None],
        message_bytes_max: int,
        on_writable: Callable[[], None] | None = None,
        affinity: int = CLIENTS_THREAD,
        connect_timeout: float = CONNECT_TIMEOUT_S,
        hwm: int = SEND_QUEUE_MAX,
        frames_max: int = FRAMES_MAX,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.endpoint = endpoint
        self._on_up, self._on_down, self._on_frames = on_up, on_down, on_frames
        self._on_writable = on_writable
        self._frames_max = frames_max
        self._up = self._closed = self._full = False
        loop = asyncio.get_running_loop()
        self._socket = _dealer(context, server_key, public_key, secret_key)
        self._socket.setsockopt(zmq.AFFINITY, affinity)
        self._socket.setsockopt(zmq.MAXMSGSIZE, message_bytes_max)
        self._socket.setsockopt(zmq.SNDHWM, hwm)
        self._socket.setsockopt(zmq.CONNECT_TIMEOUT, int(connect_timeout * 1000))
        self._monitor = _monitor(context, self._socket)
        self._events = Drain(self._monitor, self._read_event)
        self._drain = Drain(self._socket, self._read, after=self._look_for_room)
        text = f"no answer within {connect_timeout:g} s"
        self._timer: asyncio.Handle = loop.call_later(connect_timeout, self._go_down, text)
        self._lookup: Lookup | None = None
        self._begin()

    @property
    def up(self) -> bool:
        return self._up

    def send(self, frames: Sequence[Buffer]) -> bool:
        """Queue one message, all of it or nothing; False when the link is not up or its queue is full.

        Large frames are lent: leave their bytes alone.
        """
        if not self._up:
            return False
        try:
            send(self._socket, frames)
        except zmq.Again:
            self._full = True
            self._drain.poke()
            return False
        self._drain.sent()
        return True

    def writable(self) -> bool:
        """Whether `send` would take a message now."""
        if not self._up:
            return False
        self._drain.poke()
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT)

    def close(self) -> None:
        """Drop the connection and whatever is queued; no callback afterwards. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._up = False
        self._timer.cancel()
        if self._lookup is not None:
            self._lookup.cancel()
        self._events.close()
        self._drain.close()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)

    def _begin(self) -> None:
        try:
            host, port = parse_address(self.endpoint.removeprefix("tcp://"))
        except UsageError as e:
            self._soon_down(f"cannot connect to {self.endpoint}: {e}")
            return
        if is_name(host):
            self._lookup = Lookup(host, lambda found: self._on_found(found, port))
        else:
            self._connect(self.endpoint)

    def _on_found(self, found: list[SockAddr] | OSError, port: int) -> None:
        if isinstance(found, OSError) or not found:
            why = (found.strerror or found) if isinstance(found, OSError) else "it has no address"
            self._go_down(f"its host name is not found: {why}")
            return
        host, scope = found[0][0], found[0][3] if len(found[0]) == 4 else 0
        self._connect("tcp://" + format_address(f"{host.partition('%')[0]}%{scope}" if scope else host, port))

    def _connect(self, endpoint: str) -> None:
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as e:
            self._soon_down(f"cannot connect to {endpoint}: {e.strerror or e}")

    def _soon_down(self, reason: str) -> None:
        self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_soon(self._go_down, reason)

    def _read_event(self) -> bool:
        frames = receive(self._monitor, 2)
        if frames is None:
            return False
        if frames and len(frames[0]) == _EVENT.size:
            self._on_event(_EVENT.unpack(frames[0].bytes)[0])
        return not self._closed

    def _on_event(self, event: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._go_up()
        elif event in _REASONS:
            if self._up:
                self._read_the_rest()
            self._go_down(_REASONS[event])

    def _go_up(self) -> None:
        if not self._up:
            self._up = True
            self._timer.cancel()
            self._drain.poke()
            guarded(self.counters, "on_up_failed", self._on_up)

    def _go_down(self, reason: str) -> None:
        if not self._closed:
            self.close()
            guarded(self.counters, "on_down_failed", self._on_down, reason)

    def _read_the_rest(self) -> None:
        """What arrived before the connection ended is delivered before the news that it did."""
        for _ in range(RECEIVE_QUEUE_MAX + DRAIN_MESSAGES_MAX):
            if self._closed or not self._read():
                return

    def _read(self) -> bool:
        if not self._up:
            # libzmq tells the monitor first: wait until that has been heard; `_go_up` pokes.
            return False
        frames = receive(self._socket, self._frames_max)
        if frames is None:
            return False
        if not frames:
            self.counters["too_many_frames"] += 1
            return True
        guarded(self.counters, "on_frames_failed", self._on_frames, [content(f) for f in frames])
        return not self._closed

    def _look_for_room(self) -> None:
        if self._full and self._up and int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT:
            self._full = False
            if self._on_writable is not None:
                guarded(self.counters, "on_writable_failed", self._on_writable)


def _dealer(
    context: zmq.Context[zmq.Socket[bytes]], server_key: bytes, public_key: bytes, secret_key: bytes
) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.CURVE_SERVERKEY, server_key)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, public_key)
    socket.setsockopt(zmq.CURVE_SECRETKEY, secret_key)
    socket.setsockopt(zmq.RECONNECT_IVL, -1)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    notice_silence(socket, SILENCE_MS)
    socket.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE_MAX)
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.LINGER, 0)
    return socket


def _monitor(context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    address = f"inproc://meshq-link-{next(_numbers)}"
    socket.monitor(address, _EVENTS)
    monitor = context.socket(zmq.PAIR)
    monitor.setsockopt(zmq.LINGER, 0)
    monitor.connect(address)
    return monitor
