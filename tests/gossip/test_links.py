"""What connections are to membership: another way to ask, and for who has no other, to hear and refute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from meshq.gossip import wire
from meshq.gossip.machine import Membership
from meshq.gossip.settings import LAN
from meshq.gossip.wire import Gossip
from meshq.gossip.words import (
    Effect,
    LinkBroken,
    LinkCarried,
    LinkUp,
    MemberAlive,
    ProbeLink,
    ReachChanged,
)
from meshq.ids import PeerId
from tests.gossip.scripts import claim, hear, knowing, news, of, pass_time, sent, signed
from tests.gossip.simulation import member, peer_id


def linked(*others: int) -> Membership:
    """Peer 1, which has connections to these, and connections carry payloads."""
    m = member(1, registered=range(1, 8), links_carry=True)
    for n in others:
        hear(m, n, records=[signed(n)])
        m.handle(LinkUp(peer_id(n)), now=0.0)
    return m


def carried(effects: Iterable[Effect]) -> list[tuple[PeerId, Gossip]]:
    return [(x.peer, wire.decode(x.payload)) for x in effects if isinstance(x, ProbeLink)]


def over_link(m: Membership, sender: int, head: Gossip | None = None, *, now: float = 0.0, **parts: Any):  # type: ignore[no-untyped-def]
    (payload,) = wire.pack(head, **parts)
    return m.handle(LinkCarried(payload, peer_id(sender)), now=now)


def test_who_does_not_answer_datagrams_is_asked_over_the_connection_with_what_is_said_of_it() -> None:
    m = linked(2, 3)
    hear(m, 3, claims=[claim(2, 3)])
    m.handle(LinkBroken(peer_id(2)), now=0.0)
    m.handle(LinkUp(peer_id(2)), now=0.0)
    asked = carried(x for _, x in pass_time(m, LAN.ping_s))
    (question,) = [g for p, g in asked if p == peer_id(2)]
    assert question.claims == [claim(2, 3)]
    effects = over_link(m, 2, Gossip(answered=question.ask), now=0.1, records=[signed(2, version=2)])
    assert news(effects) == [MemberAlive]  # refuted, by way of the connection alone
    assert (of(m, 2).via, m.counts["udp_blocked"]) == ("link", 1)


def test_who_is_asked_over_the_connection_answers_over_it_and_refutes() -> None:
    m = linked(2, 3)
    effects = over_link(m, 2, Gossip(ask=9), claims=[claim(1, 3)])
    assert [x for x in sent(effects) if x] == []
    ((peer, answer),) = carried(effects)
    assert (peer, answer.answered) == (peer_id(2), 9)
    assert wire.read_record(answer.records[0]).version == 2


def test_what_comes_over_a_connection_says_nothing_of_where_datagrams_come_from() -> None:
    m = linked(2)
    before = m._table.known[peer_id(2)].direct
    over_link(m, 2, Gossip(ask=9))
    assert m._table.known[peer_id(2)].direct == before


def test_nobody_but_the_one_who_was_asked_answers_over_a_connection() -> None:
    m = linked(2, 3)
    m.handle(LinkBroken(peer_id(2)), now=0.0)
    (token,) = m._probing._probes
    over_link(m, 3, Gossip(answered=token), now=0.01)
    assert token in m._probing._probes


def test_a_dead_member_with_a_connection_is_written_to_over_it() -> None:
    m = linked(2, 3)
    hear(m, 3, claims=[claim(2, 3, dead=True)])
    written = [g for _, x in pass_time(m, 3.0) for p, g in carried([x]) if p == peer_id(2) and g.ask == 1]
    assert written
    assert all(g.claims == [claim(2, 3, dead=True)] for g in written)


def test_without_word_that_links_carry_a_question_over_one_is_empty() -> None:
    m = knowing(2, 3)
    m.handle(LinkUp(peer_id(2)), now=0.0)
    asked = [x for _, x in pass_time(m, 1.0) if isinstance(x, ProbeLink)]
    assert asked
    assert set(asked) == {ProbeLink(peer_id(2))}


# ----------------------------------------------------------------------------------------------------- reach
def test_how_a_member_is_reached_changes_after_three_answers_of_another_kind_and_back_with_one() -> None:
    m = linked(2, 3)
    k = m._table.known[peer_id(2)]
    found: list[tuple[str, str]] = []
    for via in ("direct", "indirect", "link", "direct", "link", "link", "link", "link", "direct"):
        (probe,) = _asked(m, 2)
        m._probing._succeed(probe, via, 0.0)
        found += [(x.before, x.member.reach) for x in m.handle(LinkUp(peer_id(2)), now=0.0)
                  if isinstance(x, ReachChanged)]  # fmt: skip
        assert k.via == via
    assert found == [("direct", "link"), ("link", "direct")]
    assert of(m, 2).reach == "direct"


def _asked(m: Membership, n: int):  # type: ignore[no-untyped-def]
    m._probing.probe(m._table.known[peer_id(n)], 0.0)
    return [p for p in m._probing._probes.values() if p.peer == peer_id(n)]
