"""The claims of SWIM (Das, Gupta and Motivala, 2002), of the machine alone; each cites its section."""

from __future__ import annotations

import itertools

import pytest

from meshq.gossip import wire
from meshq.gossip.broadcasts import _CLAIM_BYTES_MIN, Broadcasts
from meshq.gossip.machine import Membership
from meshq.gossip.settings import LAN
from meshq.gossip.wire import Claim, Gossip
from meshq.gossip.words import (
    LinkBroken,
    MemberAlive,
    MemberDead,
    MemberSuspect,
    Registered,
    State,
    Tick,
)
from tests.gossip.scripts import claim, hear, knowing, news, of, pass_time, sent, signed
from tests.gossip.simulation import address_of, member, peer_id


def test_who_does_not_answer_is_asked_by_way_of_others_before_it_is_suspected() -> None:
    """SWIM, section 3.1: ping, then ping-req to k members, then the verdict."""
    m = knowing(2, 3, 4, 5, 6)
    m.handle(LinkBroken(peer_id(2)), now=0.0)
    found = pass_time(m, LAN.fail_s)
    helped = {a for t, x in found for a, g in sent([x]) if g.whom == peer_id(2) and t == LAN.ping_s}
    assert len(helped) == LAN.helpers
    assert address_of(2) not in helped
    assert [(t, type(x)) for t, x in found if isinstance(x, MemberSuspect)] == [(LAN.fail_s, MemberSuspect)]
    assert of(m, 2).evidence.direct


def test_it_is_asked_again_until_the_probe_has_failed_with_helpers_while_their_nack_can_come() -> None:
    """Beyond SWIM, which asks helpers once: a lost datagram or two is no reason to tell everybody."""
    m = knowing(2, 3, 4, 5, 6, 7, 8)
    m.handle(LinkBroken(peer_id(2)), now=0.0)
    (token,) = (p.token for p in m._probing._probes.values() if p.peer == peer_id(2))
    found = [(t, a, g) for t, x in pass_time(m, LAN.fail_s) for a, g in sent([x])]
    at = [t for t, a, g in found if g.ask == token and a == address_of(2)]
    assert at == pytest.approx([LAN.ping_s, 2 * LAN.ping_s, 3 * LAN.ping_s])
    helped = [t for t, _, g in found if g.helping == token]
    assert helped == pytest.approx([LAN.ping_s] * LAN.helpers + [2 * LAN.ping_s] * LAN.helpers)
    assert m.awareness == LAN.helpers  # nacks of the first helpers are missed, not twice as many


def test_an_answer_to_the_last_question_of_a_probe_is_in_time() -> None:
    m = knowing(2, 3)
    m.handle(LinkBroken(peer_id(2)), now=0.0)
    (token,) = (p.token for p in m._probing._probes.values() if p.peer == peer_id(2))
    pass_time(m, 3 * LAN.ping_s)
    hear(m, 2, Gossip(answered=token), now=3 * LAN.ping_s + 0.01)
    pass_time(m, LAN.fail_s)
    assert of(m, 2).state is State.ALIVE


def test_an_answer_to_a_helper_counts() -> None:
    m = knowing(2, 3)
    m.handle(LinkBroken(peer_id(2)), now=0.0)
    (token,) = {g.helping for _, x in pass_time(m, LAN.ping_s) for _, g in sent([x]) if g.helping}
    hear(m, 3, Gossip(vouched=token), now=0.1)
    pass_time(m, LAN.fail_s)
    assert (of(m, 2).state, of(m, 2).via) == (State.ALIVE, "indirect")


def test_a_helper_asks_and_says_what_came_of_it() -> None:
    """SWIM, section 3.1; Lifeguard, section IV-A: the nack."""
    m = knowing(2, 3)
    effects = hear(m, 3, Gossip(helping=9, whom=peer_id(2)))
    ((address, ping),) = sent(effects)
    assert address == address_of(2)
    refused = [(t, a) for t, x in pass_time(m, LAN.ping_s) for a, g in sent([x]) if g.refused == 9]
    assert refused == [(LAN.ping_s, address_of(3))]
    ((address, vouched),) = sent(hear(m, 2, Gossip(answered=ping.ask), now=0.2))
    assert (address, vouched.vouched) == (address_of(3), 9)


