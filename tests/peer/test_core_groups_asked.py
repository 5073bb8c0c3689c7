"""Groups looked at and changed from outside, at one peer: what is told, what reset, redrive and delete do."""

from __future__ import annotations

from typing import Any

import pytest

from meshq.entries import EntryKind
from meshq.errors import NotOwner, StoreError, Unavailable
from meshq.ids import Session
from meshq.levels import BASE
from meshq.limits import GROUP_QUESTIONS_MAX
from meshq.messages import (
    ACK,
    LATEST,
    NACK,
    ORDERED,
    REJECT,
    Answer,
    Ask,
    Failure,
    Granted,
    Join,
    ReadEnded,
    ReadItem,
    Revoked,
    Settle,
    SettleItem,
    TopicInfo,
    Unread,
)
from meshq.peer.core import events as e
from meshq.peer.core import group_parts
from meshq.peer.core.group_facts import short
from meshq.registry import commands
from meshq.registry.state import GENESIS_DISK
from meshq.replication import words
from meshq.replication.quorum import Node
from meshq.streams.groups.rewound import Rewound
from meshq.streams.groups.state import decode_state
from meshq.streams.groups.table import GroupKey
from meshq.streams.groups.words import (
    ONLY_SETTINGS,
    Delete,
    GroupBody,
    Open,
    Redrive,
    Reset,
    decode_group,
    encode_group,
)
from tests.peer.single import WALL_MS, Single, elect, follow, identity, key_of
from tests.peer.test_core_consuming import ONE, TWO, got, join, ready, settle, where
from tests.peer.test_core_dead_letters import letters, origins, state_of


def ask(peer: Single, what: str, **args: Any) -> Any:
    """With what it has to read from disk for it."""
    before = len(peer.out)
    answer = None
    peer.send(Ask(99, what, args))
    for _ in range(4):
        for effect in peer.take(e.SeekTime):
            stored = peer.payloads.get(effect.partition, [])
            found = [p.base_offset for p in stored if p.timestamp_ms >= effect.timestamp_ms]
            peer.tell(e.TimeSought(effect, min(found, default=effect.end)))
        peer.fetch()
    found = [m for m in peer.heard(since=before) if isinstance(m, Answer | Failure) and m.request == 99]
    assert len(found) <= 1
    answer = found[0] if found else None
    return answer.value if isinstance(answer, Answer) else answer


def group(what: str, peer: Single, **args: Any) -> Any:
    return ask(peer, f"group.{what}", topic="t", group="g", **args)


def buried(peer: Single, info: TopicInfo, *offsets: int) -> None:
    """Reject these, acknowledge the rest."""
    for first, end, attempts, lease in got(peer):
        for n in range(first, end):
            settle(peer, info, REJECT if n in offsets else ACK, (n, n + 1, attempts, lease))
    for _ in range(3):
        peer.fetch()
    assert sorted(origins(letters(peer))) == [f"t/0@{n}" for n in offsets]


# ------------------------------------------------------------------------------------------------ looking
def test_show_tells_where_a_group_stands() -> None:
    peer, info = ready(5)
    peer.now = 7.0
    join(peer, info, in_flight=4, max_deliver=3)
    (record,) = got(peer)
    settle(peer, info, ACK, (0, 1, 1, record[3]))
    settle(peer, info, NACK, (1, 2, 1, record[3]), delay=5_000)
    settle(peer, info, REJECT, (2, 3, 1, record[3]))
    peer.fetch()
    got(peer)
    (row,) = group("show", peer)["partitions"]
    assert row == {
        "partition": 0, "leader": "a", "mode": "queue", "ack_wait_ms": 10_000, "max_deliver": 3,
        "earliest": 0, "end": 5, "cursor": 1, "next": 5, "lag": 3, "lag_s": 7.0, "members": 1, "leased": 2,
        "holder": None, "waiting_again": 1, "dying": 0, "redelivered": 0, "acked": 1, "dead": 1,
        "expired": 0, "who": [{"id": short(member_id(peer)), "name": "a", "leased": 2, "here": True}],
    }  # fmt: skip


def member_id(peer: Single, session: Session = ONE) -> bytes:
    desks = [p.desk for p in peer.core.consuming.desks.parts.values() if p.desk is not None]
    (found,) = {m.id for desk in desks for m in desk.members.values() if m.ref[0] == session}
    return found


