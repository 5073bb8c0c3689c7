"""The registry: the same commands give the same peers, clients, topics and owners, and the same refusals."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshq.errors import (
    Overloaded,
    Refused,
    RemoteProtocolError,
    SecurityError,
    TopicExists,
    TopicGone,
    UsageError,
)
from meshq.ids import PeerId, TopicId
from meshq.peer.papers import verifier
from meshq.registry import state, topics
from meshq.registry.commands import (
    LEAVING,
    LEFT,
    MEMBER,
    AnyCommand,
    CreateTopic,
    DeleteTopic,
    RegisterClient,
    RegisterPeer,
    SetStanding,
    SetTopic,
    decode,
    encode,
)
from meshq.registry.facts import ClientsChanged, PeersChanged, TopicChanged, TopicRemoved
from meshq.registry.state import Registry
from meshq.security.authority import Authority
from meshq.security.certificates import issue
from meshq.security.identity import Identity

AUTHORITY = Authority(b"a" * 32)
FOREIGN = Authority(b"f" * 32)
SLOTS = 8
SIZE = 1_000


@functools.cache
def identity(n: int) -> Identity:
    rng = random.Random(n)
    return Identity(f"p{n}", rng.randbytes(32), rng.randbytes(32))


@functools.cache
def peer(
    n: int, *, name: str = "", authority: Authority = AUTHORITY, curve: int = 0, zone: str = ""
) -> bytes:
    who = identity(n)
    return issue(
        authority, kind="peer", name=name or who.name, signing_key=who.signing_key,
        curve_key=identity(curve or n).curve_public, serial=bytes(16), now=1_000_000, zone=zone,
    ).encode()  # fmt: skip


@functools.cache
def client(n: int, *, name: str = "", authority: Authority = AUTHORITY) -> bytes:
    return issue(
        authority, kind="client", name=name or f"c{n}", curve_key=identity(n).curve_public,
        serial=bytes(16), now=1_000_000,
    ).encode()  # fmt: skip


def make_registry(founders: int = 1) -> Registry:
    return Registry(
        AUTHORITY.mesh_id,
        slots=SLOTS,
        replicas=3,
        founders=[peer(n) for n in range(1, founders + 1)],
        verify=verifier(AUTHORITY.key),
    )


def topic_id(n: int) -> TopicId:
    return TopicId(n.to_bytes(16, "big"))


def create(n: int, name: str = "", partitions: int = 1) -> CreateTopic:
    return CreateTopic(name or f"t{n}", topic_id(n), partitions, SIZE)


def apply(registry: Registry, *commands: AnyCommand) -> Any:
    """What came of the last one."""
    result: Any = None
    for command in commands:
        result = registry.apply(registry.version + 1, command)
    return result


def test_founders_own_the_slots_from_genesis_on() -> None:
    registry = make_registry(3)
    assert registry.version == 0
    assert {own[0] for own in registry.genesis_owners} == set(registry.peers)
    assert registry.genesis_owners == make_registry(3).genesis_owners


# ------------------------------------------------------------------------------------------ peers and clients
def test_a_peer_is_registered_and_known_by_its_key() -> None:
    registry = make_registry()
    who = identity(2)
    assert apply(registry, RegisterPeer(peer(2))) == [PeersChanged(who.peer_id)]
    assert registry.peer_of_key[who.curve_public] == who.peer_id
    assert registry.peers[who.peer_id].version == 1
    assert {own[0] for own in registry.genesis_owners} == {identity(1).peer_id}, "genesis stays as it was"


def test_a_newer_certificate_replaces_a_peers_earlier_one() -> None:
    registry = make_registry()
    apply(registry, RegisterPeer(peer(2)), RegisterPeer(peer(2, curve=9, zone="attic")))
    assert registry.peer_of_key.get(identity(2).curve_public) is None
    assert registry.peer_of_key[identity(9).curve_public] == identity(2).peer_id
    assert [r.zone for r in registry.ring_peers() if r.peer == identity(2).peer_id] == ["attic"]


@pytest.mark.parametrize(("since", "standing"), [(1, "leaving"), (3, "left"), (0, "left")])
def test_a_peer_has_left_only_by_the_leaving_that_it_is_in(since: int, standing: str) -> None:
    registry = make_registry(2)
    who = identity(2).peer_id
    apply(registry, *(SetStanding(who, s) for s in (LEAVING, MEMBER, LEAVING)))
    late = SetStanding(who, LEFT, since)
    assert isinstance(registry.refusal(late), Refused) == (standing == "leaving")
    apply(registry, late)
    assert registry.standing(who) == standing


def test_who_has_left_is_not_proposed_again_but_a_log_that_has_it_reads_as_it_did() -> None:
    registry = make_registry(2)
    who = identity(2).peer_id
    apply(registry, SetStanding(who, LEAVING), SetStanding(who, LEFT, 1))
    assert isinstance(registry.refusal(RegisterPeer(peer(2))), Refused)
    assert apply(registry, RegisterPeer(peer(2))) == [PeersChanged(who)]


def test_a_client_is_registered_and_replaced() -> None:
    registry = make_registry()
    key = identity(5).curve_public
    assert apply(registry, RegisterClient(client(5))) == [ClientsChanged(key)]
    assert apply(registry, RegisterClient(client(5, name="renamed"))) == [ClientsChanged(key)]
    assert len(registry.clients) == 1
    assert registry.clients[key].facts.name == "renamed"
    assert apply(registry, RegisterClient(client(6, name="c5"))) == [
        ClientsChanged(identity(6).curve_public)
    ], "the name it had is free"
    assert isinstance(apply(registry, RegisterClient(client(7, name="renamed"))), Refused)
    assert isinstance(apply(registry, RegisterClient(client(6, name="renamed"))), Refused)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (RegisterPeer(peer(2, authority=FOREIGN)), "foreign authority"),
        (RegisterClient(client(5, authority=FOREIGN)), "foreign authority"),
        (RegisterPeer(b"no certificate"), ""),
        (RegisterPeer(peer(2)[:-1] + bytes([peer(2)[-1] ^ 1])), "bad signature"),
        (RegisterPeer(client(5)), "not a peer's"),
        (RegisterClient(peer(2)), "not a client's"),
    ],
)
def test_a_certificate_that_the_authority_did_not_sign_for_this_is_refused(
    command: AnyCommand, reason: str
) -> None:
    registry = make_registry()
    refusal = apply(registry, command)
    assert isinstance(refusal, SecurityError | RemoteProtocolError)
    assert reason in str(refusal)
    assert registry.version == 1, "a refused command takes its place in the log all the same"
    assert len(registry.peers) == 1
    assert not registry.clients


def test_names_and_keys_are_nobody_elses() -> None:
    registry = make_registry(2)
    apply(registry, RegisterClient(client(5)))
    for command in (
        RegisterPeer(peer(3, name="p1")),
        RegisterPeer(peer(2, name="p1")),  # also one that is registered under another name already
        RegisterPeer(peer(3, curve=1)),  # the key another peer connects with
        RegisterPeer(peer(3, curve=5)),  # a client's
        RegisterClient(client(6, name="c5")),
        RegisterClient(client(1)),  # a peer's key
    ):
        assert isinstance(apply(registry, command), Refused), command
    assert registry.peer_of_key == {identity(n).curve_public: identity(n).peer_id for n in (1, 2)}
    assert len(registry.clients) == 1


def test_peers_clients_and_topics_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PEERS_MAX", "CLIENTS_MAX", "TOPICS_MAX"):
        monkeypatch.setattr(topics if name == "TOPICS_MAX" else state, name, 2)
    registry = make_registry()
    apply(registry, RegisterPeer(peer(2)), *(RegisterClient(client(n)) for n in (5, 6)), create(1), create(2))
    for command in (RegisterPeer(peer(3)), RegisterClient(client(7)), create(3)):
        assert isinstance(apply(registry, command), Overloaded)
    assert apply(registry, RegisterPeer(peer(2, zone="attic"))), "those who are there can be replaced"
    assert apply(registry, RegisterClient(client(5, name="other")))


# ------------------------------------------------------------ topics
def test_a_topic_is_made_and_found_by_name_and_id() -> None:
    registry = make_registry()
    (change,) = apply(registry, create(1, "orders", 4))
    assert isinstance(change, TopicChanged)
    info = change.info
    assert (info.name, info.topic_id, info.partitions, info.version) == ("orders", topic_id(1), 4, 1)
    assert registry.topic("orders") == registry.topics[topic_id(1)] == info


def test_a_topic_of_that_name_or_id_is_made_once() -> None:
    registry = make_registry()
    apply(registry, create(1, "orders"))
    assert isinstance(apply(registry, create(2, "orders")), TopicExists)
    assert isinstance(apply(registry, create(1, "others")), UsageError)
    assert isinstance(apply(registry, create(3, "not a topic")), UsageError)
    assert list(registry.names()) == ["orders"]


def test_a_topic_deleted_and_made_again_is_another_topic() -> None:
    registry = make_registry()
    apply(registry, create(1, "orders", 4))
    (change,) = apply(registry, DeleteTopic(topic_id(1)))
    assert isinstance(change, TopicRemoved)
    assert registry.topic("orders") is None
    (change,) = apply(registry, create(2, "orders"))
    assert (change.info.topic_id, change.info.partitions, change.info.version) == (topic_id(2), 1, 3)
    assert isinstance(apply(registry, DeleteTopic(topic_id(1))), TopicGone)
    assert isinstance(apply(registry, SetTopic(topic_id(1), 9)), TopicGone)
    assert registry.topic("orders") == change.info


def test_partitions_only_grow_and_a_setting_not_named_stays() -> None:
    registry = make_registry()
    apply(registry, create(1, "orders", 4))
    (change,) = apply(registry, SetTopic(topic_id(1), partitions=6))
    assert (change.info.partitions, change.info.record_bytes_max, change.info.version) == (6, SIZE, 2)
    refusal = apply(registry, SetTopic(topic_id(1), partitions=5, record_bytes_max=7))
    assert isinstance(refusal, UsageError)
    assert "only grow" in str(refusal)
    assert registry.topic("orders") == change.info, "nothing of a refused command is done"
    (change,) = apply(registry, SetTopic(topic_id(1), record_bytes_max=7))
    assert (change.info.partitions, change.info.record_bytes_max) == (6, 7)


def test_a_change_that_is_proposed_again_does_not_take_back_what_was_set_in_between() -> None:
    registry = make_registry()
    apply(registry, create(1, "orders", 4))
    first = SetTopic(topic_id(1), copies_min=2, change=b"first")
    assert registry.made_at(first) is None
    apply(registry, first, SetTopic(topic_id(1), copies_min=3, change=b"second"))
    assert apply(registry, first) == []
    assert registry.topics[topic_id(1)].copies_min == 3
    assert registry.made_at(first) == 2, "who repeats it is told where it was made"


def test_changes_are_remembered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "SET_MAX", 2)
    registry = make_registry()
    apply(registry, create(1, "orders", 4))
    changes = [SetTopic(topic_id(1), record_bytes_max=n, change=b"%d" % n) for n in (1, 2, 3)]
    apply(registry, *changes)
    assert [registry.made_at(c) for c in changes] == [None, 3, 4]


@given(st.sets(st.from_regex(r"[a-c]{1,3}", fullmatch=True)), st.integers(1, 4))
def test_names_come_in_pages_in_order_and_each_once(names: set[str], page: int) -> None:
    registry = make_registry()
    apply(registry, *(create(n, name) for n, name in enumerate(sorted(names, reverse=True), 1)))
    seen: list[str] = []
    while True:
        rows = [name for name, _ in zip(registry.names(seen[-1] if seen else ""), range(page), strict=False)]
        seen += rows
        if len(rows) < page:
            break
    assert seen == sorted(names)
    assert list(registry.names("b")) == [n for n in sorted(names) if n > "b"], "behind a name, there or not"


# ------------------------------------------------------------ replaying
COMMANDS = st.one_of(
    st.sampled_from([RegisterPeer(peer(n)) for n in range(1, 5)]),
    st.sampled_from([RegisterPeer(peer(n, name=f"p{m}", curve=m)) for n in (2, 3) for m in (1, 2, 5)]),
    st.sampled_from([RegisterClient(client(n, name=name)) for n in (1, 5, 6) for name in ("", "c5", "x")]),
    st.builds(
        create, st.integers(1, 4), st.sampled_from(["", "a", "b", "a.b", "no topic"]), st.integers(1, 4)
    ),
    st.builds(SetTopic, st.integers(1, 4).map(topic_id), st.one_of(st.none(), st.integers(1, 5))),
    st.builds(DeleteTopic, st.integers(1, 4).map(topic_id)),
)


@given(st.lists(COMMANDS, max_size=30))
def test_the_same_commands_give_the_same_registry_and_the_same_refusals(commands: list[AnyCommand]) -> None:
    one, other = make_registry(), make_registry()
    for index, command in enumerate(commands, 1):
        said = one.apply(index, command), other.apply(index, decode(encode(command)))
        assert [(type(s), str(s)) if isinstance(s, Exception) else s for s in said[:1]] == [
            (type(s), str(s)) if isinstance(s, Exception) else s for s in said[1:]
        ]
        assert one.version == index
    seen = [
        (r.peers, r.peer_of_key, r.clients, r.topics, list(r.names()), r._client_names) for r in (one, other)
    ]
    assert seen[0] == seen[1]
    assert_consistent(one)


def assert_consistent(registry: Registry) -> None:
    assert registry.peer_of_key == {r.facts.curve_key: PeerId(p) for p, r in registry.peers.items()}
    assert not set(registry.peer_of_key) & set(registry.clients)
    assert sorted(i.name for i in registry.topics.values()) == list(registry.names())
    assert all(registry.topic(i.name) == i for i in registry.topics.values())
    assert registry._client_names == {r.facts.name for r in registry.clients.values()}
    assert len({r.facts.name for r in registry.peers.values()}) == len(registry.peers)
