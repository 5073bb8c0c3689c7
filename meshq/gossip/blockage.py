"""Is UDP blocked between here and there? A firewall that lets TCP pass and drops datagrams kills nobody, as
an answer over the connection counts; but it has to be named, or it is looked for for days.

One probe that only the connection answered says little: datagrams get lost. BLOCKED_AFTER of them in a row,
and no datagram of that member since before the first, say that none arrives. Any one that does ends it.
"""

from __future__ import annotations

from meshq.gossip.known import Known
from meshq.gossip.words import Effect, UdpBlocked, UdpUnblocked

BLOCKED_AFTER = 3


class Blockage:
    """Changes append their news to `out`."""

    def __init__(self, out: list[Effect]) -> None:
        self._out = out

    def on_link_asked(self, known: Known, since: float) -> None:
        """A ping was not answered by datagram; it was sent at `since`."""
        known.link_asked = since

    def on_link_answered(self, known: Known) -> None:
        """Also when helpers vouched first: that the member lives is not the question here."""
        since, known.link_asked = known.link_asked, None
        if since is None or known.direct_at > since:
            return
        known.unheard += 1
        if known.unheard == BLOCKED_AFTER:
            self._out.append(UdpBlocked(known.view()))

    def on_datagram(self, known: Known) -> None:
        self._end(known)

    def on_link_broken(self, known: Known) -> None:
        known.link_asked = None
        self._end(known)

    def _end(self, known: Known) -> None:
        before, known.unheard = known.unheard, 0
        if before >= BLOCKED_AFTER:
            self._out.append(UdpUnblocked(known.view()))
