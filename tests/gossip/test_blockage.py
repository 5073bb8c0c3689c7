"""Blocked UDP is named after a few probes that only the connection answered, and forgotten with the first
datagram."""

from __future__ import annotations

from meshq.gossip.blockage import BLOCKED_AFTER
from meshq.gossip.machine import Membership
from meshq.gossip.settings import LAN
from meshq.gossip.wire import Gossip
from meshq.gossip.words import (
    Effect,
    LinkAnswered,
    LinkBroken,
    LinkUp,
    ProbeLink,
    State,
    Tick,
    UdpBlocked,
    UdpUnblocked,
)
from tests.gossip.test_machine import hear, knowing, of, peer_id


def linked() -> Membership:
    m = knowing(2)
    m.handle(LinkUp(peer_id(2)), now=0.0)
    return m


def only_the_link_answers(m: Membership, probes: int, *, vouched: bool = False) -> list[Effect]:
    """So many probes of member 2, none answered by datagram; what came of it but datagrams."""
    found: list[Effect] = []
    asked = 0
    while asked < probes:
        now = m.deadline()
        effects = m.handle(Tick(), now=now)
        for x in effects:
            if isinstance(x, ProbeLink):
                asked += 1
                if vouched:
                    for token in list(m._probing._probes):
                        effects += hear(m, 3, Gossip(vouched=token), now=now + 0.001)
                effects += m.handle(LinkAnswered(x.peer), now=now + 0.002)
        found += [x for x in effects if isinstance(x, UdpBlocked | UdpUnblocked)]
    return found


def test_one_lost_datagram_is_not_blocked_udp() -> None:
    assert only_the_link_answers(linked(), BLOCKED_AFTER - 1) == []


def test_some_probes_in_a_row_that_only_the_link_answered_are() -> None:
    m = linked()
    (said,) = only_the_link_answers(m, BLOCKED_AFTER + 5)  # once
    assert isinstance(said, UdpBlocked) and said.member.peer == peer_id(2)
    assert of(m, 2).state is State.ALIVE


def test_that_helpers_vouch_first_does_not_hide_it() -> None:
    m = knowing(2, 3)
    m.handle(LinkUp(peer_id(2)), now=0.0)
    for _ in range(3):
        hear(m, 3, Gossip(), now=m.deadline())
    found = only_the_link_answers(m, BLOCKED_AFTER, vouched=True)
    assert [type(x) for x in found] == [UdpBlocked]


def test_a_datagram_ends_it_and_in_between_begins_the_count_anew() -> None:
    m = linked()
    only_the_link_answers(m, BLOCKED_AFTER - 1)
    assert hear(m, 2, Gossip(answered=1), now=m.deadline()) == []
    assert only_the_link_answers(m, BLOCKED_AFTER - 1) == []
    assert [type(x) for x in only_the_link_answers(m, 2)] == [UdpBlocked]
    (said,) = [x for x in hear(m, 2, Gossip(answered=1), now=m.deadline()) if isinstance(x, UdpUnblocked)]
    assert said.member.peer == peer_id(2)


def test_when_the_link_breaks_too_it_is_more_than_udp() -> None:
    m = linked()
    only_the_link_answers(m, BLOCKED_AFTER)
    effects = m.handle(LinkBroken(peer_id(2)), now=m.deadline())
    assert [x for x in effects if isinstance(x, UdpUnblocked)]


def test_a_ping_of_the_link_that_membership_did_not_ask_for_says_nothing() -> None:
    m = linked()
    for i in range(2 * BLOCKED_AFTER):
        assert m.handle(LinkAnswered(peer_id(2)), now=LAN.ping_s * i) == []
