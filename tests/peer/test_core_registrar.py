"""The registry's copies: a follower catches up in order and lives on what it has when the holder is away."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from meshq.entries import Entry
from meshq.errors import DiskFull, RegistryUnavailable, TopicExists, Unavailable
from meshq.ids import SYSTEM_SLOT
from meshq.messages import (
    Answer,
    Hello,
    Ping,
    Pong,
    ProposeRegistry,
    PullRegistry,
    RegistryEntries,
    RegistryMoved,
    Resolve,
    Welcome,
    failure,
)
from meshq.peer.core import events as e
from meshq.peer.core import registrar
from meshq.peer.core.registrar import PROPOSAL_S, PULL_S
from meshq.registry import commands
from meshq.ring import slot_of
from tests.peer.single import AUTHORITY, SLOTS, Single, identity

A, B = identity("a").peer_id, identity("b").peer_id
MEMBER = (e.PEERS, b"m")
WELCOME = Welcome(1, AUTHORITY.mesh_id, A, bytes(16), 0)


def follower(*, linked: bool = True) -> Single:
    peer = Single("b", founders=("a", "b"))
    peer.hello()
    peer.tell(e.MemberSeen(A, ("192.0.2.1:7700",), True))
    peer.tick()
    if linked:
        link(peer)
    return peer


def link(peer: Single) -> None:
    peer.tell(e.LinkUp(A))
    peer.tell(e.LinkMessage(A, WELCOME))


def holder_log(*commands_: commands.AnyCommand) -> list[Entry]:
    holder = Single("a", founders=("a", "b"))
    for command in commands_:
        holder.propose(command)
    return holder.entries[SYSTEM_SLOT]


def create(n: int) -> commands.CreateTopic:
    return commands.CreateTopic(f"t{n}", n.to_bytes(16, "big"), 1, 1_000)


def sent(peer: Single, kind: type[Any]) -> list[Any]:
    """What it sent the holder, of this kind, taken away."""
    return [x.message for x in peer.take(e.SendPeer) if x.peer == A and isinstance(x.message, kind)]


def give(peer: Single, log: list[Entry], start: int, end: int, commit: int | None = None) -> None:
    piece = [x.encode() for x in log[start - 1 : end - 1]]
    peer.tell(e.LinkMessage(A, RegistryEntries(start, len(log) if commit is None else commit, piece)))


# -------------------------------------------------------------------------------- followers
def test_a_follower_catches_up_in_pieces() -> None:
    peer = follower()
    log = holder_log(*(create(n) for n in range(1, 8)))
    assert [m.from_index for m in sent(peer, PullRegistry)] == [1]
    for start in (1, 4, 7):
        give(peer, log, start, min(start + 3, 8))
        assert peer.core.ctx.registry.version == min(start + 2, 7)
        assert [m.from_index for m in sent(peer, PullRegistry)] == ([start + 3] if start < 7 else [])
    assert peer.entries[SYSTEM_SLOT] == log
    assert len(peer.core.ctx.registry.topics) == 7


def test_what_it_has_is_applied_only_when_it_is_durable() -> None:
    peer = follower()
    log = holder_log(create(1))
    peer.hold = True
    give(peer, log, 1, 2)
    assert peer.core.ctx.registry.version == 0
    peer.write()
    assert peer.core.ctx.registry.version == 1


def test_news_of_more_is_pulled_at_once_and_old_news_is_not() -> None:
    peer = follower()
    log = holder_log(create(1), create(2))
    give(peer, log, 1, 3)
    sent(peer, PullRegistry)
    peer.tell(e.LinkMessage(A, RegistryMoved(2)))
    assert sent(peer, PullRegistry) == []
    peer.tell(e.LinkMessage(A, RegistryMoved(3)))
    assert [m.from_index for m in sent(peer, PullRegistry)] == [3]


def test_pieces_that_overlap_or_come_twice_change_nothing() -> None:
    peer = follower()
    log = holder_log(*(create(n) for n in range(1, 5)))
    for start, end in ((1, 3), (1, 3), (2, 5), (1, 5)):
        give(peer, log, start, end)
    assert peer.entries[SYSTEM_SLOT] == log


def test_a_piece_of_another_chain_breaks_that_link_and_the_peer_serves_on() -> None:
    peer = follower()
    log = holder_log(create(1), create(2))
    give(peer, log, 1, 2)
    give(peer, [log[0], dataclasses.replace(log[1], timestamp_ms=1)], 2, 3)
    (link,) = peer.core.links.states.values()
    assert "does not continue" in link.reason and link.state.value == "down"
    assert peer.core.ctx.registry.version == 1
    peer.hello()
    assert peer.send(Ping(1)) == [Pong(1)]


def test_a_follower_whose_disk_is_full_goes_on_and_pulls_again_when_it_can_write() -> None:
    peer = follower()
    log = holder_log(*(create(n) for n in range(1, 5)))
    peer.hold = True
    give(peer, log, 1, 3)
    assert [m.from_index for m in sent(peer, PullRegistry)] == [1, 3]
    peer.refuse(DiskFull("no"))
    give(peer, log, 3, 5)  # the answer to the second pull: there is a hole before it now
    assert peer.core.ctx.registry.version == 0
    peer.hold = False
    peer.tick(PULL_S)
    assert [m.from_index for m in sent(peer, PullRegistry)] == [1]
    give(peer, log, 1, 5)
    assert peer.entries[SYSTEM_SLOT] == log


def test_a_restarted_follower_reads_its_copy_and_asks_for_the_rest() -> None:
    peer = follower()
    log = holder_log(*(create(n) for n in range(1, 5)))
    give(peer, log, 1, 4)
    peer.start()
    assert peer.core.ctx.registry.version == 3
    peer.out.clear()
    peer.tell(e.MemberSeen(A, ("192.0.2.1:7700",), True))
    peer.tick()
    link(peer)
    assert [m.from_index for m in sent(peer, PullRegistry)] == [4]


def mine(n: int = 0) -> commands.CreateTopic:
    """A topic whose partition is in a slot of b's."""
    registry = follower().core.ctx.registry
    owned = (
        i for i in range(1, 500) if registry.genesis_owners[slot_of(create(i).topic_id, 0, SLOTS)][0] == B
    )  # type: ignore[arg-type]
    return create([next(owned) for _ in range(n + 1)][-1])


