"""`meshq recover` in the simulated world: refused while it could be wrong; no more is lost than it says."""

from __future__ import annotations

from typing import Any

import pytest

from meshq import batch, messages
from meshq.client import facts
from meshq.entries import EntryKind, make_entry
from meshq.errors import Forbidden, RecordsLost, Refused, UsageError
from meshq.ids import SYSTEM_SLOT, PartitionKey, TopicId
from meshq.messages import Accepted
from meshq.replication.generations import generation_of, next_generation, number_of
from meshq.replication.quorum import config_of, encode_config
from meshq.replication.words import AppendEntries, GenerationSeen, Item, Received
from meshq.streams.publish import payload_key_of
from tests.peer.test_draining import PARTITIONS, SLOTS, Writing, ask, is_settled, seen
from tests.peer.world import Client, Host, World, committed


def lose(world: World, *hosts: Host) -> None:
    for host in hosts:
        host.crash()
        host.bury()
    world.run_for(3.0)


def recover(world: World, at: int, *gone: Host) -> Any:
    names = [h.identity.name for h in gone]
    plan = ask(world, at, "recover.plan", gone=names)
    assert isinstance(plan, dict), plan
    done = ask(world, at, "recover.run", gone=names, plan=plan["plan"])
    assert isinstance(done, dict), done
    assert done["failed"] == []
    return plan


def check(writing: Writing, plan: Any) -> int:
    """All that was acknowledged is there, but for what is newer than the plan said. How many are lost."""
    writing._on = False
    world = writing.world
    world.run(lambda: all(t in writing.client.results for t in writing.sent))
    world.run(lambda: is_settled(world))
    hosts = [h for h in world.hosts if h.up]
    since = {s["slot"]: s["missing_since_ms"] or 0 for s in plan["slots"]}
    lost = 0
    for partition in range(PARTITIONS):
        key = PartitionKey(TopicId(writing.info.topic_id), partition)
        logs = [committed(host, key) for host in hosts]
        log = max(logs, key=len)
        assert all(x == log[: len(x)] for x in logs)
        slot = str(hosts[0].core.ctx.slot_of(key))
        for ticket, (p, value) in writing.sent.items():
            if p == partition and isinstance(writing.client.results[ticket], Accepted) and value not in log:
                assert slot in since, "of a slot that was not recovered"
                lost += 1
    return lost


@pytest.mark.parametrize("seed", range(4))
def test_the_one_that_is_left_of_three_goes_on_and_the_others_come_back(seed: int) -> None:
    world = World(seed, peers=3, slots=SLOTS)
    writing = Writing(world)
    world.run(lambda: is_settled(world))
    left, *gone = world.rng.sample(world.hosts, 3)
    lose(world, *gone)
    plan = recover(world, world.hosts.index(left), *gone)
    assert len(plan["slots"]) == SLOTS + 1, "all of them, and the registry"
    world.run(lambda: all(left.core.slots.hosts[s].leads for s in left.core.slots.hosts))
    world.run_for(3.0)
    for host in gone:
        host.start()
        for other in world.hosts:
            other.tell(seen(host))
    check(writing, plan)
    for host in world.hosts:
        for slot, x in host.core.slots.hosts.items():
            if slot != SYSTEM_SLOT:
                assert number_of(generation_of(x.replica.last.term)) == 1


@pytest.mark.parametrize("seed", range(4))
def test_the_mirror_of_two_goes_on(seed: int) -> None:
    world = World(seed, peers=2, slots=SLOTS)
    writing = Writing(world)
    world.run(lambda: is_settled(world))
    world.run_for(2.0)
    gone = world.hosts[seed % 2]
    lose(world, gone)
    at = 1 - seed % 2
    plan = recover(world, at, gone)
    voted = [s for s in plan["slots"] if s["slot"] != "registry"]
    assert 0 < len(voted) < SLOTS, "those it only mirrored"
    world.run_for(2.0)
    gone.start()
    for other in world.hosts:
        other.tell(seen(gone))
    assert check(writing, plan) <= 20


