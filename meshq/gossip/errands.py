"""Asking a member on behalf of another one, which did not get through itself. SWIM, section 3.1 (ping-req).

Whoever is asked for help says "it answered" (vouched) as soon as it did, and "not yet" (refused, the nack of
Lifeguard IV-A) after a while, so that the one who waits knows that at least its helpers hear it.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshq.gossip.known import Known
from meshq.gossip.mail import Mail
from meshq.gossip.settings import Settings
from meshq.gossip.wire import Gossip
from meshq.ids import PeerId

ERRANDS_MAX = 512


@dataclass(slots=True)
class _Errand:
    peer: PeerId
    token: int  # theirs
    address: str  # where the answer goes
    refuse_at: float
    until: float
    refused: bool = False

    @property
    def wake(self) -> float:
        return self.until if self.refused else self.refuse_at


class Errands:
    def __init__(self, settings: Settings, mail: Mail) -> None:
        self._settings = settings
        self._mail = mail
        self._errands: dict[int, _Errand] = {}  # by our token; at most ERRANDS_MAX

    def begin(self, known: Known | None, ours: int, theirs: int, address: str, now: float) -> bool:
        """False when it can't be done; the one who asked has been told."""
        if known is None or known.record is None or len(self._errands) >= ERRANDS_MAX:
            self._mail.send_to(address, Gossip(refused=theirs))
            return False
        s = self._settings
        self._errands[ours] = _Errand(known.peer, theirs, address, now + s.ping_s, now + s.fail_s)
        return True

    def on_answered(self, token: int, sender: PeerId) -> None:
        errand = self._errands.get(token)
        if errand is not None and errand.peer == sender:
            del self._errands[token]
            self._mail.send_to(errand.address, Gossip(vouched=errand.token))

    def expire(self, now: float) -> None:
        for token, errand in list(self._errands.items()):
            if errand.until <= now:
                del self._errands[token]
            elif not errand.refused and errand.refuse_at <= now:
                errand.refused = True
                self._mail.send_to(errand.address, Gossip(refused=errand.token))

    def clear(self) -> None:
        self._errands.clear()

    def wake(self) -> float:
        return min([e.wake for e in self._errands.values()]) if self._errands else float("inf")
