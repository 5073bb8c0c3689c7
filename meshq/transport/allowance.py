"""How much a connection may send in all, where strangers may connect.

libzmq hands a message over when its last frame has come, and keeps the frames until then: MAXMSGSIZE bounds a
frame, nothing bounds a message. Whoever may connect could fill the memory with one message that never ends.
So where any key is admitted, the kernel is asked what each connection has sent (TCP_INFO), and who has sent
more than the one request that is expected is cut; libzmq then drops what it kept. So is who stays long, and
the oldest when there are many.

The socket's monitor tells which connections there are; nothing is looked at while there is none. Its queue
has no bound, since libzmq's I/O thread would wait for us when it is full.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import zmq

from meshq.transport.drain import Drain, receive
from meshq.transport.tcp import Connection, bytes_received, connection_at, cut, is_open, local_port

LOOK_S: Final = 0.02  # at what one I/O thread decrypts, some megabytes
CONNECTIONS_MAX: Final = 256
STAY_S: Final = 30.0
RECEIVE_BUFFER_BYTES: Final = 64 * 1024  # what the kernel holds of a connection besides

_EVENT = struct.Struct("=HI")
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Allowance:
    """`bytes_max`: what one connection may send in all, its handshake included."""

    bytes_max: int
    stay_s: float = STAY_S
    connections_max: int = CONNECTIONS_MAX


class Watch:
    """Watches the connections of one server socket. Make it before the socket is bound, tell it the ports
    after; close it before the socket.

    `counters`: cut_greedy, cut_long, cut_many.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        socket: zmq.Socket[bytes],
        allowance: Allowance,
        counters: Counter[str],
    ) -> None:
        self.ports: Collection[int] = ()
        self._allowance, self._counters = allowance, counters
        self._loop = asyncio.get_running_loop()
        self._since: dict[Connection, float] = {}  # oldest first
        self._timer: asyncio.TimerHandle | None = None
        self._server = socket
        socket.setsockopt(zmq.RCVBUF, RECEIVE_BUFFER_BYTES)
        address = f"inproc://meshq-watch-{next(_numbers)}"
        socket.monitor(address, zmq.EVENT_ACCEPTED)
        self._monitor = context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._monitor.setsockopt(zmq.RCVHWM, 0)
        self._monitor.connect(address)
        self._drain = Drain(self._monitor, self._read)

    def __len__(self) -> int:
        return len(self._since)

    def close(self) -> None:
        """Idempotent."""
        if self._monitor.closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._drain.close()
        self._server.disable_monitor()
        self._monitor.close(linger=0)

    def _read(self) -> bool:
        frames = receive(self._monitor, 2)
        if frames is None:
            return False
        if frames and len(frames[0]) == _EVENT.size:
            self._on_accepted(_EVENT.unpack(frames[0].bytes)[1])
        return True

    def _on_accepted(self, fd: int) -> None:
        connection = connection_at(fd)
        if connection is None or connection in self._since or local_port(connection) not in self.ports:
            return  # it closed before we heard of it; its descriptor may be another one's by now
        self._since[connection] = self._loop.time()
        if len(self._since) > self._allowance.connections_max:
            self._cut(next(iter(self._since)), "cut_many")
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        for connection, since in list(self._since.items()):
            sent = bytes_received(connection)
            if sent is None and not is_open(connection):
                del self._since[connection]
            elif sent is not None and sent > self._allowance.bytes_max:
                self._cut(connection, "cut_greedy")
            elif now - since > self._allowance.stay_s:
                self._cut(connection, "cut_long")
        self._timer = self._loop.call_later(LOOK_S, self._look) if self._since else None

    def _cut(self, connection: Connection, why: str) -> None:
        del self._since[connection]
        self._counters[why] += 1
        cut(connection)