def test_it_is_refused_while_it_could_be_wrong() -> None:
    world = World(1, peers=3, slots=4)
    world.run(lambda: is_settled(world) and len(world.hosts[0].core.links.reachable()) == 3)
    p0, p1, p2 = world.hosts
    nothing = ask(world, 0, "recover.plan", gone=[])
    assert isinstance(nothing, Refused) and "nothing to recover" in str(nothing)
    alive = ask(world, 0, "recover.plan", gone=["p1"])
    assert isinstance(alive, Refused) and "not gone" in str(alive)
    assert isinstance(ask(world, 0, "recover.plan", gone=["p0"]), UsageError)
    assert isinstance(ask(world, 0, "recover.plan", gone=["nobody"]), UsageError)
    follower = next(x for x in p0.core.slots.hosts.values() if not x.leads and x.slot != SYSTEM_SLOT)
    last, me = follower.replica.last, p0.core.ctx.me
    row = [int(follower.slot), last.term, last.index]
    cut_short = ask(world, 0, "recover.slots", slots=[row], left=[[bytes(me.peer), me.disk]])
    assert isinstance(cut_short, Forbidden), "nothing of what is looked at first would have been"
    lose(world, p1)
    majority = ask(world, 0, "recover.plan", gone=["p1"])
    assert isinstance(majority, Refused) and "nothing to recover" in str(majority)
    lose(world, p2)
    unnamed = ask(world, 0, "recover.plan", gone=["p1"])
    assert isinstance(unnamed, Refused) and "p2" in str(unnamed) and "--gone p2" in str(unnamed)
    other = ask(world, 0, "recover.run", gone=["p1", "p2"], plan="another one")
    assert isinstance(other, Refused) and "changed" in str(other)
    assert all(number_of(generation_of(x.replica.term)) == 0 for x in p0.core.slots.hosts.values())


def test_a_generation_that_its_only_voter_forgot_goes_on_from_who_heard_of_it() -> None:
    """Two of the registry's voters are gone, and the third has told the one that copies of a generation which
    its own disk never had. That one stands in until the voter has it.
    """
    world = World(2, peers=4, slots=4)
    world.run(lambda: is_settled(world) and len(world.hosts[0].core.links.reachable()) == 4)
    world.run(lambda: len(system(world.hosts[0]).replica.config.voters) == 3)
    config = system(world.hosts[0]).replica.config
    by_peer = {h.identity.peer_id: h for h in world.hosts}
    *gone, forgot = (by_peer[n.peer] for n in config.voters)
    (copies,) = (by_peer[n.peer] for n in config.learners)
    lose(world, *gone)
    voter, (learner,) = config.voters[-1], config.learners
    last = system(copies).replica.last
    term = next_generation(last.term, 7)
    body = encode_config(config_of([voter], [learner]))
    entry = make_entry(
        last.chain, index=last.index + 1, term=term, kind=EntryKind.CONFIG, timestamp_ms=0, body=body
    )
    told = AppendEntries(term, last, (Item(entry),), system(forgot).replica.commit_index, 0)
    copies.core.slots.tell(system(copies), Received(voter, told))
    assert system(copies).replica.last.term == term
    world.run(lambda: system(forgot).leads and system(forgot).replica.last == system(copies).replica.last)
    assert generation_of(system(forgot).replica.last.term) == generation_of(term)


def test_a_generation_of_which_no_log_is_left_is_followed_by_another() -> None:
    """The one that went on alone loses its disk too, when the others have heard of it and got nothing."""
    world = World(4, peers=3, slots=4)
    writing = Writing(world)
    world.run(lambda: is_settled(world))
    world.run_for(2.0)
    writing._on = False
    alone, *others = world.hosts
    lose(world, *others)
    recover(world, 0, *others)
    slots = [x for x in alone.core.slots.hosts.values() if x.slot != SYSTEM_SLOT]
    world.run(lambda: all(x.leads for x in alone.core.slots.hosts.values()))
    for host in others:
        host.start()
        for x in slots:
            copy = host.core.slots.hosts[x.slot]
            host.core.slots.tell(copy, GenerationSeen(x.replica.term))
            assert copy.replica.is_stale
    lose(world, alone)
    alone.wipe()
    world.run_for(5.0)
    assert not any(x.leads for h in others for x in h.core.slots.hosts.values() if x.slot != SYSTEM_SLOT)
    plan = recover(world, 1, alone)
    rows = [s for s in plan["slots"] if s["slot"] != "registry"]
    assert len(rows) == 4
    assert all((s["generation"], s["kept"], s["missing_since_ms"]) == (2, 0, None) for s in rows)
    copies = {x.slot: [h.core.slots.hosts[x.slot] for h in others] for x in slots}
    world.run(lambda: all(sum(c.leads for c in both) == 1 for both in copies.values()))
    publish(writing, 5)
    world.run(lambda: all(len({c.replica.last for c in both}) == 1 for both in copies.values()))
    for both in copies.values():
        assert {number_of(generation_of(c.replica.last.term)) for c in both} == {2}


