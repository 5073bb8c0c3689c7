"""Host names, looked up where nobody else has to wait.

The resolver blocks whoever calls it, for half a minute when DNS is silent. libzmq would call it in the I/O
thread that all connections share, asyncio's own way takes one of the loop's few threads, and a loop that ends
waits for those. So each name gets a daemon thread of its own: a few at a time, one for all who ask for the
same name, forgotten when nobody waits any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import Final

LOOKUPS_MAX: Final = 8  # names at a time; beyond them a look-up fails, and whoever asked tries again later

SockAddr = tuple[str, int] | tuple[str, int, int, int]
OnFound = Callable[[list[SockAddr] | OSError], None]

_lock = threading.Lock()
_running: dict[str, list[Lookup]] = {}  # at most LOOKUPS_MAX, of the whole process


class Lookup:
    """One question. `on_found` hears the addresses (port 0), best first, or why there are none: from the
    loop, never from inside this call, and not after `cancel`.
    """

    def __init__(self, host: str, on_found: OnFound) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_found: OnFound | None = on_found
        with _lock:
            waiting = _running.get(host)
            if waiting is not None:
                waiting.append(self)
                return
            full = len(_running) >= LOOKUPS_MAX
            if not full:
                _running[host] = [self]
        if full:
            error = OSError(f"{host}: {LOOKUPS_MAX} other host names are being looked up already")
            self._loop.call_soon(self._tell, error)
        else:
            threading.Thread(target=_run, args=(host,), name=f"look up {host}", daemon=True).start()

    def cancel(self) -> None:
        """Not to be heard any more; the thread ends when the resolver lets it."""
        self._on_found = None

    def _tell(self, found: list[SockAddr] | OSError) -> None:
        on_found, self._on_found = self._on_found, None
        if on_found is not None:
            on_found(found)

    def post(self, found: list[SockAddr] | OSError) -> None:
        """From the thread that looked it up."""
        with contextlib.suppress(RuntimeError):  # its loop has ended
            self._loop.call_soon_threadsafe(self._tell, found)


def is_name(host: str) -> bool:
    """Whether this host has to be looked up."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return True
    return False


def _run(host: str) -> None:
    found: list[SockAddr] | OSError
    try:
        rows = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
        found = [_sockaddr(r[4]) for r in rows if r[0] in (socket.AF_INET, socket.AF_INET6)]
    except OSError as e:
        found = e
    except UnicodeError as e:
        found = OSError(f"{host!r} is no host name: {e}")
    with _lock:
        waiting = _running.pop(host)
    for lookup in waiting:
        lookup.post(found)


def _sockaddr(raw: tuple[object, ...]) -> SockAddr:
    if len(raw) == 4:
        return (str(raw[0]), int(str(raw[1])), 0, int(str(raw[3])))
    return (str(raw[0]), int(str(raw[1])))
