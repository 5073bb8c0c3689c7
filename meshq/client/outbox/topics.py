"""The topics of an outbox, by number and by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf

from meshq.client.outbox.lanes import Lane, Topic
from meshq.client.outbox.layout import TopicRow
from meshq.errors import OutboxFull
from meshq.limits import OUTBOX_TOPICS_MAX


class Topics:
    def __init__(self, rows: Mapping[int, TopicRow]) -> None:
        self._by_number = {n: Topic(n, row, durable=True) for n, row in rows.items()}
        self._by_name = {t.row.name: t for t in self._by_number.values()}  # at most OUTBOX_TOPICS_MAX

    def get(self, name: str) -> Topic | None:
        return self._by_name.get(name)

    def new(self, name: str) -> Topic:
        """In the place of one that has nothing here, when there are as many as may be. Raises: OutboxFull."""
        if len(self._by_number) < OUTBOX_TOPICS_MAX:
            number = max(self._by_number, default=0) + 1
        else:
            number = self._let_go().number
        topic = self._by_number[number] = self._by_name[name] = Topic(number, TopicRow(name))
        return topic

    def _let_go(self) -> Topic:
        """What is on disk of it is written over with the first record of the next one."""
        idle = next((t for t in self._by_number.values() if t.is_idle), None)
        if idle is None:
            raise OutboxFull(f"an outbox holds records of at most {OUTBOX_TOPICS_MAX} topics")
        del self._by_number[idle.number], self._by_name[idle.row.name]
        return idle

    def of(self, number: int) -> Topic:
        """Where the row with its name is damaged its records wait, and that is told."""
        if number not in self._by_number:
            lost = Topic(number, TopicRow(""), durable=True, ask_at=inf)
            lost.waiting_for = "the row with the topic's name is damaged"
            self._by_number[number] = lost
        return self._by_number[number]

    def all(self) -> Collection[Topic]:
        return self._by_number.values()

    def lanes(self) -> list[Lane]:
        return [lane for topic in self._by_number.values() for lane in topic.lanes.values()]
