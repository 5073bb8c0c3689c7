"""`status` names the slots that lack a copy, are moving or have no leader, whoever is asked; moves keep to
their pace.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from meshq import batch
from meshq.client import facts
from meshq.ids import PeerId, Slot
from meshq.limits import KIB, MIB
from meshq.messages import Accepted
from meshq.peer.core.context import CoreSettings
from meshq.peer.core.events import ReadPayloads
from meshq.peer.core.pacing import Pacing
from meshq.replication.quorum import Node
from tests.peer.test_declared import ask, is_placed
from tests.peer.world import WALL_MS, Client, World

SLOTS = 24


def health(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = ask(client, "status")["health"]
    return found


def test_all_is_well() -> None:
    world = World(1, peers=4, slots=SLOTS)
    world.run(lambda: is_placed(world))
    world.run_for(2.0)
    for n in range(4):
        found = ask(Client(world, seed_peer=n), "status")
        slots = found["slots"]
        assert [slots[k] for k in ("under_replicated", "moving", "leaderless", "led_out_of_reach")] == [0] * 4
        assert found["health"]["peers_asked"] == 4


def test_a_peer_that_is_away_is_named_with_every_slot_that_lacks_its_copy() -> None:
    world = World(2, peers=4, slots=SLOTS)
    world.run(lambda: is_placed(world))
    keeps = {
        s
        for s, c in world.hosts[3].core.slots.hosts.items()
        if s < SLOTS and world.hosts[3].core.slots.me in c.replica.config.nodes()
    }
    world.hosts[3].crash()
    world.run_for(5.0)
    found = health(Client(world))
    assert {row["slot"] for row in found["under_replicated"]} == keeps
    for row in found["under_replicated"]:
        assert row["missing"] == [
            {"peer": "p3", "why": "away", "entries_behind": row["missing"][0]["entries_behind"]}
        ]
        assert (row["copies"], row["wanted"]) == (2, 3) and row["leader"] in ("p0", "p1", "p2")
    assert (found["leaderless"], found["moving"]) == ([], [])


def test_slots_without_a_leader_say_since_when_and_who_is_away() -> None:
    world = World(3, peers=3, slots=SLOTS)
    world.run(lambda: is_placed(world))
    world.run_for(3.0)
    gone_ms = WALL_MS + int(world.now * 1000)
    world.hosts[1].crash()
    world.hosts[2].crash()
    world.run_for(10.0)
    found = health(Client(world))
    assert [row["slot"] for row in found["leaderless"]] == list(range(SLOTS))
    for row in found["leaderless"]:
        assert (row["voters"], row["away"]) == (["p0", "p1", "p2"], ["p1", "p2"])
        assert gone_ms <= row["since_ms"] <= gone_ms + 4_000
    world.hosts[1].start()
    world.run_for(5.0)
    found = health(Client(world))
    assert (found["leaderless"], len(found["under_replicated"])) == ([], SLOTS)


def test_what_nobody_has_a_copy_of_is_without_a_leader_too() -> None:
    world = World(4, peers=6, slots=SLOTS)
    world.run(lambda: is_placed(world))
    for host in world.hosts[1:]:
        host.crash()
    world.run_for(5.0)
    rows = health(Client(world))["leaderless"]
    me = world.hosts[0].core.slots
    unheard = [row for row in rows if row["voters"] is None]
    assert len(rows) == SLOTS and unheard
    assert all(row["slot"] not in me.hosts for row in unheard)


def test_a_copy_on_its_way_shows_how_far_it_is_and_keeps_to_its_pace() -> None:
    """Some 2 MB of records at 256 KiB a second."""
    rate = 256 * KIB
    world = World(5, peers=1, slots=1, settings=CoreSettings(move_bytes_s=rate))
    client = Client(world)
    ask(client, "topic.create", {"topic": "t", "partitions": 1})
    info = client.wait(client.ask(lambda t, d: facts.TopicWanted(t, "t", d)))
    for n in range(32):
        body = batch.seal([batch.RawRecord(None, bytes(64 * KIB))], base_timestamp_ms=n)
        sent = client.ask(lambda t, d, body=body: facts.BatchSealed(t, 1, info, 0, body, d, 8))
        assert isinstance(client.wait(sent), Accepted)
    total = ask(client, "topic.show", {"topic": "t"})["partition"][0]["bytes"]
    began = world.now
    new = world.join("new")
    moving: list[dict[str, Any]] = []

    def is_there() -> bool:
        mirror = new.core.slots.hosts.get(0)  # type: ignore[call-overload]
        return mirror is not None and mirror.stream.partitions and mirror.stream.applied_index >= 32

    while not is_there():
        world.run_for(0.5)
        moving += health(client)["moving"]
        assert len(world.hosts[0].core.slots.pacing.waiting) <= 1, "it is asked for again, and waits once"
        assert world.now < began + 60
    assert world.now - began > (total - MIB) / rate - 1, "a second's worth at once, and the last message"
    assert moving[0]["to"], "it copies first"
    moving = [row for row in moving if row["to"]]
    assert all(
        row["to"][0]["peer"] == "new" and row["leader"] == "p0" and row["from"] == [] for row in moving
    )
    entries = [row["to"][0]["entries"] for row in moving]
    assert entries == sorted(entries) and sum(0 < x < 32 for x in entries) > 0
    assert {row["to"][0]["bytes_total"] for row in moving} == {total}
    world.run_for(3.0)
    assert health(client)["moving"] == []


def copy(number: int) -> tuple[Slot, Node, type]:
    return Slot(number), Node(PeerId(bytes(16)), b""), ReadPayloads


def test_who_asks_again_waits_once_and_keeps_its_turn() -> None:
    pacing, done = Pacing(100.0), list[str]()
    pacing.spent(300)
    for again in range(5):
        for number in (1, 2):
            text = f"copy {number}, asked for the {again + 1}th time"
            pacing.when_due(copy(number), partial(done.append, text), lambda: False, now=0.0)
    assert len(pacing.waiting) == 2
    pacing.tick(now=3.0)
    assert done == ["copy 1, asked for the 5th time", "copy 2, asked for the 5th time"]


def test_a_budget_is_a_rate_on_average() -> None:
    pacing, done, now = Pacing(100.0), list[float](), 0.0

    def read() -> None:
        done.append(now)
        pacing.spent(100)

    for n in range(10):
        pacing.when_due(copy(n), read, lambda: False, now=now)
    assert done == [0.0], "a second's worth is there, and then no more"
    while len(done) < 10:
        now = pacing.wake()
        pacing.tick(now=now)
    assert done[-1] == pytest.approx(8.0, abs=0.1), "one begins with the first byte, as a whole"
    now = 20.0
    pacing.tick(now=now)
    assert pacing.budget == 100.0, "what was not used is not saved up"
    pacing.spent(1_000)
    urgent = False
    pacing.when_due(copy(0), lambda: done.append(now), lambda: urgent, now=now)
    assert len(done) == 10
    urgent = True
    pacing.tick(now=now)
    assert len(done) == 11, "who has come to decide does not wait"