def test_show_names_its_members_and_those_that_are_away_with_records_in_hand() -> None:
    peer, info = ready(5)
    join(peer, info, TWO, in_flight=2)
    got(peer, TWO)
    away = member_id(peer, TWO)
    peer.tell(e.SessionClosed(TWO))
    join(peer, info, in_flight=3)
    got(peer)
    (row,) = group("show", peer)["partitions"]
    assert {w["id"]: (w["name"], w["leased"], w["here"]) for w in row["who"]} == {
        short(away): (None, 2, False),
        short(member_id(peer)): ("a", 3, True),
    }


def test_groups_lists_those_that_one_may_consume() -> None:
    peer, info = ready(2)
    join(peer, info)
    join(peer, info, TWO, group="other")
    other = peer.make_topic("x.y", partitions=3)
    items = [ReadItem(other.topic_id, p, other.version, 0) for p in range(3)]
    peer.send(Join(2, "g", bytes(16), 1, 10_000, 0, 100, 1 << 20, items))
    found = ask(peer, "groups")
    assert [(g["topic"], g["group"], g["partitions"], g["lag"]) for g in found["groups"]] == [
        ("t", "g", 1, 2),
        ("t", "other", 1, 2),
        ("x.y", "g", 3, 0),
    ]
    assert found["after"] is None
    assert [g["topic"] for g in ask(peer, "groups", pattern="x.#")["groups"]] == ["x.y"]
    assert [g["topic"] for g in ask(peer, "groups", after=["t", "other"])["groups"]] == ["x.y"]
    key = peer.register("c", ("consume", "x.y"))
    session = (e.CLIENTS, b"c")
    peer.hello(session=session, key=key)
    seen = peer.ask("groups", session=session, key=key)
    assert [g["topic"] for g in seen["groups"]] == ["x.y"]
    assert peer.ask("group.show", session=session, key=key, topic="t", group="g").name == "Forbidden"
    assert peer.ask("group.reset", session=session, key=key, topic="x.y", group="g").name == "Forbidden"


def test_a_leader_that_is_away_is_an_error_and_not_left_out() -> None:
    peer = Single(founders=("a", "b", "c"))
    elect(peer)
    peer.hello()
    info = peer.make_topic("t", partitions=4)
    follow(peer)
    peer.out.clear()
    peer.send(Ask(99, "group.show", {"topic": info.name, "group": "g"}))
    assert not [m for m in peer.heard() if getattr(m, "request", 0) == 99], (
        "nobody has confirmed that it leads"
    )
    for _ in range(40):
        peer.tick(0.1)
    (failed,) = [m for m in peer.heard() if getattr(m, "request", 0) == 99]
    assert (failed.status, "have no leader that answers" in failed.text) == (503, True)


@pytest.mark.parametrize("what", ["show", "reset", "redrive", "delete"])
def test_a_group_there_is_not(what: str) -> None:
    peer, _ = ready(1)
    failed = group(what, peer, to="latest")
    assert (failed.status, failed.name) == (404, "UnknownGroup")


# --------------------------------------------------------------------------------------------------- reset
@pytest.mark.parametrize(
    ("to", "lands"),
    [
        ({"to": "earliest"}, 0),
        ({"to": "latest"}, 9),
        ({"to": "offset", "value": 4}, 4),
        ({"to": "offset", "value": 40}, 9),
        ({"to": "time", "value": WALL_MS + 500}, 3),
        ({"to": "time", "value": WALL_MS + 60_000}, 9),
    ],
)
def test_reset_begins_elsewhere(to: dict[str, Any], lands: int) -> None:
    peer, info = ready()
    for n in range(3):
        peer.now = float(n)
        peer.produce(info, b"x", b"y", b"z")
    join(peer, info, in_flight=5)
    old = got(peer)
    assert where(old) == [(0, 3, 1), (3, 5, 1)]
    settle(peer, info, ACK, (0, 2, 1, old[0][3]))
    got(peer)
    (row,) = group("reset", peer, dry_run=True, **to)["partitions"]
    assert row == {"partition": 0, "from": 2, "to": lands}
    assert state_of(peer).floor == 2
    (row,) = group("reset", peer, **to)["partitions"]
    assert row == {"partition": 0, "from": 2, "to": lands}
    handed = [n for first, end, attempts, _ in got(peer) for n in range(first, end) if attempts == 1]
    assert handed == list(range(lands, min(lands + 5, 9))), "with all its room"
    assert settle(peer, info, ACK, (2, 3, 1, old[0][3])) == ([(2, 3)] if lands <= 2 else [])
    assert settle(peer, info, NACK, (4, 5, 1, old[1][3])) == [(4, 5)], "what it had is its own no more"


