"""A socket that answers requests: a CURVE ROUTER, one session per connection.

Two things in a ROUTER can be abused. A routing id may be chosen by the client, and another client may take
a chosen one over when its holder goes, and get the answers meant for it; so only connections whose id this
side drew are served (ids drawn here begin with a zero byte, which a client's `ROUTING_ID` cannot). And the
id says nothing about who it is: every message comes with the key its connection proved, read from the frame
itself.

A full queue is an answer, not a wait: `send` says FULL, and the owner asks to be called again. Which
session has room again a ROUTER does not tell: POLLOUT is set while *any* has room. So `call_when_writable`
calls back whenever something happened on the socket, and at the latest 20 ms later; the caller just tries
again. That is a hint, not a promise.
"""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final

import zmq

from meshq.batch import Buffer
from meshq.limits import FRAMES_MAX
from meshq.transport.allowance import Allowance, bind_watched
from meshq.transport.context import harden_server
from meshq.transport.drain import Drain, content, guarded, key_of, receive, send
from meshq.transport.tcp import is_too_large
from meshq.transport.unread import Unread

RECEIVE_QUEUE_MAX: Final = 256  # messages of one connection that libzmq holds for the loop
SEND_QUEUE_MAX: Final = 1_000  # messages of one session; `send` says `FULL`
RETRY_S: Final = 0.02
_OWN_ID_BYTES: Final = 5


class Sent(Enum):
    OK = "ok"
    GONE = "gone"  # no such session any more
    FULL = "full"  # its queue is full; see call_when_writable


class RouterServer:
    """Serves `on_message(session, key, frames)`; frames of 4 KiB and more are read-only views, smaller ones
    bytes.

    With an `allowance`, a connection that sends more or stays longer is cut; so is one whose message is
    larger than `whole_bytes_max` in all its frames; so are those who take the least of what they are given
    (`on_given`), when that is more than `unread_bytes_max` in all.

    `counters`: too_many_frames, too_large, chosen_id, no_key, on_message_failed, on_writable_failed, full,
    gone, cut_*, handshake_*.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        *,
        endpoints: Sequence[str],
        public_key: bytes,
        secret_key: bytes,
        domain: str,
        affinity: int,
        message_bytes_max: int,
        on_message: Callable[[bytes, bytes, list[Buffer]], None],
        hwm: int = SEND_QUEUE_MAX,
        frames_max: int = FRAMES_MAX,
        allowance: Allowance | None = None,
        whole_bytes_max: int | None = None,
        unread_bytes_max: int | None = None,
    ) -> None:
        """Raises: UsageError when an endpoint cannot be bound."""
        self.counters: Counter[str] = Counter()
        self._unread = Unread(unread_bytes_max, self.counters) if unread_bytes_max else None
        self._on_message = on_message
        self._frames_max = frames_max
        self._whole_bytes_max = whole_bytes_max
        self._waiting: dict[Callable[[], None], None] = {}  # bounded by its owner's sessions
        self._retry: asyncio.TimerHandle | None = None
        self._closed = False
        self._socket = context.socket(zmq.ROUTER)
        harden_server(
            self._socket,
            public_key=public_key,
            secret_key=secret_key,
            domain=domain,
            affinity=affinity,
            message_bytes_max=message_bytes_max,
        )
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDHWM, hwm)
        self._socket.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE_MAX)
        self.bound, self._watch = bind_watched(context, self._socket, endpoints, allowance, self.counters)
        self._drain = Drain(self._socket, self._read, after=self._try_again)
        if self._watch is not None:
            self._watch.read = self._drain.poke

    def send(self, session: bytes, frames: Sequence[Buffer]) -> Sent:
        """Queue one message for a session, all of it or nothing. Large frames are lent: leave their bytes
        alone."""
        if self._closed:
            return Sent.GONE
        try:
            send(self._socket, [session, *frames])
        except zmq.ZMQError as e:
            self._drain.poke()
            if e.errno == errno.EAGAIN:
                self.counters["full"] += 1
                return Sent.FULL
            if e.errno == errno.EHOSTUNREACH:
                self.counters["gone"] += 1
                return Sent.GONE
            raise
        if self._waiting:
            self._drain.poke()  # what they wait for may have been swallowed
        else:
            self._drain.sent()
        return Sent.OK

    def on_given(self, session: bytes, size: int) -> None:
        """So much is on its way to this session, in libzmq's queue or its owner's."""
        if self._unread is not None:
            self._unread.on_given(session, size)

    def call_when_writable(self, callback: Callable[[], None]) -> None:
        """Call back once, soon, when a session may have room again; ask again from the callback if it has
        not."""
        if self._closed:
            return
        self._waiting[callback] = None
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._on_retry)

    def close(self) -> None:
        """Cut every connection; no callback afterwards. Idempotent."""
        self._closed = True
        self._waiting.clear()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._watch is not None:
            self._watch.close()
        self._drain.close()
        self._socket.close(linger=0)

    def _read(self) -> bool:
        frames = receive(self._socket, self._frames_max + 1)
        if frames is None:
            if self._watch is not None:
                self._watch.on_empty()
            return False
        if len(frames) < 2:
            self.counters["too_many_frames"] += 1
            return True
        if self._watch is not None:
            self._watch.on_message(frames[1])
        if is_too_large(frames[1:], self._whole_bytes_max, self.counters):
            return True
        session = frames[0].bytes
        if len(session) != _OWN_ID_BYTES or session[0] != 0:
            self.counters["chosen_id"] += 1
            return True
        key = key_of(frames[1])
        if key is None:
            self.counters["no_key"] += 1
            return True
        if self._unread is not None:
            self._unread.on_message(session, frames[1])
        body = [content(frame) for frame in frames[1:]]
        guarded(self.counters, "on_message_failed", self._on_message, session, key, body)
        return True

    def _on_retry(self) -> None:
        self._retry = None
        self._try_again()

    def _try_again(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for callback in waiting:
            if self._closed:
                return
            guarded(self.counters, "on_writable_failed", callback)
