"""UDP on asyncio: bytes in with where they came from, bytes out to `HOST:PORT`, no exception for the network.

There is a socket for each address asked for, or one for all of IPv4 and one for all of IPv6 on the same port
(two plain sockets and not one dual-stack one, so that IPv4 senders are not shown as `::ffff:10.0.0.7`). A
readable socket is drained in bounded batches, so that a flood cannot keep the loop from its other work.
Sending to nowhere, to a full buffer or to a name that does not resolve is counted and forgotten: gossip
repeats itself.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from meshq.errors import UsageError
from meshq.limits import DATAGRAM_BYTES_MAX
from meshq.transport.interfaces import format_address, parse_address
from meshq.transport.names import LOOKUPS_MAX, Lookup, SockAddr

_BATCH = 64  # datagrams read from one socket before the loop gets its turn
_BUFFER_BYTES = 1 << 20  # a start of fifty peers at once fits
_ADDRESSES_MAX = 2_048  # of members, remembered as the socket calls take them
_NAMES_MAX = 256  # host names remembered
_NAME_S = 60.0  # how long a resolved name is good for
_ADDRESSES_OF_NAME = 4  # a name may mean several hosts, or one in both families
_PORT_ATTEMPTS = 16  # for port 0: IPv6 needs the number IPv4 was given


class Udp:
    """Open sockets, reading until `close`. Made by `open` inside a running loop.

    `counts`: received, sent, oversized, unreachable, full, unresolved, bad_address, busy.
    """

    def __init__(self, sockets: Sequence[socket.socket], on_datagram: Callable[[bytes, str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets = list(sockets)
        self._of_family: dict[int, list[socket.socket]] = {}
        for s in self._sockets:
            self._of_family.setdefault(s.family, []).append(s)
        self._on_datagram = on_datagram
        self._names: dict[tuple[str, int], tuple[float, list[SockAddr]]] = {}  # at most _NAMES_MAX
        self._resolving: dict[tuple[str, int], Lookup] = {}  # at most LOOKUPS_MAX
        self.counts: Counter[str] = Counter()
        for s in self._sockets:
            self._loop.add_reader(s.fileno(), self._drain, s)

    @classmethod
    def open(cls, port: int, *, bind: Sequence[str] = (), on_datagram: Callable[[bytes, str], None]) -> Udp:
        """Bind these IP addresses (none: all of this host) to the port; 0 takes a free one.

        Raises: UsageError when an address is not this host's or the port is taken.
        """
        return cls(_open_sockets(port, bind), on_datagram)

    @property
    def port(self) -> int:
        return int(self._sockets[0].getsockname()[1])

    def send(self, data: bytes, address: str) -> None:
        """Send, or count why not. A host name is resolved first, without holding up the loop."""
        if len(data) > DATAGRAM_BYTES_MAX:
            self.counts["oversized"] += 1
            return
        try:
            # A scope's number may change while its name stays.
            target, name = (_read if "%" in address else _read_again)(address)
        except UsageError:
            self.counts["bad_address"] += 1
            return
        if target is not None:
            self._send_to(data, target)
        else:
            self._send_to_name(data, name)

    def close(self) -> None:
        for lookup in self._resolving.values():
            lookup.cancel()
        for s in self._sockets:
            self._loop.remove_reader(s.fileno())
            s.close()
        self._sockets.clear()
        self._of_family.clear()

    def _drain(self, s: socket.socket) -> None:
        for _ in range(_BATCH):
            if s.fileno() < 0:  # closed by what the datagram before it brought about
                return
            try:
                data, source = s.recvfrom(DATAGRAM_BYTES_MAX + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # an ICMP error of an earlier send
                self.counts["unreachable"] += 1
                continue
            if len(data) > DATAGRAM_BYTES_MAX:
                self.counts["oversized"] += 1
                continue
            self.counts["received"] += 1
            self._on_datagram(data, _show(source))

    def _send_to(self, data: bytes, target: SockAddr) -> None:
        family = socket.AF_INET if len(target) == 2 else socket.AF_INET6
        outcome = "unreachable"
        for s in self._sources(family, target[0]):
            try:
                s.sendto(data, target)
            except (BlockingIOError, InterruptedError):
                outcome = "full"
            except (OSError, OverflowError):
                outcome = "unreachable"
            else:
                outcome = "sent"
                break
        self.counts[outcome] += 1

    def _sources(self, family: int, host: str) -> list[socket.socket]:
        """Sockets to try: one bound to loopback reaches only loopback, and the other way round."""
        sockets = self._of_family.get(family, [])
        if len(sockets) > 1:
            wanted = _is_loopback(host)
            return sorted(sockets, key=lambda s: _is_loopback(s.getsockname()[0]) != wanted)
        return sockets

    def _send_to_name(self, data: bytes, name: tuple[str, int]) -> None:
        known = self._names.get(name)
        if known is not None and self._loop.time() < known[0]:
            self._send_to_all(data, known[1])
        elif name in self._resolving or len(self._resolving) >= LOOKUPS_MAX:
            self.counts["busy"] += 1
        else:
            self._resolving[name] = Lookup(name[0], lambda found: self._on_found(data, name, found))

    def _send_to_all(self, data: bytes, targets: Sequence[SockAddr]) -> None:
        for target in targets:
            self._send_to(data, target)

    def _on_found(self, data: bytes, name: tuple[str, int], found: list[SockAddr] | OSError) -> None:
        del self._resolving[name]
        if isinstance(found, OSError):
            self.counts["unresolved"] += 1
            return
        targets = [_with_port(target, name[1]) for target in found[:_ADDRESSES_OF_NAME]]
        self._names.pop(name, None)
        while len(self._names) >= _NAMES_MAX:
            del self._names[next(iter(self._names))]
        self._names[name] = (self._loop.time() + _NAME_S, targets)
        self._send_to_all(data, targets)


def _open_sockets(port: int, bind: Sequence[str]) -> list[socket.socket]:
    if bind:
        return _bind_all([bindable(host) for host in bind], port)
    everything = ["0.0.0.0", "::"] if _has_ipv6() else ["0.0.0.0"]
    for _ in range(_PORT_ATTEMPTS - 1):
        try:
            return _bind_all(everything, port)
        except UsageError:
            if port:
                raise
    return _bind_all(everything, port)


def _bind_all(hosts: Sequence[str], port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for host in hosts:
            sockets.append(_bound(host, port or (sockets[0].getsockname()[1] if sockets else 0)))
    except OSError as e:
        for s in sockets:
            s.close()
        what = format_address(host, port)
        raise UsageError(f"cannot listen for gossip on UDP {what}: {e.strerror or e}. {_mend(e)}") from None
    return sockets


def _bound(host: str, port: int) -> socket.socket:
    target = _literal(host, port)
    assert target is not None  # bindable has seen to it
    s = socket.socket(socket.AF_INET if len(target) == 2 else socket.AF_INET6, socket.SOCK_DGRAM)
    try:
        s.setblocking(False)
        if s.family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        s.bind(target)
    except BaseException:
        s.close()
        raise
    return s


def _mend(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "Another process has that port: stop it, or choose another with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return "That address is not this host's: choose one of its own with --bind"
    return "Choose another address or port with --bind and --port"


def bindable(host: str) -> str:
    """The IP address to bind for what somebody wrote. Raises: UsageError when it is none."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if _literal(bare, 0) is None:
        raise UsageError(
            f"{host[:300]!r} cannot be bound: give an IP address of this host, not the name of "
            "a host or an interface (`ip address` lists them)"
        )
    return bare


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
            s.bind(("::", 0))
    except OSError:
        return False
    return True


