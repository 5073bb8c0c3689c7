"""A batch that is damaged on one disk comes again from another: nobody is handed it, and nobody misses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meshq import batch
from meshq.client import facts
from meshq.entries import Payload, PayloadCorrupt
from meshq.errors import RecordsDamaged, StoreCorrupt
from meshq.ids import PartitionKey, Slot, TopicId
from meshq.messages import EARLIEST, Answer, Ask, ReadEnded, TopicInfo
from meshq.peer.core import events as e
from meshq.peer.core import hosts, mending, saving
from tests.peer.single import Single, key_of
from tests.peer.test_groups_simulated import History, Worker
from tests.peer.world import Client, Host, World, committed, is_level

BATCHES = 12


class Scene:
    """A topic of one partition with some batches on every disk."""

    def __init__(self, seed: int = 1, *, peers: int = 3) -> None:
        self.world = world = World(seed, peers=peers)
        self.writer = writer = Client(world)
        self.info: TopicInfo = writer.wait(writer.ask(lambda t, d: facts.TopicWanted(t, "t", d)))
        self.key = PartitionKey(TopicId(self.info.topic_id), 0)
        self.publish(BATCHES)
        world.run_for(1.5)  # the others' logs are applied as well

    @property
    def slot(self) -> Slot:
        return self.world.hosts[0].core.ctx.slot_of(self.key)

    @property
    def leader(self) -> Host:
        return next(h for h in self.world.hosts if h.up and h.core.slots.hosts[self.slot].leads)

    @property
    def others(self) -> list[Host]:
        return [h for h in self.world.hosts if h is not self.leader]

    def publish(self, count: int) -> None:
        for number in range(count):
            body = batch.seal([batch.RawRecord(None, b"%d" % number)], base_timestamp_ms=0)
            self.writer.wait(self.writer.ask(
                lambda t, d, b=body: facts.BatchSealed(t, 1, self.info, 0, b, d, 8)
            ))  # fmt: skip

    def damage(self, host: Host, offset: int, change: Callable[[bytearray], object] | None = None) -> bytes:
        """What was there before."""
        stored = host.disk.payloads[self.key]
        place = next(i for i, p in enumerate(stored) if p.base_offset == offset)
        p = stored[place]
        data = bytearray(p.data)
        (change or flip_last)(data)
        stored[place] = Payload(p.partition, p.base_offset, p.count, p.timestamp_ms, bytes(data))
        return bytes(p.data)

    def repair(self, host: Host, offset: int, data: bytes) -> None:
        def put(now: bytearray) -> None:
            now[:] = data

        self.damage(host, offset, put)

    def lose(self, host: Host, offset: int) -> None:
        stored = host.disk.payloads[self.key]
        stored[:] = [p for p in stored if p.base_offset != offset]

    def reader(self) -> Client:
        reader = Client(self.world)
        reader.tell(facts.SubscribeRequested(1, "t", facts.Start(EARLIEST), 100_000, 50, 1_000_000))
        return reader

    def read(self, reader: Client) -> list[int]:
        return [offset for offset, _ in reader.read[("t", 0)]]

    def check_read(self, reader: Client, count: int = BATCHES) -> None:
        self.world.run(lambda: len(reader.read[("t", 0)]) >= count)
        log = committed(self.leader, self.key)
        assert reader.read[("t", 0)] == list(enumerate(log))
        assert reader.ended == []


def flip_last(data: bytearray) -> None:
    data[-1] ^= 1


def flip_header(data: bytearray) -> None:
    data[8] ^= 4


def counters(host: Host, *names: str) -> list[int]:
    return [host.core.ctx.counters.get(name, 0) for name in names]


FOUND = ("batches_damaged", "batches_mended", "batches_not_mended")


@pytest.mark.parametrize("change", [flip_last, flip_header, lambda data: data.__delitem__(slice(5, None))])
def test_a_reader_gets_what_another_replica_has(change: Callable[[bytearray], object]) -> None:
    scene = Scene()
    before = scene.damage(scene.leader, 5, change)
    reader = scene.reader()
    scene.check_read(reader)
    assert counters(scene.leader, *FOUND) == [1, 1, 0]
    stored = next(p for p in scene.leader.disk.payloads[scene.key] if p.base_offset == 5)
    assert bytes(stored.data) == before, "and it is on this disk again"
    assert len(scene.leader.disk.payloads[scene.key]) == BATCHES


def test_one_that_is_not_there_at_all_is_no_gap() -> None:
    scene = Scene()
    scene.lose(scene.leader, 5)
    scene.check_read(scene.reader())
    assert scene.leader.disk.is_whole()
    assert len(scene.leader.disk.payloads[scene.key]) == BATCHES


def test_a_key_that_says_another_count_goes_with_what_it_held() -> None:
    scene = Scene()
    stored = scene.leader.disk.payloads[scene.key]
    place = next(i for i, p in enumerate(stored) if p.base_offset == 5)
    p = stored[place]
    stored[place] = Payload(p.partition, p.base_offset, p.count + 1, p.timestamp_ms, p.data)
    scene.check_read(scene.reader())
    assert len(stored) == BATCHES
    assert scene.leader.disk.is_whole()


def test_while_nobody_has_it_whole_a_reader_waits_in_front_of_it() -> None:
    scene = Scene()
    told: list[ReadEnded] = []
    whole = [scene.damage(host, 5) for host in scene.world.hosts]
    reader = scene.reader()
    handle = reader.core.handle
    reader.core.handle = lambda event, *, now: (  # type: ignore[method-assign]
        told.append(event.message)
        if isinstance(event, facts.Received) and isinstance(event.message, ReadEnded)
        else None,
        handle(event, now=now),
    )[1]
    scene.world.run_for(10.0)
    assert scene.read(reader) == [0, 1, 2, 3, 4]
    assert {m.name for m in told} == {"RecordsDamaged"}
    assert 2 <= len(told) < 20, "it is tried again, in a while"
    scene.repair(scene.others[0], 5, whole[0])
    scene.check_read(reader)
    assert scene.leader.disk.is_whole()


def test_who_is_asked_and_finds_its_own_damaged_mends_it_too() -> None:
    scene = Scene()
    asked = scene.others[0]
    for host in (scene.leader, asked):
        scene.damage(host, 5)
    scene.check_read(scene.reader())
    scene.world.run(asked.disk.is_whole)
    assert scene.leader.disk.is_whole()


def test_a_peer_that_was_away_is_never_sent_what_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "REPLICA", hosts.Settings(memory_bytes=0))
    scene = Scene()
    away = scene.others[0]
    away.crash()
    scene.publish(BATCHES)
    scene.world.run_for(1.0)
    for offset in (BATCHES + 2, BATCHES + 7):
        scene.damage(scene.leader, offset)
    away.start()
    scene.world.run(lambda: is_level(scene.world, scene.key))
    scene.world.run_for(1.0)
    assert committed(away, scene.key) == committed(scene.leader, scene.key)
    assert all(h.disk.is_whole() for h in scene.world.hosts)
    assert counters(scene.leader, *FOUND) == [2, 2, 0]


def test_a_snapshot_goes_on_once_it_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "REPLICA", hosts.Settings(memory_bytes=0))
    for name, value in (("LOG_ENTRIES_KEPT", 2), ("LOG_ENTRIES_MAX", 4), ("CHECKPOINT_S", 0.05)):
        monkeypatch.setattr(saving, name, value)
    scene = Scene()
    away = scene.others[0]
    away.crash()
    scene.publish(BATCHES)
    scene.world.run_for(1.0)
    scene.damage(scene.leader, BATCHES + 2)
    away.start()
    scene.world.run(lambda: is_level(scene.world, scene.key))
    assert away.core.ctx.counters["snapshots_installed"]
    assert committed(away, scene.key) == committed(scene.leader, scene.key)
    assert all(h.disk.is_whole() for h in scene.world.hosts)


def test_a_group_is_handed_it_all_the_same() -> None:
    scene = Scene()
    scene.damage(scene.leader, 5)
    history = History()
    worker = Worker(scene.world, history, 1)
    worker.good = True
    worker.take_part()
    scene.world.run(lambda: len(history.handed) == BATCHES)
    assert scene.leader.disk.is_whole()


def test_the_only_copy_is_lost_and_its_reader_is_told() -> None:
    scene = Scene(peers=1)
    scene.damage(scene.leader, 5)
    reader = scene.reader()
    scene.world.run_for(3.0)
    assert scene.read(reader) == [0, 1, 2, 3, 4]
    assert counters(scene.leader, "batches_mended") == [0]


def test_what_comes_is_looked_at_before_it_is_taken() -> None:
    """An answer that is damaged, of other offsets or of another entry is none."""
    scene = Scene()
    scene.damage(scene.leader, 5)
    honest, asked = mending.Mending.on_fetched, scene.others

    def lie(self: mending.Mending, event: e.BatchesFetched) -> None:
        fetch = event.fetch
        if self.ctx is asked[0].core.ctx and not isinstance(event.batches, StoreCorrupt):
            session, request = self._asked.pop(fetch.sub[1])
            data = bytearray(event.batches[0].data)
            data[-1] ^= 1
            answer = {"base_offset": 5, "timestamp_ms": event.batches[0].timestamp_ms, "data": bytes(data)}
            self.ctx.send(session, Answer(request, answer))
            return
        honest(self, event)

    mending.Mending.on_fetched = lie  # type: ignore[method-assign]
    try:
        scene.check_read(scene.reader())
    finally:
        mending.Mending.on_fetched = honest  # type: ignore[method-assign]
    assert scene.leader.disk.is_whole()


def test_a_full_disk_mends_later() -> None:
    scene = Scene()
    scene.damage(scene.leader, 5)
    leader = scene.leader
    leader.disk.full = True
    reader = scene.reader()
    scene.world.run(lambda: counters(leader, "batches_not_mended") != [0])
    leader.disk.full = False
    scene.check_read(reader)
    assert leader.disk.is_whole() or not leader.core.slots.hosts[scene.slot].leads


def test_another_generation_is_told_nothing() -> None:
    peer = Single()
    peer.hello()
    info = peer.make_topic()
    peer.produce(info, b"x")
    args = {"topic_id": info.topic_id, "partition": 0, "offset": 0}
    before = len(peer.out)
    peer.core.mending.on_ask((e.PEERS, b"1"), _ask({**args, "generation": 7}))
    peer.tick()
    assert [m.value for m in peer.heard((e.PEERS, b"1"), before)] == [{}]
    peer.core.mending.on_ask((e.PEERS, b"1"), _ask({**args, "generation": 0}))
    peer.tick()
    peer.fetch()
    (answer,) = peer.heard((e.PEERS, b"1"), before)[1:]
    assert answer.value["data"] == peer.payloads[key_of(info)][0].data
    peer.core.mending.on_ask((e.PEERS, b"1"), _ask({**args, "offset": 1, "generation": 0}))
    peer.tick()
    assert peer.heard((e.PEERS, b"1"), before)[-1].value == {}, "it is not committed"


def _ask(args: dict[str, Any]) -> Ask:
    return Ask(1, mending.BATCH, args)


def test_more_places_than_are_remembered_wait_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mending, "TRIED_MAX", 1)
    peer = Single()
    peer.hello()
    info = peer.make_topic()
    peer.produce(info, b"x", b"y")
    found: list[Any] = []
    for offset in (0, 1):
        peer.core.mending.mend(PayloadCorrupt("damaged", key_of(info), offset), found.append)
    assert [type(x) for x in found] == [StoreCorrupt, RecordsDamaged]
    assert peer.core.ctx.counters["batches_damaged"] == 1, "the second one is not begun"
    peer.tick(mending.AGAIN_S + 0.1)
    peer.core.mending.mend(PayloadCorrupt("damaged", key_of(info), 1), found.append)
    assert isinstance(found[-1], StoreCorrupt)
