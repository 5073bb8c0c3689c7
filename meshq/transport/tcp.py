"""The TCP connection behind a received ZeroMQ frame: to know it again, to see that it is gone, to cut it.

libzmq tells a frame's descriptor (`SRCFD`). A descriptor's number is given to somebody else as soon as it
is closed, so we keep the socket's inode with it, which Linux does not use twice; whoever has the same
number with another inode is another connection. Cutting goes through a duplicate of the descriptor, checked
after it was made, so it never hits a stranger.
"""

from __future__ import annotations

import os
import socket as sockets
import stat
import struct
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import zmq

# `tcpi_bytes_acked`, `tcpi_bytes_received` in Linux's `struct tcp_info`, from 4.1 on
_COUNTS: Final = struct.Struct("=120xQQ")


class Connection(NamedTuple):
    fd: int
    inode: int


def connection_of(frame: zmq.Frame) -> Connection | None:
    """The connection a frame came by; None when it is closed already, or its descriptor is no socket any
    more."""
    try:
        return connection_at(int(frame.get(zmq.SRCFD)))
    except zmq.ZMQError:
        return None


def connection_at(fd: int) -> Connection | None:
    """What has this descriptor now; None when it is no socket."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return Connection(fd, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None


def is_open(connection: Connection) -> bool:
    """Whether this side has not closed it yet."""
    try:
        return os.fstat(connection.fd).st_ino == connection.inode
    except OSError:
        return False


def local_port(connection: Connection) -> int | None:
    """The port on this host it came in by; None when it is gone, or was no TCP connection."""
    with _same(connection) as tcp:
        try:
            return int(tcp.getsockname()[1]) if tcp is not None else None
        except (OSError, IndexError, TypeError, ValueError):
            return None


def bytes_received(connection: Connection) -> int | None:
    """What the other side has sent so far, as TCP counts it; None when it is gone, or nobody can tell."""
    counts = _counts(connection)
    return counts[1] if counts else None


def bytes_acknowledged(connection: Connection) -> int | None:
    """What the other side's host has of what was sent; None when it is gone, or nobody can tell."""
    counts = _counts(connection)
    return counts[0] if counts else None


def _counts(connection: Connection) -> tuple[int, int] | None:
    """Acknowledged, received."""
    if sys.platform != "linux":
        return None
    with _same(connection) as tcp:
        try:
            info = tcp.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, _COUNTS.size) if tcp else b""
            acknowledged, received = _COUNTS.unpack(info)
        except (OSError, struct.error):
            return None
        return int(acknowledged), int(received)


def cut(connection: Connection) -> bool:
    """Shut the connection down; libzmq notices and closes it. False when it was gone already."""
    with _same(connection) as tcp:
        try:
            if tcp is not None:
                tcp.shutdown(sockets.SHUT_RDWR)
        except OSError:
            return False
        return tcp is not None


def is_too_large(frames: Sequence[zmq.Frame], bytes_max: int | None, counters: Counter[str]) -> bool:
    """Whether this message is more than one may be in all its frames; then its connection is cut and
    counted.
    """
    if bytes_max is None or sum(map(len, frames)) <= bytes_max:
        return False
    counters["too_large"] += 1
    connection = connection_of(frames[0])
    if connection is not None:
        cut(connection)
    return True


@contextmanager
def _same(connection: Connection) -> Iterator[sockets.socket | None]:
    """A duplicate of exactly this connection, for a moment; None when the descriptor is closed or another
    one's."""
    try:
        duplicate = os.dup(connection.fd)
    except OSError:
        yield None
        return
    if os.fstat(duplicate).st_ino != connection.inode:
        os.close(duplicate)
        yield None
        return
    with sockets.socket(fileno=duplicate) as tcp:
        yield tcp
