"""The pace of membership: one table, two profiles. docs/membership.md has the formulas and what each costs.

SWIM: Das, Gupta and Motivala, "SWIM: Scalable Weakly-consistent Infection-style Process Group Membership
Protocol", 2002. Lifeguard: Dadgar, Phillips and Currey, "Lifeguard: Local Health Awareness for More Accurate
Failure Detection", 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Times marked * grow with this peer's doubt in itself (`awareness.py`)."""

    probe_s: float = 0.10  # * from one probe to the next
    ping_s: float = 0.08  # * until helpers are asked
    fail_s: float = 0.30  # * until a probe has failed
    helpers: int = 3
    buddy: bool = True  # who is suspected hears so with every question and answer; False: only by rumour
    awareness_max: int = 8  # 0: do not look at oneself
    suspect_s: float = 0.75  # shortest suspicion of a mesh of ten
    suspect_factor: float = 4.0  # longest to shortest suspicion
    confirmations: int = 3  # by so many others suspicion is at its shortest
    gossip_s: float = 0.10  # from one round of news to the next, while there is any
    fanout: int = 3
    retransmit: int = 4  # times ceil(log10(n + 1)): how often news is passed on by one peer
    sync_s: float = 1.0  # one datagram of comparing notes with one live member
    reach_s: float = 1.0  # one member that is dead, one suggested address
    reach_each: int = 8  # members that write to one dead member in `reach_s`, about
    reclaim_s: float = 3_600.0  # after this what was said of a dead member is dropped; its record stays
    stall_s: float = 0.25  # a Tick later than this says that this host stood still, not that the others did

    def suspicion_s(self, live: int) -> tuple[float, float]:
        """Shortest and longest suspicion among so many live members (Lifeguard, section IV-B)."""
        shortest = self.suspect_s * max(1.0, math.log10(max(live, 1)))
        return shortest, shortest * self.suspect_factor

    def retransmits(self, members: int) -> int:
        return self.retransmit * math.ceil(math.log10(members + 1))


LAN = Settings()
WAN = Settings(
    probe_s=1.0,
    ping_s=0.5,
    fail_s=2.0,
    suspect_s=4.0,
    suspect_factor=6.0,
    gossip_s=0.2,
    sync_s=5.0,
    reach_s=5.0,
    stall_s=1.5,
)
PROFILES = {"lan": LAN, "wan": WAN}
