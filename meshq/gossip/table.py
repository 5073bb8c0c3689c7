"""The member table: what is believed of each registered peer, and the doors through which that changes.

    record newer than the one held, fresh         -> alive (left, when it says so)
    record newer, from somebody's old notes       -> dead members: asked themselves; suspect ones: alive
    claim "suspect" of the incarnation held       -> alive: suspect; suspect: confirmed by one more
    claim "dead" of the incarnation held          -> dead; from old notes: as "suspect"
    suspicion ran out                             -> dead
    an answer of one not heard of before          -> alive

At an equal incarnation alive < suspect < dead; a higher incarnation overrides all (SWIM, section 4.2), and
only its owner can sign one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import assert_never

from meshq.errors import RemoteProtocolError
from meshq.gossip import wire
from meshq.gossip.broadcasts import Broadcasts
from meshq.gossip.known import Known
from meshq.gossip.settings import Settings
from meshq.gossip.suspicion import Suspicion
from meshq.gossip.wire import Claim, MemberRecord, Signed
from meshq.gossip.words import (
    Effect,
    Evidence,
    MemberAlive,
    MemberChanged,
    MemberDead,
    MemberLeft,
    MemberSuspect,
    State,
)
from meshq.ids import PeerId
from meshq.limits import PEERS_MAX


class Table:
    """Changes append their news to `out`."""

    def __init__(
        self,
        me: PeerId,
        settings: Settings,
        broadcasts: Broadcasts,
        verify: Callable[[PeerId, bytes, bytes], bool],
        counts: Counter[str],
        out: list[Effect],
    ) -> None:
        self.me = me
        self._settings = settings
        self._broadcasts = broadcasts
        self._verify = verify
        self._counts = counts
        self._out = out
        self.known: dict[PeerId, Known] = {}  # registered peers without this one; at most PEERS_MAX
        self.suspects: dict[PeerId, Known] = {}  # those of them that are

    def register(self, peers: Iterable[PeerId], now: float) -> tuple[list[PeerId], list[PeerId]]:
        """All registered peers: (those that are new, those that are no longer)."""
        wanted = set(peers) - {self.me}
        gone = [p for p in self.known if p not in wanted]
        for peer in gone:
            del self.known[peer]
            self.suspects.pop(peer, None)
            self._broadcasts.drop(peer)
        new = sorted(wanted - self.known.keys())
        room = PEERS_MAX - len(self.known)
        self._counts["full"] += max(len(new) - room, 0)
        for peer in new[:room]:
            self.known[peer] = Known(peer, since=now)
        return new[:room], gone

    # ---------------------------------------------------------------------------------------------- records
    def on_record(self, record: MemberRecord, signed: Signed, *, fresh: bool, now: float) -> bool:
        """Whether it replaced the one held."""
        known = self.known.get(PeerId(record.peer))
        if known is None:
            self._counts["unregistered"] += 1
            return False
        if known.record is not None and record.order <= known.record.order:
            return False
        if not wire.is_signed(record, signed, self._verify):
            self._counts["forged"] += 1
            return False
        self._replace(known, record, signed, fresh, now)
        return True

    def _replace(self, known: Known, record: MemberRecord, signed: Signed, fresh: bool, now: float) -> None:
        before = known.record
        known.record, known.signed, known.claim = record, signed, None
        if fresh or before is not None:
            self._broadcasts.put(known.peer, signed)
        if before is not None and _differs(before, record):
            known.direct = known.rtt_s = None
            self._out.append(MemberChanged(known.view()))
        if record.left:
            self._enter(known, State.LEFT, None, now)
        elif fresh or known.state is State.SUSPECT:
            self._enter(known, State.ALIVE, None, now)
        elif not known.present:
            # It was there when it signed this; whether it still is, is for itself to say. No news yet.
            known.state, known.doubted, known.evidence, known.since = State.DEAD, True, None, now

    def on_heard(self, known: Known, now: float) -> None:
        """A datagram or answer of its own. One that was accused has to refute besides."""
        known.heard = now
        if known.doubted and known.record is not None and not known.present and known.state is State.DEAD:
            self._enter(known, State.ALIVE, None, now)

    # ----------------------------------------------------------------------------------------------- claims
    def on_claim(self, claim: Claim, *, hearsay: bool, now: float) -> bool:
        """What another one says of a third. Whether a newer record than is held would be needed."""
        known = self.known.get(PeerId(claim.peer))
        accuser = PeerId(claim.accuser)
        if known is None or (accuser != self.me and accuser not in self.known):
            self._counts["unregistered"] += 1
            return False
        if claim.order > known.order:
            return True
        if claim.order < known.order or not known.present:
            return False
        if claim.dead and not hearsay:
            self._declare_dead(known, claim, now)
        elif accuser != self.me:
            self._accuse(known, accuser, now)
        return False

    def on_probe_failed(self, known: Known, now: float) -> None:
        if known.present:
            self._accuse(known, self.me, now)

    def _accuse(self, known: Known, accuser: PeerId, now: float) -> None:
        if known.suspicion is None:
            live = 1 + sum(k.present for k in self.known.values())
            shortest_s, longest_s = self._settings.suspicion_s(live)
            witnesses = max(min(self._settings.confirmations, live - 2), 0)
            known.suspicion = Suspicion(
                accuser, witnesses=witnesses, shortest_s=shortest_s, longest_s=longest_s, now=now
            )
        elif not known.suspicion.confirm(accuser):
            return
        accusers = tuple(known.suspicion.accusers)
        known.claim = Claim(known.peer, *known.order, False, accuser)
        self._broadcasts.put(known.peer, known.claim)
        self._enter(known, State.SUSPECT, Evidence(accusers, self.me in accusers), now)

    def _declare_dead(self, known: Known, claim: Claim, now: float) -> None:
        before = known.suspicion.accusers if known.suspicion else []
        hearsay = claim.accuser != self.me
        accusers = tuple(dict.fromkeys([*before, PeerId(claim.accuser)])) if hearsay else tuple(before)
        known.claim = claim
        self._broadcasts.put(known.peer, claim)
        self._enter(known, State.DEAD, Evidence(accusers, self.me in before, hearsay), now)

    # ------------------------------------------------------------------------------------------------- time
    def wake(self) -> float:
        return min((k.suspicion.until for k in self.suspects.values() if k.suspicion), default=float("inf"))

    def expire(self, now: float) -> None:
        for k in list(self.suspects.values()):
            if k.suspicion is not None and k.suspicion.until <= now:
                self._declare_dead(k, Claim(k.peer, *k.order, True, self.me), now)

    def discard_own_verdicts(self, late_s: float, now: float) -> None:
        """This host stood still: what it alone said is taken back, the rest is given its time again."""
        for k in list(self.suspects.values()):
            if k.suspicion is not None and k.suspicion.accusers == [self.me]:
                self._broadcasts.drop(k.peer)
                self._enter(k, State.ALIVE, None, now)
            elif k.suspicion is not None:
                k.suspicion.postpone(late_s)

    # --------------------------------------------------------------------------------------- the state's door
    def _enter(self, known: Known, state: State, evidence: Evidence | None, now: float) -> None:
        """The one door through which a member's state changes."""
        known.evidence = evidence
        if state is not State.SUSPECT:
            known.suspicion = None
            self.suspects.pop(known.peer, None)
        if state is State.ALIVE:
            known.claim = None
        if known.state is state:
            return
        known.state, known.since, known.doubted = state, now, False
        match state:
            case State.ALIVE:
                self._out.append(MemberAlive(known.view()))
            case State.SUSPECT:
                self.suspects[known.peer] = known
                self._out.append(MemberSuspect(known.view()))
            case State.DEAD:
                self._out.append(MemberDead(known.view()))
            case State.LEFT:
                self._out.append(MemberLeft(known.view()))
            case _:
                assert_never(state)


def read(signed: Signed, counts: Counter[str]) -> MemberRecord | None:
    """The record, or None and counted."""
    try:
        return wire.read_record(signed)
    except RemoteProtocolError:
        counts["malformed"] += 1
        return None


def _differs(a: MemberRecord, b: MemberRecord) -> bool:
    """In more than its incarnation."""
    return (a.boot_id, a.name, a.addresses) != (b.boot_id, b.name, b.addresses)
