"""The words of membership: what a member is, what may happen (events), what is to be done then (effects)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from meshq.ids import PeerId


class State(StrEnum):
    ALIVE = "alive"
    SUSPECT = "suspect"  # somebody did not get an answer; it may still refute
    DEAD = "dead"  # it did not refute in time, or was not heard of yet since this peer started
    LEFT = "left"  # said so itself, signed; until it starts again


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why a member is suspect or dead. `accusers`: who says so, the first one first. `direct`: this peer's
    own probe failed too. `hearsay`: another one declared it dead, and this peer took its word.
    """

    accusers: tuple[PeerId, ...]
    direct: bool
    hearsay: bool = False

    @property
    def confirmations(self) -> int:
        return max(len(self.accusers) - 1, 0)


@dataclass(frozen=True, slots=True)
class Member:
    """A registered peer as gossip sees it. `since` and `heard` are on the clock that `now` comes from.

    Of a member that was never heard of only `peer`, `state` and `since` say anything; the rest is empty.
    Its incarnation is (boot_epoch, version). `via`: how its last answer came: `direct`, by way of others
    (`indirect`), or only over the link (`link`: UDP is blocked between here and there).
    """

    peer: PeerId
    state: State
    name: str
    addresses: tuple[str, ...]  # HOST:PORT of its base port, best first
    boot_epoch: int
    boot_id: bytes
    version: int
    since: float  # in this state
    heard: float | None  # when it last answered or wrote itself
    via: str
    evidence: Evidence | None  # when suspect or dead
    rtt_s: float | None = None  # round trip of its direct answers, smoothed; None: none of this boot yet
    reach: str = ""  # as `via`, but steady: another way than the direct one shows when it was needed in a row
    level: int = 1  # the highest feature level its software knows
    weight: float | None = None  # where it wants to stand on the ring; None: it does not say
    zone: str = ""


# ------------------------------------------------------------------------------------------------- events
@dataclass(frozen=True, slots=True)
class Tick:
    """`deadline()` has passed."""


@dataclass(frozen=True, slots=True)
class DatagramReceived:
    """Opened and new; `address` is where it came from."""

    payload: bytes
    sender: PeerId
    address: str


@dataclass(frozen=True, slots=True)
class AddressSuggested:
    """Somebody of the mesh may be there. `keep`: a configured seed, never forgotten for another address."""

    address: str
    keep: bool = False


@dataclass(frozen=True, slots=True)
class AddressesChanged:
    """This peer's own addresses, best first."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Registered:
    """All registered peers, replacing the set before; only they are members."""

    peers: Iterable[PeerId]


@dataclass(frozen=True, slots=True)
class LeaveRequested:
    """This peer goes for good or for long: say so."""


@dataclass(frozen=True, slots=True)
class LinkBroken:
    """The connection to that peer ended: a hint, and it is asked at once."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class LinkUp:
    """There is a connection to that peer."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class LinkAnswered:
    """That peer answered over its connection."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class LinkCarried:
    """The payload of a ProbeLink came over a connection with that peer."""

    payload: bytes
    sender: PeerId


@dataclass(frozen=True, slots=True)
class Slept:
    """This host stood still for so long, and the clock of `now` with it (suspended)."""

    seconds: float


Event = (
    Tick | DatagramReceived | AddressSuggested | AddressesChanged | Registered | LeaveRequested | LinkBroken
    | LinkUp | LinkAnswered | LinkCarried | Slept
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ effects
@dataclass(frozen=True, slots=True)
class SendDatagram:
    address: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class ProbeLink:
    """Ask that peer over its connection; LinkAnswered says that it answered. A `payload` is what a datagram
    would have told it: LinkCarried there. It is empty unless the machine was told that links carry.
    """

    peer: PeerId
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class MemberAlive:
    member: Member


@dataclass(frozen=True, slots=True)
class MemberSuspect:
    member: Member


@dataclass(frozen=True, slots=True)
class MemberDead:
    member: Member


@dataclass(frozen=True, slots=True)
class MemberLeft:
    member: Member


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """A newer record of it: other addresses or name, or another boot id: it was `restarted`."""

    member: Member
    restarted: bool = False


@dataclass(frozen=True, slots=True)
class ReachChanged:
    """Another `reach`: it is heard directly again, or for a while only by others' help or over the link."""

    member: Member
    before: str


@dataclass(frozen=True, slots=True)
class OwnRecordOutdated:
    """Others hold a record signed by this peer from another start at `boot_epoch`, not below this one's.

    So the data directory was restored from a copy, or runs twice. Others do not listen to the lower epoch.
    """

    boot_epoch: int
    boot_id: bytes


@dataclass(frozen=True, slots=True)
class VerdictsDiscarded:
    """This host stood still: what it alone said against others is taken back, and its timers begin again."""

    seconds: float


@dataclass(frozen=True, slots=True)
class UdpBlocked:
    """No datagram of it arrives here any more, while it answers over its connection."""

    member: Member


@dataclass(frozen=True, slots=True)
class UdpUnblocked:
    """Its datagrams arrive again, or it does not answer over its connection either."""

    member: Member


Verdict = MemberAlive | MemberSuspect | MemberDead | MemberLeft | MemberChanged | ReachChanged
Effect = (
    SendDatagram | ProbeLink | Verdict | UdpBlocked | UdpUnblocked | OwnRecordOutdated | VerdictsDiscarded
)
