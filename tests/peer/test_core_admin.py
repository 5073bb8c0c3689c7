"""Administrative requests: facts of this peer and of others, null where they could not be had in time."""

from __future__ import annotations

from typing import Any

import pytest

from meshq.ids import TopicId
from meshq.messages import Answer, Ask, Failure, Welcome
from meshq.peer.core import admin, fanning
from meshq.peer.core import events as e
from meshq.peer.core.fanning import FAN_OUT_S
from meshq.registry import commands
from meshq.registry.state import GENESIS_DISK
from meshq.replication.quorum import Node
from tests.peer.single import AUTHORITY, SLOTS, Single, client_certificate, identity, key_of

B = identity("b").peer_id


def linked() -> Single:
    peer = Single(founders=("a", "b"))
    peer.hello()
    peer.tell(e.MemberSeen(B, ("192.0.2.1:7700",), True))
    peer.tick()
    peer.tell(e.LinkUp(B))
    peer.tell(e.LinkMessage(B, Welcome(1, AUTHORITY.mesh_id, B, bytes(16), 0)))
    return peer


def asked_b(peer: Single) -> list[Ask]:
    return [x.message for x in peer.take(e.SendPeer) if isinstance(x.message, Ask)]


def show(peer: Single) -> Ask:
    """What b is asked when somebody wants to see topic t."""
    peer.send(Ask(99, "topic.show", {"topic": "t"}))
    (ask,) = asked_b(peer)
    return ask


def shown(peer: Single) -> Any:
    found = [m for m in peer.heard() if getattr(m, "request", None) == 99]
    return found[-1].value if found else None


def test_status_says_who_where_and_how_full() -> None:
    peer = linked()
    peer.make_topic()
    peer.send(Ask(99, "status"))
    (ask,) = asked_b(peer)
    assert ask.what == "health"
    peer.tell(e.LinkMessage(B, Answer(ask.request, {"of": "another version"})))
    status = shown(peer)
    assert (status["name"], status["peers"], status["peers_reachable"], status["topics"]) == ("a", 2, 2, 1)
    assert status["registry"] == {
        "holder": "a", "version": 2, "reachable": True, "voters": ["a"],
    }  # fmt: skip
    assert status["slots"]["total"] == SLOTS
    assert status["slots"]["written"] == 0
    assert status["health"]["peers_asked"] == 2
    assert status["disk"]["pending_bytes"] == 0


def test_peers_lists_all_of_them_with_their_state() -> None:
    peer = linked()
    peer.tell(e.MemberSeen(B, ("192.0.2.1:7700",), False))
    peer.tell(e.LinkDown(B, "reset"))
    a, b = peer.ask("peers")
    assert (a["name"], a["state"], a["link"], a["holds_registry"]) == ("a", "alive", "self", True)
    assert (b["name"], b["state"], b["link"], b["reason"]) == ("b", "dead", "down", "reset")
    assert b["address"] == "192.0.2.1:7700"
    assert a["slots"] + b["slots"] == SLOTS


def test_a_topics_offsets_come_from_every_owner() -> None:
    peer = linked()
    info = peer.make_topic(partitions=SLOTS)
    own = [p for p in range(SLOTS) if not isinstance(peer.produce(info, partition=p)[0], Failure)]
    ask = show(peer)
    assert (ask.what, ask.args) == ("offsets", {"topic": "t"})
    assert shown(peer) is None
    theirs = {str(p): {"earliest": 0, "end": 7, "bytes": 9} for p in range(SLOTS) if p not in own}
    peer.tell(e.LinkMessage(B, Answer(ask.request, theirs)))
    rows = shown(peer)["partition"]
    assert [r["end"] for r in rows] == [1 if p in own else 7 for p in range(SLOTS)]
    assert [r["owner"] for r in rows] == ["a" if p in own else "b" for p in range(SLOTS)]


@pytest.mark.parametrize(
    "value", [None, 7, [], {"x": 1}, {"0": 7}, {"-1": {}}, {0: {"end": 1}}, {"²": {}}], ids=repr
)
def test_an_owner_that_answers_nonsense_leaves_its_facts_null(value: Any) -> None:
    peer = linked()
    peer.make_topic(partitions=SLOTS)
    ask = show(peer)
    peer.tell(e.LinkMessage(B, Answer(ask.request, value)))
    rows = shown(peer)["partition"]
    assert {r["end"] for r in rows if r["owner"] == "b"} <= {None}