def test_only_the_one_who_was_asked_can_answer() -> None:
    m = knowing(2, 3)
    effects = m.handle(LinkBroken(peer_id(2)), now=0.0)
    (token,) = {g.ask for a, g in sent(effects) if a == address_of(2)}
    hear(m, 3, Gossip(answered=token), now=0.01)
    pass_time(m, LAN.fail_s)
    assert of(m, 2).state is State.SUSPECT


def test_one_that_answers_is_never_suspected() -> None:
    m = knowing(2)
    while m.deadline() < 5.0:
        at = m.deadline()
        effects = m.handle(Tick(), now=at)
        assert news(effects) == []
        for _, g in sent(effects):
            if g.ask:
                hear(m, 2, Gossip(answered=g.ask), now=at + 0.01)
    assert of(m, 2).via == "direct"


def test_a_suspicion_that_is_not_refuted_is_a_death_with_its_evidence() -> None:
    m = knowing(2)
    deaths = [(t, x) for t, x in pass_time(m, 10.0) if isinstance(x, MemberDead)]
    ((at, death),) = deaths
    assert at <= LAN.probe_s + LAN.fail_s * 3 + LAN.suspect_s * LAN.suspect_factor
    assert death.member.evidence.accusers == (peer_id(1),)
    assert (death.member.evidence.direct, death.member.evidence.hearsay) == (True, False)


def test_a_higher_incarnation_ends_a_suspicion() -> None:
    """SWIM, section 4.2."""
    m = knowing(2, 3)
    assert news(hear(m, 3, claims=[claim(2, 3)])) == [MemberSuspect]
    assert news(hear(m, 3, records=[signed(2)])) == []
    assert news(hear(m, 3, records=[signed(2, version=2)])) == [MemberAlive]
    assert news(hear(m, 3, claims=[claim(2, 3)])) == []


def test_refutes_suspicion_with_higher_incarnation() -> None:
    """SWIM, section 4.2."""
    m = knowing(2)
    ((_, answer),) = sent(hear(m, 2, claims=[claim(1, 2)]))
    assert wire.read_record(answer.records[0]).order == m.own.order == (1, 2)
    assert m.counts["refuted"] == 1


def test_nobody_drives_an_incarnation_up_but_by_one_step_each() -> None:
    m = knowing(2)
    for version in (1, 1, 5, 2**62, 0):
        hear(m, 2, claims=[claim(1, 2, version=version)])
    hear(m, 2, claims=[claim(1, 2, boot=9)])
    assert m.own.order == (1, 2)


def test_news_of_a_member_is_believed_and_passed_on() -> None:
    m = knowing(3, 4)
    assert news(hear(m, 3, records=[signed(2)])) == [MemberAlive]
    told = [g for _, x in pass_time(m, 0.5) for _, g in sent([x])]
    assert any(wire.read_record(r).peer == peer_id(2) for g in told for r in g.records)


def test_news_is_told_so_often_least_told_first_and_the_newest_about_a_member() -> None:
    """SWIM, section 4.1: lambda log n times, fewest first."""
    b = Broadcasts()
    b.put(peer_id(2), claim(2, 3))
    assert b.take(1_000, 3) == ([], [claim(2, 3)])
    b.put(peer_id(4), claim(4, 3))
    room = wire.size_of(claim(4, 3))
    assert b.take(room, 3) == ([], [claim(4, 3)])
    b.put(peer_id(2), claim(2, 3, dead=True))
    assert b.take(room, 3) == ([], [claim(2, 3, dead=True)])
    while len(b):
        b.take(1_000, 3)
    assert [LAN.retransmits(n) for n in (1, 9, 50, 999, 1_000)] == [4, 4, 8, 12, 16]


@pytest.mark.parametrize(
    ("held", "told", "after"),
    [
        # what is believed, what is told of it, what is believed then; with the incarnation
        ("alive 2", "alive 1", "alive 2"),
        ("alive 2", "alive 3", "alive 3"),
        ("alive 2", "suspect 1", "alive 2"),
        ("alive 2", "suspect 2", "suspect 2"),
        ("alive 2", "dead 1", "alive 2"),
        ("alive 2", "dead 2", "dead 2"),
        ("suspect 2", "alive 2", "suspect 2"),
        ("suspect 2", "alive 3", "alive 3"),
        ("suspect 2", "suspect 1", "suspect 2"),
        ("suspect 2", "dead 2", "dead 2"),
        ("dead 2", "alive 2", "dead 2"),
        ("dead 2", "suspect 2", "dead 2"),
        ("dead 2", "alive 3", "alive 3"),  # here death is not for ever: who was called so may refute
    ],
)
def test_at_one_incarnation_alive_is_overridden_by_suspect_and_both_by_dead(
    held: str, told: str, after: str
) -> None:
    """SWIM, section 4.2, the order of preference over messages."""

    def say(what: str, now: float) -> None:
        state, version = what.split()
        if state == "alive":
            hear(m, 3, records=[signed(2, version=int(version))], now=now)
        else:
            hear(m, 3, claims=[claim(2, 3, dead=state == "dead", version=int(version))], now=now)

    m = knowing(3)
    hear(m, 2, records=[signed(2, version=2)])
    say(held, 0.0)
    say(told, 0.01)
    assert f"{of(m, 2).state} {of(m, 2).version}" == after


