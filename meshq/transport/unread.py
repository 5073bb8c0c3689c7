"""What clients were sent and have not taken, together: each may have some of it, all of them only so much.

A client is sent what it gave credit for, and credit is a promise to take it. Who breaks it makes libzmq keep
what waits, once for each of its connections. So we count what each connection is given, and when that might
be too much in all, the kernel is asked what of it has arrived (TCP_INFO). The one that holds up the most is
cut, until the rest fits: a slow reader comes back and goes on where it was.

What arrives is counted by the kernel as it was encrypted, a little more than it was here: what is held up can
seem less than it is by some bytes a message, and never more.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

import zmq

from meshq.transport.tcp import Connection, bytes_acknowledged, connection_of, cut

_ENTRY_BYTES: Final = 10_000  # what an entry is counted as, so that those of ended connections go too


@dataclass(slots=True)
class _Held:
    connection: Connection
    given: int = 0
    taken: int = 0


class Unread:
    """Of one server socket. `counters`: cut_unread."""

    def __init__(self, bytes_max: int, counters: Counter[str]) -> None:
        self._bytes_max, self._counters = bytes_max, counters
        self._held: dict[bytes, _Held] = {}  # of connections; those that are gone go at the next look
        self._total = 0  # given and, when it was last asked, not taken
        self._look_at = bytes_max

    def on_message(self, session: bytes, frame: zmq.Frame) -> None:
        """A message of this session has come."""
        if session not in self._held:
            connection = connection_of(frame)
            if connection is not None:
                self._held[session] = _Held(connection)
                self._total += _ENTRY_BYTES
                if self._total > self._look_at:
                    self._look()

    def on_given(self, session: bytes, size: int) -> None:
        held = self._held.get(session)
        if held is not None:
            held.given += size
            self._total += size
            if self._total > self._look_at:
                self._look()

    def _look(self) -> None:
        for session, held in list(self._held.items()):
            taken = bytes_acknowledged(held.connection)
            if taken is None:
                del self._held[session]
            else:
                held.taken = taken
                held.given = max(held.given, taken)
        waiting = {s: h.given - h.taken + _ENTRY_BYTES for s, h in self._held.items()}
        self._total = sum(waiting.values())
        for session in sorted(waiting, key=lambda s: -waiting[s]):
            if self._total <= self._bytes_max:
                break
            self._counters["cut_unread"] += 1
            cut(self._held.pop(session).connection)
            self._total -= waiting[session]
        # Not for every message when there is nearly too much; what comes until then is a part of the bound.
        self._look_at = max(self._total, self._bytes_max) + self._bytes_max // 16
