"""How often something is logged that anybody can bring about: a few times at once, then once a second.

Whoever knocks without a key must not fill the disk of whoever refuses him. All of it is counted elsewhere.
"""

from __future__ import annotations

BURST = 10
EVERY_S = 1.0


class Sparingly:
    """`say(now)`: None when it is better not said now, otherwise how often it was not since it last was."""

    def __init__(self) -> None:
        self._unsaid = 0
        self._left, self._at = float(BURST), 0.0

    def say(self, now: float) -> int | None:
        self._left = min(self._left + (now - self._at) / EVERY_S, BURST)
        self._at = now
        if self._left < 1:
            self._unsaid += 1
            return None
        self._left -= 1
        unsaid, self._unsaid = self._unsaid, 0
        return unsaid
