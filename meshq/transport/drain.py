"""Reading ZeroMQ sockets from asyncio: every message, promptly, without starving the rest of the loop.

A socket's FD says "something changed", once: it is edge-triggered, and any call on the socket may swallow
the edge (a send works off the socket's mailbox too). So there are two rules. A turn reads until the socket
answers EAGAIN, which libzmq does only after it has emptied the mailbox: from there the next change is a new
edge (asking for EVENTS does the same, and costs a fifth of an exception). And whoever sends outside a turn
calls `sent()`, which asks, and runs one more turn soon when something came meanwhile.

A turn is bounded, in messages and in time (a message may cost a millisecond to handle); what is left waits
for the next one, so that a flood on one socket leaves time for the others. `zmq.asyncio` would do the same
for tens of microseconds a message.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final

import zmq

from meshq.batch import Buffer

DRAIN_MESSAGES_MAX: Final = 256  # read from one socket before others get their turn
TURN_S: Final = 0.005  # after so long the others get their turn too; one message is always read
VIEW_FROM_BYTES: Final = 4 * 1024  # received frames from this size on are not copied
LEND_FROM_BYTES: Final = 64 * 1024  # sent frames from this size on: below it, lending costs more than a copy
KEY_BYTES: Final = 32
# As numbers: combining pyzmq's flags costs more than it looks.
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_NOBLOCK: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
# Without what pyzmq puts before it for the sake of sockets of other kinds.
_send: Final[Callable[..., object]] = zmq.backend.Socket.send

log = logging.getLogger(__name__)


class Drain:
    """Calls `read` while it returns True, whenever the socket may have something; then `after` once a turn.

    `read` takes one message without blocking and returns False on EAGAIN; it must not raise. Needs a
    running loop.
    """

    def __init__(
        self, socket: zmq.Socket[bytes], read: Callable[[], bool], *, after: Callable[[], None] | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket
        self._read = read
        self._after = after
        self._soon: asyncio.Handle | None = None
        self._closed = False
        self._fd = int(socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._turn)
        self.poke()  # what came before this moment has had its edge

    def sent(self) -> None:
        """Something was sent: look again soon if that swallowed the news of something to read."""
        if self._soon is None and has_input(self._socket):
            self.poke()

    def poke(self) -> None:
        """Look again soon."""
        if self._soon is None and not self._closed:
            self._soon = self._loop.call_soon(self._turn)

    def close(self) -> None:
        """Stop watching; to be called before the socket is closed. Idempotent."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            if self._soon is not None:
                self._soon.cancel()

    def _turn(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        end = monotonic() + TURN_S
        for _ in range(DRAIN_MESSAGES_MAX):
            if self._closed or not self._read():
                break
            if monotonic() >= end:
                self.poke()
                break
        else:
            self.poke()
        if self._after is not None and not self._closed:
            self._after()


def has_input(socket: zmq.Socket[bytes]) -> bool:
    """Whether a message waits; when none does, the next one is a new edge."""
    return bool(socket.getsockopt(_EVENTS) & _POLLIN)  # type: ignore[operator]


def receive(socket: zmq.Socket[bytes], frames_max: int) -> list[zmq.Frame] | None:
    """One whole message: its frames, `[]` when there were more than `frames_max` (all dropped), None when
    none waits.

    libzmq hands a message over only when its last frame is there, so the rest never has to be waited for.
    """
    if not has_input(socket):
        return None
    try:
        frame = socket.recv(_NOBLOCK, copy=False)
    except zmq.Again:
        return None
    frames = [frame]
    while frame.more:
        frame = socket.recv(_NOBLOCK, copy=False)
        if len(frames) <= frames_max:
            frames.append(frame)
    return frames if len(frames) <= frames_max else []


def send(socket: zmq.Socket[bytes], frames: Sequence[Buffer]) -> None:
    """Send one message without blocking; large frames are lent to libzmq, so their bytes must not change
    any more.

    Raises: zmq.ZMQError (EAGAIN, EHOSTUNREACH) on the first frame, in which case nothing was sent.
    """
    last = len(frames) - 1
    for i, frame in enumerate(frames):
        _send(socket, frame, _NOBLOCK if i == last else _MORE, len(frame) < LEND_FROM_BYTES)


def content(frame: zmq.Frame) -> Buffer:
    """A frame's bytes: copied when small, otherwise a read-only view that keeps the frame alive."""
    return frame.bytes if len(frame) < VIEW_FROM_BYTES else frame.buffer.toreadonly()


def key_of(frame: zmq.Frame) -> bytes | None:
    """The CURVE key that the connection of this frame proved, as the ZAP handler noted it; None without
    one."""
    try:
        key = bytes.fromhex(str(frame.get("User-Id")))
    except (zmq.ZMQError, ValueError):
        return None
    return key if len(key) == KEY_BYTES else None


def guarded(counters: Counter[str], name: str, callback: Callable[..., Any], *args: Any) -> Any:
    """Call into the owner; what it raises is counted as `name` and logged, never let into the loop.

    Logged on the 1st, 2nd, 4th, 8th, ... time: whoever found out how to raise it must not fill the disk as
    well.
    """
    try:
        return callback(*args)
    except Exception:
        counters[name] += 1
        count = counters[name]
        if count & (count - 1) == 0:
            log.exception("a callback failed", extra={"event": name, "count": count})
        return None
