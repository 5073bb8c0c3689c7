"""How long to doubt a member: the more independent witnesses, the shorter.

One accuser may itself be the one that is slow, so on its word alone doubt is long; each further accuser
shortens it, by less each time, until after k of them it is at its shortest. Lifeguard, section IV-B
(LHA-Suspicion):

    timeout = longest - (longest - shortest) · log(c + 1) / log(k + 1)

Where nobody else is there who could confirm (two members), doubt stays at its longest: nobody else could
contradict either.
"""

from __future__ import annotations

import math

from meshq.ids import PeerId


class Suspicion:
    """`accusers`: in the order heard, at most k + 1."""

    def __init__(
        self, accuser: PeerId, *, witnesses: int, shortest_s: float, longest_s: float, now: float
    ) -> None:
        self._k = witnesses
        self._shortest_s, self._longest_s = shortest_s, longest_s
        self._since = now
        self.accusers: list[PeerId] = [accuser]

    def confirm(self, accuser: PeerId) -> bool:
        """Whether that was another witness who counts: then others should hear of it as well."""
        if accuser in self.accusers or self.confirmations >= self._k:
            return False
        self.accusers.append(accuser)
        return True

    def postpone(self, seconds: float) -> None:
        """Time in which this peer could not have heard a refutation does not count."""
        self._since += seconds

    @property
    def confirmations(self) -> int:
        return len(self.accusers) - 1

    @property
    def until(self) -> float:
        if not self._k:
            return self._since + self._longest_s
        share = math.log(self.confirmations + 1) / math.log(self._k + 1)
        return self._since + self._longest_s - (self._longest_s - self._shortest_s) * share
