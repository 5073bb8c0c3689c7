"""Disks that were wiped or put back, and slots that have gone elsewhere."""

from __future__ import annotations

import copy

import pytest

from meshq.ids import SYSTEM_SLOT, PartitionKey, TopicId
from meshq.messages import Accepted, TopicInfo
from meshq.peer.core import saving
from meshq.replication.placement import genesis_config
from meshq.replication.quorum import Node
from meshq.ring import owners
from tests.peer import test_placing as placing
from tests.peer.test_snapshots import counted, squeeze
from tests.peer.world import Client, Host, World, committed


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    squeeze(monkeypatch.setattr)


def lives_where_it_should(world: World) -> bool:
    """Every slot has the members the ring wants, by the disks they have today."""
    registry = world.hosts[0].core.ctx.registry
    wanted = owners(registry.ring_peers(), slots=placing.SLOTS, replicas=3)
    disks = {h.identity.peer_id: h.disk.id for h in world.hosts}
    for slot in range(placing.SLOTS):
        target = genesis_config([Node(peer, disks[peer]) for peer in wanted[slot]])
        hosts = [h.core.slots.hosts.get(slot) for h in world.hosts if h.identity.peer_id in wanted[slot]]
        found = [h.replica for h in hosts if h is not None]
        if len(found) < len(hosts) or any(r.config != target for r in found):
            return False
        if len({r.commit_index for r in found}) > 1 or sum(r.serves for r in found) != 1:
            return False
    return True


def check(world: World, client: Client, info: TopicInfo, sent: dict[int, tuple[int, bytes]]) -> None:
    for partition in range(placing.PARTITIONS):
        key = PartitionKey(TopicId(info.topic_id), partition)
        slot = world.hosts[0].core.ctx.slot_of(key)
        members = [h for h in world.hosts if slot in h.core.slots.hosts]
        logs = [committed(host, key) for host in members]
        log = max(logs, key=len)
        assert all(x == log[: len(x)] for x in logs)
        for ticket, (p, value) in sent.items():
            result = client.results[ticket]
            if p == partition and isinstance(result, Accepted):
                assert log[result.base_offset] == value


def wiped(seed: int) -> World:
    world, client, info, sent = placing.play(seed)  # four peers by now
    world.run(lambda: lives_where_it_should(world))
    host = world.hosts[1 + seed % 3]
    host.crash()
    host.wipe()
    world.run_for(1)
    host.start()
    world.run(lambda: lives_where_it_should(world))
    check(world, client, info, sent)
    return world


@pytest.mark.parametrize("seed", (2, 5, 8))
def test_a_wiped_disk_rejoins_as_another_and_nothing_is_lost(seed: int) -> None:
    assert counted(wiped(seed))["snapshots_installed"] > 0


@pytest.mark.parametrize("seed", (2, 5, 8))
def test_a_peer_that_a_slot_left_deletes_it_and_can_be_added_again(seed: int) -> None:
    world, client, info, sent = placing.play(seed)
    world.run(lambda: lives_where_it_should(world))

    def leftovers() -> list[tuple[str, int]]:
        registry = world.hosts[0].core.ctx.registry
        wanted = owners(registry.ring_peers(), slots=placing.SLOTS, replicas=3)
        found = []
        for h in world.hosts:
            for slot, x in h.core.slots.hosts.items():
                if slot == SYSTEM_SLOT:
                    continue  # every peer has it
                out = h.identity.peer_id not in wanted[slot]
                if out and (x.replica.log.last.index or x.stream.partitions or h.disk.log[slot]):
                    found.append((h.identity.name, int(slot)))
            for key, stored in h.disk.payloads.items():
                if stored and h.identity.peer_id not in wanted[h.core.ctx.slot_of(key)]:
                    found.append((h.identity.name, key.partition))
        return found

    world.run(lambda: not leftovers())
    assert counted(world)["slots_emptied"] > 0
    check(world, client, info, sent)
    # The ring turns back: the one that joined is taken for dead, and its slots go to who had them before.
    gone = world.hosts[-1]
    for host in world.hosts[:-1]:
        host.core.absences.longer_than = lambda _, p=gone.identity.peer_id: frozenset([p])  # type: ignore[method-assign]
    gone.crash()
    rest = {h.identity.peer_id for h in world.hosts[:-1]}

    def moved_back() -> bool:
        for slot in range(placing.SLOTS):
            found = [h.core.slots.hosts[slot].replica for h in world.hosts[:-1]]  # type: ignore[index]
            if any({n.peer for n in r.config.voters} != rest or r.config.is_joint for r in found):
                return False
            if len({r.commit_index for r in found}) > 1 or any(r.frozen for r in found):
                return False
        return True

    world.run(moved_back)
    check(world, client, info, sent)


def test_a_disk_that_was_put_back_is_told_and_stays_out_until_it_is_another() -> None:
    world, client, info, sent = placing.play(2)
    world.run(lambda: lives_where_it_should(world))
    host = world.hosts[1]
    host.crash()
    old = copy.deepcopy(host.disk)
    for _ in range(2):
        host.start()
        world.run(lambda: lives_where_it_should(world))
        host.crash()
    host.disk = old
    host.start()
    world.run(lambda: host.core.disks.is_rolled_back)
    world.run_for(5)
    assert all(h.replica.frozen for h in host.core.slots.hosts.values())
    assert not any(h.leads for h in host.core.slots.hosts.values())
    for _ in range(3):  # its epoch is the highest of all by now, and it does not matter
        host.crash()
        host.start()
        world.run_for(1)
    assert host.core.slots.frozen
    host.crash()
    host.wipe()
    host.start()
    world.run(lambda: lives_where_it_should(world))
    assert not host.core.disks.is_rolled_back
    check(world, client, info, sent)


def test_a_clone_that_runs_beside_its_original_is_told() -> None:
    world, *_ = placing.play(2)
    world.run(lambda: lives_where_it_should(world))
    host = world.hosts[1]
    host.crash()
    old = copy.deepcopy(host.disk)
    host.start()
    world.run(lambda: lives_where_it_should(world))
    host.crash()
    host.disk = old  # its next start has the same number as the original's
    host.start()
    world.run(lambda: host.core.disks.is_rolled_back)


@pytest.mark.parametrize("seed", (2, 5, 8, 11))
def test_a_damaged_entry_comes_again_from_another_replica(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "CHECKPOINT_S", 1e9)  # all that is applied is to be applied again
    monkeypatch.setattr(saving, "CHECKPOINT_ENTRIES", 10**9)
    world, client, info, sent = placing.play(seed)
    world.run(lambda: lives_where_it_should(world))
    host = world.hosts[seed % 3]
    host.crash()
    for slot, log in host.disk.log.items():
        if slot != SYSTEM_SLOT and len(log) > 3:
            host.disk.damaged.add((slot, sorted(log)[len(log) // 2]))
    host.start()
    assert host.core.slots.damaged > 0
    assert any(h.replica.frozen for h in host.core.slots.hosts.values())
    world.run(lambda: lives_where_it_should(world) and not frozen(host))
    check(world, client, info, sent)


def frozen(host: Host) -> bool:
    """Whether a slot it is a member of still waits for what was damaged."""
    me = host.core.slots.me
    return any(h.replica.frozen for h in host.core.slots.hosts.values() if me in h.replica.config.nodes())
