"""News of membership, as the core is told it: ids become names, and loop time wall time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshq.gossip.words import (
    Member,
    MemberChanged,
    OwnRecordOutdated,
    State,
    UdpBlocked,
    UdpUnblocked,
    VerdictsDiscarded,
)
from meshq.ids import PeerId
from meshq.peer.core.events import Event, MemberSeen, MembershipNoticed, UdpSeen
from meshq.peer.neighbours import News

NameOf = Callable[[PeerId], str | None]


def events_of(news: News, *, me: PeerId, name_of: NameOf, now: float, wall_ms: int) -> Event:
    match news:
        case VerdictsDiscarded(seconds):
            return MembershipNoticed("VerdictsDiscarded", {"seconds": round(seconds, 3)})
        case OwnRecordOutdated(boot_epoch, boot_id):
            return MembershipNoticed("OwnRecordOutdated", {"boot_epoch": boot_epoch, "boot": boot_id.hex()})
        case UdpBlocked(member):
            return UdpSeen(member.peer, blocked=True)
        case UdpUnblocked(member):
            return UdpSeen(member.peer, blocked=False)
        case MemberChanged(member, restarted):
            event = "MemberRestarted" if restarted else "MemberMoved"
            return _seen(member, event, me, name_of, now, wall_ms)
        case _:
            return _seen(news.member, type(news).__name__, me, name_of, now, wall_ms)


def _seen(m: Member, event: str, me: PeerId, name_of: NameOf, now: float, wall_ms: int) -> MemberSeen:
    return MemberSeen(
        m.peer,
        m.addresses,
        m.state in (State.ALIVE, State.SUSPECT),
        m.state.value,
        wall_ms - int((now - m.since) * 1000),
        (m.boot_epoch, m.version),
        show_evidence(m, me, name_of),
        event=event,
        reach=m.reach,
        boot=m.boot_id,
        rtt_ms=None if m.rtt_s is None else round(m.rtt_s * 1000, 3),
        proof=_proof(m, name_of),
        level=m.level if m.boot_id else None,
        weight=m.weight,
        zone=m.zone,
    )


def show_evidence(member: Member, me: PeerId, name_of: NameOf) -> str:
    """Why a member is suspected or dead, in words; empty when it is neither."""
    if member.evidence is None:
        return ""
    names = ["this peer" if x == me else name_of(x) for x in member.evidence.accusers]
    own = "" if member.evidence.direct else ", not by this peer"
    return f"no answer to {', '.join(n for n in names if n)}{own}"


def _proof(member: Member, name_of: NameOf) -> dict[str, Any]:
    """The same in fields: who accuses, by how many it was confirmed, whether this peer's own probe failed,
    whether it took another one's word."""
    found = member.evidence
    if found is None:
        return {}
    return {
        "accusers": [name_of(x) or x.hex() for x in found.accusers],
        "confirmations": found.confirmations,
        "direct": found.direct,
        "hearsay": found.hearsay,
    }
