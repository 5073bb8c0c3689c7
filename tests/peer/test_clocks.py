"""A clock that is wrong is noticed by comparison, said, and neither trusted nor let into the records."""

from __future__ import annotations

from typing import Any

import pytest

from meshq import batch
from meshq.client import facts
from meshq.ids import Slot
from meshq.messages import Accepted
from meshq.peer.core import clocks
from tests.peer.test_declared import ask
from tests.peer.world import Client, Host, World

HOUR_MS = 3_600_000
SLOTS = 8


def row(client: Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(r for r in ask(client, "peers") if r["name"] == name)
    return found


def clock(world: World, n: int) -> dict[str, Any]:
    found: dict[str, Any] = ask(Client(world, seed_peer=n), "status")["clock"]
    return found


def events(world: World, n: int) -> list[str]:
    found = ask(Client(world, seed_peer=n), "events", {"after": 0})["events"]
    return [x["event"] for x in found if x["event"].startswith("Clock")]


def settled(world: World) -> None:
    world.run(lambda: is_led(world))
    world.run_for(3.0)


def is_led(world: World) -> bool:
    hosts = [h for h in world.hosts if h.up]
    return all(any(c.leads for h in hosts if (c := h.core.slots.hosts.get(Slot(s)))) for s in range(SLOTS))


def times(host: Host) -> list[int]:
    """Of the newest entries of all slots here, against true time."""
    true_ms = host.world.wall_ms()
    return [c.replica.log.last_timestamp_ms - true_ms for s, c in host.core.slots.hosts.items() if s < SLOTS]


def test_clocks_that_agree_are_trusted_and_nothing_is_said() -> None:
    world = World(1, peers=3, slots=SLOTS)
    world.hosts[1].clock_ms = 4_000
    settled(world)
    for n in range(3):
        found = clock(world, n)
        assert (found["trusted"], found["why"], found["compared_with"]) == (True, None, 2)
        assert events(world, n) == []
    assert clock(world, 1)["offset_ms"] == pytest.approx(4_000, abs=50)
    assert row(Client(world), "p1")["clock_offset_ms"] == pytest.approx(4_000, abs=50)


@pytest.mark.parametrize("wrong_ms", [HOUR_MS, -HOUR_MS, 31_000])
def test_a_clock_that_is_off_is_named_by_all_and_distrusted_by_its_own_peer(wrong_ms: int) -> None:
    world = World(2, peers=3, slots=SLOTS)
    world.hosts[2].clock_ms = wrong_ms
    settled(world)
    assert [h.core.ctx.clock_trusted() for h in world.hosts] == [True, True, False]
    found = clock(world, 2)
    assert found["offset_ms"] == pytest.approx(wrong_ms, abs=50)
    assert ("ahead of" if wrong_ms > 0 else "behind") in found["why"]
    assert events(world, 2)[-1] == "ClockOff"
    for n in range(3):
        assert row(Client(world, seed_peer=n), "p2")["clock_offset_ms"] == pytest.approx(wrong_ms, abs=50)
    world.hosts[2].clock_ms = 0  # set right while it runs
    world.run_for(3.0)
    assert world.hosts[2].core.ctx.clock_trusted() and events(world, 2)[-1] == "ClockRight"


def test_records_of_a_leader_whose_clock_is_an_hour_ahead_have_the_meshs_time() -> None:
    """And those of the next leader do not stand still for an hour."""
    world = World(3, peers=3, slots=SLOTS)
    settled(world)
    bad = world.hosts[2]
    bad.clock_ms = HOUR_MS  # set wrong while it leads
    client = Client(world)
    ask(client, "topic.create", {"topic": "t", "partitions": 8})
    info = client.wait(client.ask(lambda t, d: facts.TopicWanted(t, "t", d)))
    for n in range(32):
        body = batch.seal([batch.RawRecord(None, b"x")], base_timestamp_ms=0)
        sent = client.ask(lambda t, d, n=n, b=body: facts.BatchSealed(t, 1, info, n % 8, b, d, 8))
        assert isinstance(client.wait(sent), Accepted)
    assert any(c.leads for s, c in bad.core.slots.hosts.items() if s < SLOTS), "it led some of them"
    assert all(x <= 2_000 for h in world.hosts for x in times(h))
    assert clock(world, 2)["records_ahead_ms"] <= 2_000
    bad.crash()
    bad.start()  # with the wrong clock from the first moment
    world.run_for(5.0)
    assert all(x <= 2_000 for h in world.hosts for x in times(h))


def test_two_clocks_that_do_not_agree_are_both_distrusted() -> None:
    world = World(4, peers=2, slots=SLOTS)
    world.hosts[1].clock_ms = HOUR_MS
    settled(world)
    for n in range(2):
        assert not world.hosts[n].core.ctx.clock_trusted()
        assert "do not agree" in clock(world, n)["why"]


def test_a_peer_that_can_compare_with_nobody_does_not_trust_its_clock() -> None:
    world = World(5, peers=3, slots=SLOTS)
    for host in world.hosts[1:]:
        host.crash()
    world.hosts[0].crash()
    world.hosts[0].start()
    world.run_for(3.0)
    assert not world.hosts[0].core.ctx.clock_trusted()
    assert events(world, 0) == [], "nothing is known to be wrong with it"
    world.hosts[1].start()
    world.run(world.hosts[0].core.ctx.clock_trusted)


def test_the_only_peer_of_a_mesh_has_the_only_clock() -> None:
    world = World(6, peers=1, slots=SLOTS)
    world.run_for(1.0)
    assert world.hosts[0].core.ctx.clock_trusted()


def restarted_an_hour_back(world: World) -> Host:
    world.run_for(70.0)
    host = world.hosts[0]
    host.crash()
    host.clock_ms = -HOUR_MS
    host.start()
    return host


def test_a_clock_that_went_back_across_a_restart_is_said_and_distrusted_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clocks, "SETTLE_S", 100.0)
    world = World(7, peers=1, slots=SLOTS)
    host = restarted_an_hour_back(world)
    world.run_for(1.0)
    assert not host.core.ctx.clock_trusted()
    assert events(world, 0) == ["ClockWentBack", "ClockOff"]
    assert "went back by 59" in clock(world, 0)["why"] or "went back by 60" in clock(world, 0)["why"]
    assert clock(world, 0)["records_ahead_ms"] > HOUR_MS - 120_000, "and new records are held up by the old"
    host.crash()
    host.start()
    world.run_for(1.0)
    assert not host.core.ctx.clock_trusted(), "another restart does not forget it"
    world.run_for(105.0)
    assert host.core.ctx.clock_trusted(), "there is no other clock, nor will there be"
    host.crash()
    host.start()
    world.run_for(1.0)
    assert host.core.ctx.clock_trusted()


def test_others_say_that_a_clock_that_went_back_is_right_now() -> None:
    world = World(8, peers=3, slots=SLOTS)
    world.hosts[0].clock_ms = HOUR_MS
    world.run_for(70.0)
    assert not world.hosts[0].core.ctx.clock_trusted()
    world.hosts[0].crash()
    world.hosts[0].clock_ms = 0
    world.hosts[0].start()
    world.run_for(5.0)
    assert world.hosts[0].core.ctx.clock_trusted()
    assert (
        events(world, 0) == ["ClockWentBack", "ClockOff", "ClockRight"]
        or events(world, 0)[0] == "ClockWentBack"
    )
