"""What one peer knows of another. Others see a frozen `Member`."""

from __future__ import annotations

from dataclasses import dataclass

from meshq.gossip.suspicion import Suspicion
from meshq.gossip.transitions import Belief
from meshq.gossip.wire import Claim, MemberRecord, Signed
from meshq.gossip.words import Evidence, Member, State
from meshq.ids import PeerId

_RTT_GAIN = 1 / 8
_ODD_MAX = 3  # answers in a row by another way than before, until that is how it is reached


@dataclass(slots=True)
class Known:
    """One registered peer."""

    peer: PeerId
    since: float
    belief: Belief = Belief.UNHEARD
    record: MemberRecord | None = None
    signed: Signed | None = None
    claim: Claim | None = None  # what is said of its present incarnation, when suspect or dead
    suspicion: Suspicion | None = None
    evidence: Evidence | None = None
    heard: float | None = None
    via: str = ""
    reach: str = ""
    odd: int = 0  # answers in a row that came by another way
    rtt_s: float | None = None  # smoothed
    linked: bool = False
    direct: str | None = None  # the address its own datagrams come from
    direct_at: float = 0.0
    link_asked: float | None = None  # asked over its connection, since a ping of that time was not answered
    unheard: int = 0  # probes in a row that its connection answered, and no datagram of it since

    @property
    def state(self) -> State:
        return self.belief.state

    @property
    def present(self) -> bool:
        return self.belief is Belief.ALIVE or self.belief is Belief.SUSPECT

    @property
    def order(self) -> tuple[int, int]:
        return self.record.order if self.record is not None else (0, 0)

    def view(self) -> Member:
        r = self.record
        return Member(
            self.peer,
            self.state,
            r.name if r else "",
            tuple(r.addresses) if r else (),
            r.boot_epoch if r else 0,
            r.boot_id if r else b"",
            r.version if r else 0,
            self.since,
            self.heard,
            self.via,
            self.evidence,
            self.rtt_s,
            self.reach,
            r.level if r else 1,
            r.weight if r else None,
            r.zone if r else "",
        )

    def on_answered(self, via: str) -> bool:
        """Whether it is now reached by another way than before; a single lost datagram changes nothing."""
        self.via = via
        self.odd = self.odd + 1 if via != self.reach else 0
        if not self.odd or (via != "direct" and self.odd < _ODD_MAX):
            return False
        before, self.reach, self.odd = self.reach, via, 0
        return bool(before) or via != "direct"

    def on_round_trip(self, seconds: float) -> None:
        """Smoothed as TCP does it (RFC 6298, section 2): one that was slow once does not show for long."""
        self.rtt_s = seconds if self.rtt_s is None else self.rtt_s + (seconds - self.rtt_s) * _RTT_GAIN
