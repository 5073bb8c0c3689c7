"""The machine alone: events in, exact effects out, time by hand. Claims of the papers cite their section."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshq.errors import RemoteProtocolError, UsageError
from meshq.gossip import wire
from meshq.gossip.awareness import Awareness
from meshq.gossip.broadcasts import Broadcasts
from meshq.gossip.machine import Membership
from meshq.gossip.settings import LAN
from meshq.gossip.suggestions import SUGGESTIONS_MAX
from meshq.gossip.suspicion import Suspicion
from meshq.gossip.wire import Claim, Digest, Gossip, MemberRecord, Signed
from meshq.gossip.words import (
    AddressesChanged,
    AddressSuggested,
    DatagramReceived,
    Effect,
    LinkAnswered,
    LinkBroken,
    LinkUp,
    MemberAlive,
    MemberChanged,
    MemberDead,
    MemberLeft,
    MemberSuspect,
    OwnRecordOutdated,
    ProbeLink,
    Registered,
    SendDatagram,
    Slept,
    State,
    Tick,
    VerdictsDiscarded,
)
from meshq.ids import PeerId
from meshq.limits import PEERS_MAX
from meshq.transport import sealed
from tests.gossip.simulation import address_of, member, peer_id, sign_as, verify


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


# -------------------------------------------------------------------------------------------- first contact
def test_a_registered_peer_is_dead_until_it_is_heard() -> None:
    m = member(1, registered=[1, 2])
    assert (of(m, 2).state, of(m, 2).heard, of(m, 2).since) == (State.DEAD, None, 0.0)
    assert news(hear(m, 2, records=[signed(2)], now=3.0)) == [MemberAlive]
    assert (of(m, 2).state, of(m, 2).name, of(m, 2).addresses) == (State.ALIVE, "peer2", (address_of(2),))
    assert (of(m, 2).heard, of(m, 2).since) == (3.0, 3.0)


def test_of_whom_only_old_notes_tell_is_asked_whether_it_is_there() -> None:
    m = member(1, registered=[1, 2, 3])
    effects = hear(m, 3, Gossip(hearsay=True), records=[signed(2)])
    assert news(effects) == []
    ((address, asked),) = [x for x in sent(effects) if x[1].ask]
    assert address == address_of(2)
    assert news(hear(m, 2, Gossip(answered=asked.ask))) == [MemberAlive]


def test_news_of_a_member_is_believed_and_passed_on() -> None:
    m = knowing(3, 4)
    assert news(hear(m, 3, records=[signed(2)])) == [MemberAlive]
    told = [g for _, x in pass_time(m, 0.5) for _, g in sent([x])]
    assert any(wire.read_record(r).peer == peer_id(2) for g in told for r in g.records)


def test_a_question_that_shows_a_record_is_answered_with_ours() -> None:
    m = knowing(2)
    ((address, answer),) = sent(hear(m, 2, Gossip(ask=77), records=[signed(2)]))
    assert (address, answer.answered) == (address_of(2), 77)
    assert wire.read_record(answer.records[0]) == m.own


def test_who_shows_no_record_is_asked_for_it() -> None:
    m = member(1, registered=[1, 2])
    ((_, answer),) = sent(hear(m, 2, Gossip(ask=77)))
    assert (answer.answered, answer.wants) == (77, [peer_id(2)])


def test_answers_are_not_answered() -> None:
    m = knowing(2)
    assert hear(m, 2, Gossip(answered=5)) == []


def test_forged_unregistered_and_malformed_are_counted_and_ignored() -> None:
    m = knowing(2)
    before = m.members()
    m.counts.clear()
    assert hear(m, 9, records=[signed(2, version=9, by=3)]) == []
    assert hear(m, 9, records=[signed(8)]) == []
    assert hear(m, 9, claims=[claim(8, 3), claim(2, 9)]) == []
    assert hear(m, 9, records=[Signed(b"\x93nonsense", b"s" * 64)]) == []
    assert m.handle(DatagramReceived(b"\xff", peer_id(9), address_of(9)), now=0.0) == []
    assert m.counts == {"forged": 1, "unregistered": 3, "malformed": 2}
    assert m.members() == before


# ---------------------------------------------------------------------------------------------------- probing
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


def test_the_round_trip_is_measured_and_smoothed() -> None:
    m = knowing(2)
    assert of(m, 2).rtt_s is None
    for at, rtt_s in ((0.0, 0.008), (1.0, 0.016)):
        ((_, asked),) = [x for x in sent(m.handle(LinkBroken(peer_id(2)), now=at)) if x[1].ask]
        hear(m, 2, Gossip(answered=asked.ask), now=at + rtt_s)
    assert of(m, 2).rtt_s == pytest.approx(0.009)
    hear(m, 2, records=[signed(2, boot=2)], now=2.0)
    assert of(m, 2).rtt_s is None  # another boot, perhaps at another place


def test_an_answer_after_asking_twice_measures_nothing() -> None:
    """Karn and Partridge, 1987: it is not known which of the two was answered."""
    m = knowing(2)
    ((_, asked),) = sent(m.handle(LinkBroken(peer_id(2)), now=0.0))
    m._probing.expire(LAN.ping_s)
    hear(m, 2, Gossip(answered=asked.ask), now=LAN.ping_s + 0.001)
    assert (of(m, 2).rtt_s, of(m, 2).via) == (None, "direct")


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


def test_an_answer_to_a_helper_counts() -> None:
    m = knowing(2, 3)
    m.handle(LinkBroken(peer_id(2)), now=0.0)
    (token,) = {g.helping for _, x in pass_time(m, LAN.ping_s) for _, g in sent([x]) if g.helping}
    hear(m, 3, Gossip(vouched=token), now=0.1)
    pass_time(m, LAN.fail_s)
    assert (of(m, 2).state, of(m, 2).via) == (State.ALIVE, "indirect")


def test_only_the_one_who_was_asked_can_answer() -> None:
    m = knowing(2, 3)
    effects = m.handle(LinkBroken(peer_id(2)), now=0.0)
    (token,) = {g.ask for a, g in sent(effects) if a == address_of(2)}
    hear(m, 3, Gossip(answered=token), now=0.01)
    pass_time(m, LAN.fail_s)
    assert of(m, 2).state is State.SUSPECT


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


def test_a_helper_that_knows_nobody_of_that_name_refuses_at_once() -> None:
    m = knowing(3)
    ((address, answer),) = sent(hear(m, 3, Gossip(helping=9, whom=peer_id(2))))
    assert (address, answer.refused) == (address_of(3), 9)


def test_a_broken_connection_is_a_reason_to_ask_at_once_and_no_more() -> None:
    m = knowing(2)
    effects = m.handle(LinkBroken(peer_id(2)), now=0.0)
    assert news(effects) == []
    assert [a for a, g in sent(effects) if g.ask] == [address_of(2)]


def test_an_answer_over_the_connection_alone_kills_nobody_and_says_that_udp_is_blocked() -> None:
    m = knowing(2, 3)
    m.handle(LinkUp(peer_id(2)), now=0.0)
    for at, x in passing(m, 20.0):
        if x == ProbeLink(peer_id(2)):
            m.handle(LinkAnswered(peer_id(2)), now=at)
        if isinstance(x, MemberDead):
            assert x.member.peer == peer_id(3)
    assert (of(m, 2).state, of(m, 2).via) == (State.ALIVE, "link")
    assert m.counts["udp_blocked"] > 1


# -------------------------------------------------------------------------------------------------- suspicion
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


def test_death_told_is_believed_and_death_in_old_notes_is_doubted() -> None:
    m = knowing(2, 3, 4)
    assert news(hear(m, 4, Gossip(hearsay=True), claims=[claim(3, 4, dead=True)])) == [MemberSuspect]
    assert news(hear(m, 4, claims=[claim(2, 4, dead=True)])) == [MemberDead]
    assert of(m, 2).evidence.hearsay
    assert news(hear(m, 2, Gossip(answered=4))) == []  # it has to refute
    assert news(hear(m, 2, records=[signed(2, version=2)])) == [MemberAlive]


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


def test_an_accusation_of_an_incarnation_that_is_not_held_asks_for_its_record() -> None:
    m = knowing(2, 3)
    ((_, answer),) = sent(hear(m, 3, claims=[claim(2, 3, version=7)]))
    assert answer.wants == [peer_id(2)]
    assert of(m, 2).state is State.ALIVE


def test_a_suspect_that_asks_is_told_so() -> None:
    """Lifeguard, section IV-C: the buddy system."""
    m = knowing(2, 3)
    hear(m, 3, claims=[claim(2, 3)])
    ((_, answer),) = sent(hear(m, 2, Gossip(ask=5), now=0.01))
    assert answer.claims == [claim(2, 3)]
    asked = [g for _, x in pass_time(m, 0.5) for a, g in sent([x]) if a == address_of(2) and g.ask]
    assert all(claim(2, 3) in g.claims or g.claims for g in asked)
    assert asked


# -------------------------------------------------------------------------------------------------- awareness
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


def test_a_host_that_stood_still_takes_its_own_verdicts_back() -> None:
    m = knowing(2, 3)
    m.handle(LinkBroken(peer_id(2)), now=0.0)
    pass_time(m, LAN.fail_s)
    hear(m, 3, claims=[claim(3, 2)], now=0.3)
    assert of(m, 2).state is of(m, 3).state is State.SUSPECT
    effects = m.handle(Tick(), now=3600.0)
    assert [x for x in news(effects) if x is not MemberSuspect][:2] == [MemberAlive, VerdictsDiscarded]
    assert (of(m, 2).state, of(m, 3).state) == (State.ALIVE, State.SUSPECT)


def test_a_host_that_slept_without_its_clock_does_the_same() -> None:
    m = knowing(2)
    m.handle(LinkBroken(peer_id(2)), now=0.0)
    pass_time(m, LAN.fail_s)
    assert news(m.handle(Slept(600.0), now=0.31)) == [MemberAlive, VerdictsDiscarded]


def test_a_tick_before_the_deadline_does_nothing() -> None:
    m = knowing(2)
    pass_time(m, 0.0)
    assert m.deadline() > 0.05
    assert m.handle(Tick(), now=0.05) == []


# ------------------------------------------------------------------------------------------------------- news
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


def test_notes_are_compared_and_both_ways_mended() -> None:
    m = knowing(2, 3, 4)
    hear(m, 3, claims=[claim(4, 3)])
    rows = [Digest(peer_id(1), 1, 1), Digest(peer_id(2), 0, 0), Digest(peer_id(3), 1, 5), claim(4, 3)]
    digests = [x if isinstance(x, Digest) else Digest(x.peer, 1, 1) for x in rows]
    ((_, answer),) = sent(hear(m, 3, Gossip(hearsay=True), digests=digests))
    assert [wire.read_record(x).peer for x in answer.records] == [peer_id(2)]
    assert (answer.wants, answer.claims, answer.hearsay) == ([peer_id(3)], [claim(4, 3)], True)
    assert hear(m, 3, Gossip(hearsay=True), digests=[Digest(peer_id(9), 4, 4)]) == []


def test_a_page_of_notes_is_one_datagram_whatever_the_size() -> None:
    m = member(1, registered=range(1, PEERS_MAX))
    seen: set[bytes] = set()
    for _ in range(30):
        (payload,) = m._notes.page()
        assert len(payload) <= sealed.PAYLOAD_BYTES_MAX
        seen |= {x.peer for x in wire.decode(payload).digests}
    assert len(seen) == PEERS_MAX - 1


# ---------------------------------------------------------------------------------------------------- records
def test_a_newer_record_replaces_and_an_older_or_equal_one_does_not() -> None:
    m = knowing(2)
    assert news(hear(m, 3, records=[signed(2)])) == []
    assert news(hear(m, 3, records=[signed(2, version=2)])) == []  # only the incarnation
    assert news(hear(m, 3, records=[signed(2, version=1)])) == []
    assert news(hear(m, 3, records=[signed(2, boot=2)])) == [MemberChanged]
    assert news(hear(m, 3, records=[signed(2, version=3)])) == []
    assert (of(m, 2).boot_epoch, of(m, 2).state) == (2, State.ALIVE)


def test_one_that_left_is_alive_again_only_with_another_record() -> None:
    m = knowing(2)
    assert news(hear(m, 3, records=[signed(2, version=2, left=True)])) == [MemberLeft]
    assert news(hear(m, 2, Gossip(answered=9), now=1.0)) == []
    assert news(hear(m, 2, records=[signed(2, boot=2)], now=2.0)) == [MemberChanged, MemberAlive]


def test_a_copied_directory_is_noticed_once() -> None:
    m = knowing(2)
    ((_, answer),) = sent(hear(m, 2, digests=[Digest(peer_id(1), 3, 1)]))
    assert answer.wants == [peer_id(1)]
    assert hear(m, 2, records=[signed(1, boot=3, by=2)]) == []
    assert hear(m, 2, records=[signed(1, boot=3)]) == [OwnRecordOutdated(3, record(1, boot=3).boot_id)]
    assert hear(m, 2, records=[signed(1, boot=4)]) == []


def test_own_addresses_are_announced_under_a_higher_version() -> None:
    m = knowing(2)
    m.handle(AddressesChanged((address_of(1),)), now=0.0)
    assert m.own.version == 1
    m.handle(AddressesChanged((address_of(1, host=5), address_of(1))), now=0.0)
    assert (m.own.version, m.own.addresses) == (2, [address_of(1, host=5), address_of(1)])
    with pytest.raises(UsageError):
        m.handle(AddressesChanged(("no port",)), now=0.0)


def test_as_many_addresses_are_announced_as_fit() -> None:
    long = ["x" * 250 + f":{n}" for n in range(20)]
    assert member(1, addresses=long).own.addresses == long[:3]


def test_removing_a_peer_from_the_registry_removes_the_member() -> None:
    m = knowing(2, 3)
    m.handle(LinkBroken(peer_id(2)), now=0.0)
    m.handle(Registered([peer_id(1), peer_id(3)]), now=0.0)
    assert [x.peer for x in m.members()] == [peer_id(3)]
    pass_time(m, 10.0)


def test_members_are_bounded() -> None:
    m = member(1, registered=range(PEERS_MAX + 50))
    assert len(m.members()) == PEERS_MAX
    assert m.counts["full"] == 49


# ------------------------------------------------------------------------------------------- suggestions
def tries(m: Membership, until: float) -> list[int]:
    """In which seconds something is sent to the suggested address."""
    return [
        math.floor(at)
        for at, x in pass_time(m, until)
        for address, g in sent([x])
        if address == "seed.lan:7700" and g.ask
    ]


def test_a_suggested_address_is_tried_at_once_and_ever_more_rarely() -> None:
    m = member(1, registered=[1, 2])
    ((address, gossip),) = sent(m.handle(AddressSuggested("seed.lan:7700", keep=True), now=0.0))
    assert address == "seed.lan:7700"
    assert wire.read_record(gossip.records[0]) == m.own
    assert m.handle(AddressSuggested("seed.lan:7700"), now=0.0) == []
    assert tries(m, 100) == [1, 3, 7, 15, 31, 61, 91]


def test_it_is_tried_no_more_while_the_one_who_answered_is_there() -> None:
    m = member(1, registered=[1, 2])
    ((_, gossip),) = sent(m.handle(AddressSuggested("seed.lan:7700"), now=0.0))
    hear(m, 2, Gossip(answered=gossip.ask), records=[signed(2)])
    found = tries(m, 10)
    assert found
    assert min(found) >= 3  # dead by then


def test_suggestions_are_bounded_and_a_flood_costs_few_datagrams() -> None:
    m = member(1, registered=[1, 2])
    flood = [f"10.9.{n // 250}.{n % 250}:1" for n in range(5_000)]
    effects = [x for address in flood for x in m.handle(AddressSuggested(address), now=0.0)]
    assert len(effects) == SUGGESTIONS_MAX
    assert m.suggestions_ignored == 5_000 - SUGGESTIONS_MAX
    assert len(m.handle(AddressSuggested("seed.lan:7700", keep=True), now=0.0)) == 1


def test_the_dead_are_written_to_with_what_is_said_of_them() -> None:
    m = knowing(2)
    asked = [g for t, x in pass_time(m, 20.0) for a, g in sent([x]) if t > 8 and a == address_of(2) and g.ask]
    assert 9 <= len(asked) <= 13
    assert all(g.claims[0].dead and g.records for g in asked)


# -------------------------------------------------------------------------------------------------- wire
def test_payloads_fit_a_sealed_datagram_and_nothing_is_lost_in_packing() -> None:
    assert wire.SEAL_BYTES == sealed.OVERHEAD_BYTES
    claims = [claim(n, n + 1, boot=2**62, version=2**62) for n in range(1, 301)]
    digests = [Digest(peer_id(n), 2**62, n) for n in range(1, 301)]
    records = [signed(n, boot=2**60) for n in range(1, 60)]
    wants = [peer_id(n) for n in range(300)]
    head = Gossip(2**62, 2**62, 2**62, peer_id(1), 2**62, 2**62, True)
    payloads = wire.pack(head, records=records, claims=claims, digests=digests, wants=wants)
    assert max(map(len, payloads)) <= sealed.PAYLOAD_BYTES_MAX
    parts = [wire.decode(x) for x in payloads]
    assert [x for p in parts for x in p.claims] == claims
    assert [x for p in parts for x in p.digests] == digests
    assert [x for p in parts for x in p.records] == records
    assert [x for p in parts for x in p.wants] == wants
    assert [p.ask for p in parts] == [2**62] + [0] * (len(parts) - 1)
    assert all(p.hearsay for p in parts)


def test_the_largest_record_fits() -> None:
    m = member(1, addresses=["x" * 250 + f":{n}" for n in range(8)])
    own = wire.sign_record(m.own, sign_as(peer_id(1)))
    (payload,) = wire.pack(Gossip(ask=2**62), records=[own], claims=[claim(1, 2)])
    assert len(payload) <= sealed.PAYLOAD_BYTES_MAX


def test_a_name_that_is_too_long_is_refused_at_the_start() -> None:
    with pytest.raises(UsageError, match="name"):
        wire.sign_record(msgspec.structs.replace(record(1), name="n" * 256), sign_as(peer_id(1)))


@pytest.mark.parametrize(
    "address", ["", "h", "h:", "h:x", "h:1\n", "a b:1", "tcp://h:1", "[x]:1", "h:123456"]
)
def test_a_record_with_an_address_that_is_none_is_malformed(address: str) -> None:
    data = msgspec.msgpack.encode(msgspec.structs.replace(record(2), addresses=[address]))
    with pytest.raises(RemoteProtocolError):
        wire.read_record(Signed(data, sign_as(peer_id(2))(data)))


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
def test_decoding_anything_gives_a_datagram_or_a_protocol_error(data: bytes) -> None:
    for decode in (wire.decode, lambda x: wire.read_record(Signed(x, b"s" * 64))):
        with contextlib.suppress(RemoteProtocolError):
            decode(data)


TREES = st.recursive(
    st.none()
    | st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=20)
    | st.text(max_size=20)
    | st.floats(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=30,
)


@settings(max_examples=500, deadline=None)
@given(st.lists(TREES, max_size=6))
def test_any_msgpack_leaves_the_machine_standing(tree: list[object]) -> None:
    m = knowing(2, 3)
    for payload in (msgspec.msgpack.encode([2, *tree]), msgspec.msgpack.encode(tree)):
        m.handle(DatagramReceived(payload, peer_id(2), address_of(2)), now=0.0)
    m.handle(Tick(), now=0.5)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_datagram_never_changes_what_others_signed(data: st.DataObject) -> None:
    m = knowing(2)
    (payload,) = wire.pack(Gossip(ask=1), records=[signed(3)], claims=[claim(3, 2)])
    changed = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    m.handle(DatagramReceived(bytes(changed), peer_id(2), address_of(2)), now=0.0)
    third = m.member(peer_id(3))
    assert third is not None
    assert third.name in ("", "peer3")
    assert verify(peer_id(3), b"", sign_as(peer_id(3))(b""))
