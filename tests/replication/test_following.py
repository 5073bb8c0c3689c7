"""What a follower takes from a leader, message by message."""

from __future__ import annotations

import random

from meshq.entries import EntryKind, make_entry
from meshq.ids import PeerId, Slot
from meshq.replication.machine import Replica
from meshq.replication.quorum import Node, config_of
from meshq.replication.window import Log
from meshq.replication.words import (
    GENESIS,
    AppendEntries,
    AppendReply,
    Commit,
    Effect,
    Hard,
    Item,
    Persist,
    Persisted,
    Position,
    Received,
    RequestVote,
    Role,
    Send,
    Ticked,
    VoteReply,
)

A, B, C = (Node(PeerId(bytes([n]) * 16), b"\0") for n in (1, 2, 3))


def items_after(prev: Position, *terms: int) -> tuple[Item, ...]:
    out = []
    for term in terms:
        entry = make_entry(
            prev.chain, index=prev.index + 1, term=term, kind=EntryKind.NOOP, timestamp_ms=0, body=b""
        )
        out.append(Item(entry))
        prev = Position(entry.index, entry.term, entry.chain)
    return tuple(out)


def position(item: Item) -> Position:
    return Position(item.entry.index, item.entry.term, item.entry.chain)


def follower(*items: Item, term: int = 1, frozen: bool = False, repair_until: int = 0) -> Replica:
    return Replica(
        Slot(0),
        B,
        hard=Hard(term, None),
        log=Log(items=items),
        configs=[(0, config_of([A, B, C]))],
        applied=0,
        rng=random.Random(1),
        now=0.0,
        frozen=frozen,
        repair_until=repair_until,
    )


def hear(replica: Replica, message: object, frm: Node = A) -> list[Effect]:
    return replica.handle(Received(frm, message), now=0.0, wall_ms=0)


def durable(replica: Replica, effects: list[Effect]) -> list[Effect]:
    tokens = [e.token for e in effects if isinstance(e, Persist)]
    return replica.handle(Persisted(tokens[-1]), now=0.0, wall_ms=0) if tokens else []


def messages(effects: list[Effect]) -> list[object]:
    return [e.message for e in effects if isinstance(e, Send)]


def test_what_is_decided_reaches_only_as_far_as_the_logs_are_known_to_agree() -> None:
    """B's last entry is of another leader; A's message ends before it, whatever A has decided beyond."""
    common = items_after(GENESIS, 1, 1)
    own = items_after(position(common[-1]), 1)
    b = follower(*common, *own)
    effects = hear(b, AppendEntries(2, position(common[-1]), (), commit=4))
    effects += durable(b, effects)
    decided = [i.entry.index for e in effects if isinstance(e, Commit) for i in e.items]
    assert decided == [1, 2]
    assert messages(effects) == [AppendReply(2, True, 2, commit=2)]


def test_entries_that_differ_in_term_are_replaced() -> None:
    common = items_after(GENESIS, 1)
    b = follower(*common, *items_after(position(common[-1]), 1, 1))
    news = items_after(position(common[-1]), 2)
    (persist,) = (
        e for e in hear(b, AppendEntries(2, position(common[-1]), news, 0)) if isinstance(e, Persist)
    )
    assert (persist.truncate_from, persist.items) == (2, news)
    assert b.last == position(news[-1])


def test_a_node_that_was_rolled_back_lets_nothing_count() -> None:
    b = follower(frozen=True)
    items = items_after(GENESIS, 1)
    effects = hear(b, AppendEntries(1, GENESIS, items, 0, round=7))
    effects += durable(b, effects)
    assert messages(effects) == [AppendReply(1, False, 1, match_term=1, round=0)]
    effects = hear(b, RequestVote(2, 9, 9), C)
    effects += durable(b, effects)
    assert messages(effects) == [VoteReply(2, False)]


def test_an_acknowledgement_does_not_leave_in_another_term() -> None:
    b = follower()
    effects = hear(b, AppendEntries(1, GENESIS, items_after(GENESIS, 1), 0))
    effects += hear(b, RequestVote(2, 1, 1, transfer=True), C)
    assert messages(effects) == []
    assert messages(durable(b, effects)) == [VoteReply(2, True)]


def test_a_leader_that_is_left_out_still_knows_who_has_what_it_decided_last() -> None:
    a = Replica(
        Slot(0), A, hard=Hard(0, None), log=Log(), configs=[(0, config_of([A, B, C]))], applied=0,
        rng=random.Random(1), now=0.0, supported_by=[B.peer, C.peer],
    )  # fmt: skip
    durable(a, a.handle(Ticked(), now=9.0, wall_ms=0) + hear(a, VoteReply(1, True, True), B))
    hear(a, VoteReply(1, True), B)
    durable(a, [*a.flush(now=9.0, wall_ms=0), Persist(a._state.token, None, None, ())])
    for node in (B, C):
        hear(a, AppendReply(1, True, 1), node)
    a.propose_config(config_of([B, C]), wall_ms=0)
    decided: list[Effect] = []
    for index in (2, 3):
        durable(a, [*a.flush(now=9.0, wall_ms=0), Persist(a._state.token, None, None, ())])
        for node in (B, C):
            decided += hear(a, AppendReply(1, True, index), node)
    assert a.role is Role.FOLLOWER
    assert [i.entry.index for e in decided if isinstance(e, Commit) for i in e.items] == [2, 3]
    assert a.match() == {A: 3, B: 3, C: 3}


def test_a_repaired_log_is_level_at_its_old_end_or_with_what_a_later_leader_begins_with() -> None:
    """In the same term a leader may count on more than it has sent again."""
    first, second, third = items_after(GENESIS, 2, 2, 2)
    replica = follower(first, term=2, repair_until=4)
    hear(replica, AppendEntries(2, position(first), (second, third), 0))
    assert replica.frozen
    (later,) = items_after(position(third), 2)
    same_term = follower(first, second, third, term=2, repair_until=4)
    hear(same_term, AppendEntries(2, position(third), (later,), 0))
    assert not same_term.frozen, "its old end"
    (other,) = items_after(position(second), 3)
    hear(replica, AppendEntries(3, position(second), (other,), 0))
    assert replica.last.index == 3 and not replica.frozen