def test_a_fact_that_did_not_come_in_time_is_null_and_never_zero() -> None:
    peer = linked()
    peer.make_topic(partitions=SLOTS)
    ask = show(peer)
    peer.tick(FAN_OUT_S + 0.1)
    ends = {r["owner"]: r["end"] for r in shown(peer)["partition"]}
    assert ends["a"] == 0
    assert ends["b"] is None
    assert peer.tell(e.LinkMessage(B, Answer(ask.request, {}))) == [], "too late"
    assert not peer.core.admin.fan_out._asked


def test_questions_to_other_peers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanning, "FAN_OUTS_MAX", 2)
    peer = linked()
    peer.make_topic()
    for n in range(2):
        assert peer.send(Ask(n, "topic.show", {"topic": "t"})) == []
    (answer,) = peer.send(Ask(5, "topic.show", {"topic": "t"}))
    assert (answer.name, answer.request) == ("Overloaded", 5)
    peer.tick(FAN_OUT_S + 0.1)
    assert peer.send(Ask(6, "topic.show", {"topic": "t"})) == []


@pytest.mark.parametrize("what", ["recover.facts", "recover.slots", "placement", "registry.level"])
def test_what_is_between_peers_is_refused_to_everybody_else(what: str) -> None:
    peer = linked()
    admin_key = peer.register("ops", ("admin", "#"))
    b = identity("b").curve_public
    for session, key in ((e.CLIENTS, b"1"), admin_key), ((e.CLIENTS, b"2"), b), ((e.PEERS, b"3"), admin_key):
        peer.hello(session=session, key=key)
        answers = peer.send(Ask(7, what), session=session, key=key)
        assert [x.name for x in answers if isinstance(x, Failure)] == ["Forbidden"]
    there = (e.PEERS, b"4")
    peer.hello(session=there, key=b)
    (answer,) = peer.send(Ask(8, what), session=there, key=b)
    assert getattr(answer, "name", "") != "Forbidden"


def test_topics_are_made_changed_deleted_and_listed_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "PAGE", 2)
    peer = Single()
    peer.hello()
    for name in ("a", "b", "c.d"):
        assert peer.ask("topic.create", topic=name, partitions=2)["name"] == name
    first = [t["name"] for t in peer.ask("topics")]
    assert first == ["a", "b"]
    assert [t["name"] for t in peer.ask("topics", after=first[-1])] == ["c.d"]
    assert [t["name"] for t in peer.ask("topics", pattern="c.*")] == ["c.d"]
    assert peer.ask("topic.create", topic="a").name == "TopicExists"
    assert peer.ask("topic.set", topic="a", partitions=5)["partitions"] == 5
    assert peer.ask("topic.set", topic="a", partitions=4).name == "UsageError"
    assert peer.ask("topic.set", topic="a").name == "UsageError"
    assert "version" in peer.ask("topic.delete", topic="a")
    assert peer.ask("topic.show", topic="a").name == "UnknownTopic"


@pytest.mark.parametrize(
    ("what", "args"),
    [
        ("nonsense", {}),
        ("topic.create", {}),
        ("topic.create", {"topic": "no topic"}),
        ("topic.create", {"topic": "t", "partitions": 0}),
        ("topic.create", {"topic": "t", "partitions": True}),
        ("topic.create", {"topic": "t", "partitions": 1_025}),
        ("topic.create", {"topic": "t", "record_bytes_max": 1 << 30}),
        ("topics", {"pattern": "a.#.b"}),
        ("client.register", {"certificate": "text"}),
    ],
)
def test_an_argument_that_cannot_be_is_refused(what: str, args: dict[str, Any]) -> None:
    peer = Single()
    peer.hello()
    assert peer.ask(what, **args).name == "UsageError"


def test_a_client_is_registered_through_any_admin() -> None:
    peer = Single()
    peer.hello()
    assert peer.ask("client.register", certificate=client_certificate("app", ("publish", "#"))) == {
        "version": 2
    }
    assert peer.hello(session=(e.CLIENTS, b"2"), key=identity("app").curve_public)


def test_a_topic_deleted_while_its_slot_is_handed_over_is_dropped_by_who_leads_then() -> None:
    """This peer too, if the other one does not take the lead."""
    peer = Single()
    peer.hello()
    info = peer.make_topic()
    peer.produce(info, b"x")
    host = peer.core.slots.hosts[peer.core.ctx.slot_of(key_of(info))]
    host.replica._leading.hand_over.to = Node(identity("b").peer_id, GENESIS_DISK)
    peer.propose(commands.DeleteTopic(info.topic_id))
    peer.tick(1)
    assert host.stream.holds(TopicId(info.topic_id))
    host.replica._leading.hand_over.to = None
    peer.tick(1)
    assert not host.stream.holds(TopicId(info.topic_id))