def test_each_is_asked_once_a_round_in_an_order_that_changes() -> None:
    """SWIM, section 4.3: round-robin over a shuffled list, shuffled again after each pass."""
    m = knowing(2, 3, 4, 5, 6, 7)
    m.handle(Registered([peer_id(n) for n in range(1, 8)]), now=0.0)
    asked = _asked_in_turn(m, 4 * 6)
    rounds = [asked[i : i + 6] for i in range(0, 24, 6)]
    assert all(sorted(x) == [2, 3, 4, 5, 6, 7] for x in rounds)
    assert len({tuple(x) for x in rounds}) > 1


def test_two_questions_to_one_member_are_never_further_apart_than_two_rounds() -> None:
    """SWIM, section 4.3: at most 2n - 1 periods, also while others are registered and go."""
    m = knowing(*range(2, 8))
    asked: list[int] = []
    for turn in range(40):
        others = [peer_id(n) for n in range(1, 8) if n != 6 + turn % 2]  # 6 and 7 by turns are not registered
        m.handle(Registered(others), now=m.deadline())
        asked += _asked_in_turn(m, 2)
        hear(m, 2, records=[signed(6), signed(7)], now=m.deadline())
    for n in range(2, 6):
        places = [i for i, x in enumerate(asked) if x == n]
        assert max(b - a for a, b in itertools.pairwise(places)) <= 2 * 6 - 1


def _asked_in_turn(m: Membership, count: int) -> list[int]:
    """The members asked next by the round robin, all of which answer at once."""
    asked: list[int] = []
    while len(asked) < count:
        at = m.deadline()
        for address, g in sent(m.handle(Tick(), now=at)):
            n = next(k for k in range(2, 8) if address_of(k) == address)
            if g.ask:
                asked.append(n)
                hear(m, n, Gossip(answered=g.ask), now=at)
    return asked


def test_who_is_new_takes_a_random_place() -> None:
    """SWIM, section 4.3: a member that joins is inserted at a position that is chosen at random."""
    places = set()
    for seed in range(20):
        m = member(1, registered=range(1, 7), seed=seed)
        m.handle(Registered([peer_id(n) for n in range(1, 8)]), now=0.0)
        places.add(m._probing._order.index(peer_id(7)))
    assert len(places) > 3


def test_news_rides_on_questions_and_on_answers() -> None:
    """SWIM, section 4.1: piggybacked on ping, ping-req and ack."""
    m = knowing(2, 3, 4)
    hear(m, 4, claims=[claim(3, 4)])
    ((_, answer),) = sent(hear(m, 2, Gossip(ask=5), now=0.01))
    assert (answer.answered, answer.claims) == (5, [claim(3, 4)])
    ((_, question),) = [x for x in sent(m.handle(LinkBroken(peer_id(2)), now=0.02)) if x[1].ask]
    assert question.claims == [claim(3, 4)]
    m._probing.expire(1.0)
    helping = [g for _, g in sent(m._out) if g.helping]
    assert helping
    assert any(claim(3, 4) in g.claims for g in helping)


def test_a_burst_of_news_takes_turns_and_nothing_is_forgotten() -> None:
    """SWIM, section 4.1: the fewest told first, so with more news than fits a datagram all of it gets out."""
    b = Broadcasts()
    for n in range(2, 202):
        b.put(peer_id(n), claim(n, 1))
    room = 20 * wire.size_of(claim(2, 1))
    told: list[bytes] = []
    for _ in range(10):
        told += [x.peer for x in b.take(room, 3)[1]]
    assert sorted(told) == sorted(peer_id(n) for n in range(2, 202))
    assert wire.size_of(claim(2, 1)) >= _CLAIM_BYTES_MIN
    assert wire.size_of(Claim(bytes(16), 0, 0, False, bytes(16))) == _CLAIM_BYTES_MIN
