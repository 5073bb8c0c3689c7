"""Addresses and endpoints: a peer is named by `HOST:PORT` of its base port; everything else counts up from
there.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshq.peer.settings import PORT, Settings
from meshq.transport.interfaces import format_address, host_addresses, parse_address

ALL_IPV4 = "0.0.0.0"
LOOPBACK = "127.0.0.1"


def tcp(address: str, offset: int = 0) -> str:
    """The ZeroMQ endpoint of one of a peer's sockets, from its base address."""
    host, port = parse_address(address, PORT)
    return f"tcp://{format_address(host, port + offset)}"


def listen(settings: Settings, offset: int) -> list[str]:
    """What to bind for one of our sockets; nothing said means all addresses of both families."""
    port = settings.port + offset
    return [f"tcp://{format_address(host, port)}" for host in settings.bind] or [f"tcp://*:{port}"]


def hosts(settings: Settings) -> list[str]:
    """The addresses of this host that it can be reached at, best first: only those it listens on."""
    if not settings.bind:
        return host_addresses()
    found: list[str] = []
    for host in settings.bind:
        found += _all_ipv4() if host == ALL_IPV4 else [host]
    return list(dict.fromkeys(found))


def local_host(settings: Settings) -> str:
    """Where a tool on this host reaches the peer."""
    return next((host for host in settings.bind if host != ALL_IPV4), LOOPBACK)


def advertised(settings: Settings) -> tuple[str, ...]:
    """Where others find us, best first: what was said, or what is bound, or this host's addresses."""
    if settings.advertise:
        return tuple(format_address(*parse_address(text, settings.port)) for text in settings.advertise)
    return tuple(format_address(host, settings.port) for host in hosts(settings))


def _all_ipv4() -> list[str]:
    return [host for host in host_addresses() if ":" not in host] or [LOOPBACK]


def with_default_port(addresses: Sequence[str]) -> list[str]:
    return [format_address(*parse_address(text, PORT)) for text in addresses]
