"""What changes in membership can be followed: numbered, waited for, and bounded."""

from __future__ import annotations

from typing import Any

from meshq.limits import MEMBER_EVENT_READERS_MAX, MEMBER_EVENTS_KEPT
from meshq.messages import Ask, Failure
from meshq.peer.core import events as e
from meshq.peer.core.journal import PAGE, WAIT_MS_MAX
from tests.peer.single import Single, identity

B = identity("b").peer_id
HERE, THERE = ("192.0.2.1:7700",), ("192.0.2.2:7700",)


def seen(event: str = "MemberAlive", *, at: tuple[str, ...] = HERE, boot: int = 1) -> e.MemberSeen:
    state = "dead" if event == "MemberDead" else "alive"
    return e.MemberSeen(
        B, at, state == "alive", state, 5, (boot, 1), event=event, boot=bytes([boot]) * 16,
        rtt_ms=0.4, proof={"accusers": ["c"]} if state == "dead" else {},
    )  # fmt: skip


def peer_of_two() -> Single:
    peer = Single(founders=("a", "b"))
    peer.hello()
    return peer


def wait(peer: Single, request: int, after: int, **args: Any) -> list[Any]:
    """Ask for what comes after it; the answers so far."""
    args = {"after": after, "wait_ms": 1_000, **args}
    return [
        m.value for m in peer.send(Ask(request, "events", args)) if getattr(m, "request", None) == request
    ]


def answers(peer: Single, request: int) -> list[Any]:
    return [m.value for m in peer.heard() if getattr(m, "request", None) == request]


def test_changes_are_numbered_and_say_who_what_and_on_whose_word() -> None:
    peer = peer_of_two()
    peer.now = 1.0
    peer.tell(seen())
    peer.tell(seen("MemberDead"))
    found = peer.ask("events", after=0)
    assert (found["name"], found["last"], found["lost"]) == ("a", 2, 0)
    alive, dead = found["events"]
    assert (alive["seq"], alive["event"], alive["name"], alive["state"]) == (1, "MemberAlive", "b", "alive")
    assert (alive["at_ms"], alive["incarnation"], alive["addresses"]) == (peer.wall_ms, "1.1", list(HERE))
    assert (dead["seq"], dead["event"], dead["evidence"]) == (2, "MemberDead", {"accusers": ["c"]})


def test_another_boot_id_is_a_restart_and_another_address_a_move() -> None:
    peer = peer_of_two()
    peer.tell(seen())
    peer.tell(seen("MemberMoved", at=THERE))
    peer.tell(seen("MemberRestarted", at=THERE, boot=2))
    _, moved, restarted = peer.ask("events", after=0)["events"]
    assert (moved["event"], moved["was"]["addresses"], moved["addresses"]) == (
        "MemberMoved",
        list(HERE),
        list(THERE),
    )
    assert (restarted["event"], restarted["boot"], restarted["was"]["boot"]) == (
        "MemberRestarted", "02" * 16, "01" * 16,
    )  # fmt: skip


def test_what_concerns_this_peer_is_told_too() -> None:
    peer = peer_of_two()
    peer.tell(e.MembershipNoticed("VerdictsDiscarded", {"seconds": 3.0}))
    peer.tell(e.UdpSeen(B, blocked=True))
    peer.tell(e.UdpSeen(B, blocked=False))
    peer.core.on_own_record(HERE, (1, 1))
    peer.core.on_own_record(THERE, (1, 2))
    told = peer.ask("events", after=0)["events"]
    names = ["VerdictsDiscarded", "UdpBlocked", "UdpUnblocked", "OwnAddressesChanged"]
    assert [x["event"] for x in told] == names
    assert told[0]["seconds"] == 3.0
    assert "UDP blocked between a and b" in told[1]["text"]
    assert (told[3]["was"]["addresses"], told[3]["addresses"]) == (list(HERE), list(THERE))


def test_without_a_number_one_begins_now() -> None:
    peer = peer_of_two()
    peer.tell(seen())
    found = peer.ask("events")
    assert (found["events"], found["last"]) == ([], 1)


def test_an_answer_waits_for_news_and_comes_with_it() -> None:
    peer = peer_of_two()
    assert wait(peer, 70, 0) == []
    peer.tell(seen())
    (found,) = answers(peer, 70)
    assert [x["event"] for x in found["events"]] == ["MemberAlive"]
    assert wait(peer, 71, 0) == [found]  # there already: at once


def test_an_answer_comes_empty_when_nothing_happened_for_as_long() -> None:
    peer = peer_of_two()
    wait(peer, 70, 0)
    peer.tick(0.9)
    assert answers(peer, 70) == []
    peer.tick(0.2)
    assert [(x["events"], x["last"]) for x in answers(peer, 70)] == [([], 0)]
    peer.tell(seen())
    assert len(answers(peer, 70)) == 1


def test_numbers_of_another_run_mean_nothing() -> None:
    peer = peer_of_two()
    peer.tell(seen())
    first = peer.ask("events", after=0)
    assert peer.ask("events", after=1, boot=first["boot"])["events"] == []
    assert peer.ask("events", after=1, boot="00" * 16)["last"] == 1
    assert len(peer.ask("events", after=1, boot="00" * 16)["events"]) == 1
    assert len(peer.ask("events", after=99)["events"]) == 1


def test_the_oldest_are_forgotten_and_who_lacks_them_is_told_how_many() -> None:
    peer = peer_of_two()
    for _ in range(MEMBER_EVENTS_KEPT + 7):
        peer.tell(seen())
    found = peer.ask("events", after=3)
    assert (found["lost"], found["events"][0]["seq"], len(found["events"])) == (4, 8, PAGE)
    assert found["last"] == 8 + PAGE - 1
    assert peer.ask("events", after=found["last"])["lost"] == 0


def test_so_many_may_wait_and_those_that_are_gone_make_room() -> None:
    peer = peer_of_two()
    for i in range(MEMBER_EVENT_READERS_MAX):
        assert wait(peer, 1_000 + i, 0) == []
    refused = peer.ask("events", after=0, wait_ms=1)
    assert isinstance(refused, Failure) and refused.name == "Overloaded"
    peer.tell(e.SessionClosed((e.CLIENTS, b"1")))
    peer.tick(0.1)
    peer.hello()
    assert wait(peer, 5_000, 0) == []


def test_it_needs_sensible_arguments() -> None:
    peer = peer_of_two()
    for args in ({"after": -1}, {"after": "x"}, {"after": True}, {"after": 0, "wait_ms": WAIT_MS_MAX + 1}):
        refused = peer.ask("events", **args)
        assert isinstance(refused, Failure) and refused.name == "UsageError", args


def test_peers_show_state_since_when_round_trip_incarnation_and_evidence() -> None:
    peer = peer_of_two()
    peer.core.on_own_record(HERE, (4, 2))
    peer.tell(seen())
    peer.tell(e.RoundTripsMeasured({B: 0.7}))
    a, b = peer.ask("peers")
    assert (a["state"], a["incarnation"], a["since_ms"], a["address"]) == (
        "alive",
        "4.2",
        peer.wall_ms,
        HERE[0],
    )
    assert (b["state"], b["incarnation"], b["since_ms"], b["rtt_ms"], b["udp"]) == (
        "alive",
        "1.1",
        5,
        0.7,
        "open",
    )
    peer.tell(e.UdpSeen(B, blocked=True))
    _, b = peer.ask("peers")
    assert b["udp"] == "blocked" and "UDP blocked between a and b" in b["evidence"]
