"""Links to other peers: opened, welcomed, kept alive, and tried again when they break."""

from __future__ import annotations

from typing import Any

import pytest

from meshq.errors import Forbidden, Overloaded
from meshq.messages import CarryGossip, Hello, Ping, Pong, Routes, Welcome, failure
from meshq.peer.core import events as e
from meshq.peer.core.links import MOVED_S, PAUSE_S_MAX, PING_S, SILENCE_S, STEADY_S, LinkState
from tests.peer.single import AUTHORITY, Single, identity

B, C = identity("b").peer_id, identity("c").peer_id
HERE = ("192.0.2.1:7700",)


def opening(*founders: str) -> Single:
    peer = Single(founders=founders or ("a", "b"))
    peer.tell(e.MemberSeen(B, HERE, True))
    peer.tick()
    return peer


def up() -> Single:
    peer = opening()
    peer.tell(e.LinkUp(B))
    welcome(peer)
    peer.out.clear()
    return peer


def welcome(peer: Single, who: bytes = B, mesh: bytes = AUTHORITY.mesh_id) -> list[e.Effect]:
    return peer.tell(e.LinkMessage(B, Welcome(1, mesh, who, bytes(16), 0)))


def opened(peer: Single) -> list[Any]:
    return [x.addresses for x in peer.take(e.OpenLink)]


def state(peer: Single) -> LinkState:
    return peer.core.links.states[B].state


def test_a_link_counts_once_it_is_welcomed() -> None:
    peer = opening()
    (order,) = peer.take(e.OpenLink)
    assert (order.peer, order.addresses, order.server_key) == (B, HERE, identity("b").curve_public)
    peer.tell(e.LinkUp(B))
    me = peer.core.ctx.me
    hello = Hello(1, 1, AUTHORITY.mesh_id, "a", me.disk, me.epoch, me.boot)
    assert [x.message for x in peer.take(e.SendPeer)] == [hello]
    assert peer.core.links.reachable() == {identity("a").peer_id}
    welcome(peer)
    assert peer.core.links.reachable() == {identity("a").peer_id, B}


@pytest.mark.parametrize(("who", "mesh"), [(C, AUTHORITY.mesh_id), (B, b"m" * 16)])
def test_another_peer_or_mesh_at_that_address_is_left(who: bytes, mesh: bytes) -> None:
    peer = opening()
    peer.tell(e.LinkUp(B))
    effects = welcome(peer, who, mesh)
    assert e.CloseLink(B) in effects
    assert state(peer) is LinkState.DOWN


@pytest.mark.parametrize("error", [Overloaded("too many"), Forbidden("who are you?")])
def test_a_link_whose_hello_was_refused_is_tried_again(error: Any) -> None:
    peer = opening()
    peer.take(e.OpenLink)
    peer.tell(e.LinkUp(B))
    assert e.CloseLink(B) in peer.tell(e.LinkMessage(B, failure(0, error)))
    assert peer.core.links.states[B].reason == str(error)
    peer.tick(0.2)
    assert opened(peer) == [HERE]


def test_a_link_that_is_never_welcomed_is_tried_again() -> None:
    peer = opening()
    peer.take(e.OpenLink)
    peer.tell(e.LinkUp(B))
    peer.tick(SILENCE_S + 0.1)
    assert state(peer) is LinkState.DOWN
    peer.tick(0.2)
    assert opened(peer) == [HERE]


def test_a_link_whose_session_was_dropped_at_the_other_side_begins_again() -> None:
    peer = up()
    assert e.CloseLink(B) in peer.tell(e.LinkMessage(B, failure(0, Forbidden("say Hello first"))))
    assert state(peer) is LinkState.DOWN


def test_a_welcome_of_a_connection_that_was_given_up_is_void() -> None:
    peer = up()
    peer.tell(e.LinkDown(B, "cut"))
    welcome(peer)
    assert state(peer) is LinkState.DOWN


