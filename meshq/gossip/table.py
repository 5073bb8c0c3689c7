"""The member table: what is believed of each registered peer, and the one door through which that changes.

Records, claims, answers and time come in by a handler each, which looks whether they say anything of the
incarnation that is held and names the cause; what follows from it is in `transitions.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import assert_never

from meshq.errors import InternalError, RemoteProtocolError
from meshq.gossip import wire
from meshq.gossip.broadcasts import Broadcasts
from meshq.gossip.known import Known
from meshq.gossip.settings import Settings
from meshq.gossip.suspicion import Suspicion
from meshq.gossip.transitions import TRANSITIONS, Belief, Cause
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
        self.by_id: list[PeerId] = []  # the same, in order
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
        self.by_id = sorted(self.known)
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
            self._out.append(MemberChanged(known.view(), restarted=before.boot_id != record.boot_id))
        # From old notes: it was there when it signed this; whether it still is, is for itself to say.
        cause = Cause.SAID_LEFT if record.left else Cause.RENEWED if fresh else Cause.NOTED
        self._enter(known, cause, None, now)

    def on_heard(self, known: Known, now: float) -> None:
        """A datagram or answer of its own. One that was accused has to refute besides."""
        known.heard = now
        if known.belief is Belief.UNHEARD and known.record is not None:
            self._enter(known, Cause.ANSWERED, None, now)

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
            self._declare_dead(known, claim, Cause.DECLARED, now)
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
        self._enter(known, Cause.ACCUSED, Evidence(accusers, self.me in accusers), now)

    def _declare_dead(self, known: Known, claim: Claim, cause: Cause, now: float) -> None:
        before = known.suspicion.accusers if known.suspicion else []
        hearsay = claim.accuser != self.me
        accusers = tuple(dict.fromkeys([*before, PeerId(claim.accuser)])) if hearsay else tuple(before)
        known.claim = claim
        self._broadcasts.put(known.peer, claim)
        self._enter(known, cause, Evidence(accusers, self.me in before, hearsay), now)

    # ------------------------------------------------------------------------------------------------- time
    def wake(self) -> float:
        if not self.suspects:
            return float("inf")
        return min((k.suspicion.until for k in self.suspects.values() if k.suspicion), default=float("inf"))

    def expire(self, now: float) -> None:
        for k in list(self.suspects.values()):
            if k.suspicion is not None and k.suspicion.until <= now:
                self._declare_dead(k, Claim(k.peer, *k.order, True, self.me), Cause.UNREFUTED, now)

    def discard_own_verdicts(self, late_s: float, now: float) -> None:
        """This host stood still: what it alone said is taken back, the rest is given its time again."""
        for k in list(self.suspects.values()):
            if k.suspicion is not None and k.suspicion.accusers == [self.me]:
                self._broadcasts.drop(k.peer)
                self._enter(k, Cause.TAKEN_BACK, None, now)
            elif k.suspicion is not None:
                k.suspicion.postpone(late_s)

    def reclaim(self, now: float) -> None:
        """What was said of those that are long dead goes; their records stay while they are registered."""
        for known in self.known.values():
            if known.belief is Belief.DEAD and now - known.since > self._settings.reclaim_s:
                known.direct = None
                self._enter(known, Cause.RECLAIMED, None, now)

    # --------------------------------------------------------------------------------------- the state's door
    def _enter(self, known: Known, cause: Cause, evidence: Evidence | None, now: float) -> None:
        """The one door through which a member's state changes."""
        after = TRANSITIONS.get((known.belief, cause))
        if after is None:
            raise InternalError(f"a member that is {known.belief} cannot change by {cause.name}")
        before, known.belief, known.evidence = known.state, after, evidence
        if after is not Belief.SUSPECT:
            known.suspicion = None
            self.suspects.pop(known.peer, None)
        if after is Belief.ALIVE or after is Belief.UNHEARD:
            known.claim = None
        if after is Belief.UNHEARD:  # no news until it is heard: to others it is dead as before
            known.since = now if cause is Cause.NOTED else known.since
        elif known.state is not before:
            known.since = now
            self._tell(known)

    def _tell(self, known: Known) -> None:
        match known.state:
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
                assert_never(known.state)


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