def test_reset_while_records_are_on_their_way_out() -> None:
    peer, info = ready(4)
    join(peer, info, in_flight=0)
    peer.hold = True
    join(peer, info, in_flight=4)
    peer.send(Ask(99, "group.reset", {"topic": "t", "group": "g", "to": "offset", "value": 1}))
    peer.hold = False
    peer.write()
    peer.fetch()
    held = {n for first, end, *_ in got(peer) for n in range(first, end)}
    assert held >= {1, 2, 3}
    assert [(s, x) for s, x, _ in state_of(peer).leased.runs()] == [(1, 4)]


@pytest.mark.parametrize("mode", [1, 3])
@pytest.mark.parametrize("knows", [True, False], ids=["when it is proposed", "when it is applied"])
def test_no_record_has_both_fates_because_of_a_reset_while_it_is_dying(mode: int, knows: bool) -> None:
    peer, info = ready(3)
    join(peer, info, mode=mode)
    (record,) = got(peer)
    burying, held = peer.core.consuming.burying, list[Any]()
    propose, burying.propose = burying.propose, lambda command, done: held.append((command, done))
    settle(peer, info, REJECT, (0, 1, 1, record[3]))
    if knows:
        assert group("reset", peer, to="earliest") is None, "it is tried again for some seconds"
        for _ in range(12):
            peer.tick(1)
        (answer,) = [m for m in peer.heard() if isinstance(m, Failure) and m.request == 99]
        assert answer.name == "Unavailable"
    else:
        told = list[Any]()
        (part,) = peer.core.consuming.desks.parts.values()
        peer.core.consuming.desks.add(part, Reset(0), told.append)
        peer.tick()
        assert told == [[(0, 1)]], "it did not count"
        assert settle(peer, info, ACK, (1, 3, 1, record[3])) == []
    assert state_of(peer).next == 3
    propose(*held[0])
    for _ in range(3):
        peer.tick(1.1)
        peer.fetch()
    assert origins(letters(peer)) == ["t/0@0"]
    if not knows:
        assert group("reset", peer, to="earliest")["partitions"][0]["to"] == 0
        assert where(got(peer))[-1] == (0, 3, 1), "once it is quiet"


def test_what_makes_no_sense_is_refused() -> None:
    peer, info = ready(1)
    join(peer, info)
    for args in ({}, {"to": "there"}, {"to": "offset", "value": -1}, {"to": "offset", "value": "x"}):
        assert group("reset", peer, **args).name == "UsageError"
    assert group("redrive", peer, limit=0).name == "UsageError"
    assert ask(peer, "group.show", topic="t").name == "UsageError"
    assert ask(peer, "group.show", topic="none", group="g").name == "UnknownTopic"
    assert ask(peer, "group.part", do="show").name == "Forbidden", "that is between peers"


def test_a_mesh_of_an_older_level_writes_nothing_that_its_older_peers_do_not_know() -> None:
    peer, info = ready(1)
    peer.core.ctx.registry.level = BASE
    join(peer, info, max_deliver=1)
    (record,) = got(peer)
    item = SettleItem(7, info.topic_id, 0, REJECT, [(0, 1, record[3])])
    (failed,) = peer.send(Settle(1, [item]))
    assert (failed.name, "meshq upgrade" in failed.text) == ("UsageError", True)
    assert group("reset", peer, to="latest").name == "UsageError"
    assert settle(peer, info, NACK, record, delay=0) == []
    assert where(got(peer)) == [(0, 1, 2)], "as often as it takes"


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"do": "list"},
        {"do": "list", "after": ["x"]},
        {"do": "show", "group": "g"},
        {"do": "show", "group": 7, "topic_id": bytes(16), "version": 0},
        {"do": "show", "group": "g", "topic_id": bytes(16), "version": 0, "only": ["0"]},
        {"do": "redrive", "group": "g", "topic_id": bytes(16), "version": 0, "wanted": {"0": "all"}},
        {"do": "reset", "group": "g", "topic_id": bytes(16), "version": 0, "to": "latest"},
        {"do": "reset", "group": "g", "topic_id": bytes(16), "version": 0, "to": "latest", "name": "x"},
    ],
)
def test_what_no_peer_asks_is_refused(args: dict[str, Any]) -> None:
    peer, info = ready(1)
    join(peer, info)
    session = (e.PEERS, b"p")
    peer.hello(session=session)
    refused = peer.ask("group.part", session=session, **args)
    assert (type(refused), refused.name) == (Failure, "UsageError")