def _literal(host: str, port: int) -> SockAddr | None:
    """What the socket calls take, for an IP address; None for a name (or a scope unknown here)."""
    bare, _, scope = host.partition("%")
    try:
        if ipaddress.ip_address(bare).version == 4:
            return (bare, port)
        index = 0 if not scope else int(scope) if scope.isdigit() else socket.if_nametoindex(scope)
    except (ValueError, OSError):
        return None
    return (bare, port, 0, index)


def _read(address: str) -> tuple[SockAddr | None, tuple[str, int]]:
    """Where to send, if that is an IP address; host and port. Raises: UsageError."""
    host, port = parse_address(address)
    return _literal(host, port), (host, port)


_read_again = lru_cache(maxsize=_ADDRESSES_MAX)(_read)  # the same few members for ever


def _with_port(target: SockAddr, port: int) -> SockAddr:
    return (target[0], port) if len(target) == 2 else (target[0], port, target[2], target[3])


def _show(source: SockAddr) -> str:
    if len(source) == 2:
        return format_address(source[0], source[1])
    bare = source[0].partition("%")[0]
    if not source[3]:
        return format_address(bare, source[1])
    try:
        scope = socket.if_indextoname(source[3])
    except OSError:
        scope = str(source[3])
    return format_address(f"{bare}%{scope}", source[1])


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback
