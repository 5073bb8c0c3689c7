"""Addresses: which ones this host has, and how `HOST:PORT` is written and read.

A peer tells the others where it can be reached. Worth telling are, in this order, IPv4 addresses, global and
unique local IPv6 ones, and link-local IPv6 only when there is nothing else: its scope (`%eth0`) means this
host's own interface name, which a neighbour has to replace by its own. Loopback is worth telling only on a
host that has nothing but itself.
"""

from __future__ import annotations

import ipaddress
import re

import ifaddr

from meshq.errors import UsageError

# A DNS name; the underscore is not in the standard, but container networks use it.
_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?"
)
_SCOPE = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_HINT = (
    "an address is HOST or HOST:PORT, with an IPv6 host in brackets: 10.0.0.7:7700, [fd00::7]:7700, peer1.lan"
)


def host_addresses(*, loopback: bool = False) -> list[str]:
    """This host's addresses, best first; IPv6 link-local with scope, `fe80::1%eth0`.

    Loopback is among them (last) when asked for, and alone when there is nothing else.
    """
    found = [_scoped(ip.ip, adapter.name) for adapter in ifaddr.get_adapters() for ip in adapter.ips]
    by_kind: dict[str, list[str]] = {"v4": [], "v6": [], "link": [], "loopback": []}
    for address in dict.fromkeys(found):
        kind = _kind(address)
        if kind:
            by_kind[kind].append(address)
    usable = by_kind["v4"] + by_kind["v6"] or by_kind["link"]
    return usable + by_kind["loopback"] if loopback or not usable else usable


def format_address(host: str, port: int) -> str:
    """`HOST:PORT`, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str, default_port: int | None = None) -> tuple[str, int]:
    """(host, port) of `HOST[:PORT]`; a bare IPv6 host without brackets is read as a host alone.

    Raises: UsageError when it is not an address, or has no port and there is no default.
    """
    host, port = _split(text.strip())
    if port is None:
        if default_port is None:
            raise UsageError(f"{text[:300]!r} names no port: {_HINT}")
        return _check_host(host, text), default_port
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 1 << 16):
        raise UsageError(f"{text[:300]!r} has a port that is not a number from 1 to 65535: {_HINT}")
    return _check_host(host, text), int(port)


def _split(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host or (rest and not rest.startswith(":")):
            raise UsageError(f"{text[:300]!r} is not an address: {_HINT}")
        return host, rest[1:] if rest else None
    if text.count(":") > 1:
        return text, None
    host, colon, port = text.partition(":")
    return host, port if colon else None


def _check_host(host: str, text: str) -> str:
    bare, percent, scope = host.partition("%")
    try:
        version = ipaddress.ip_address(bare).version
        good = not percent or (version == 6 and _SCOPE.fullmatch(scope) is not None)
    except ValueError:
        # A name whose last word is a number is a mistyped IPv4 address (RFC 3696, 2).
        good = _NAME.fullmatch(host) is not None and not host.rstrip(".").rpartition(".")[2].isdigit()
    if not good:
        raise UsageError(f"{text[:300]!r} is not an address: {_HINT}")
    return host


def _scoped(ip: str | tuple[str, int, int], adapter: str) -> str:
    if isinstance(ip, str):
        return ip
    bare = ip[0].partition("%")[0]
    return f"{bare}%{adapter}" if ipaddress.ip_address(bare).is_link_local else bare


def _kind(address: str) -> str | None:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.is_loopback:
        return "loopback"
    if ip.is_unspecified or ip.is_multicast:
        return None
    if ip.version == 4:
        return None if ip.is_link_local else "v4"
    return "link" if ip.is_link_local else "v6"
