"""What all ZeroMQ sockets here have in common: one context, and the options that make a server safe to
leave open.

libzmq's defaults trust the other side: no limit on a frame (a client without a key grew a server by 400 MiB
in one handshake command), 30 s for a handshake, any CURVE key admitted when no ZAP domain is set. All are
set here, in one place. The context has two I/O threads: clients' sockets live on the first, peers' on the
second, so that no flood of clients delays what peers tell each other.
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Sequence
from typing import Final

import zmq

from meshq.errors import SecurityError, UsageError
from meshq.limits import HANDSHAKE_MS

CLIENTS_THREAD: Final = 1  # affinity bit masks
PEERS_THREAD: Final = 2
LIBZMQ_MIN: Final = (4, 3, 3)
DESCRIPTORS_MAX: Final = 65_536  # asked of the system; the rest of the connections wait to be accepted
SOCKETS_MAX: Final = 16_384  # a link takes three with its monitor; libzmq's own default is 1,023
BACKLOG: Final = 512

SERVER_SILENCE_MS: Final = 15_000


def make_context() -> zmq.Context[zmq.Socket[bytes]]:
    """The process's context. The owner calls `context.term()` when every socket is closed.

    Raises: SecurityError when libzmq is too old or was built without CURVE.
    """
    if zmq.zmq_version_info() < LIBZMQ_MIN:
        raise SecurityError(
            f"libzmq {zmq.zmq_version()} has holes that need no key (CVE-2019-13132, CVE-2020-15166): "
            "meshq needs 4.3.3 or newer; `pip install --upgrade pyzmq` brings one"
        )
    if not zmq.has("curve"):
        raise SecurityError(
            "this libzmq was built without CURVE, so nothing could be encrypted: install pyzmq from a wheel, "
            "or a libzmq built with libsodium"
        )
    raise_descriptor_limit()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=2)
    context.set(zmq.MAX_SOCKETS, SOCKETS_MAX)
    return context


def raise_descriptor_limit() -> int:
    """Raise this process's soft limit of descriptors as far as it may; returns it. Half-open connections
    eat them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


def harden_server(
    socket: zmq.Socket[bytes],
    *,
    public_key: bytes,
    secret_key: bytes,
    domain: str,
    affinity: int,
    message_bytes_max: int,
) -> None:
    """Make a fresh socket a CURVE server that admits nobody but whom the ZAP handler admits for `domain`."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, public_key)
    socket.setsockopt(zmq.CURVE_SECRETKEY, secret_key)
    socket.setsockopt(zmq.ZAP_DOMAIN, domain.encode())
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    socket.setsockopt(zmq.MAXMSGSIZE, message_bytes_max)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    notice_silence(socket, SERVER_SILENCE_MS)
    socket.setsockopt(zmq.AFFINITY, affinity)
    socket.setsockopt(zmq.BACKLOG, BACKLOG)
    socket.setsockopt(zmq.LINGER, 0)


def notice_silence(socket: zmq.Socket[bytes], silence_ms: int) -> None:
    """End connections whose host has not acknowledged anything for so long.

    The kernel asks, not libzmq: its own heartbeats abort the process when they fall on a connection that
    broke while the socket's queue was full (docs/facts.md). Whether the program behind it lives is asked with
    messages of ours.
    """
    part_s = silence_ms // 3_000
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, part_s)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, part_s)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 2)
    socket.setsockopt(zmq.TCP_MAXRT, silence_ms)  # the kernel's TCP_USER_TIMEOUT, for what was sent


def bind_all(socket: zmq.Socket[bytes], endpoints: Sequence[str]) -> list[str]:
    """Bind to all of them (`tcp://*:PORT` is every address of both families); returns the endpoints as they
    really are (port 0 resolved). Closes the socket on failure.

    Raises: UsageError that says which address or port cannot be had and which option chooses another.
    """
    bound = []
    for endpoint in endpoints:
        # `*` with IPV6 listens on both families; an IPv4 address would come back as `[::ffff:127.0.0.1]`.
        socket.setsockopt(zmq.IPV6, int("*" in endpoint or "[" in endpoint))
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as e:
            socket.close(linger=0)
            raise _bind_error(endpoint, e) from None
        real = socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(real, bytes)
        bound.append(real.rstrip(b"\0").decode())
    return bound


def _bind_error(endpoint: str, error: zmq.ZMQError) -> UsageError:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if error.errno == errno.EADDRINUSE:
        return UsageError(f"port {port} on {host} is in use (by another peer?): choose another with --port")
    if error.errno == errno.EACCES:
        return UsageError(f"port {port} on {host} needs privileges: choose one above 1023 with --port")
    if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV):
        return UsageError(f"{host} is not an address of this host: choose one with --bind")
    return UsageError(f"cannot listen on {endpoint}: {error.strerror or error}; see --bind and --port")
