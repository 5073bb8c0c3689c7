"""How much a connection may send before it is understood.

libzmq hands a message over when its last frame has come, and keeps the frames until then: MAXMSGSIZE bounds a
frame, nothing bounds a message. Whoever may connect could fill the memory with one message that never ends.
So the kernel is asked what each connection has sent (TCP_INFO), and who has sent too much is cut; libzmq then
drops what it kept.

Where any key is admitted (the door), one request is expected, so all that was sent counts; who stays long is
cut too, and the oldest when there are many. Where keys are known, what counts is what came since the last
whole message, and only when the socket has been read empty meanwhile, or far enough that every connection had
its turn: a client whose messages wait for a busy loop is not to blame. The message that is unfinished when we
look gets away with what has come of it until then, once; and heartbeats count, so that a connection
that says nothing else for weeks is cut, and comes back by itself.

The socket's monitor tells which connections there are; nothing is looked at while there is none. Its queue
has no bound, since libzmq's I/O thread would wait for us when it is full.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import struct
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import zmq

from meshq.limits import UNFINISHED_BYTES_MAX
from meshq.transport.context import bind_all
from meshq.transport.drain import Drain, receive
from meshq.transport.tcp import Connection, bytes_received, connection_at, cut, is_open, local_port

LOOK_S: Final = 0.02  # at what one I/O thread decrypts, some megabytes
LOOK_EACH_S: Final = (
    0.0005  # and for each connection: a look takes 5 µs, so all of them 1 % of a core at most
)
CONNECTIONS_MAX: Final = 256  # at the door; the oldest is cut
STAY_S: Final = 30.0
RECEIVE_BUFFER_BYTES: Final = 64 * 1024  # what the kernel holds of a connection besides

_EVENT = struct.Struct("=HI")
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Allowance:
    """`bytes_max`: what one connection may send in all, its handshake included; with `refills`, between two
    whole messages.
    """

    bytes_max: int
    refills: bool = False
    stay_s: float = STAY_S
    connections_max: int = CONNECTIONS_MAX

    @classmethod
    def of_known(cls, bytes_max: int = UNFINISHED_BYTES_MAX) -> Allowance:
        """For sockets where only known keys get in: they may stay, and as many as the keys allow."""
        return cls(bytes_max, refills=True, stay_s=math.inf, connections_max=sys.maxsize)


@dataclass(slots=True)
class _Sent:
    since: float
    understood: int = 0  # of the bytes received


class Watch:
    """Watches the connections of one server socket. Make it before the socket is bound, tell it the ports
    after; close it before the socket. Whoever reads the socket says what came (`on_message`) and when nothing
    is left (`on_empty`); `read` makes it read.

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
        self.read: Callable[[], None] = lambda: None
        self._allowance, self._counters = allowance, counters
        self._loop = asyncio.get_running_loop()
        self._sent: dict[Connection, _Sent] = {}  # oldest first
        self._spoke: set[int] = set()  # descriptors of whole messages since the last look
        self._heard = 0  # whole messages since the last look
        self._was_empty = False
        self._timer: asyncio.TimerHandle | None = None
        self._server = socket
        if not allowance.refills:
            socket.setsockopt(zmq.RCVBUF, RECEIVE_BUFFER_BYTES)
        address = f"inproc://meshq-watch-{next(_numbers)}"
        socket.monitor(address, zmq.EVENT_ACCEPTED)
        self._monitor = context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._monitor.setsockopt(zmq.RCVHWM, 0)
        self._monitor.connect(address)
        self._drain = Drain(self._monitor, self._read)

    def __len__(self) -> int:
        return len(self._sent)

    def close(self) -> None:
        """Idempotent."""
        if self._monitor.closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._drain.close()
        if not self._server.closed:  # as it is when it could not be bound
            self._server.disable_monitor()
        self._monitor.close(linger=0)

    def _read(self) -> bool:
        frames = receive(self._monitor, 2)
        if frames is None:
            return False
        if frames and len(frames[0]) == _EVENT.size:
            self._on_accepted(_EVENT.unpack(frames[0].bytes)[1])
        return True

    def on_message(self, frame: zmq.Frame) -> None:
        """A whole message has come, of which this is a frame."""
        self._heard += 1
        with contextlib.suppress(zmq.ZMQError):  # its connection is closed
            self._spoke.add(int(frame.get(zmq.SRCFD)))

    def on_empty(self) -> None:
        """Every whole message there was has been read."""
        self._was_empty = True

    def _on_accepted(self, fd: int) -> None:
        connection = connection_at(fd)
        if connection is None or connection in self._sent or local_port(connection) not in self.ports:
            return  # it closed before we heard of it; its descriptor may be another one's by now
        self._sent[connection] = _Sent(self._loop.time())
        if len(self._sent) > self._allowance.connections_max:
            self._cut(next(iter(self._sent)), "cut_many")
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        # Connections are served in turn, so after as many messages as there are of them each had its chance.
        fair = not self._allowance.refills or self._was_empty or self._heard >= len(self._sent)
        doubtful = False
        for connection, sent in list(self._sent.items()):
            received = bytes_received(connection)
            if received is None and not is_open(connection):
                del self._sent[connection]
            elif received is not None and self._allowance.refills and connection.fd in self._spoke:
                sent.understood = received
            elif received is not None and received - sent.understood > self._allowance.bytes_max:
                if fair:
                    self._cut(connection, "cut_greedy")
                doubtful |= not fair
            elif now - sent.since > self._allowance.stay_s:
                self._cut(connection, "cut_long")
        self._spoke.clear()
        self._heard, self._was_empty = 0, False
        if doubtful:
            self.read()  # nobody has read since, perhaps because nothing whole has come
        pause_s = max(LOOK_S, LOOK_EACH_S * len(self._sent))
        self._timer = self._loop.call_later(pause_s, self._look) if self._sent else None

    def _cut(self, connection: Connection, why: str) -> None:
        del self._sent[connection]
        self._counters[why] += 1
        cut(connection)


def bind_watched(
    context: zmq.Context[zmq.Socket[bytes]],
    socket: zmq.Socket[bytes],
    endpoints: Sequence[str],
    allowance: Allowance | None,
    counters: Counter[str],
) -> tuple[list[str], Watch | None]:
    """`bind_all`, and a watch over who connects there. Raises: UsageError; then nothing stays open."""
    watch = Watch(context, socket, allowance, counters) if allowance else None
    try:
        bound = bind_all(socket, endpoints)
    except BaseException:
        if watch is not None:
            watch.close()
        raise
    if watch is not None:
        watch.ports = {int(endpoint.rpartition(":")[2]) for endpoint in bound}
    return bound, watch