def test_what_had_expired_before_it_came_is_told_as_expired() -> None:
    """The copy that goes on was sent the beginning empty, and never the entry that says why."""
    world = World(7, peers=3, slots=4)
    client = Client(world)
    topic = {"topic": "t", "partitions": 1}
    client.wait(client.ask(lambda t, d: facts.AskRequested(t, "topic.create", topic, d)))
    info = client.wait(client.ask(lambda t, d: facts.TopicWanted(t, "t", d)))
    key = PartitionKey(TopicId(info.topic_id), 0)
    slot = world.hosts[0].core.ctx.slot_of(key)
    world.run(lambda: is_settled(world))
    left = next(h for h in world.hosts if not h.core.slots.hosts[slot].leads)
    others = [h for h in world.hosts if h is not left]
    left.crash()
    for n in range(12):
        body = batch.seal([batch.RawRecord(None, b"%d" % n)], base_timestamp_ms=0)
        sent = client.ask(lambda t, d, b=body: facts.BatchSealed(t, 1, info, 0, b, d, 8), timeout=60.0)
        assert isinstance(client.wait(sent), Accepted)
    less = {"topic": "t", "retain_records": 4}
    client.wait(client.ask(lambda t, d: facts.AskRequested(t, "topic.set", less, d)))
    world.run_for(2.0)
    leader = next(h for h in others if h.core.slots.hosts[slot].leads)
    assert leader.core.slots.partition(slot, key).low == 8
    replica, node = leader.core.slots.hosts[slot].replica, leader.core.slots.me
    entries = [x for _, x in sorted(leader.disk.log[slot].items())]
    before = entries[: next(i for i, x in enumerate(entries) if x.kind is EntryKind.RETAIN)]
    lose(world, *others)
    left.start()
    for host in others:
        host.bury()
    copy = left.core.slots.hosts[slot]
    prev = copy.replica.last
    stored = {p.base_offset: p.data for p in leader.disk.payloads[key]}
    offsets = (payload_key_of(x) for x in before)
    data = [stored.get(k.base_offset, b"") if k is not None else b"" for k in offsets]
    items = tuple(Item(*x) for x in zip(before, data, strict=True) if x[0].index > prev.index)
    told = AppendEntries(replica.term, prev, items, items[-1].entry.index, 0)
    left.core.slots.tell(copy, Received(node, told))
    world.run(lambda: copy.replica.commit_index == items[-1].entry.index)
    state = left.core.slots.partition(slot, key)
    assert state.low == 0 and state.end > 8
    world.run_for(3.0)
    recover(world, world.hosts.index(left), *others)
    world.run(lambda: copy.leads)
    reader = Client(world, seed_peer=world.hosts.index(left))
    subscribe(reader)
    world.run(lambda: len(reader.read["t", 0]) == state.end - 8)
    assert [offset for offset, _ in reader.read["t", 0]] == list(range(8, state.end)) and not reader.ended
    assert left.core.slots.partition(slot, key).low == 8


def system(host: Host) -> Any:
    return host.core.slots.hosts[SYSTEM_SLOT]


@pytest.mark.parametrize("seed", range(3))
def test_who_read_what_is_lost_is_told_and_others_are_not(seed: int) -> None:
    """The one that will be left is away while records are published and read: those are lost."""
    world = World(seed, peers=3, slots=4)
    writing = Writing(world)
    writing._on = False
    world.run(lambda: is_settled(world) and all(t in writing.client.results for t in writing.sent))
    left, *gone = world.hosts
    ahead = Client(world)
    subscribe(ahead)
    publish(writing, 5)
    world.run_for(1.0)
    kept = end(left, writing)
    left.crash()
    publish(writing, 5)
    world.run(lambda: len(ahead.read["t", 0]) == kept + 5)
    for host in gone:
        host.crash()
    left.start()
    for host in gone:
        host.bury()
    world.run_for(3.0)
    recover(world, 0, *gone)
    publish(writing, 30)  # more than was lost: the same offsets are given again
    world.run(lambda: bool(ahead.ended))
    assert isinstance(ahead.ended[0], RecordsLost)
    assert f"t/0@{kept}:" in str(ahead.ended[0])
    assert len(ahead.read["t", 0]) == kept + 5, "nothing of what took their place was handed out"
    fresh = Client(world)
    subscribe(fresh)
    world.run(lambda: len(fresh.read["t", 0]) == kept + 30)
    assert fresh.read["t", 0][:kept] == ahead.read["t", 0][:kept] and not fresh.ended


def publish(writing: Writing, count: int) -> None:
    client, rng = writing.client, writing.world.rng
    for _ in range(count):
        body = batch.seal([batch.RawRecord(None, rng.randbytes(8))], base_timestamp_ms=0)
        ticket = client.ask(
            lambda t, d, b=body: facts.BatchSealed(t, 1, writing.info, 0, b, d, 8), timeout=60.0
        )
        assert isinstance(client.wait(ticket), Accepted)


def subscribe(client: Client) -> None:
    start = facts.Start(messages.EARLIEST, 0)
    client.ask(lambda t, _: facts.SubscribeRequested(t, "t", start, 1 << 20, 10_000, t))


def end(host: Host, writing: Writing) -> int:
    key = PartitionKey(TopicId(writing.info.topic_id), 0)
    return host.core.slots.partition(host.core.ctx.slot_of(key), key).end
