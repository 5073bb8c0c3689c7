"""Addresses and endpoints: a peer is named by `HOST:PORT` of its base port; everything else counts up from
there.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshq.peer.settings import PORT, Settings
from meshq.transport.interfaces import format_address, host_addresses, parse_address


def tcp(address: str, offset: int = 0) -> str:
    """The ZeroMQ endpoint of one of a peer's sockets, from its base address."""
    host, port = parse_address(address, PORT)
    return f"tcp://{format_address(host, port + offset)}"


def listen(settings: Settings, offset: int) -> list[str]:
    """What to bind for one of our sockets; a host that is all addresses binds both families."""
    hosts = settings.bind or ["*"]
    port = settings.port + offset
    return [f"tcp://*:{port}" if host == "*" else f"tcp://{format_address(host, port)}" for host in hosts]


def advertised(settings: Settings) -> tuple[str, ...]:
    """Where others find us, best first: what was said, or what is bound, or this host's addresses."""
    if settings.advertise:
        return tuple(format_address(*parse_address(text, settings.port)) for text in settings.advertise)
    bound = [host for host in settings.bind if host not in ("*", "0.0.0.0", "::")]
    return tuple(format_address(host, settings.port) for host in (bound or host_addresses()))


def with_default_port(addresses: Sequence[str]) -> list[str]:
    return [format_address(*parse_address(text, PORT)) for text in addresses]
