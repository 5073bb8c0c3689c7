"""The log in memory, held against a twin that is a list of everything."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshq.entries import EntryKind, make_entry
from meshq.replication.window import Log
from meshq.replication.words import GENESIS, Item, Position


def position(item: Item) -> Position:
    return Position(item.entry.index, item.entry.term, item.entry.chain)


class LogTwins(RuleBasedStateMachine):
    """`all` is every entry since genesis, or since the last snapshot behind `floor`."""

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self.all: list[Item] = []
        self.floor = GENESIS
        self.start = GENESIS
        self.decided = 0
        self.base = 0
        self.term = 1

    def at(self, index: int) -> Position:
        return self.floor if index == self.floor.index else position(self.all[index - self.floor.index - 1])

    @property
    def last(self) -> int:
        return self.floor.index + len(self.all)

    @rule(raised=st.booleans(), size=st.integers(0, 300))
    def append(self, raised: bool, size: int) -> None:
        self.term += raised
        entry = make_entry(
            self.at(self.last).chain,
            index=self.last + 1,
            term=self.term,
            kind=EntryKind.PUBLISH,
            timestamp_ms=self.last,
            body=b"",
        )
        self.all.append(Item(entry, bytes(size)))
        self.log.append(self.all[-1])

    @rule(back=st.integers(1, 6))
    def truncate(self, back: int) -> None:
        index = max(self.last + 1 - back, self.decided + 1)
        self.log.truncate(index)
        del self.all[index - self.floor.index - 1 :]

    @rule(more=st.integers(0, 5))
    def persist_and_decide(self, more: int) -> None:
        self.log.durable = self.last
        self.decided = min(self.decided + more, self.last)

    @rule(keep=st.sampled_from((0, 400, 1 << 20)))
    def forget(self, keep: int) -> None:
        self.log.forget(self.decided, keep_bytes=keep)
        assert self.log.bytes <= keep or self.log.base.index == min(self.decided, self.log.durable)

    @rule(back=st.integers(0, 4))
    def trim(self, back: int) -> None:
        index = min(self.decided, self.log.durable) - back
        if index >= self.start.index:
            self.start = self.at(index)
            self.log.trim(self.start)

    @rule(ahead=st.integers(1, 5))
    def reset(self, ahead: int) -> None:
        self.term += 1
        self.floor = self.start = Position(self.last + ahead, self.term, b"snapshot")
        self.all = []
        self.decided = self.floor.index
        self.log.reset(self.floor, 0)

    @precondition(lambda self: self.log.items)
    @rule(after=st.integers(0, 20), size=st.sampled_from((1, 200, 1_000, 1 << 20)))
    def piece(self, after: int, size: int) -> None:
        after = min(self.log.base.index + after, self.last - 1)
        items = self.log.piece(after, size)
        assert items
        assert list(items) == self.all[after - self.floor.index :][: len(items)]
        if len(items) > 1:
            assert sum(len(i.payload) + 64 for i in items) <= size
        if size == 1 << 20:
            assert len(items) == self.last - after

    @rule(index=st.integers(0, 60), term=st.integers(0, 30))
    def last_not_above(self, index: int, term: int) -> None:
        twins = [
            i for i in range(self.start.index + 1, min(index, self.last) + 1) if self.at(i).term <= term
        ]
        assert self.log.last_not_above(index, term) == max(twins, default=self.start.index)

    @invariant()
    def they_agree(self) -> None:
        log = self.log
        assert log.last == self.at(self.last)
        assert log.start == self.start
        assert log.durable <= self.last
        for index in range(self.last + 3):
            known = self.start.index <= index <= self.last
            assert log.term_at(index) == (self.at(index).term if known else None)
            in_memory = log.base.index <= index <= self.last
            assert log.position(index) == (self.at(index) if in_memory else None)
        assert list(log.between(log.base.index, self.last)) == self.all[log.base.index - self.floor.index :]
        assert log.bytes == sum(len(i.payload) + 64 for i in log.items)


TestLog = LogTwins.TestCase
TestLog.settings = settings(max_examples=60, stateful_step_count=40)
