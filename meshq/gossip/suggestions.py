"""Addresses somebody may be at, and when to try each again.

Seeds, remembered addresses and mDNS say where, not who. Each is tried at once, then after 1, 2, 4, ... 30 s
until somebody of the mesh answers (by a token, as a seed may be a name and the answer comes from a number),
and again when the one who answered is no longer alive.

mDNS is not trustworthy, so there is a bound: when it is reached, a new address takes the place of one that
has been answered or has had its tries. A liar so costs one datagram in some seconds for each place, not one
for each lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from meshq.ids import PeerId

SUGGESTIONS_MAX = 256
_TRIES = 3  # before an address may be forgotten for another one
_RETRY_S = 1.0
_RETRY_S_MAX = 30.0


@dataclass(slots=True)
class Suggestion:
    address: str
    token: int
    keep: bool
    next_try: float
    tries: int = 0
    peer: PeerId | None = None  # who answered


class Suggestions:
    """`ignored` counts those for which there was no room."""

    def __init__(self) -> None:
        self._by_address: dict[str, Suggestion] = {}  # at most SUGGESTIONS_MAX
        self.ignored = 0

    def add(self, address: str, *, keep: bool, token: int, now: float) -> Suggestion | None:
        """The suggestion if it is new and there is room for it."""
        known = self._by_address.get(address)
        if known is not None:
            known.keep = known.keep or keep
            return None
        if len(self._by_address) >= SUGGESTIONS_MAX and not self._forget_one(keep):
            self.ignored += 1
            return None
        suggestion = Suggestion(address, token, keep, next_try=now)
        self._by_address[address] = suggestion
        return suggestion

    def tried(self, suggestion: Suggestion, *, now: float) -> None:
        suggestion.next_try = now + min(_RETRY_S * 2**suggestion.tries, _RETRY_S_MAX)
        suggestion.tries = min(suggestion.tries + 1, 16)

    def answered(self, token: int, peer: PeerId) -> None:
        for suggestion in self._by_address.values():
            if suggestion.token == token:
                suggestion.peer = peer

    def hurry(self, *, now: float) -> None:
        """Try all of them again soon, those that wait for long included."""
        for suggestion in self._by_address.values():
            suggestion.next_try = min(suggestion.next_try, now)

    def due(self, *, now: float, alive: Callable[[PeerId], bool]) -> Suggestion | None:
        """The one that has waited longest among those to try again."""
        waiting = [
            x
            for x in self._by_address.values()
            if x.next_try <= now and (x.peer is None or not alive(x.peer))
        ]
        return min(waiting, key=lambda x: x.next_try, default=None)

    def _forget_one(self, keep: bool) -> bool:
        """Make room: an answered one first, else the most tried. A seed may push out any that is not one."""
        candidates = [x for x in self._by_address.values() if not x.keep]
        worst = max(candidates, key=lambda x: (x.peer is not None, x.tries), default=None)
        if worst is None or not (keep or worst.peer is not None or worst.tries >= _TRIES):
            return False
        del self._by_address[worst.address]
        return True
