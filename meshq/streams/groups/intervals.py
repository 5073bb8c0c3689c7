"""Offsets with values, kept as runs: what is true of a million neighbours costs what is true of one.

Runs are sorted, never empty, never overlap, and neighbours of equal value are one run. Three parallel lists
instead of a list of runs: bisection reads plain integers, and a run costs some 100 bytes. A change is one
slice, so a run in the middle of 16,384 costs a few microseconds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, TypeVar

V = TypeVar("V")

OFFSETS_END = 1 << 63  # above every offset


class Intervals(Generic[V]):
    """A mapping of offsets to values. Ends are exclusive."""

    __slots__ = ("_ends", "_starts", "_values", "count")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._values: list[V] = []
        self.count = 0  # offsets that have a value

    def __len__(self) -> int:
        """How many runs."""
        return len(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    @property
    def first(self) -> int | None:
        """The lowest offset that has a value."""
        return self._starts[0] if self._starts else None

    def runs(self, start: int = 0, end: int = OFFSETS_END) -> Iterator[tuple[int, int, V]]:
        """(first, end, value) within these bounds, in order. What changes meanwhile must not be looked at."""
        i = self._reaching(start)
        while i < len(self._starts) and self._starts[i] < end:
            yield max(self._starts[i], start), min(self._ends[i], end), self._values[i]
            i += 1

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What in these bounds has no value."""
        at = start
        for first, last, _ in self.runs(start, end):
            if at < first:
                yield at, first
            at = last
        if at < end:
            yield at, end

    def get(self, offset: int) -> V | None:
        i = self._reaching(offset)
        return self._values[i] if i < len(self._starts) and self._starts[i] <= offset else None

    def set(self, start: int, end: int, value: V) -> None:
        if start < end:
            self._replace(start, end, [(start, end, value)])

    def remove(self, start: int, end: int) -> None:
        if start < end:
            self._replace(start, end, [])

    def _reaching(self, offset: int) -> int:
        """The first run that ends behind this offset."""
        return bisect_right(self._ends, offset)

    def _replace(self, start: int, end: int, middle: list[tuple[int, int, V]]) -> None:
        """Between these bounds, have this instead, joined with neighbours of equal value."""
        i = bisect_left(self._ends, start)  # a run that ends at `start` may be joined with
        j = bisect_right(self._starts, end)
        old = list(zip(self._starts[i:j], self._ends[i:j], self._values[i:j], strict=True))
        before = [(s, min(e, start), v) for s, e, v in old if s < start]
        behind = [(max(s, end), e, v) for s, e, v in old if e > end]
        new: list[tuple[int, int, V]] = []
        for run in (*before, *middle, *behind):
            if new and new[-1][1] == run[0] and new[-1][2] == run[2]:
                new[-1] = (new[-1][0], run[1], run[2])
            else:
                new.append(run)
        self.count += sum(e - s for s, e, _ in new) - sum(e - s for s, e, _ in old)
        self._starts[i:j] = [s for s, _, _ in new]
        self._ends[i:j] = [e for _, e, _ in new]
        self._values[i:j] = [v for _, _, v in new]
