"""Told by the kernel when addresses or interfaces of this host change (rtnetlink, man 7), instead of looking.

Only that something changed is taken from it; what is there now is asked for anew. A burst of changes may
overflow the socket's buffer, which is a change as well. Where there is no netlink (a container may forbid it)
nothing is told, and whoever wants to know has to look now and then, as he has to anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final

# linux/rtnetlink.h: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_GROUPS: Final = 0x1 | 0x10 | 0x100
_READ_BYTES: Final = 64 * 1024


class AddressWatch:
    """Calls `on_change` in the running loop, once for what comes at once. `close` ends it; idempotent."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        with contextlib.suppress(OSError):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            self._socket.setblocking(False)
            self._socket.bind((0, _GROUPS))
            self._loop.add_reader(self._socket.fileno(), self._drain)

    def close(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _drain(self) -> None:
        assert self._socket is not None
        for _ in range(64):
            try:
                self._socket.recv(_READ_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:  # ENOBUFS: more than fitted; it is looked at anew anyway
                continue
        self._on_change()