# ------------------------------------------------------------------------------------------------- redrive
def test_redrive_hands_dead_letters_out_again_to_their_group_alone_each_once() -> None:
    peer, info = ready(6)
    join(peer, info, max_deliver=2)
    join(peer, info, TWO, group="other")
    got(peer, TWO)
    buried(peer, info, 1, 3, 4)
    (row,) = group("redrive", peer, dry_run=True)["partitions"]
    assert row["redriven"] == 3
    assert got(peer) == []
    (row,) = group("redrive", peer, limit=2)["partitions"]
    assert (row["redriven"], row["left"]) == (2, 1)
    again = got(peer)
    assert where(again) == [(1, 2, 1), (3, 4, 1)]
    (row,) = group("redrive", peer)["partitions"]
    assert (row["redriven"], row["left"]) == (1, 0)
    (row,) = group("redrive", peer)["partitions"]
    assert (row["redriven"], row["left"]) == (0, 0)
    again += got(peer)
    assert where(again[2:]) == [(4, 5, 1)]
    assert got(peer, TWO) == []
    for first, end, attempts, lease in again:
        assert settle(peer, info, ACK, (first, end, attempts, lease)) == []
    assert state_of(peer, "g").floor == 6
    assert len(letters(peer)) == 3, "they stay readable"


def test_what_fails_again_is_a_dead_letter_again() -> None:
    peer, info = ready(1)
    join(peer, info, max_deliver=1)
    buried(peer, info, 0)
    group("redrive", peer)
    (record,) = got(peer)
    settle(peer, info, NACK, record)
    peer.fetch()
    assert origins(letters(peer)) == ["t/0@0", "t/0@0"]
    assert group("show", peer)["partitions"][0]["dead"] == 1


def test_redrive_is_on_disk_and_holds_after_a_restart() -> None:
    peer, info = ready(3)
    join(peer, info)
    buried(peer, info, 0, 1, 2)
    group("redrive", peer, limit=1)
    state = state_of(peer)
    assert decode_state(state.encode()).redriven == 1
    peer.start()
    peer.hello()
    assert group("redrive", peer)["partitions"][0]["redriven"] == 2
    assert state_of(peer).redriven == 3


def test_letters_that_begin_anew_are_not_taken_for_those_that_were_put_back() -> None:
    peer, info = ready(2)
    join(peer, info, max_deliver=1)
    buried(peer, info, 0, 1)
    group("redrive", peer)
    (record,) = got(peer)
    assert settle(peer, info, ACK, (0, 1, 1, record[3])) == []
    dead = peer.core.ctx.registry.topic("_dead.g.t")
    assert dead is not None
    peer.propose(commands.DeleteTopic(dead.topic_id))
    settle(peer, info, NACK, (1, 2, 1, record[3]))
    for _ in range(3):
        peer.tick(1)
        peer.fetch()
    assert origins(letters(peer)) == ["t/0@1"]
    assert group("redrive", peer)["partitions"][0]["redriven"] == 1
    assert where(got(peer)) == [(1, 2, 1)]


def test_no_more_is_put_back_than_may_be_out(monkeypatch: pytest.MonkeyPatch) -> None:
    peer, info = ready(5)
    join(peer, info, in_flight=5)
    buried(peer, info, 0, 1, 2, 3, 4)
    monkeypatch.setattr(group_parts, "GROUP_PENDING_MAX", 2)
    (row,) = group("redrive", peer)["partitions"]
    assert (row["redriven"], row["left"]) == (2, 3)
    (record,) = got(peer)
    (row,) = group("redrive", peer)["partitions"]
    assert (row["redriven"], row["left"], row["full"]) == (0, 3, True)
    assert settle(peer, info, ACK, record) == []
    assert group("redrive", peer)["partitions"][0]["redriven"] == 2


