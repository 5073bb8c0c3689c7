"""Outboxes in the simulated world: the real machine, a disk that loses what was not synced, a real client.

A run of it can end at any moment, before and after each thing its disk does; the next one goes on from what
was synced. The records that were told to be queued are what has to arrive.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterator
from typing import Any

from meshq import messages
from meshq.client import facts
from meshq.client.outbox import layout, loading, words
from meshq.client.outbox.machine import OutboxMachine
from meshq.client.outbox.terms import Terms
from meshq.errors import MeshqError
from tests.peer.world import Client, World

Rows = dict[bytes, dict[bytes, bytes]]


class DictReader:
    def __init__(self, databases: Rows) -> None:
        self._databases = databases

    def rows(self, database: bytes, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        found = self._databases[database]
        keys = sorted(found)
        for key in keys[bisect.bisect_left(keys, start) :]:
            yield key, found[key]

    def count(self, database: bytes) -> int:
        return len(self._databases[database])


class SimOutbox:
    """`disk`: what is synced, to go on from; shared by nobody else."""

    def __init__(
        self,
        world: World,
        name: str,
        *,
        disk: Rows | None = None,
        terms: Terms | None = None,
        seed_peer: int = 0,
        disk_s: float = 0.02,
    ) -> None:
        self.world, self.name, self._seed_peer = world, name, seed_peer
        self.terms = terms or Terms(batch_bytes=120)
        self.disk: Rows = disk or {d: {} for d in layout.DATABASES}
        self.run = 0
        self.up = False
        self._disk_s = disk_s  # what a sync takes at most
        self.wall_offset_ms = 0
        self.queued: dict[int, tuple[bytes | None, bytes]] = {}  # told to be on its disk, by number
        self.committed: dict[int, tuple[int, int]] = {}  # partition and offset
        self.parked: list[words.TellParked] = []
        self.told: dict[int, tuple[bytes | None, bytes]] = {}  # taken in this run
        self.steps = 0  # of its disk, over all runs
        self.crash_at: set[int] = set()
        self.log: list[Any] = []  # orders and sendings, in their order
        self.start()

    def start(self) -> None:
        self.up, self.run = True, self.run + 1
        self._wound = 0  # the run whose disk is at work
        self._todo: deque[Any] = deque()
        self.told = {}
        loaded = loading.load(DictReader(self.disk))
        if loaded is None:
            state = layout.StateRow(producer_id=self.world.rng.randbytes(16))
            loaded = words.Loaded(state)
        self.machine = OutboxMachine(loaded, self.terms, self.world.rng)
        self.client = _Client(self, self._seed_peer)
        self._do(self.machine.start(now=self.world.now, wall_ms=self.wall_ms()))
        self.tell(words.Connected(self.world.authority.mesh_id, self.client.key))

    def crash(self) -> None:
        self.up = False
        self.run += 1
        self.client.die()

    def wall_ms(self) -> int:
        return self.world.wall_ms() + self.wall_offset_ms

    def publish(self, topic: str, value: bytes, key: bytes | None = None) -> None:
        if not self.up:
            return
        number = self.machine.take(topic, value, key, None, wall_ms=self.wall_ms())
        self.told[number] = key, value
        self.tell(words.TurnEnded())

    def tell(self, event: words.Event) -> None:
        if self.up:
            self._do(self.machine.handle(event, now=self.world.now, wall_ms=self.wall_ms()))
            at = self.machine.deadline()
            if at < float("inf"):
                run = self.run
                self.world.at(
                    max(at - self.world.now, 0.01), lambda: run == self.run and self.tell(words.Ticked())
                )

    # -------------------------------------------------------------------------------------- effects
    def _do(self, effects: list[words.Effect]) -> None:
        for effect in effects:
            self.log.append((self.run, effect))
            match effect:
                case words.Persist() | words.ReadQueue() | words.ReadParked():
                    self._todo.append(effect)
                    self._wind()
                case words.WantTopic():
                    self.client.want(effect)
                case words.SendBound():
                    self.client.send(effect)
                case words.TellQueued():
                    for number in range(effect.first, effect.end):
                        if effect.error is None and number in self.told:  # else parked, and tried again
                            self.queued[number] = self.told[number]
                case words.TellCommitted():
                    for i, number in enumerate(effect.numbers):
                        assert number not in self.committed
                        self.committed[number] = effect.partition, effect.base_offset + i
                case words.TellParked():
                    self.parked.append(effect)

    def _wind(self) -> None:
        if self._wound == self.run:
            return
        run = self._wound = self.run
        self.world.at(self.world.rng.uniform(self._disk_s / 2, self._disk_s), lambda: self._work(run))

    def _work(self, run: int) -> None:
        """Some of what waits, in one sync; the run may end before it or just after."""
        if run != self.run:
            return
        self._wound = 0
        group = [self._todo.popleft() for _ in range(self.world.rng.randint(1, len(self._todo)))]
        if self._step():
            return
        answers: list[words.Event] = []
        for order in group:
            match order:
                case words.Persist():
                    apply(self.disk, order)
                    answers.append(words.Persisted(order.token))
                case words.ReadQueue():
                    where = order.topic, order.partition, order.bytes_max
                    answers.append(loading.read_queue(DictReader(self.disk), *where))
                case words.ReadParked():
                    rows = loading.read_parked(DictReader(self.disk), order.id)
                    answers.append(words.ParkedRead(order.id, rows))
        if self._step():
            return
        for answer in answers:
            self.tell(answer)
        if self._todo:
            self._wind()

    def _step(self) -> bool:
        """Whether this run ends here."""
        self.steps += 1
        if self.steps in self.crash_at:
            self.crash()
            self.world.at(self.world.rng.uniform(0.01, 0.5), self.start)
            return True
        return False


def apply(disk: Rows, order: words.Persist) -> None:
    for database, key in order.deletes:
        disk[database].pop(key, None)
    for database, key, value in order.puts:
        disk[database][key] = value


class _Client(Client):
    """The outbox's connection; what becomes of its tickets goes to the machine."""

    def __init__(self, outbox: SimOutbox, seed_peer: int) -> None:
        self._outbox, self._run, self.dead = outbox, outbox.run, False
        self._bound: dict[int, int] = {}
        self._topics: dict[int, int] = {}
        super().__init__(outbox.world, seed_peer=seed_peer)

    def die(self) -> None:
        self.dead = True
        super().tell(facts.Closed())
        self.world.clients.remove(self)

    def tell(self, event: Any) -> None:
        if not self.dead:
            super().tell(event)

    def want(self, wanted: words.WantTopic) -> None:
        ticket = next(self._tickets)
        self._topics[ticket] = wanted.topic
        self.tell(facts.TopicWanted(ticket, wanted.name, self.world.now + 10, wanted.fresh))

    def send(self, sent: words.SendBound) -> None:
        ticket = next(self._tickets)
        self._bound[ticket] = sent.ticket
        row = sent.row
        info = messages.TopicInfo(sent.topic, row.topic_id, sent.partition + 1, row.version, 1)
        binding = facts.Binding(row.producer_id, row.epoch, row.sequence, sent.sent_before)
        self.tell(
            facts.BatchSealed(
                ticket, 1, info, sent.partition, row.body(), self.world.now + sent.valid_s, 8, binding=binding
            )
        )

    def _do(self, effect: Any) -> None:
        match effect:
            case facts.Settle() | facts.Fail() | facts.Doubt():
                self.world.at(0, lambda: self._answer(effect))
            case _:
                super()._do(effect)

    def _answer(self, effect: facts.Settle | facts.Fail | facts.Doubt) -> None:
        if self.dead:
            return
        tell = self._outbox.tell
        if effect.ticket in self._topics:
            topic = self._topics.pop(effect.ticket)
            if isinstance(effect, facts.Settle):
                tell(words.TopicHeard(topic, effect.value))
            else:
                assert isinstance(effect.error, MeshqError)
                tell(words.TopicNotHeard(topic, effect.error))
        else:
            ticket = self._bound[effect.ticket]
            match effect:
                case facts.Settle():
                    tell(words.Committed(ticket, effect.value))
                case facts.Fail():
                    tell(words.Failed(ticket, effect.error))
                case facts.Doubt():
                    tell(words.Doubted(ticket, effect.error))
