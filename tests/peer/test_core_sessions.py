"""Sessions and authorization: who may say what to a peer, and how much it holds for one connection."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshq import limits, messages
from meshq.errors import RemoteProtocolError
from meshq.messages import (
    Ask,
    Credit,
    Failure,
    Hello,
    Leads,
    Ping,
    Pong,
    Produce,
    ProduceItem,
    ProposeRegistry,
    Read,
    ReadEnded,
    ReadItem,
    Replicate,
    Resolve,
    Resolved,
    Routes,
    TopicsChanged,
    Unread,
    Unwatch,
    Watch,
    Welcome,
)
from meshq.peer.core import events as e
from meshq.peer.core import sessions
from meshq.peer.core.context import CoreSettings
from meshq.registry import commands
from tests.peer.single import AUTHORITY, Single, identity, make_batch

MANY_PEERS = (e.PEERS, b"p")
OTHER = (e.CLIENTS, b"2")
ID = bytes(16)


def names(answers: list[Any]) -> list[str]:
    return [a.name if isinstance(a, Failure | ReadEnded) else type(a).__name__ for a in answers]


def test_hello_is_answered_with_who_we_are_and_where_everybody_is() -> None:
    peer = Single(founders=("a", "b"))
    peer.tell(e.MemberSeen(identity("b").peer_id, ("192.0.2.1:7700",), True))
    welcome, routes = peer.hello()
    assert isinstance(welcome, Welcome)
    assert (welcome.version, welcome.mesh, welcome.peer) == (1, AUTHORITY.mesh_id, identity("a").peer_id)
    assert isinstance(routes, Routes)
    assert {r.name: r.addresses for r in routes.peers} == {"a": [], "b": ["192.0.2.1:7700"]}
    owners = [routes.peers[i].peer for i in routes.owners]
    assert owners == [own[0] for own in peer.core.ctx.registry.genesis_owners]


@pytest.mark.parametrize(
    "message",
    [
        Ping(1),
        Resolve(1, "t"),
        Produce([]),
        Read(1, []),
        Credit(1, 1, 1),
        Ask(1, "status"),
        Leads([]),
    ],
    ids=lambda m: type(m).__name__,
)
def test_nothing_is_answered_before_hello(message: messages.Message) -> None:
    (answer,) = Single().send(message)
    assert isinstance(answer, Failure)
    assert answer.name == "RemoteProtocolError"
    assert "Hello first" in answer.text


def test_a_key_that_is_not_registered_gets_nothing() -> None:
    peer = Single()
    (answer,) = peer.hello(key=b"?" * 32)
    assert (answer.status, answer.name) == (403, "Forbidden")
    assert not peer.core.ctx.sessions.states


def test_versions_that_do_not_meet_are_refused_and_those_that_do_agree_on_the_newest_both_know() -> None:
    peer = Single()
    assert names(peer.send(Hello(2, 3, AUTHORITY.mesh_id))) == ["UsageError"]
    assert names(peer.send(Hello(0, 0, AUTHORITY.mesh_id))) == ["UsageError"]
    assert peer.send(Hello(0, 9, AUTHORITY.mesh_id))[0].version == 1


def test_another_mesh_is_refused_and_none_named_is_whichever_this_is() -> None:
    peer = Single()
    assert names(peer.send(Hello(1, 1, b"m" * 16))) == ["Forbidden"]
    assert names(peer.send(Hello(1, 1))) == ["Welcome", "Routes"]


def test_a_capability_covers_what_it_names_and_nothing_else() -> None:
    peer = Single()
    mine, other = peer.make_topic("plant.temp"), peer.make_topic("office.temp")
    key = peer.register("sensor", ("publish", "plant.#"), ("subscribe", "plant.#"))
    peer.hello(key=key)
    assert names(peer.produce(mine, key=key)) == ["Produced"]
    assert names(peer.produce(other, key=key)) == ["Forbidden"]
    assert names(peer.read(mine, key=key)) == ["ReadStarted"]
    assert names(peer.read(other, key=key)) == ["Forbidden"]
    assert names(peer.send(Watch(1, "plant.*"), key=key)) == ["TopicsChanged"]
    assert names(peer.send(Watch(2, "*.temp"), key=key)) == ["Forbidden"]
    assert names(peer.send(Watch(3, "plant.*", [""]), key=key)) == ["Forbidden"], "prefixes are for peers"
    assert names(peer.send(Resolve(1, "office.temp", True), key=key)) == ["Forbidden"]
    assert names(peer.send(Resolve(1, "plant.new", True), key=key)) == ["TopicsChanged", "Resolved"]
    for what in ("status", "peers", "topic.create", "topic.delete", "client.register", "offsets"):
        answer = peer.ask(what, key=key, topic="plant.temp")
        assert isinstance(answer, Failure)
        assert answer.name == "Forbidden"
    assert [t["name"] for t in peer.ask("topics", key=key)] == ["plant.new", "plant.temp"]
    assert peer.ask("topic.show", key=key, topic="office.temp").name == "Forbidden"
    assert peer.ask("topic.show", key=key, topic="plant.temp")["partitions"] == 1


def test_who_may_only_read_makes_no_topics() -> None:
    peer = Single()
    key = peer.register("screen", ("subscribe", "#"))
    peer.hello(key=key)
    assert names(peer.send(Resolve(1, "new", True), key=key)) == ["UnknownTopic"]
    assert peer.core.ctx.registry.topic("new") is None


def test_topics_are_made_on_first_use_only_where_that_is_allowed() -> None:
    peer = Single()
    key = peer.register("app", ("publish", "#"), ("publish", "_dead.#"))
    peer.hello(key=key)
    (answer,) = peer.send(Resolve(1, "new", True), key=key)
    assert isinstance(answer, Resolved)
    assert answer.info.partitions == 1
    assert names(peer.send(Resolve(1, "other"), key=key)) == ["UnknownTopic"]
    assert names(peer.send(Resolve(1, "_dead.g.t", True), key=key)) == ["UnknownTopic"], "meshq's own"
    strict = Single(settings=CoreSettings(auto_create=False))
    strict.hello()
    assert names(strict.send(Resolve(1, "new", True))) == ["UnknownTopic"]


def test_a_new_certificate_holds_from_the_next_message_on() -> None:
    peer = Single()
    info = peer.make_topic()
    key = peer.register("app", ("publish", "#"))
    peer.hello(key=key)
    assert names(peer.produce(info, key=key)) == ["Produced"]
    peer.register("app", ("subscribe", "#"))
    last = peer.heard()[-1]
    assert isinstance(last, Failure) and (last.request, last.name) == (0, "Forbidden"), "the session ends"
    peer.hello(key=key)
    assert names(peer.produce(info, key=key)) == ["Forbidden"]


def test_who_may_not_read_any_more_is_pushed_nothing_any_more() -> None:
    for ended in ("narrowed", "expired"):
        peer = Single()
        info = peer.make_topic()
        key = peer.register("app", ("subscribe", "#"), valid_s=10)
        peer.hello(key=key)
        assert names(peer.read(info, key=key)) == ["ReadStarted"]
        peer.send(Credit(1, 1_000, 1_000), key=key)
        assert peer.core.ctx.deliveries.count() == 1
        if ended == "narrowed":
            peer.register("app", ("publish", "#"))
        else:
            peer.tick(11)
        last = peer.heard()[-1]
        assert isinstance(last, Failure) and (last.request, last.name) == (0, "Forbidden")
        assert peer.core.ctx.deliveries.count() == 0


def test_an_expired_certificate_is_refused_on_a_connection_that_is_open() -> None:
    peer = Single()
    key = peer.register("app", ("publish", "#"), valid_s=60)
    peer.hello(key=key)
    assert names(peer.send(Ping(1), key=key)) == ["Pong"]
    peer.now += 60
    (answer,) = peer.send(Ping(2), key=key)
    assert answer.name == "Forbidden"
    assert "expired" in answer.text


@pytest.mark.parametrize(
    "message",
    [
        ProposeRegistry(1, commands.encode(commands.DeleteTopic(ID))),
        Replicate([]),
    ],
    ids=lambda m: type(m).__name__,
)
def test_what_is_between_peers_is_refused_to_clients_and_at_the_clients_door(
    message: messages.Message,
) -> None:
    peer = Single(founders=("a", "b"))
    admin = peer.register("root", ("admin", "#"))
    for session, key in ((e.CLIENTS, b"1"), admin), ((e.PEERS, b"2"), admin), ((e.CLIENTS, b"3"), None):
        peer.hello(session=session, key=key)
        assert names(peer.send(message, session=session, key=key)) == ["Forbidden"]


def test_a_message_for_a_client_is_refused_by_a_peer() -> None:
    peer = Single()
    peer.hello()
    assert names(peer.send(Pong(1))) == ["RemoteProtocolError"]


def test_what_cannot_be_read_is_answered_and_costs_nobody_else() -> None:
    peer = Single()
    peer.hello()
    peer.tell(
        e.MalformedArrived((e.CLIENTS, b"1"), identity("a").curve_public, RemoteProtocolError("garbage"))
    )
    assert isinstance(peer.heard()[-1], Failure)
    assert names(peer.send(Ping(1))) == ["Pong"]


# ----------------------------------------------------------------------------------------------------- limits
def test_subscriptions_and_watches_of_a_connection_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SUBSCRIPTIONS_PER_SESSION_MAX", 3)
    peer = Single()
    info = peer.make_topic(partitions=4)
    key = peer.register("app", ("subscribe", "#"))
    peer.hello(key=key)
    peer.read(info, key=key, sub=1)
    peer.send(Credit(2, 10, 10), key=key)
    peer.send(Watch(1, "#"), key=key)
    assert names(peer.read(info, key=key, sub=3)) == ["Overloaded"]
    assert names(peer.send(Credit(3, 1, 1), key=key)) == [], "credit for nothing is ignored"
    assert names(peer.send(Watch(2, "#"), key=key)) == ["Overloaded"]
    assert names(peer.send(Watch(1, "t"), key=key)) == ["TopicsChanged"], "in place of the one before"
    assert names(peer.read(info, key=key, sub=1, partition=1)) == ["ReadStarted"]
    peer.send(Unwatch(1), key=key)
    peer.send(Unread(2), key=key)
    assert names(peer.read(info, key=key, sub=3) + peer.read(info, key=key, sub=4)) == [
        "ReadStarted",
        "ReadStarted",
    ]


def test_readers_of_a_connection_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "READERS_PER_SESSION_MAX", 2)
    peer = Single()
    info = peer.make_topic(partitions=4)
    peer.hello()
    for partition in (0, 1):
        assert names(peer.read(info, partition=partition)) == ["ReadStarted"]
    assert names(peer.read(info, partition=2)) == ["Overloaded"]
    assert names(peer.read(info, partition=1)) == ["ReadStarted"], "one that is read already begins again"
    peer.send(Unread(1, [(info.topic_id, 0)]))
    assert names(peer.read(info, partition=2)) == ["ReadStarted"]
    assert peer.core.ctx.deliveries.count() == 2


def test_connections_are_bounded_and_clients_do_not_take_the_places_of_peers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "SESSIONS_MAX", 2)
    peer = Single(founders=("a", "b"))
    for n in range(2):
        assert names(peer.hello(session=(e.CLIENTS, b"%d" % n))) == ["Welcome", "Routes"]
    assert names(peer.hello(session=(e.CLIENTS, b"2"))) == ["Overloaded"]
    assert names(peer.hello(session=(e.CLIENTS, b"1"))) == ["Welcome", "Routes"], (
        "one that is open begins again"
    )
    key = identity("b").curve_public
    assert names(peer.hello(session=MANY_PEERS, key=key)) == ["Welcome"]
    peer.tell(e.SessionClosed((e.CLIENTS, b"0")))
    assert names(peer.hello(session=(e.CLIENTS, b"2"))) == ["Welcome", "Routes"]


def test_a_silent_session_is_dropped_with_all_it_held_and_says_hello_again() -> None:
    peer = Single()
    info = peer.make_topic()
    for session in ((e.CLIENTS, b"1"), OTHER, (e.LOCAL, b"3")):
        peer.hello(session=session)
        peer.read(info, session=session)
        peer.send(Credit(1, 100, 100), session=session)
        peer.send(Watch(1, "#"), session=session)
    peer.tick(limits.SESSION_IDLE_MS / 1000)
    peer.send(Ping(1), session=OTHER)
    peer.tick(1.0)
    assert list(peer.core.ctx.sessions.states) == [OTHER, (e.LOCAL, b"3")]
    assert peer.core.ctx.deliveries.count() == 2
    assert names(peer.send(Ping(1))) == ["RemoteProtocolError"]
    assert names(peer.hello()) == ["Welcome", "Routes"]


def test_a_closed_session_leaves_nothing_behind() -> None:
    peer = Single()
    info = peer.make_topic(partitions=2)
    peer.hello()
    peer.read(info, partition=0)
    peer.read(info, messages.TIMESTAMP, 5, partition=1)
    peer.send(Credit(1, 100, 100))
    peer.send(Watch(1, "#"))
    peer.tell(e.SessionClosed((e.CLIENTS, b"1")))
    (seek,) = peer.take(e.SeekTime)
    assert peer.tell(e.TimeSought(seek, 0)) == []
    assert peer.core.ctx.sessions.states == {}
    assert [n for n, value in vars(peer.core.ctx.deliveries).items() if value] == []


def test_watchers_hear_of_topics_as_they_come_change_and_go() -> None:
    peer = Single()
    peer.make_topic("a.x")
    peer.hello()
    (first,) = peer.send(Watch(7, "a.*"))
    assert isinstance(first, TopicsChanged)
    assert ([t.name for t in first.topics], first.complete) == (["a.x"], True)
    before = len(peer.out)
    info = peer.make_topic("a.y")
    peer.make_topic("b.y")
    peer.propose(commands.SetTopic(info.topic_id, 3))
    peer.propose(commands.DeleteTopic(info.topic_id))
    changes = [m for m in peer.heard(since=before) if isinstance(m, TopicsChanged)]
    assert [[(t.name, t.partitions) for t in c.topics] for c in changes] == [[("a.y", 1)], [("a.y", 3)], []]
    assert [c.gone for c in changes] == [[], [], [info.topic_id]]


# -------------------------------------------------------------------------------------------- whatever comes
ids = st.sampled_from([ID, b"t" * 16])
numbers = st.sampled_from([0, 1, 2, 5_000, (1 << 63) - 1])
small = st.sampled_from([0, 1, 2, 3, 7, 4_000_000_000])
texts = st.sampled_from(["t", "#", "a.*", "", "..", "_x", "é", "x" * 255])
values = st.one_of(
    st.none(), st.booleans(), numbers, texts, st.binary(max_size=3), st.lists(numbers, max_size=2)
)
MESSAGES = st.one_of(
    st.builds(Hello, st.integers(0, 2), st.integers(0, 2)),
    st.builds(Ping, numbers),
    st.builds(Resolve, numbers, texts, st.booleans()),
    st.builds(Watch, numbers, texts, st.lists(texts, max_size=2)),
    st.builds(Unwatch, numbers),
    st.builds(Produce, st.lists(st.builds(ProduceItem, numbers, ids, small, numbers), max_size=2)),
    st.builds(
        Read, numbers, st.lists(st.builds(ReadItem, ids, small, numbers, small, numbers), max_size=3)
    ),
    st.builds(Credit, numbers, numbers, numbers),
    st.builds(Unread, numbers, st.lists(st.tuples(ids, small), max_size=2)),
    st.builds(
        Ask,
        numbers,
        st.sampled_from(
            ["status", "peers", "topics", "topic.show", "topic.create", "topic.set", "topic.delete",
             "client.register", "offsets", "nonsense"]
        ),
        st.dictionaries(
            st.sampled_from(["topic", "pattern", "after", "partitions", "record_bytes_max", "certificate"]),
            values,
        ),
    ),
    st.builds(ProposeRegistry, numbers, st.binary(max_size=9)),
    st.builds(Leads, st.lists(st.tuples(st.integers(0, 9), numbers), max_size=2)),
)  # fmt: skip
PAYLOADS = st.lists(st.one_of(st.binary(max_size=80), st.just(make_batch(b"x"))), max_size=2)


@given(
    st.lists(
        st.tuples(
            MESSAGES, PAYLOADS, st.sampled_from([(e.CLIENTS, b"1"), MANY_PEERS]), st.sampled_from("abx")
        ),
        max_size=25,
    )
)
def test_whatever_is_sent_is_answered_or_ignored_and_the_peer_goes_on(sent: list[Any]) -> None:
    peer = Single(founders=("a", "b"))
    peer.propose(commands.CreateTopic("t", b"t" * 16, 3, 1_000))
    peer.register("x", ("publish", "t"), ("subscribe", "#"))
    for session in ((e.CLIENTS, b"1"), MANY_PEERS):
        peer.hello(session=session)
    for message, payloads, session, who in sent:
        peer.send(message, *payloads, session=session, key=identity(who).curve_public)
        for seek in peer.take(e.SeekTime):
            peer.tell(e.TimeSought(seek, 0))
        peer.fetch()
        peer.tick(0.1)
    peer.hello(session=OTHER)
    assert names(peer.send(Ping(1), session=OTHER)) == ["Pong"]
