"""A world in which records are not kept for ever: slow readers, a group's workers, what is published, what
breaks. What retention and compaction are played with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from meshq import batch
from meshq.client import facts
from meshq.ids import PartitionKey, TopicId
from meshq.messages import EARLIEST, QUEUE, Accepted, TopicInfo
from meshq.streams.applied import PartitionState
from tests.peer.test_groups_simulated import ACK_WAIT_MS, History, Worker
from tests.peer.world import Client, Host, World

Record = tuple[bytes | None, bytes]
Place = tuple[int, int]  # partition, offset


class SlowReader(Client):
    """`at`: the next offset, by partition. Whoever takes a batch in says when it is done with it."""

    def __init__(self, world: World, seed_peer: int) -> None:
        super().__init__(world, seed_peer=seed_peer)
        self.at: dict[int, int] = {}
        self.pause_s = 0.3

    def on_hand(self, hand: facts.Hand) -> None:
        at = self.at.setdefault(hand.partition, hand.first)
        assert hand.first == at, f"{hand.partition}: at {at}, and {hand.first} came"
        for place, r in batch.read_placed(hand.payload):
            if hand.base_offset + place >= hand.first:
                self.on_record(hand.partition, hand.base_offset + place, (r.key, r.value))
        self.at[hand.partition] = hand.base_offset + batch.read_header(hand.payload).count
        done = facts.Consumed(hand.sub, hand.source, len(hand.payload), hand.records)
        self.world.at(self.world.rng.uniform(0, self.pause_s), lambda: self.tell(done))

    def on_record(self, partition: int, offset: int, record: Record) -> None:
        raise NotImplementedError


R = TypeVar("R", bound=SlowReader)


@dataclass
class Run(Generic[R]):
    world: World
    info: TopicInfo
    readers: list[R]
    workers: list[Worker]
    history: History
    stored: dict[Place, Record] = field(default_factory=dict)

    def key(self, partition: int) -> PartitionKey:
        return PartitionKey(TopicId(self.info.topic_id), partition)

    def keepers(self) -> list[Host]:
        """All but a witness, which has of records what it has."""
        registry = self.world.hosts[0].core.ctx.registry
        return [h for h in self.world.hosts if not registry.is_witness(h.identity.peer_id)]

    def is_read(self, partition: PartitionKey) -> bool:
        """What has expired is gone from every disk, and every reader has come to the end. One that came when
        all had expired begins there, and hears nothing."""
        (state,) = {state_at(h, partition) for h in self.world.hosts}
        kept = all(b + n > state.low for h in self.keepers() for b, n in h.records(partition))
        begins = state.end if state.low == state.end else None
        return kept and all(r.at.get(partition.partition, begins) == state.end for r in self.readers)


def state_at(host: Host, partition: PartitionKey) -> PartitionState:
    return host.core.slots.partition(host.core.ctx.slot_of(partition), partition)


def begin(world: World, writer: Client, topic: dict[str, object], kind: Callable[[World, int], R]) -> Run[R]:
    """A topic that keeps so much, and two readers that come in the first second."""
    writer.wait(writer.ask(lambda t, d: facts.AskRequested(t, "topic.create", topic, d)))
    info = writer.wait(writer.ask(lambda t, d: facts.TopicWanted(t, "t", d)))
    readers = [kind(world, i % len(world.hosts)) for i in range(2)]
    for n, reader in enumerate(readers):
        event = facts.SubscribeRequested(1, "t", facts.Start(EARLIEST), 400, 10, 1_000_001)
        world.at(n * world.rng.uniform(0, 1.0), lambda r=reader, x=event: r.tell(x))  # type: ignore[misc]
    history = History()
    return Run(world, info, readers, [Worker(world, history, n) for n in range(2)], history)


def join(worker: Worker, max_deliver: int, after_s: float) -> None:
    group = facts.Group("g", worker.member, QUEUE, ACK_WAIT_MS, max_deliver)
    event = facts.SubscribeRequested(1, "t", facts.Start(EARLIEST), 500, 5, 1_000_001, (), group)
    worker.world.at(after_s, lambda: worker.tell(event))
    stay_at_work(worker)


def stay_at_work(worker: Worker) -> None:
    """What its application does keeps it from being taken for stuck."""
    worker.tell(facts.AtWork(1))
    worker.world.at(ACK_WAIT_MS / 4000, lambda: stay_at_work(worker))


def publish(
    run: Run[Any], writer: Client, batches: int, make: Callable[[int], Sequence[Record]]
) -> dict[int, tuple[int, Sequence[Record]]]:
    """A batch every 25 ms, to one partition after the other; what was sent, by ticket."""
    sent: dict[int, tuple[int, Sequence[Record]]] = {}

    def one(number: int) -> None:
        records, partition = make(number), number % run.info.partitions
        body = batch.seal([batch.RawRecord(k, v) for k, v in records], base_timestamp_ms=0)
        ticket = writer.ask(lambda t, d: facts.BatchSealed(t, 1, run.info, partition, body, d, 8))
        sent[ticket] = partition, records

    for number in range(batches):
        run.world.at(number * 0.025, lambda n=number: one(n))  # type: ignore[misc]
    return sent


def break_things(run: Run[Any], writer: Client, *, crashes: int, within_s: float) -> None:
    world, rng = run.world, run.world.rng
    for _ in range(rng.randrange(8)):
        client, at = rng.choice([writer, *run.readers, *run.workers]), rng.uniform(0, within_s)
        world.at(at, lambda c=client: [c.cut(k) for k in c.links() if rng.random() < 0.7])  # type: ignore[misc]
    for _ in range(rng.randrange(crashes)):
        host, at = rng.choice(world.hosts), rng.uniform(0, within_s)
        world.at(at, lambda h=host: h.up and h.crash())  # type: ignore[misc]
        world.at(at + rng.uniform(0.01, 0.6), lambda h=host: h.up or h.start())  # type: ignore[misc]


def heal(run: Run[Any], writer: Client, sent: dict[int, tuple[int, Sequence[Record]]]) -> None:
    """Everything is up and everybody quick, until all is stored; what the receipts said is noted."""
    world = run.world
    for host in world.hosts:
        if not host.up:
            host.start()
    for reader in run.readers:
        reader.pause_s = 0.01
    for worker in run.workers:
        worker.good = True
    world.run(lambda: all(t in writer.results for t in sent))
    for ticket, (partition, records) in sent.items():
        receipt = writer.results[ticket]
        assert isinstance(receipt, Accepted), receipt
        assert receipt.base_offset is not None
        run.stored |= {(partition, receipt.base_offset + i): r for i, r in enumerate(records)}
    world.run_for(4.0)
