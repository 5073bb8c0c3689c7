"""Records as they are taken: numbered, put into their lane's queue, and on disk when the turn ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from meshq.client.outbox import layout
from meshq.client.outbox.lanes import Lane, Topic
from meshq.client.outbox.layout import QUEUE, TOPICS
from meshq.client.outbox.ledger import Ledger
from meshq.client.outbox.words import Put, TellQueued
from meshq.errors import MeshqError


class Taking:
    """`on_done` hears of a topic that has records on disk it had not before."""

    def __init__(self, ledger: Ledger, on_done: Callable[[Topic], None]) -> None:
        self._ledger, self._on_done = ledger, on_done
        self._taken: list[Put] = []  # until the turn ends; bounded by the shell
        self._lanes: dict[Lane, int] = {}

    @property
    def has_taken(self) -> bool:
        return bool(self._taken)

    def take(self, topic: Topic, row: layout.QueueRow) -> int:
        """Its number."""
        ledger = self._ledger
        number = ledger.state.next_number
        ledger.state.next_number += 1
        lane = topic.lane_for(row.key)
        key = layout.place_key(topic.number, lane.partition, number)
        value = layout.encode(key, row)
        if not topic.durable:
            topic_key = layout.topic_key(topic.number)
            self._taken.append((TOPICS, topic_key, layout.encode(topic_key, topic.row)))
        self._taken.append((QUEUE, key, value))
        self._lanes[lane] = self._lanes.get(lane, 0) + 1
        lane.unsynced += 1
        ledger.queued_records += 1
        ledger.queued_bytes += len(key) + len(value)
        return number

    def end_turn(self, also: Sequence[tuple[bytes, bytes]] = (), *, fallible: bool = True) -> None:
        """To disk with them, and rows to be deleted with that. Fallible: on a full disk they are refused."""
        if not self._taken:
            return
        taken, self._taken = self._taken, []
        lanes, self._lanes = self._lanes, {}
        ledger, count = self._ledger, sum(lanes.values())
        end = ledger.state.next_number
        size = sum(len(k) + len(v) for d, k, v in taken if d == QUEUE)

        def done() -> None:
            for lane, more in lanes.items():
                lane.unsynced -= more
                lane.has_more = lane.topic.durable = True
            ledger.effects.append(TellQueued(end - count, end))
            for topic in dict.fromkeys(lane.topic for lane in lanes):
                self._on_done(topic)

        def failed(error: MeshqError) -> None:
            for lane, more in lanes.items():
                lane.unsynced -= more
            ledger.queued_records -= count
            ledger.queued_bytes -= size
            ledger.effects.append(TellQueued(end - count, end, error))

        ledger.persist(taken, also, done, failed if fallible else None)
