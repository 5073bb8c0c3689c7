"""Whom to ask next, and who was asked and has not answered yet.

Members are asked in a shuffled order, shuffled again after each round: so each is asked once in n periods
(twice that at the latest), and not, as with free choice, perhaps never. SWIM, sections 3.1 and 4.3.

A probe begins with a ping. While that is not answered, the same question is asked once more, and by way of
a few others, every `ping_s` until the probe has failed: SWIM asks helpers once, but a failed probe is told
to all, and a third and fourth question to one are cheaper than that. A helper says so when it did not get
through (a *nack*, Lifeguard IV-A): who gets neither an answer nor a nack knows that it is itself the one who
does not hear.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshq.gossip.awareness import Awareness
from meshq.gossip.blockage import Blockage
from meshq.gossip.known import Known
from meshq.gossip.mail import Mail
from meshq.gossip.settings import Settings
from meshq.gossip.table import Table
from meshq.gossip.transitions import Belief
from meshq.gossip.wire import Gossip
from meshq.gossip.words import Effect, ReachChanged
from meshq.ids import PeerId

if TYPE_CHECKING:
    import random

PROBES_MAX = 64  # under way at a time; more are not begun
_NEW_S = 30.0  # how long one of whom only old notes are known is asked in turn with the others
_TOKEN_BITS = 62


@dataclass(slots=True)
class _Probe:
    peer: PeerId
    token: int
    asked_at: float
    again_s: float  # from one question to the next
    again_at: float
    until: float
    helped: bool = False  # helpers have been asked
    asked: int = 0  # nacks to expect: of the first helpers; those asked later make up for lost ones
    refused: int = 0  # nacks come back

    @property
    def wake(self) -> float:
        return min(self.again_at, self.until)


class Probing:
    def __init__(
        self,
        settings: Settings,
        awareness: Awareness,
        table: Table,
        mail: Mail,
        rng: random.Random,
        out: list[Effect],
        blockage: Blockage,
    ) -> None:
        self._settings = settings
        self._awareness = awareness
        self._table = table
        self._mail = mail
        self._rng = rng
        self._out = out
        self._blockage = blockage
        self._order: list[PeerId] = []
        self._place = 0
        self._probes: dict[int, _Probe] = {}  # by token; at most PROBES_MAX

    # ---------------------------------------------------------------------------------------------- the order
    def add(self, peers: Iterable[PeerId]) -> None:
        """Newcomers take a random place: not all at the same time everywhere (SWIM, section 4.3)."""
        for peer in peers:
            place = self._rng.randint(0, len(self._order))
            self._order.insert(place, peer)
            self._place += place < self._place  # whose turn it was keeps it

    def remove(self, peers: Iterable[PeerId]) -> None:
        gone = set(peers)
        self._place -= sum(p in gone for p in self._order[: self._place])  # nobody's turn is passed over
        self._order = [p for p in self._order if p not in gone]
        self._probes = {t: p for t, p in self._probes.items() if p.peer not in gone}

    def probe_next(self, now: float) -> None:
        for _ in range(len(self._order)):
            known = self._table.known[self._next()]
            new = known.belief is Belief.UNHEARD and known.record is not None and now - known.since < _NEW_S
            if known.present or new:
                self.probe(known, now)
                return

    def _next(self) -> PeerId:
        if self._place >= len(self._order):
            self._place = 0
            self._rng.shuffle(self._order)
        self._place += 1
        return self._order[self._place - 1]

    # ---------------------------------------------------------------------------------------------- asking
    def probe(self, known: Known, now: float) -> None:
        """Unless it is being asked already."""
        busy = any(p.peer == known.peer for p in self._probes.values())
        if busy or len(self._probes) >= PROBES_MAX:
            return
        again_s, fail_s = map(self._awareness.scale, (self._settings.ping_s, self._settings.fail_s))
        token = self.token()
        self._probes[token] = _Probe(known.peer, token, now, again_s, now + again_s, now + fail_s)
        self.ping(known, token, now)

    def ping(self, known: Known, token: int, now: float) -> None:
        """With what is said against it, so that it can refute at once (Lifeguard IV-C, buddy system)."""
        told = [known.claim] if known.claim and self._settings.buddy else []
        self._mail.send(known, Gossip(ask=token), now, claims=told)

    def token(self) -> int:
        return self._rng.getrandbits(_TOKEN_BITS) | 1 << _TOKEN_BITS

    def _ask_again(self, probe: _Probe, known: Known, now: float) -> None:
        first, probe.helped = not probe.helped, True
        probe.again_at = now + probe.again_s
        if first or probe.again_at < probe.until:  # else its nack would come too late
            others = [
                k for k in self._table.known.values() if k.belief is Belief.ALIVE and k.peer != probe.peer
            ]
            for helper in self._rng.sample(others, min(self._settings.helpers, len(others))):
                probe.asked += first
                self._mail.send(helper, Gossip(helping=probe.token, whom=probe.peer), now)
        self.ping(known, probe.token, now)
        if first and known.linked:
            self._blockage.on_link_asked(known, probe.asked_at)
            self._mail.by_link(known, Gossip(ask=probe.token))

    # --------------------------------------------------------------------------------------------- the answer
    def on_answered(self, token: int, sender: PeerId, now: float) -> None:
        """Only the one who was asked can answer."""
        probe = self._probes.get(token)
        if probe is not None and probe.peer == sender:
            if not probe.helped:  # asked twice, it is not known which question was answered (Karn, 1987)
                self._table.known[sender].on_round_trip(now - probe.asked_at)
            self._succeed(probe, "direct", now)

    def is_asked(self, token: int, peer: PeerId) -> bool:
        probe = self._probes.get(token)
        return probe is not None and probe.peer == peer

    def on_vouched(self, token: int, now: float) -> None:
        probe = self._probes.get(token)
        if probe is not None and probe.helped:
            self._succeed(probe, "indirect", now)

    def on_refused(self, token: int) -> None:
        probe = self._probes.get(token)
        if probe is not None:
            probe.refused = min(probe.refused + 1, probe.asked)

    def on_link_answered(self, peer: PeerId, now: float) -> bool:
        """Whether that was the only answer so far."""
        late = [p for p in self._probes.values() if p.peer == peer and p.helped]
        for probe in late:
            self._succeed(probe, "link", now)
        return bool(late)

    def _succeed(self, probe: _Probe, via: str, now: float) -> None:
        del self._probes[probe.token]
        self._awareness.add(-1)
        known = self._table.known[probe.peer]
        before = known.reach
        if known.on_answered(via):
            self._out.append(ReachChanged(known.view(), before))
        self._table.on_heard(known, now)

    # ------------------------------------------------------------------------------------------------- time
    def expire(self, now: float) -> None:
        for probe in [p for p in self._probes.values() if p.wake <= now]:
            known = self._table.known[probe.peer]
            if not probe.helped or now < probe.until:
                self._ask_again(probe, known, now)
                continue
            del self._probes[probe.token]
            if known.present:
                self._awareness.add(probe.asked - probe.refused if probe.asked else 1)
                self._table.on_probe_failed(known, now)

    def clear(self) -> None:
        self._probes.clear()

    def wake(self) -> float:
        return min([p.wake for p in self._probes.values()]) if self._probes else float("inf")
