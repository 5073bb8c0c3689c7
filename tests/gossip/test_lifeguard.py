"""The claims of Lifeguard (Dadgar, Phillips and Currey, 2018), of the machine alone; each cites its part."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from meshq.gossip.awareness import Awareness
from meshq.gossip.settings import LAN
from meshq.gossip.suspicion import Suspicion
from meshq.gossip.wire import Gossip
from meshq.gossip.words import LinkBroken, State, Tick
from meshq.ids import PeerId
from tests.gossip.scripts import claim, hear, knowing, of, pass_time, passing, sent, signed
from tests.gossip.simulation import address_of, member, peer_id


def test_one_accuser_waits_long_and_three_more_make_it_short() -> None:
    """Lifeguard, section IV-B: log(c + 1) / log(k + 1)."""
    s = Suspicion(peer_id(1), witnesses=3, shortest_s=1.0, longest_s=4.0, now=10.0)
    found = [s.until]
    for n in (2, 2, 3, 4, 5):
        s.confirm(peer_id(n))
        found.append(s.until)
    assert found == pytest.approx([14.0, 12.5, 12.5, 14 - 3 * math.log(3) / math.log(4), 11.0, 11.0])
    assert s.confirmations == 3


def test_each_confirmation_is_passed_on_until_there_are_enough() -> None:
    """Lifeguard, section IV-B: the first k are gossiped on."""
    m = knowing(2, 3, 4, 5, 6, 7)
    told: list[PeerId] = []
    for n, accuser in enumerate((3, 3, 4, 5, 6, 7)):
        hear(m, accuser, claims=[claim(2, accuser)], now=n / 1000)
        told.append(PeerId(m._table.known[peer_id(2)].claim.accuser))  # type: ignore[union-attr]
    assert told == [peer_id(n) for n in (3, 3, 4, 5, 6, 6)]
    assert of(m, 2).evidence.accusers == tuple(peer_id(n) for n in (3, 4, 5, 6))


def test_a_suspect_that_asks_is_told_so() -> None:
    """Lifeguard, section IV-C: the buddy system."""
    m = knowing(2, 3)
    hear(m, 3, claims=[claim(2, 3)])
    ((_, answer),) = sent(hear(m, 2, Gossip(ask=5), now=0.01))
    assert answer.claims == [claim(2, 3)]
    asked = [g for _, x in pass_time(m, 0.5) for a, g in sent([x]) if a == address_of(2) and g.ask]
    assert all(claim(2, 3) in g.claims or g.claims for g in asked)
    assert asked


def test_who_hears_from_nobody_slows_down() -> None:
    """Lifeguard, section IV-A: LHA-Probe."""
    m = knowing(2, 3, 4, 5)
    pass_time(m, 2.0)
    assert m.awareness == LAN.awareness_max


def test_nacks_show_that_it_is_not_oneself() -> None:
    """Lifeguard, section IV-A."""
    m = knowing(2, 3, 4, 5)
    m.handle(LinkBroken(peer_id(2)), now=0.0)
    for at, x in passing(m, LAN.fail_s):
        for address, g in sent([x]):
            n = next(k for k in range(2, 6) if address_of(k) == address)
            if n != 2 and g.ask:
                hear(m, n, Gossip(answered=g.ask), now=at)
            if n != 2 and g.helping:
                hear(m, n, Gossip(refused=g.helping), now=at)
    assert of(m, 2).state is State.SUSPECT
    assert m.awareness == 0


def test_awareness_is_bounded_and_scales() -> None:
    a = Awareness(8)
    a.add(-3)
    assert a.scale(0.5) == 0.5
    a.add(100)
    assert a.scale(0.5) == 4.5


@pytest.mark.parametrize("score", [0, 1, 3, LAN.awareness_max])
def test_a_peer_that_doubts_itself_asks_less_often_and_waits_longer(score: int) -> None:
    """Section IV-A: probe interval and timeout are multiplied by local health + 1."""
    m = knowing(2, 3)
    m._awareness.add(score)
    m.handle(Tick(), now=0.0)
    (probe,) = m._probing._probes.values()
    assert probe.again_at == pytest.approx(LAN.ping_s * (1 + score))
    assert probe.until == pytest.approx(LAN.fail_s * (1 + score))
    assert m._next_probe == pytest.approx(LAN.probe_s * (1 + score))


def test_what_raises_and_what_lowers_the_doubt_in_oneself() -> None:
    """Section IV-A: a probe that failed without help +1, each missed nack +1, to refute +1, an answer -1."""
    m = knowing(2)
    m.handle(LinkBroken(peer_id(2)), now=0.0)  # nobody is there to help
    m._probing.expire(LAN.ping_s)
    m._probing.expire(LAN.fail_s)
    assert m.awareness == 1
    hear(m, 2, claims=[claim(1, 2)], now=LAN.fail_s)
    assert m.awareness == 2
    m = knowing(2, 3, 4, 5)
    m.handle(LinkBroken(peer_id(2)), now=0.0)
    m._probing.expire(LAN.ping_s)
    (token,) = m._probing._probes
    hear(m, 3, Gossip(refused=token), now=0.2)
    m._probing.expire(LAN.fail_s)
    assert m.awareness == LAN.helpers - 1
    m.handle(LinkBroken(peer_id(3)), now=1.0)
    (token,) = m._probing._probes
    hear(m, 3, Gossip(answered=token), now=1.01)
    assert m.awareness == LAN.helpers - 2


def test_in_a_small_mesh_as_many_confirmations_are_enough_as_there_can_be() -> None:
    """Section IV-B: k, but no more than could ever confirm: all but the suspect and the accuser."""
    for others, enough in (((2,), 0), ((2, 3), 1), ((2, 3, 4), 2), ((2, 3, 4, 5, 6, 7), 3)):
        m = knowing(*others)
        m._probing.probe(m._table.known[peer_id(2)], 0.0)
        m._probing.expire(LAN.ping_s)
        m._probing.expire(LAN.fail_s)
        suspicion = m._table.known[peer_id(2)].suspicion
        assert suspicion is not None
        shortest_s, longest_s = LAN.suspicion_s(1 + len(others))
        assert suspicion.until == pytest.approx(LAN.fail_s + longest_s)
        for n in others[1 : 1 + enough]:
            hear(m, n, claims=[claim(2, n)], now=LAN.fail_s)
        assert suspicion.until == pytest.approx(LAN.fail_s + (shortest_s if enough else longest_s))


def test_suspicion_is_longer_in_a_larger_mesh_by_the_logarithm_of_its_size() -> None:
    """Section IV-B: min = alpha log10 n, max = beta min."""
    for n, longer in ((3, 1.0), (10, 1.0), (100, 2.0), (1_000, 3.0)):
        shortest_s, longest_s = LAN.suspicion_s(n)
        assert shortest_s == pytest.approx(LAN.suspect_s * longer)
        assert longest_s == pytest.approx(shortest_s * LAN.suspect_factor)


def test_without_the_buddy_system_a_question_says_nothing_of_a_suspicion() -> None:
    """Section IV-C, switched off: only then it is left to rumour (measured in docs/membership.md)."""
    for buddy in (True, False):
        m = member(1, registered=range(1, 8), settings=replace(LAN, buddy=buddy))
        for n in (2, 3):
            hear(m, n, records=[signed(n)])
        hear(m, 3, claims=[claim(2, 3)])
        m._broadcasts.drop(peer_id(2))  # rumour is over
        ((_, question),) = [x for x in sent(m.handle(LinkBroken(peer_id(2)), now=0.0)) if x[1].ask]
        assert question.claims == ([claim(2, 3)] if buddy else [])
