"""A machine alone, spoken to by hand: what a test needs to put events in and read the effects."""

from __future__ import annotations

from collections.abc import Iterator

from meshq.gossip import wire
from meshq.gossip.machine import Membership
from meshq.gossip.wire import Claim, Gossip, MemberRecord, Signed
from meshq.gossip.words import (
    DatagramReceived,
    Effect,
    SendDatagram,
    Tick,
)
from tests.gossip.simulation import address_of, member, peer_id, sign_as


def record(n: int, *, boot: int = 1, version: int = 1, left: bool = False) -> MemberRecord:
    boot_id = n.to_bytes(8, "big") + boot.to_bytes(8, "big")
    return MemberRecord(peer_id(n), boot, boot_id, f"peer{n}", [address_of(n)], version, left)


def signed(n: int, *, boot: int = 1, version: int = 1, left: bool = False, by: int | None = None) -> Signed:
    made = record(n, boot=boot, version=version, left=left)
    return wire.sign_record(made, sign_as(peer_id(n if by is None else by)))


def claim(n: int, accuser: int, *, dead: bool = False, boot: int = 1, version: int = 1) -> Claim:
    return Claim(peer_id(n), boot, version, dead, peer_id(accuser))


def hear(m: Membership, sender: int, head: Gossip | None = None, *, now: float = 0.0, **parts: object):  # type: ignore[no-untyped-def]
    effects: list[Effect] = []
    for payload in wire.pack(head, **parts):  # type: ignore[arg-type]
        effects += m.handle(DatagramReceived(payload, peer_id(sender), address_of(sender)), now=now)
    return effects


def news(effects: list[Effect]) -> list[type[Effect]]:
    return [type(x) for x in effects if not isinstance(x, SendDatagram)]


def sent(effects: list[Effect]) -> list[tuple[str, Gossip]]:
    return [(x.address, wire.decode(x.payload)) for x in effects if isinstance(x, SendDatagram)]


def knowing(*others: int) -> Membership:
    """Peer 1, to which these others are alive at time 0."""
    m = member(1, registered=range(1, 8))
    for n in others:
        hear(m, n, records=[signed(n)])
    return m


def passing(m: Membership, until: float) -> Iterator[tuple[float, Effect]]:
    """Tick whenever it wants to."""
    while m.deadline() <= until:
        at = m.deadline()
        for x in m.handle(Tick(), now=at):
            yield at, x


def pass_time(m: Membership, until: float) -> list[tuple[float, Effect]]:
    return list(passing(m, until))


def of(m: Membership, n: int):  # type: ignore[no-untyped-def]
    found = m.member(peer_id(n))
    assert found is not None
    return found