def publish_to(peer: Single, command: commands.CreateTopic) -> list[Any]:
    info = peer.core.ctx.registry.topic(command.name)
    assert info is not None
    return peer.produce(info)


def test_while_the_holder_is_away_topics_that_exist_go_on_and_new_ones_wait() -> None:
    peer = follower()
    log = holder_log(mine())
    give(peer, log, 1, 2)
    peer.tell(e.LinkDown(A, "gone"))
    assert type(publish_to(peer, mine())[0]).__name__ == "Produced"
    (answer,) = peer.send(Resolve(5, "new", True))
    assert (answer.name, answer.status) == ("RegistryUnavailable", 503)
    assert "'a'" in answer.text
    failed = peer.ask("topic.create", topic="other")
    assert failed.name == "RegistryUnavailable"


def test_a_lost_copy_is_fetched_again_and_costs_no_data() -> None:
    peer = follower()
    first, second = mine(0), mine(1)
    log = holder_log(first, second)
    give(peer, log, 1, 3)
    for command in (first, second):
        publish_to(peer, command)
    del peer.entries[SYSTEM_SLOT]
    peer.start()
    peer.tell(e.MemberSeen(A, ("192.0.2.1:7700",), True))
    peer.tick()
    link(peer)
    give(peer, log, 1, 2)  # only a part of it arrives
    peer.tick(1.0)
    peer.start()
    assert peer.core.ctx.registry.version == 1
    peer.tell(e.MemberSeen(A, ("192.0.2.1:7700",), True))
    peer.tick(1.0)
    link(peer)
    assert not peer.take(e.DeletePayloads), "a topic that is not in half a copy was not deleted"
    give(peer, log, 2, 3)
    peer.tick(1.0)
    peer.hello()
    for command in (first, second):
        (produced,) = publish_to(peer, command)
        assert produced.receipts[0].base_offset == 1
    assert not peer.take(e.DeletePayloads)


def test_a_topic_deleted_while_its_owner_was_away_is_dropped_when_it_is_back() -> None:
    peer = follower()
    command = mine()
    log = holder_log(command, commands.DeleteTopic(command.topic_id))
    give(peer, log, 1, 2)
    publish_to(peer, command)
    peer.start()
    peer.tick()
    assert not peer.take(e.DeletePayloads)
    peer.tell(e.MemberSeen(A, ("192.0.2.1:7700",), True))
    peer.tick()
    link(peer)
    give(peer, log, 2, 3)
    assert len(peer.take(e.DeletePayloads)) == 1
    slot = slot_of(command.topic_id, 0, SLOTS)  # type: ignore[arg-type]
    peer.entries[slot].pop()  # as if it had stopped before the deletion was logged
    peer.rows[slot] = {b"H": peer.rows[slot][b"H"]}
    peer.start()
    assert not peer.take(e.DeletePayloads), "not before it knows that its copy is whole"
    peer.tell(e.MemberSeen(A, ("192.0.2.1:7700",), True))
    peer.tick()
    link(peer)
    give(peer, log, 3, 3)
    peer.tick(0.1)
    assert len(peer.take(e.DeletePayloads)) == 1


