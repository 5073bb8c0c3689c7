"""Writing to those who may be there: dead members, and addresses that were suggested.

So the halves of a split find each other, and who starts finds the mesh. What is sent is a question that shows
one's own record and what is said of the other one, which then refutes or shows its own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from meshq.gossip import wire
from meshq.gossip.mail import Mail
from meshq.gossip.own import OwnRecord
from meshq.gossip.settings import Settings
from meshq.gossip.suggestions import Suggestion, Suggestions
from meshq.gossip.table import Table
from meshq.gossip.wire import Claim, Gossip
from meshq.ids import PeerId

if TYPE_CHECKING:
    import random

ASK_DEAD = 1  # the token of questions to dead members; others have theirs from the random source


class Reaching:
    def __init__(
        self, settings: Settings, table: Table, own: OwnRecord, mail: Mail, rng: random.Random
    ) -> None:
        self._settings = settings
        self._table = table
        self._own = own
        self._mail = mail
        self._rng = rng
        self.suggestions = Suggestions()

    def on_suggested(self, address: str, *, keep: bool, token: int, now: float) -> None:
        new = self.suggestions.add(address, keep=keep, token=token, now=now)
        if new:
            self._try(new, now)

    def reach_out(self, now: float) -> None:
        """One dead member and one suggested address: how those come back who do not know us, or lost us."""
        self._table.reclaim(now)
        known = self._table.known
        gone = [k for k in known.values() if not k.present and k.record is not None]
        # Many watch few: it is enough that some of them write to each.
        share = self._settings.reach_each * len(gone) / (1 + len(known) - len(gone))
        if gone and self._rng.random() < share:
            one = self._rng.choice(gone)
            question = self._question(ASK_DEAD, [one.claim] if one.claim else [])
            self._mail.emit(self._mail.address_of(one, now), question)
            if one.linked:
                self._mail.carry(one.peer, question)
        due = self.suggestions.due(now=now, alive=self._is_alive)
        if due:
            self._try(due, now)

    def _try(self, suggestion: Suggestion, now: float) -> None:
        self.suggestions.tried(suggestion, now=now)
        self._mail.emit(suggestion.address, self._question(suggestion.token))

    def _question(self, token: int, claims: Collection[Claim] = ()) -> list[bytes]:
        return wire.pack(Gossip(ask=token, hearsay=True), records=[self._own.signed], claims=claims)

    def _is_alive(self, peer: PeerId) -> bool:
        known = self._table.known.get(peer)
        return known is not None and known.present
