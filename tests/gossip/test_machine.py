"""The machine alone: first contact, links, standing still, records. Events in, exact effects out."""

from __future__ import annotations

import msgspec
import pytest

from meshq.errors import UsageError
from meshq.gossip import wire
from meshq.gossip.settings import LAN
from meshq.gossip.wire import Digest, Gossip, Signed
from meshq.gossip.words import (
    AddressesChanged,
    DatagramReceived,
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
    Slept,
    State,
    Tick,
    VerdictsDiscarded,
)
from meshq.limits import PEERS_MAX
from meshq.transport import sealed
from tests.gossip.scripts import claim, hear, knowing, news, of, pass_time, passing, record, sent, signed
from tests.gossip.simulation import address_of, member, peer_id, sign_as


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


def test_death_told_is_believed_and_death_in_old_notes_is_doubted() -> None:
    m = knowing(2, 3, 4)
    assert news(hear(m, 4, Gossip(hearsay=True), claims=[claim(3, 4, dead=True)])) == [MemberSuspect]
    assert news(hear(m, 4, claims=[claim(2, 4, dead=True)])) == [MemberDead]
    assert of(m, 2).evidence.hearsay
    assert news(hear(m, 2, Gossip(answered=4))) == []  # it has to refute
    assert news(hear(m, 2, records=[signed(2, version=2)])) == [MemberAlive]


def test_an_accusation_of_an_incarnation_that_is_not_held_asks_for_its_record() -> None:
    m = knowing(2, 3)
    ((_, answer),) = sent(hear(m, 3, claims=[claim(2, 3, version=7)]))
    assert answer.wants == [peer_id(2)]
    assert of(m, 2).state is State.ALIVE


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


# ---------------------------------------------------------------------------------- what it signed before
def test_a_process_put_back_from_a_snapshot_goes_on_above_what_it_had_signed() -> None:
    m = knowing(2)
    effects = hear(m, 2, records=[signed(1, version=9)])  # of this very start, as the boot id says
    assert m.own.order == (1, 10)
    assert m.counts["caught_up"] == 1
    assert news(effects) == []
    hear(m, 2, records=[signed(1, version=9)])
    assert m.own.order == (1, 10)


def test_what_only_pretends_to_be_its_own_record_changes_nothing() -> None:
    m = knowing(2)
    assert hear(m, 2, records=[signed(1, version=9, by=2)]) == []
    assert (m.own.order, m.counts["forged"]) == ((1, 1), 1)


def test_a_restart_is_told_apart_from_another_address() -> None:
    m = knowing(2)
    moved = wire.sign_record(
        msgspec.structs.replace(record(2, version=2), addresses=[address_of(2, host=7)]), sign_as(peer_id(2))
    )
    (change,) = [x for x in hear(m, 3, records=[moved]) if isinstance(x, MemberChanged)]
    assert not change.restarted
    (change,) = [x for x in hear(m, 3, records=[signed(2, boot=2)]) if isinstance(x, MemberChanged)]
    assert change.restarted


def test_what_a_peer_says_of_its_place_and_its_software_is_told_with_it() -> None:
    m = knowing()
    made = msgspec.structs.replace(record(2), level=3, weight=2.5, zone="attic")
    hear(m, 2, records=[wire.sign_record(made, sign_as(peer_id(2)))])
    assert (of(m, 2).level, of(m, 2).weight, of(m, 2).zone) == (3, 2.5, "attic")


def test_a_record_of_before_there_were_levels_says_nothing_of_them() -> None:
    m = knowing()
    body = msgspec.msgpack.encode([1, *msgspec.to_builtins(record(2), builtin_types=(bytes,))[1:8]])
    data = wire._SIGNED_AS + body
    hear(m, 2, records=[Signed(body, sign_as(peer_id(2))(data))])
    assert (of(m, 2).state, of(m, 2).level, of(m, 2).weight) == (State.ALIVE, 1, None)