# -------------------------------------------------------------------------------- proposals
def test_a_proposal_is_done_when_this_copy_has_it() -> None:
    peer = follower()
    log = holder_log(create(1))
    sent(peer, PullRegistry)
    peer.propose(create(1))
    (proposal,) = sent(peer, ProposeRegistry)
    peer.tell(e.LinkMessage(A, Answer(proposal.request, 1)))
    assert not peer.take(e.Settle)
    assert [m.from_index for m in sent(peer, PullRegistry)] == [1]
    give(peer, log, 1, 2)
    assert [s.result for s in peer.take(e.Settle)] == [1]


def test_a_refused_proposal_ends_with_what_it_was_refused_with() -> None:
    peer = follower()
    peer.propose(create(1))
    (proposal,) = sent(peer, ProposeRegistry)
    peer.tell(e.LinkMessage(A, failure(proposal.request, TopicExists("it is there"))))
    (settled,) = peer.take(e.Settle)
    assert isinstance(settled.result, TopicExists)


def test_a_topic_somebody_else_made_a_moment_ago_is_to_be_asked_for_again() -> None:
    peer = follower()
    peer.send(Resolve(5, "t1", True))
    (proposal,) = sent(peer, ProposeRegistry)
    before = len(peer.out)
    peer.tell(e.LinkMessage(A, failure(proposal.request, TopicExists("it is there"))))
    (answer,) = peer.heard(since=before)
    assert (answer.name, answer.request) == ("Unavailable", 5)
    assert len(sent(peer, PullRegistry)) == 1


def test_a_proposal_without_an_answer_times_out() -> None:
    peer = follower()
    peer.propose(create(1))
    for _ in range(9):
        peer.tell(e.LinkMessage(A, RegistryMoved(0)))  # the link itself is well
        peer.tick((PROPOSAL_S - 0.1) / 9)
    assert not peer.take(e.Settle)
    peer.tick(0.2)
    (settled,) = peer.take(e.Settle)
    assert isinstance(settled.result, RegistryUnavailable)
    assert "may or may not" in str(settled.result)


def test_proposals_end_when_the_link_breaks() -> None:
    peer = follower()
    peer.propose(create(1))
    peer.tell(e.LinkDown(A, "gone"))
    (settled,) = peer.take(e.Settle)
    assert isinstance(settled.result, RegistryUnavailable)


def test_proposals_are_bounded_at_the_follower_and_at_the_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registrar, "PROPOSALS_MAX", 3)
    for peer in (follower(), Single("a", founders=("a", "b"))):
        peer.hold = True
        for n in range(1, 5):
            peer.propose(create(n))
        (settled,) = peer.take(e.Settle)
        assert isinstance(settled.result, Unavailable)
        assert settled.result.retry_after_ms > 0


def test_what_the_holders_disk_refused_was_not_made() -> None:
    holder = Single("a")
    holder.hold = True
    holder.propose(create(1))
    holder.refuse(DiskFull("no"))
    (settled,) = holder.take(e.Settle)
    assert isinstance(settled.result, DiskFull)
    holder.hold = False
    holder.propose(create(1))
    assert [s.result for s in holder.take(e.Settle)] == [1]


# -------------------------------------------------------------------------------- holder
def pulling() -> Single:
    holder = Single("a", founders=("a", "b"))
    holder.send(Hello(1, 1), session=MEMBER, key=identity("b").curve_public)
    holder.send(PullRegistry(1), session=MEMBER, key=identity("b").curve_public)
    return holder


def test_the_holder_answers_pulls_from_disk_and_tells_of_more() -> None:
    holder = pulling()
    (read,) = holder.take(e.ReadEntries)
    assert (read.from_index, read.end) == (1, 1)
    holder.propose(create(1))
    assert holder.heard(MEMBER)[-1] == RegistryMoved(1)
    holder.tell(e.EntriesRead(read, holder.entries[SYSTEM_SLOT]))
    answer = holder.heard(MEMBER)[-1]
    assert answer == RegistryEntries(1, 1, [x.encode() for x in holder.entries[SYSTEM_SLOT]])
    holder.tell(e.SessionClosed(MEMBER))
    assert holder.tell(e.EntriesRead(read, [])) == []


def test_a_pull_from_before_the_first_entry_is_refused() -> None:
    holder = pulling()
    (answer,) = holder.send(PullRegistry(0), session=MEMBER, key=identity("b").curve_public)
    assert answer.name == "RemoteProtocolError"


def test_a_command_that_cannot_be_read_never_enters_the_log() -> None:
    holder = pulling()
    (answer,) = holder.send(ProposeRegistry(3, b"junk"), session=MEMBER, key=identity("b").curve_public)
    assert (answer.request, answer.name) == (3, "RemoteProtocolError")
    assert SYSTEM_SLOT not in holder.entries


def test_a_follower_takes_no_proposals() -> None:
    peer = follower()
    peer.send(Hello(1, 1), session=MEMBER, key=identity("a").curve_public)
    command = commands.encode(create(1))
    (answer,) = peer.send(ProposeRegistry(3, command), session=MEMBER, key=identity("a").curve_public)
    assert answer.name == "RegistryUnavailable"