def test_more_questions_than_may_wait_are_refused() -> None:
    peer = Single(founders=("a", "b", "c"))
    elect(peer)
    peer.hello()
    info = peer.make_topic("t", partitions=4)
    follow(peer)
    for n in range(GROUP_QUESTIONS_MAX + 1):
        peer.send(Ask(100 + n, "group.show", {"topic": info.name, "group": "g"}))
    refused = [m for m in peer.heard() if isinstance(m, Failure)]
    assert [m.status for m in refused] == [429]


def test_a_redrive_that_reads_while_the_lead_is_lost_is_told_so() -> None:
    """And the peer goes on, without a desk in a slot that is led elsewhere."""
    peer = Single(founders=("a", "b", "c"))
    elect(peer)
    peer.hello()

    def go_on() -> None:
        for _ in range(12):
            follow(peer)
            peer.fetch()
            peer.tick(0.02)

    info = peer.make_topic()
    go_on()
    peer.produce(info, b"x", b"y")
    go_on()
    join(peer, info)
    go_on()
    (record,) = got(peer)
    peer.send(Settle(1, [SettleItem(7, info.topic_id, 0, REJECT, [(0, 1, record[3])])]))
    go_on()
    go_on()
    assert origins(letters(peer)) == ["t/0@0"]
    peer.out.clear()
    key = GroupKey(key_of(info), "g")
    host = peer.core.slots.hosts[peer.core.ctx.slot_of(key.partition)]
    told: list[Any] = []
    args = {"do": "redrive", "wanted": {"0": 1}}
    peer.core.admin.grouping.answers.parts.do(args, info, host.slot, key, told.append)
    peer.tick()
    assert not told and [x for x in peer.out if isinstance(x, e.FetchBatches)], "it reads"
    last, term = host.replica.last, host.replica.term + 1
    other = Node(identity("b").peer_id, GENESIS_DISK)
    leads = words.AppendEntries(term, last, (), last.index)
    peer.core.slots.tell(host, words.Received(other, leads))
    assert not host.leads
    peer.fetch()
    peer.tick(1)
    (refused,) = told
    assert isinstance(refused, Unavailable)
    assert not peer.core.consuming.desks.parts
    with pytest.raises(NotOwner):
        peer.core.consuming.desks.begin(key, host.slot)


def test_redrive_after_a_reset_hands_nothing_out_that_was_acknowledged_since() -> None:
    peer, info = ready(3)
    join(peer, info)
    buried(peer, info, 0, 1)
    group("reset", peer, to="offset", value=1)
    (record,) = got(peer)
    assert settle(peer, info, ACK, record) == []
    (row,) = group("redrive", peer)["partitions"]
    assert (row["redriven"], row["void"], row["left"]) == (1, 1, 0)
    assert where(got(peer)) == [(0, 1, 1)], "the other one was not handed out again by the reset"


def test_what_dies_again_after_a_reset_is_put_back_once() -> None:
    peer, info = ready(1)
    join(peer, info)
    buried(peer, info, 0)
    group("reset", peer, to="earliest")
    (record,) = got(peer)
    settle(peer, info, REJECT, record)
    peer.fetch()
    assert origins(letters(peer)) == ["t/0@0", "t/0@0"]
    (row,) = group("redrive", peer)["partitions"]
    assert (row["redriven"], row["void"], row["left"]) == (1, 1, 0)
    assert where(got(peer)) == [(0, 1, 1)]


def test_a_redrive_that_was_chosen_before_a_reset_does_not_count_behind_it() -> None:
    peer, info = ready(1)
    join(peer, info)
    buried(peer, info, 0)
    told = list[Any]()
    (part,) = peer.core.consuming.desks.parts.values()
    peer.core.consuming.desks.add(part, Reset(0, b"1"))
    peer.core.consuming.desks.add(part, Redrive(0, 1, ((0, 1),)), told.append)
    peer.tick()
    assert told == [[(0, 1)]]


