"""How much a connection may send before it is understood.

libzmq hands a message over when its last frame has come, and keeps the frames until then: MAXMSGSIZE bounds a
frame, nothing bounds a message. Whoever may connect could fill the memory with one message that never ends.
So the kernel is asked what each connection has sent (TCP_INFO), and who has sent too much is cut; libzmq then
drops what it kept.

Where any key is admitted (the door), one request is expected, so all that was sent counts; who stays long is
cut too, and the oldest when there are many. Where keys are known, what counts is what came since the last
whole message, and only when the socket has been read empty meanwhile, or far enough that every connection
had its turn: a client whose messages wait for a busy loop is not to blame. The message that is unfinished
when we look gets away with what has come of it until then, once; and heartbeats of its own count, so that
one that says nothing else for weeks is cut, and comes back by itself.

What one connection may have unfinished, a thousand may have a thousand times: so what all of a socket have
together is bounded too, and when it is reached the one with the most is cut. An honest one comes back; what
is unfinished of those who talk is a few messages, whoever hoards has the most.

Strangers hold memory as well, since the first command of a handshake may be as large as a message. Among
peers, who may send what they like, connections are watched until their first message shows who they are.

The socket's monitor tells which connections there are, and how handshakes end; nothing is looked at
while there are none. Its queue has no bound, since libzmq's I/O thread would wait for us when it is full. Of
those that do not begin to speak ZeroMQ no end is told: they are what is left of the accepted ones when those
whose handshake ended, and those who may still be in it, are taken away.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import struct
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import zmq

from meshq.limits import STRANGER_BYTES_MAX, UNFINISHED_BYTES_MAX, UNFINISHED_BYTES_TOTAL_MAX
from meshq.transport.context import bind_all
from meshq.transport.drain import Drain, has_input, receive
from meshq.transport.tcp import Connection, bytes_received, connection_at, cut, is_open, local_port

LOOK_S: Final = 0.02  # at what one I/O thread decrypts, some megabytes
LOOK_EACH_S: Final = (
    0.0005  # and for each connection: a look takes 5 µs, so all of them 1 % of a core while there is little
)
CONNECTIONS_MAX: Final = 256  # at the door; the oldest is cut
STAY_S: Final = 30.0
RECEIVE_BUFFER_BYTES: Final = 64 * 1024  # what the kernel holds of a connection besides

_EVENT = struct.Struct("=HI")
_SRCFD: Final = int(zmq.SRCFD)
_ACCEPTED: Final = int(zmq.EVENT_ACCEPTED)
# How a handshake ends. Those that ZAP refused are counted by it, with the reason.
_ENDS: Final = {
    int(zmq.EVENT_HANDSHAKE_SUCCEEDED): "",
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): "",
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): "handshake_broken",
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): "handshake_unfinished",
}
SETTLED_S: Final = 5.0  # after which a handshake has ended somehow: more than twice its time
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Allowance:
    """`bytes_max`: what one connection may send in all, its handshake included; with `refills`, between two
    whole messages, and all of them together `total_max`; with `strangers`, until its first one.
    """

    bytes_max: int
    refills: bool = False
    strangers: bool = False
    total_max: int = UNFINISHED_BYTES_TOTAL_MAX
    stay_s: float = STAY_S
    connections_max: int = CONNECTIONS_MAX

    @classmethod
    def of_known(
        cls, bytes_max: int = UNFINISHED_BYTES_MAX, total_max: int = UNFINISHED_BYTES_TOTAL_MAX
    ) -> Allowance:
        """For sockets where only known keys get in: they may stay, and as many as the keys allow."""
        return cls(bytes_max, refills=True, total_max=total_max, stay_s=math.inf, connections_max=sys.maxsize)

    @classmethod
    def of_strangers(cls, bytes_max: int = STRANGER_BYTES_MAX) -> Allowance:
        """For sockets where whoever gets in is trusted: until then it may send so much."""
        return cls(bytes_max, refills=True, strangers=True, stay_s=math.inf, connections_max=sys.maxsize)


@dataclass(slots=True)
class _Sent:
    since: float
    understood: int = 0  # of the bytes received
    spoke: bool = False


class Watch:
    """Watches the connections of one server socket. Make it before the socket is bound, tell it the ports
    after; close it before the socket. Whoever reads the socket says what came (`on_message`) and when nothing
    is left (`on_empty`); `read` makes it read.

    `counters`: cut_greedy, cut_crowded, cut_long, cut_many, handshake_broken,
    handshake_unfinished, handshake_foreign.
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
        self._cut_off: set[Connection] = set()  # until libzmq has closed them
        self._spoke: set[int] = set()  # descriptors of whole messages since the last look
        self._heard = 0  # whole messages since the last look
        self._was_empty = False
        self._unended = 0  # handshakes of which no end was told
        self._timer: asyncio.TimerHandle | None = None
        self._server = socket
        if not allowance.refills:
            socket.setsockopt(zmq.RCVBUF, RECEIVE_BUFFER_BYTES)
        address = f"inproc://meshq-watch-{next(_numbers)}"
        socket.monitor(address, _ACCEPTED | sum(_ENDS))
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
            event, value = _EVENT.unpack(frames[0].bytes)
            if event == _ACCEPTED:
                self._unended += 1
                self._on_accepted(value)
            else:
                self._unended -= 1
                if why := _ENDS.get(event):
                    self._counters[why] += 1
        return True

    def on_message(self, frame: zmq.Frame) -> None:
        """A whole message has come, of which this is a frame."""
        if self._allowance.strangers:
            if has_input(self._monitor):  # that a connection was accepted is to be heard before what it says
                while self._read():
                    pass
            if not self._sent:
                return  # everybody is known
        self._heard += 1
        try:
            self._spoke.add(frame.get(_SRCFD))
        except zmq.ZMQError:
            return  # its connection is closed

    def on_empty(self) -> None:
        """Every whole message there was has been read."""
        self._was_empty = True

    def _on_accepted(self, fd: int) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_S, self._look)
        connection = connection_at(fd)
        if connection is None or connection in self._sent or local_port(connection) not in self.ports:
            return  # it closed before we heard of it; its descriptor may be another one's by now
        self._sent[connection] = _Sent(self._loop.time())
        if len(self._sent) > self._allowance.connections_max:
            self._cut(next(iter(self._sent)), "cut_many")

    def _look(self) -> None:
        now = self._loop.time()
        # Connections are served in turn, so after as many messages as there are of them each had its chance.
        fair = not self._allowance.refills or self._was_empty or self._heard >= len(self._sent)
        doubtful = False
        unfinished: dict[Connection, int] = {}
        for connection, sent in list(self._sent.items()):
            received, spoke = bytes_received(connection), connection.fd in self._spoke
            sent.spoke |= spoke
            if received is None and not is_open(connection):
                del self._sent[connection]
            elif received is not None and self._allowance.refills and spoke:
                sent.understood = received
                if self._allowance.strangers:
                    del self._sent[connection]
            elif received is not None and received - sent.understood > self._allowance.bytes_max:
                if fair:
                    self._cut(connection, "cut_greedy")
                doubtful |= not fair
            elif now - sent.since > self._allowance.stay_s:
                self._cut(connection, "cut_long")
            elif received is not None:
                unfinished[connection] = received - sent.understood
        doubtful |= self._thin_out(unfinished, fair)
        self._count_foreign()
        self._spoke.clear()
        self._heard, self._was_empty = 0, False
        if doubtful:
            self.read()  # nobody has read since, perhaps because nothing whole has come
        crowded = sum(unfinished.values()) > self._allowance.total_max // 4
        pause_s = LOOK_S if crowded else max(LOOK_S, LOOK_EACH_S * len(self._sent))
        self._timer = self._loop.call_later(pause_s, self._look) if self._sent or self._cut_off else None

    def _count_foreign(self) -> None:
        """At the end of a look: of what was seen closed there, libzmq has told before whatever it tells."""
        self._cut_off = {c for c in self._cut_off if is_open(c)}
        while self._read():
            pass
        now = self._loop.time()
        may_end = sum(not s.spoke and now - s.since < SETTLED_S for s in self._sent.values())
        may_end += len(self._cut_off)
        foreign = self._unended - may_end
        if foreign > self._counters["handshake_foreign"]:
            self._counters["handshake_foreign"] = foreign

    def _thin_out(self, unfinished: dict[Connection, int], fair: bool) -> bool:
        """Cut those with the most until the rest fits; True when it does not and nobody is known to be to
        blame.
        """
        over = sum(unfinished.values()) - self._allowance.total_max
        if over <= 0 or not fair:
            return over > 0
        for connection in sorted(unfinished, key=lambda c: -unfinished[c]):
            self._cut(connection, "cut_crowded")
            over -= unfinished[connection]
            if over <= 0:
                break
        return False

    def _cut(self, connection: Connection, why: str) -> None:
        del self._sent[connection]
        self._cut_off.add(connection)
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
