"""A slot's log as its replica sees it: the newest entries in memory, of the others only where terms begin.

    start        base                 durable      last
      |  on disk   |  in memory, on disk  |  in memory  |
      trimmed <- first_index

In memory is everything behind the commit index, and before it as much as is worth keeping for followers that
are a little behind; what is further back is read from disk when somebody lacks it. Of every entry that is on
disk the term is known (a list of where each term begins), because that is what Raft asks about all the time;
the entries themselves are not needed for that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from meshq.errors import InternalError
from meshq.replication.words import GENESIS, Item, Position


class Log:
    """`start` is before the first entry kept on disk, `base` before the first one in memory.

    `terms`: (first index, term) of what is behind `start` up to `base`. `timestamp_ms`: the newest time up to
    `base`, or time would go back where a slot starts without entries in memory.
    """

    def __init__(
        self,
        start: Position = GENESIS,
        *,
        base: Position | None = None,
        terms: Iterable[tuple[int, int]] = (),
        items: Iterable[Item] = (),
        timestamp_ms: int = 0,
    ) -> None:
        self.start = start
        self.base = base or start
        self.items: list[Item] = []  # in memory; bounded by `forget` and by what a leader accepts
        self.bytes = 0
        self._terms: list[tuple[int, int]] = list(terms)  # (first index of the term, term), rising
        self.last = self.base
        self.last_timestamp_ms = timestamp_ms
        for item in items:
            self.append(item)
        self.durable = self.last.index

    @property
    def terms(self) -> list[tuple[int, int]]:
        """(first index, term), rising, of what is kept."""
        return list(self._terms)

    @property
    def first_index(self) -> int:
        return self.start.index + 1

    def append(self, item: Item) -> None:
        entry = item.entry
        if entry.index != self.last.index + 1 or entry.term < self.last.term:
            raise InternalError(f"entry {entry.index} of term {entry.term} after {self.last[:2]}")
        if entry.term != self.last.term or not self._terms:
            self._terms.append((entry.index, entry.term))
        self.items.append(item)
        self.bytes += _size(item)
        self.last = Position(entry.index, entry.term, entry.chain)
        self.last_timestamp_ms = max(self.last_timestamp_ms, entry.timestamp_ms)

    def truncate(self, from_index: int) -> None:
        """Forget entries from this one on, which must be in memory."""
        keep = from_index - 1 - self.base.index
        if keep < 0:
            raise InternalError(f"truncated from {from_index}, which is not in memory")
        self.bytes -= sum(map(_size, self.items[keep:]))
        del self.items[keep:]
        while self._terms and self._terms[-1][0] >= from_index:
            self._terms.pop()
        self.last = _position(self.items[-1]) if self.items else self.base
        self.durable = min(self.durable, self.last.index)

    def term_at(self, index: int) -> int | None:
        """None for what was trimmed away or is not there."""
        if index == self.start.index:
            return self.start.term
        if not self.start.index < index <= self.last.index:
            return None
        if self._terms and index >= self._terms[-1][0]:
            return self._terms[-1][1]  # as nearly always
        place = bisect_right(self._terms, index, key=lambda t: t[0])
        return self._terms[place - 1][1] if place else self.start.term

    def last_not_above(self, index: int, term: int) -> int:
        """The last index up to this one whose term is not above that one: where two logs may still agree."""
        index = min(index, self.last.index)
        for first, its_term in reversed(self._terms):
            if first <= index and its_term <= term:
                return index
            if first <= index:
                index = first - 1
        return max(index, self.start.index)

    def position(self, index: int) -> Position | None:
        """None when it is not in memory."""
        place = index - self.base.index
        if place == 0:
            return self.base
        return _position(self.items[place - 1]) if 0 < place <= len(self.items) else None

    def item(self, index: int) -> Item:
        return self.items[index - self.base.index - 1]

    def between(self, after: int, upto: int) -> tuple[Item, ...]:
        """Items in (after, upto], all of them in memory."""
        return tuple(self.items[after - self.base.index : upto - self.base.index])

    def piece(self, after: int, bytes_max: int, count_max: int = 1 << 30) -> tuple[Item, ...]:
        """Items behind `after`, as many as fit, at least one if there is any."""
        place = after - self.base.index
        stop = min(len(self.items), place + count_max)
        if self.bytes <= bytes_max:
            return tuple(self.items[place:stop])
        size = 0
        for end in range(place, stop):
            size += _size(self.items[end])
            if size > bytes_max and end > place:
                return tuple(self.items[place:end])
        return tuple(self.items[place:stop])

    def forget(self, upto: int, *, keep_bytes: int) -> None:
        """Let go of the oldest entries in memory up to this one, while there are more than `keep_bytes`."""
        count = 0
        most = min(upto, self.durable) - self.base.index
        while count < most and self.bytes > keep_bytes:
            self.bytes -= _size(self.items[count])
            count += 1
        if count:
            self.base = _position(self.items[count - 1])
            del self.items[:count]

    def trim(self, start: Position) -> None:
        """Entries up to this position are gone from disk, so they go from memory too."""
        if not self.start.index <= start.index <= self.durable:
            raise InternalError(f"trimmed up to {start.index}, on disk is {self.start.index}-{self.durable}")
        self.start = start
        if self.base.index < start.index:
            count = start.index - self.base.index
            self.bytes -= sum(map(_size, self.items[:count]))
            del self.items[:count]
            self.base = start
        while len(self._terms) > 1 and self._terms[1][0] <= start.index + 1:
            del self._terms[0]
        if self._terms and self._terms[0][0] <= start.index:
            self._terms[0] = (start.index + 1, self._terms[0][1])
        if self._terms and self._terms[0][0] > self.last.index:
            self._terms.clear()

    def reset(self, start: Position, timestamp_ms: int) -> None:
        """A snapshot took the place of everything."""
        self.last_timestamp_ms = max(self.last_timestamp_ms, timestamp_ms)
        self.start = self.base = self.last = start
        self.items.clear()
        self._terms.clear()
        self.bytes = 0
        self.durable = start.index


def _position(item: Item) -> Position:
    return Position(item.entry.index, item.entry.term, item.entry.chain)


def _size(item: Item) -> int:
    return len(item.payload) + len(item.entry.body) + 64
