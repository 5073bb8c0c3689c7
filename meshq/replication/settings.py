"""Seconds and bytes of one replica, in one table: docs/replication.md says what raising each costs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    election_s: float = 0.3  # without a known leader, the least time before a voter campaigns
    spread_s: float = 0.2  # ... and so much more at random, so that votes do not split
    hurry_s: float = 0.05  # the same when the leader's peer is known to be gone, and nobody's turn is known
    pass_s: float = 0.15  # so long another one's campaign goes first; less than election_s
    rank_s: float = 0.1  # a voter further down the ring's order waits so much longer
    hurry_rank_s: float = 0.1  # the same when the leader's peer is known to be gone; an election takes less
    together_s: float = 0.1  # campaigns begin at multiples of this, many of a host in one turn
    quorum_s: float = 0.6  # a leader without the support of a majority steps down after this
    resend_s: float = 0.5  # a follower that did not answer is asked again
    full_s: float = 1.0  # a disk that refused is tried again
    transfer_s: float = 1.0  # a leader that hands over refuses proposals no longer than this
    append_bytes: int = 1 << 20  # payload of one message
    append_count: int = 64  # entries of one message
    in_flight_bytes: int = 8 << 20  # on the way to one follower
    in_flight_count: int = 64
    memory_bytes: int = 4 << 20  # of committed entries kept for followers a little behind
    lag_count: int = 256  # a learner so few entries behind may become a voter
