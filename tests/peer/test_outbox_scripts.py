"""Outboxes, scene by scene: a crash at each step of the disk, 30 days, copies. And the faults built in on
purpose that these scenes have to notice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from meshq.client import facts
from meshq.client.outbox import layout, topics, words
from meshq.client.outbox.binding import Binding
from meshq.client.outbox.lanes import Entry, Lane
from meshq.client.outbox.machine import OutboxMachine
from meshq.client.outbox.taking import Taking
from meshq.errors import Fenced, OutboxFull
from meshq.levels import BASE
from meshq.messages import TopicInfo
from tests.peer.outboxes import Rows, SimOutbox
from tests.peer.test_outbox_simulated import arrived, check, make_topic
from tests.peer.world import Client, World

DAY_MS = 86_400_000
STEPS = 14  # of the disk, from the first opening until three records are gone from it: two for each sync
Patch = pytest.MonkeyPatch


def begin(name: str = "orders", **about: Any) -> tuple[World, TopicInfo, SimOutbox]:
    world = World(1)
    info = make_topic(Client(world), name, 1)
    return world, info, SimOutbox(world, "a", **about)


def is_done(outbox: SimOutbox) -> bool:
    machine = outbox.machine
    return outbox.up and not machine.queued_records and not machine.bound_records and not machine.is_writing


def drain(world: World, outbox: SimOutbox) -> None:
    world.run(lambda: is_done(outbox))
    world.run_for(0.5)


# --------------------------------------------------------------------------------------- crash by crash
def crash_at(step: int) -> None:
    """The run ends at this step of its disk, which is slow: what leaves too early has long arrived."""
    world, info, outbox = begin(disk_s=0.3)
    outbox.crash_at = {step}
    for n in range(3):
        outbox.publish("orders", b"k:%d" % n, b"k")
        world.run_for(0.05)
    world.run(lambda: outbox.steps > step or is_done(outbox))
    drain(world, outbox)
    check(world, outbox, info)


def lost_on_the_way() -> None:
    """The mesh goes down with the batch on its way to it, and then the program."""
    world, info, outbox = begin()
    outbox.publish("orders", b"k:0", b"k")
    world.run(lambda: any(isinstance(e, words.SendBound) for _, e in outbox.log))
    world.hosts[0].crash()
    world.run_for(0.2)
    outbox.crash()
    outbox.start()
    world.hosts[0].start()
    drain(world, outbox)
    check(world, outbox, info)


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_crash_at_any_step_of_its_disk_loses_and_doubles_nothing(step: int) -> None:
    crash_at(step)


def test_a_batch_that_was_lost_on_its_way_is_sent_again() -> None:
    lost_on_the_way()


# -------------------------------------------------------------------------------------------- 30 days
def unacknowledged_for(days: int) -> tuple[World, TopicInfo, SimOutbox]:
    """Stored, but the answer never came; and then nothing for so long."""
    world, info, outbox = begin()
    outbox.publish("orders", b"k:0", b"k")
    world.run(lambda: any(arrived(world, info).values()))
    outbox.crash()
    world.wall_offset_ms += days * DAY_MS
    other = SimOutbox(world, "b")  # the log's time goes on with what others append
    other.publish("orders", b"other:0", b"k")
    drain(world, other)
    outbox.start()
    world.run(lambda: is_done(outbox))
    return world, info, outbox


def test_a_batch_is_known_again_after_29_days() -> None:
    world, info, outbox = unacknowledged_for(29)
    check(world, outbox, info)


def test_after_31_days_it_is_parked_for_nobody_knows() -> None:
    world, info, outbox = unacknowledged_for(31)
    (told,) = outbox.parked
    assert (told.parked.reason, told.parked.maybe_stored, told.parked.records) == ("UnknownProducer", True, 1)
    assert sorted(arrived(world, info)[0]) == [b"k:0", b"other:0"]


def test_one_that_was_idle_for_longer_goes_on_under_another_number() -> None:
    world, info, outbox = begin()
    outbox.publish("orders", b"k:0", b"k")
    drain(world, outbox)
    world.wall_offset_ms += 31 * DAY_MS
    outbox.publish("orders", b"k:1", b"k")
    drain(world, outbox)
    check(world, outbox, info)


def test_a_clock_that_is_set_back_makes_nothing_younger() -> None:
    _, _, outbox = unacknowledged_for(31)
    outbox.crash()
    key = layout.STATE_KEY
    before = layout.decode(layout.StateRow, key, outbox.disk[layout.STATE][key]).wall_ms
    outbox.wall_offset_ms = -40 * DAY_MS
    outbox.start()
    assert outbox.machine._ledger.wall_ms == before > outbox.wall_ms() + 30 * DAY_MS


# --------------------------------------------------------------------------------------- what may pass
def test_a_mesh_of_an_older_feature_level_is_waited_for() -> None:
    """Its peers would forget the numbers too early; nothing is lost and nothing parked meanwhile."""
    world = World(1, level=BASE)
    admin = Client(world)
    info = make_topic(admin, "orders", 1)
    outbox = SimOutbox(world, "a")
    outbox.publish("orders", b"k:0", b"k")
    world.run(lambda: "meshq upgrade" in str(outbox.machine.status()["waiting_for"]))
    admin.wait(admin.ask(lambda t, d: facts.AskRequested(t, "upgrade", {}, d)))
    drain(world, outbox)
    check(world, outbox, info)


def test_a_lane_whose_row_is_damaged_goes_on_as_another_producer_and_stops_nothing() -> None:
    world, info, outbox = begin()
    outbox.publish("orders", b"k:0", b"k")
    drain(world, outbox)
    outbox.crash()
    ((key, value),) = outbox.disk[layout.LANES].items()
    outbox.disk[layout.LANES][key] = value[:-1] + bytes([value[-1] ^ 1])
    outbox.start()
    outbox.publish("orders", b"k:1", b"k")
    drain(world, outbox)
    assert not outbox.machine.halted
    assert [told.parked.reason for told in outbox.parked] == ["StoreCorrupt"]
    assert list(arrived(world, info)[0]) == [b"k:0", b"k:1"]


def test_a_topic_that_has_nothing_here_makes_room_for_another(monkeypatch: Patch) -> None:
    monkeypatch.setattr(topics, "OUTBOX_TOPICS_MAX", 2)
    world = World(1)
    client = Client(world)
    infos = {name: make_topic(client, name, 1) for name in ("a", "b", "c")}
    outbox = SimOutbox(world, "a")
    outbox.publish("a", b"k:0", b"k")
    drain(world, outbox)
    world.hosts[0].crash()
    outbox.publish("b", b"k:1", b"k")
    outbox.publish("c", b"k:2", b"k")
    world.run_for(0.5)
    with pytest.raises(OutboxFull, match="at most 2 topics"):
        outbox.publish("a", b"k:3", b"k")
    outbox.crash()
    outbox.start()
    world.hosts[0].start()
    drain(world, outbox)
    outbox.publish("a", b"k:4", b"k")
    drain(world, outbox)
    for name, values in {"a": [b"k:0", b"k:4"], "b": [b"k:1"], "c": [b"k:2"]}.items():
        assert list(arrived(world, infos[name])[0]) == values
    found = {d: len(outbox.disk[d]) for d in (layout.TOPICS, layout.QUEUE, layout.BOUND)}
    assert found == {layout.TOPICS: 2, layout.QUEUE: 0, layout.BOUND: 0}


# --------------------------------------------------------------------------------------------- copies
def copy_of(outbox: SimOutbox, name: str) -> SimOutbox:
    disk: Rows = {database: dict(rows) for database, rows in outbox.disk.items()}
    return SimOutbox(outbox.world, name, disk=disk)


def two_copies(first: bytes, second: bytes) -> tuple[World, TopicInfo, SimOutbox, SimOutbox]:
    """One outbox, copied when it was at rest; each publishes on, the second after the first."""
    world, info, outbox = begin()
    outbox.publish("orders", b"k:0", b"k")
    drain(world, outbox)
    outbox.crash()
    copy = copy_of(outbox, "b")
    outbox.start()
    world.run_for(0.5)
    outbox.publish("orders", first, b"k")
    drain(world, outbox)
    copy.publish("orders", second, b"k")
    world.run(lambda: is_done(copy))
    return world, info, outbox, copy


def no_copy_is_silent(first: bytes, second: bytes) -> None:
    """Each record is in the mesh as often as somebody was told so, and else it is parked."""
    world, info, outbox, copy = two_copies(first, second)
    log = arrived(world, info)[0]
    told = len(outbox.committed) + len(copy.committed)
    parked = sum(t.parked.records for t in (*outbox.parked, *copy.parked))
    assert len(log) == told
    assert told + parked == 3


@pytest.mark.parametrize("second", [b"k:1", b"k:2"], ids=["equal", "other"])
def test_a_copied_outbox_is_told_and_keeps_what_it_has(second: bytes) -> None:
    no_copy_is_silent(b"k:1", second)
    _, _, _, copy = two_copies(b"k:1", second)
    assert copy.machine.halted
    with pytest.raises(Fenced, match="another copy"):
        copy.machine.take("orders", b"k:3", b"k", None, wall_ms=0)


def test_the_older_copy_is_told_when_the_newer_one_went_first() -> None:
    world, info, outbox = begin()
    outbox.publish("orders", b"k:0", b"k")
    drain(world, outbox)
    copy = copy_of(outbox, "b")
    copy.publish("orders", b"k:1", b"k")
    drain(world, copy)
    outbox.publish("orders", b"k:2", b"k")
    world.run(lambda: is_done(outbox))
    (told,) = outbox.parked
    assert told.parked.reason == "Fenced"
    assert outbox.machine.halted
    assert arrived(world, info)[0] == [b"k:0", b"k:1"]


def test_a_halted_copy_goes_on_as_an_outbox_of_its_own_when_its_owner_has_decided() -> None:
    world, info, outbox, copy = two_copies(b"k:1", b"k:2")
    copy.tell(words.RetryAsked([t.parked.id for t in copy.parked]))
    drain(world, copy)
    assert not copy.machine.halted
    copy.publish("orders", b"k:3", b"k")
    outbox.publish("orders", b"k:4", b"k")
    drain(world, copy)
    drain(world, outbox)
    assert sorted(arrived(world, info)[0]) == [b"k:%d" % n for n in range(5)]


# --------------------------------------------------------------------------------------------- mutants
def sends_before_it_is_written_down(patch: Patch) -> None:
    write = Binding.write

    def lie(self: Binding, lane: Lane, entries: Any, puts: Any, deletes: Any) -> None:
        write(self, lane, entries, puts, deletes)
        for entry in entries:
            entry.durable = True
        self._on_done(lane.topic)

    patch.setattr(Binding, "write", lie)


def removes_before_it_is_committed(patch: Patch) -> None:
    send = OutboxMachine._send

    def lie(self: OutboxMachine, lane: Lane, entry: Entry) -> None:
        send(self, lane, entry)
        key = layout.place_key(lane.topic.number, lane.partition, entry.order)
        self._ledger.persist([], [(layout.BOUND, key)])

    patch.setattr(OutboxMachine, "_send", lie)


def does_not_raise_the_epoch(patch: Patch) -> None:
    start = OutboxMachine.start

    def lie(self: OutboxMachine, **when: Any) -> Any:
        effects = start(self, **when)
        self._ledger.state.epoch = 7
        return effects

    patch.setattr(OutboxMachine, "start", lie)


def numbers_again_what_was_sent(patch: Patch) -> None:
    init = OutboxMachine.__init__

    def lie(self: OutboxMachine, loaded: words.Loaded, *rest: Any) -> None:
        for i, (key, row) in enumerate(loaded.bound):
            lane = layout.lane_key(row.topic_id, 0)
            next_one = loaded.lanes[lane].next_sequence
            loaded.lanes[lane] = layout.LaneRow(row.producer_id, next_one + row.count)
            loaded.bound[i] = key, msgspec.structs.replace(row, sequence=next_one)
        init(self, loaded, *rest)

    patch.setattr(OutboxMachine, "__init__", lie)


def tells_before_the_disk(patch: Patch) -> None:
    end_turn = Taking.end_turn

    def lie(self: Taking, *args: Any, **more: Any) -> None:
        end = self._ledger.state.next_number
        first = end - sum(self._lanes.values())
        end_turn(self, *args, **more)
        self._ledger.effects.append(words.TellQueued(first, end))

    patch.setattr(Taking, "end_turn", lie)


def every_crash() -> None:
    for step in range(1, STEPS + 1):
        crash_at(step)


def copies() -> None:
    no_copy_is_silent(b"k:1", b"k:1")


MUTANTS: list[tuple[Callable[[Patch], None], Callable[[], None]]] = [
    (sends_before_it_is_written_down, every_crash),
    (removes_before_it_is_committed, lost_on_the_way),
    (does_not_raise_the_epoch, copies),
    (numbers_again_what_was_sent, every_crash),
    (tells_before_the_disk, every_crash),
]


@pytest.mark.parametrize(("mutant", "scene"), MUTANTS, ids=[m.__name__ for m, _ in MUTANTS])
def test_the_scene_notices(
    mutant: Callable[[Patch], None], scene: Callable[[], None], monkeypatch: Patch
) -> None:
    scene()
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        scene()