def test_pauses_double_and_are_cut_short_by_news_of_the_peer() -> None:
    peer = opening()
    peer.take(e.OpenLink)
    pauses = []
    for _ in range(7):
        peer.tell(e.LinkDown(B, "refused"))
        began = peer.now
        while not opened(peer):
            peer.tick(0.1)
        pauses.append(round(peer.now - began, 2))
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, PAUSE_S_MAX, PAUSE_S_MAX], abs=0.11)
    peer.tell(e.LinkDown(B, "refused"))
    peer.tell(e.MemberSeen(B, ("192.0.2.9:7700",), True))
    peer.tick(0.1)
    assert opened(peer) == [("192.0.2.9:7700",)]


def test_a_broken_link_is_tried_again_in_the_same_turn_unless_it_was_hardly_up() -> None:
    """Whether its process is gone shows by that, and elections wait for it."""
    peer = up()
    assert not [x for x in peer.tell(e.LinkDown(B, "lost")) if isinstance(x, e.OpenLink)]
    peer = up()
    peer.now += STEADY_S + 0.1
    assert [x for x in peer.tell(e.LinkDown(B, "lost")) if isinstance(x, e.OpenLink)]


def test_a_link_is_pinged_and_silence_ends_it() -> None:
    peer = up()
    peer.tick(PING_S)
    (ping,) = [x.message for x in peer.take(e.SendPeer) if isinstance(x.message, Ping)]
    peer.now += 0.25
    peer.tell(e.LinkMessage(B, Pong(ping.token)))
    assert peer.core.links.states[B].rtt_ms == pytest.approx(250, abs=1)
    peer.tick(SILENCE_S - 0.1)
    assert state(peer) is LinkState.UP
    effects = peer.tick(0.2)
    assert e.CloseLink(B) in effects
    assert state(peer) is LinkState.DOWN


def test_a_link_to_one_that_moved_ends_when_it_does_not_carry_any_more() -> None:
    peer = up()
    peer.tell(e.MemberSeen(B, ("192.0.2.9:7700",), True))
    (ping,) = [x.message for x in peer.take(e.SendPeer) if isinstance(x.message, Ping)]
    peer.tick(0.1)
    peer.tell(e.LinkMessage(B, Pong(ping.token)))  # it does: by another of its addresses
    peer.tick(MOVED_S + 0.1)
    assert state(peer) is LinkState.UP
    peer.core.on_own_record(HERE, (1, 1))
    peer.core.on_own_record(("192.0.2.77:7700",), (1, 2))
    peer.tick(MOVED_S - 0.1)
    assert state(peer) is LinkState.UP
    peer.tick(0.2)
    assert state(peer) is LinkState.DOWN
    peer.tick(0.2)
    assert opened(peer) == [("192.0.2.9:7700",)]


def test_a_link_carries_what_gossip_cannot_tell_by_datagram() -> None:
    peer = up()
    peer.tell(e.LinkProbeWanted(B, b"told"))
    assert [type(x.message) for x in peer.take(e.SendPeer)] == [Ping, CarryGossip]
    there = {"session": (e.PEERS, b"7"), "key": identity("b").curve_public}
    peer.hello(**there)
    peer.send(CarryGossip(b"heard"), **there)
    assert peer.take(e.TellMembership) == [e.TellMembership(B, b"heard")]


def test_nobody_but_a_peer_carries_gossip() -> None:
    peer = up()
    peer.hello()
    (refused,) = peer.send(CarryGossip(b"forged"))
    assert (refused.name, peer.take(e.TellMembership)) == ("Forbidden", [])


def test_only_registered_peers_are_linked() -> None:
    peer = Single()
    peer.tell(e.MemberSeen(C, HERE, True))
    peer.tick()
    assert opened(peer) == []


def test_clients_hear_of_members_when_something_changed_and_only_then() -> None:
    peer = Single(founders=("a", "b"))
    peer.hello()
    before = len(peer.out)
    for addresses, alive in [(HERE, True), (HERE, True), (HERE, False), (HERE, False)]:
        peer.tell(e.MemberSeen(B, addresses, alive))
    told = [m for m in peer.heard(since=before) if isinstance(m, Routes)]
    assert [[r.alive for r in m.peers if r.peer == B] for m in told] == [[True], [False]]