def test_redrive_after_a_reset_takes_nobody_away_from_who_has_it() -> None:
    """Also where the note of the reset was forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rewound, "covers", lambda self, letter, offset: False)
        peer, info = ready(2)
        join(peer, info)
        buried(peer, info, 0, 1)
        group("reset", peer, to="earliest")
        (record,) = got(peer)
        group("redrive", peer)
        assert got(peer) == []
        assert settle(peer, info, ACK, record) == []
        assert state_of(peer).floor == 2


@pytest.mark.parametrize("mode", [1, ORDERED])
def test_a_reset_counts_once_and_never_behind_another_one_that_it_did_not_see(mode: int) -> None:
    """Asked for again, because its answer was lost, by the peer that was asked for it."""
    peer, info = ready(4)
    join(peer, info, mode=mode)
    got(peer)
    session = (e.PEERS, b"p")
    peer.hello(session=session)

    def reset(to: int, name: bytes, since: bytes) -> Any:
        args = {"topic_id": info.topic_id, "version": info.version, "group": "g", "since": {"0": since}}
        part = {**args, "do": "reset", "to": "offset", "value": to, "name": name}
        answer = peer.ask("group.part", session=session, **part)
        return answer["0"]

    assert reset(3, b"first", b"")["to"] == 3
    key = GroupKey(key_of(info), "g")
    state = peer.core.slots.hosts[peer.core.ctx.slot_of(key.partition)].stream.groups.get(key)
    assert state is not None
    for _ in range(2):
        assert reset(3, b"first", b"")["to"] == 3
    slot = peer.core.ctx.slot_of(key_of(info))
    bodies = [decode_group(x.body) for x in peer.entries[slot] if x.kind == EntryKind.GROUP]
    assert [op for body in bodies for op in body.ops if isinstance(op, Reset)] == [Reset(3, b"first", b"")]
    assert reset(2, b"second", b"first")["to"] == 2
    assert reset(1, b"late", b"first").get("failed", [])[:2] == [400, "Refused"]
    assert state.reset == b"second"
    part = peer.core.consuming.desks.parts[key]
    told = list[Any]()
    peer.core.consuming.desks.add(part, Reset(1, b"late", b"first"), told.append)
    peer.tick()
    assert (len(told[0]), state.reset) == (1, b"second"), "nor where it was proposed before it"


def test_an_ordered_group_is_shown_and_reset_too() -> None:
    peer, info = ready(4)
    join(peer, info, mode=ORDERED)
    (granted,) = [i for m in peer.heard() if isinstance(m, Granted) for i in m.items]
    assert settle(peer, info, ACK, (0, 2, 1, granted.lease)) == []
    (row,) = group("show", peer)["partitions"]
    assert (row["mode"], row["cursor"], row["lag"], row["members"]) == ("ordered", 2, 2, 1)
    assert row["holder"] is not None
    peer.out.clear()
    (row,) = group("reset", peer, to="offset", value=1)["partitions"]
    assert row == {"partition": 0, "from": 2, "to": 1}
    (over,) = [i for m in peer.heard() if isinstance(m, Revoked) for i in m.items]
    (again,) = [i for m in peer.heard() if isinstance(m, Granted) for i in m.items]
    assert (over.lease, over.over) == (granted.lease, True)
    assert (again.offset, again.lease > granted.lease) == (1, True)
    assert settle(peer, info, ACK, (1, 2, 1, granted.lease)) == [(1, 2)], "a word under the lease before"
    refused = group("redrive", peer)
    assert (refused.name, "ordered" in refused.text) == ("UsageError", True)


# -------------------------------------------------------------------------------------------------- delete
def test_delete_takes_a_group_without_members_and_its_dead_letters() -> None:
    peer, info = ready(2)
    join(peer, info)
    buried(peer, info, 0)
    refused = group("delete", peer)
    assert isinstance(refused, Failure)
    assert (refused.name, "1 members" in refused.text) == ("Refused", True)
    peer.tell(e.SessionClosed(ONE))
    peer.hello()
    assert group("delete", peer)["partitions"] == [{"partition": 0}]
    assert peer.core.ctx.registry.topic("_dead.g.t") is None
    assert not any(len(h.stream.groups) for h in peer.core.slots.hosts.values())
    assert not peer.core.consuming.desks.parts
    assert group("show", peer).name == "UnknownGroup"
    join(peer, info)
    assert where(got(peer)) == [(0, 2, 1)], "it begins as a new one"


def test_a_deletion_that_is_asked_for_again_takes_no_group_that_has_begun_anew() -> None:
    """Its answer was lost with a leader; a member joined the next one, and has worked since."""
    peer, info = ready(1)
    join(peer, info)
    (record,) = got(peer)
    assert settle(peer, info, ACK, record) == []
    session = (e.PEERS, b"p")
    peer.hello(session=session)
    part = {"topic_id": info.topic_id, "version": info.version, "group": "g", "do": "delete"}
    answer = peer.ask("group.part", session=session, **part)
    assert answer["0"]["failed"][:2] == [400, "Refused"]
    assert state_of(peer).floor == 1


def test_a_member_that_joins_while_its_group_is_deleted_is_told_to_join_again_or_comes_first() -> None:
    peer, info = ready(1)
    join(peer, info)
    peer.tell(e.SessionClosed(ONE))
    peer.hello()
    peer.tick(10.1)
    peer.tick(1)
    peer.hold = True
    peer.send(Ask(99, "group.delete", {"topic": "t", "group": "g"}))
    join(peer, info)
    peer.hold = False
    peer.write()
    (failed,) = [m for m in peer.heard() if isinstance(m, Failure)]
    assert (failed.request, failed.name) == (99, "Refused")
    peer.send(Unread(1, []))
    peer.out.clear()
    peer.hold = True
    key = GroupKey(key_of(info), "g")
    part = peer.core.consuming.desks.begin(key, peer.core.ctx.slot_of(key.partition))
    peer.core.consuming.desks.add(part, Delete())
    part.ending = True
    peer.tick()
    join(peer, info)
    (ended,) = [m for m in peer.heard() if isinstance(m, ReadEnded)]
    assert (ended.status, "is being deleted" in ended.text) == (503, True)
    peer.hold = False
    peer.write()
    peer.out.clear()
    join(peer, info)
    assert where(got(peer)) == [(0, 1, 1)]


@pytest.mark.parametrize("knows", [True, False], ids=["who knows of it", "who has forgotten it"])
@pytest.mark.parametrize("mode", [1, ORDERED, 3])
def test_other_settings_do_not_make_a_group_again_that_is_being_deleted(mode: int, knows: bool) -> None:
    peer, info = ready(3)
    join(peer, info, mode=mode)
    for record in got(peer):
        settle(peer, info, ACK, record)
    peer.send(Unread(1, []))
    peer.hold = True
    consuming, key = peer.core.consuming, GroupKey(key_of(info), "g")
    slot, told = peer.core.ctx.slot_of(key_of(info)), list[Any]()
    peer.core.admin.grouping.answers.parts.do({"do": "delete"}, info, slot, key, told.append)
    peer.tick()
    if not knows:
        (part,) = consuming.desks.parts.values()
        consuming._end(part, StoreError("a batch cannot be read"))
    join(peer, info, TWO, start=LATEST, mode=mode, ack_wait_ms=7_000)
    peer.hold = False
    peer.write()
    assert len(told) == 1
    assert consuming.slots.hosts[slot].stream.groups.get(key) is None
    (ended,) = [m for m in peer.heard(TWO) if isinstance(m, ReadEnded)]
    assert (ended.status, "deleted" in ended.text) == (503, True)
    join(peer, info, TWO, start=LATEST, mode=mode, ack_wait_ms=7_000)
    assert state_of(peer).next == 3, "it begins where it was asked to"


def test_settings_that_came_behind_a_deletion_while_the_group_begins_again() -> None:
    peer, info = ready(3)
    settings = encode_group(GroupBody(info.topic_id, 0, "g", (Open(1, 7_000, 0, ONLY_SETTINGS),)))
    peer.hold = True
    peer.core.slots.append(peer.core.ctx.slot_of(key_of(info)), EntryKind.GROUP, settings)
    join(peer, info, start=LATEST)
    peer.hold = False
    peer.write()
    assert (state_of(peer).next, state_of(peer).ack_wait_ms) == (3, 10_000)
