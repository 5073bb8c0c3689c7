"""What peers declare in their records: weights and zones move slots, and the feature level keeps old software
out.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from meshq import batch
from meshq.client import facts
from meshq.errors import Refused, UsageError
from meshq.ids import Slot
from meshq.levels import BASE, LEVEL_KNOWN, PLACES
from meshq.messages import Accepted
from meshq.peer.core.context import CoreSettings
from meshq.replication.placement import genesis_config
from meshq.replication.quorum import Node
from meshq.ring import owners
from tests.peer.world import Client, Host, World

SLOTS = 24


def is_placed(world: World) -> bool:
    """Every slot has the members that the ring wants, by what is registered now, and one leader."""
    wanted = owners(world.hosts[0].core.ctx.registry.ring_peers(), slots=SLOTS, replicas=3)
    for slot in range(SLOTS):
        target = genesis_config([Node(peer, bytes(16)) for peer in wanted[slot]])
        members = [h for h in world.hosts if h.identity.peer_id in wanted[slot]]
        found = [h.core.slots.hosts.get(Slot(slot)) for h in members]
        if any(c is None or c.replica.config != target for c in found):
            return False
        if sum(c.replica.serves for c in found if c is not None) != 1:
            return False
    return True


def copies(world: World) -> Counter[str]:
    """How many slots each has a copy of, as their leaders say."""
    name = {h.identity.peer_id: h.identity.name for h in world.hosts}
    led = [c for h in world.hosts for c in h.core.slots.led() if c.slot < SLOTS]
    return Counter(name[n.peer] for c in led for n in c.replica.config.nodes())


def places(world: World) -> list[tuple[float, str]]:
    registry = world.hosts[0].core.ctx.registry
    return [registry.place(h.identity.peer_id) for h in world.hosts]


def ask(client: Client, what: str, args: dict[str, Any] | None = None) -> Any:
    return client.wait(client.ask(lambda t, d: facts.AskRequested(t, what, args or {}, d)))


def restart(host: Host, settings: CoreSettings) -> None:
    host.crash()
    host.declare(settings)
    host.start()


def test_another_weight_moves_slots_while_publishing_goes_on() -> None:
    world = World(1, peers=4, slots=SLOTS)
    client = Client(world)
    ask(client, "topic.create", {"topic": "t", "partitions": 12})
    info = client.wait(client.ask(lambda t, d: facts.TopicWanted(t, "t", d)))
    world.run(lambda: is_placed(world))
    before = copies(world)["p3"]
    sent: list[int] = []

    def publish(n: int) -> None:
        body = batch.seal([batch.RawRecord(None, b"%d" % n)], base_timestamp_ms=0)
        sent.append(client.ask(lambda t, d: facts.BatchSealed(t, 1, info, n % 12, body, d, 8)))

    for n in range(100):
        world.at(0.05 * n, lambda n=n: publish(n))
    world.at(1.0, lambda: restart(world.hosts[3], CoreSettings(weight=0.2, zone="attic")))
    world.run_for(5.1)
    world.run(lambda: all(t in client.results for t in sent))
    assert all(isinstance(client.results[t], Accepted) for t in sent)
    world.run(lambda: places(world)[3] == (0.2, "attic") and is_placed(world))
    assert copies(world)["p3"] < before / 2
    row = next(r for r in ask(client, "peers") if r["name"] == "p3")
    assert (row["weight"], row["zone"], row["level"]) == (0.2, "attic", LEVEL_KNOWN)


def test_a_peer_of_no_weight_gives_all_its_slots_away() -> None:
    world = World(2, peers=4, slots=SLOTS)
    world.run(lambda: is_placed(world))
    restart(world.hosts[3], CoreSettings(weight=0.0))
    world.run(lambda: places(world)[3] == (0.0, "") and is_placed(world))
    assert copies(world) == {"p0": SLOTS, "p1": SLOTS, "p2": SLOTS}


def test_replicas_move_into_different_zones() -> None:
    world = World(3, peers=6, slots=SLOTS)
    world.run(lambda: is_placed(world))
    for n, host in enumerate(world.hosts):
        restart(host, CoreSettings(weight=1.0, zone="abc"[n // 2]))
        world.run_for(1.0)
    world.run(lambda: places(world) == [(1.0, z) for z in "aabbcc"] and is_placed(world))
    zone = dict(zip((h.identity.peer_id for h in world.hosts), "aabbcc", strict=True))
    for host in world.hosts:
        for slot, copy in host.core.slots.hosts.items():
            if slot < SLOTS and copy.leads:
                assert {zone[n.peer] for n in copy.replica.config.voters} == set("abc")


def test_what_was_declared_stays_when_everybody_starts_again() -> None:
    """The registry has it: a peer that is away then keeps its place."""
    world = World(4, peers=3, slots=8)
    restart(world.hosts[2], CoreSettings(weight=2.5, zone="z"))
    world.run(lambda: places(world)[2] == (2.5, "z"))
    for host in world.hosts:
        host.crash()
    for host in world.hosts[:2]:
        host.start()
    world.run_for(3.0)
    assert places(world)[2] == (2.5, "z")


# ---------------------------------------------------------------------------------------- feature level
def test_the_level_is_raised_once_every_member_knows_it() -> None:
    world = World(5, peers=3, slots=8, level=BASE)
    client, old = Client(world), world.hosts[2]
    restart(old, CoreSettings(level=BASE))
    restart(world.hosts[1], CoreSettings(weight=3.0))
    world.run_for(3.0)
    assert places(world)[1] == (1.0, ""), "what belongs to a higher level is not written"

    found = ask(client, "upgrade", {"dry_run": True})
    assert (found["level"], found["to"], found["raised"]) == (BASE, LEVEL_KNOWN, False)
    assert [x["name"] for x in found["in_the_way"]] == ["p2"]
    refused = ask(client, "upgrade")
    assert isinstance(refused, Refused) and "p2 knows those up to 1" in str(refused)

    restart(old, CoreSettings())
    world.run_for(1.0)
    assert ask(client, "upgrade")["raised"]
    world.run(lambda: all(h.core.ctx.registry.level == LEVEL_KNOWN for h in world.hosts))
    world.run(lambda: places(world)[1] == (3.0, ""))
    assert not ask(client, "upgrade")["raised"], "it is there already"
    for host in world.hosts:
        host.crash()
    for host in world.hosts:
        host.start()
    world.run(lambda: all(h.core.ctx.registry.level == LEVEL_KNOWN for h in world.hosts))


def test_a_member_that_was_never_heard_of_is_in_the_way() -> None:
    world = World(6, peers=3, slots=8, level=BASE)
    world.hosts[2].crash()
    world.hosts[0].crash()
    world.hosts[0].start()
    world.hosts[0].core.links.states.pop(world.hosts[2].identity.peer_id, None)
    world.run_for(3.0)
    refused = ask(Client(world), "upgrade")
    assert isinstance(refused, Refused) and "p2 was not heard of" in str(refused)


def test_software_that_is_too_old_stops_and_does_not_start_again() -> None:
    world = World(7, peers=3, slots=8, level=BASE)
    world.run_for(2.0)
    old = world.hosts[2]  # it was put back to an older version behind everybody's back
    old.settings = CoreSettings(level=BASE)
    old.crash()
    old.start()
    assert ask(Client(world), "upgrade")["raised"]
    world.run(lambda: old.stopped_by is not None)
    assert "install a newer meshq" in str(old.stopped_by)
    old.stopped_by = None
    old.start()  # it had not noted yet that this is decided; hears so, and stops again
    world.run(lambda: old.stopped_by is not None)
    old.settings, old.stopped_by = CoreSettings(), None
    old.start()
    world.run(lambda: old.core.ctx.registry.level == PLACES)
    old.core.slots.saving.checkpoint_all()
    world.run_for(3.0)
    assert old.up
    old.settings = CoreSettings(level=BASE)
    old.crash()
    with pytest.raises(UsageError, match="features of level 2"):
        old.start()


def test_a_mesh_that_was_made_by_newer_software_is_refused() -> None:
    world = World(8, peers=1, slots=8, level=BASE)
    world.hosts[0].crash()
    world.level = LEVEL_KNOWN + 1
    with pytest.raises(UsageError, match="install a newer meshq"):
        world.hosts[0].start()


def test_who_asks_for_a_level_that_this_peer_does_not_know_is_told_so() -> None:
    client = Client(World(9, slots=8))
    assert isinstance(ask(client, "upgrade", {"to": LEVEL_KNOWN + 1}), UsageError)
    assert isinstance(ask(client, "upgrade", {"to": True}), UsageError)
