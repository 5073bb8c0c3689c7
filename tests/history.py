"""What clients and disks saw of a topic, held against what was promised: the one judge of all fault tests.

A publisher numbers its records and keeps how each ended. Readers keep what they were handed, at which offset;
disks what lies on them. `check` then counts, each of which must be nought:

    lost        acknowledged, and some reader (or a majority of the disks) does not have it
    duplicate   one number at two offsets
    phantom     read, and never sent, or not the bytes that were sent
    refused     an error said "certainly not published", and yet it is there
    misplaced   elsewhere than its receipt says
    reordered   behind a record of its partition that was sent later
    gaps        offsets that are not dense from 0
    diverged    two that have one offset and not one record there
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import NamedTuple

Log = Mapping[int, int]  # offset -> number of the record there; -1: none that was sent
View = Mapping[int, Log]  # by partition: what one reader was handed, or one disk holds


class Where(NamedTuple):
    partition: int
    offset: int


@dataclass
class History:
    """What a publisher saw. `times`: the moments of receipts, by partition, in their order."""

    sent: int = 0
    receipts: dict[int, Where] = field(default_factory=dict)
    unknown: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)  # by which error
    times: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    def acknowledged(self, n: int, where: Where, at: float) -> None:
        self.receipts[n] = where
        self.times[where.partition].append(at)

    def gap(self, since: float, until: float) -> float:
        """The longest time without a receipt in between, whatever the partition."""
        return longest_gap(sorted(t for times in self.times.values() for t in times), since, until)

    def gap_of_any(self, since: float, until: float) -> float:
        """The longest time that any one partition was without a receipt: others hide nothing."""
        return max(longest_gap(times, since, until) for times in self.times.values())

    def last(self) -> float:
        """When the last receipt came."""
        return max((times[-1] for times in self.times.values() if times), default=0.0)


@dataclass(slots=True)
class Verdict:
    lost: int = 0
    duplicate: int = 0
    phantom: int = 0
    refused: int = 0
    misplaced: int = 0
    reordered: int = 0
    gaps: int = 0
    diverged: int = 0
    examples: list[str] = field(default_factory=list)  # at most EXAMPLES_MAX

    def is_clean(self) -> bool:
        return not any(astuple(self)[:-1])

    def note(self, what: str, count: int, example: object) -> None:
        if count:
            setattr(self, what, getattr(self, what) + count)
            if len(self.examples) < EXAMPLES_MAX:
                self.examples.append(f"{what}: {count}, such as {example}")


EXAMPLES_MAX = 40


def check(
    history: History,
    readers: Mapping[str, View],
    *,
    followers: Mapping[str, View] | None = None,
    disks: Mapping[str, View] | None = None,
    copies: int = 0,
) -> Verdict:
    """`readers` read all there is; `followers` were cut short, so they lack what came after. Of the disks at
    least `copies` have each acknowledged record; each holds some partitions, from any offset on.
    """
    verdict = Verdict()
    for name, view in readers.items():
        _check_whole(verdict, history, name, view)
    for name, view in itertools.chain(readers.items(), (followers or {}).items()):
        for partition, log in view.items():
            _check_order(verdict, f"{name}, partition {partition}", log)
            if list(log) != list(range(len(log))):
                verdict.note("gaps", 1, f"{name}, partition {partition}: {_first_hole(log)}")
    _check_agreement(verdict, {**readers, **(followers or {}), **(disks or {})})
    if disks:
        _check_copies(verdict, history, disks, copies)
    return verdict


def _check_whole(verdict: Verdict, history: History, name: str, view: View) -> None:
    places: dict[int, list[Where]] = defaultdict(list)
    for partition, log in view.items():
        for offset, n in log.items():
            places[n].append(Where(partition, offset))
    phantoms = [n for n in places if not 0 <= n < history.sent]
    verdict.note("phantom", len(phantoms), (name, phantoms[:3]))
    doubled = [n for n, found in places.items() if len(found) > 1 and n >= 0]
    verdict.note("duplicate", len(doubled), (name, [(n, places[n]) for n in doubled[:3]]))
    lost = [n for n in history.receipts if n not in places]
    verdict.note("lost", len(lost), (name, [(n, history.receipts[n]) for n in lost[:3]]))
    refused = [n for n in history.refused if n in places]
    verdict.note("refused", len(refused), (name, [(n, history.refused[n]) for n in refused[:3]]))
    moved = [n for n, where in history.receipts.items() if n in places and where not in places[n]]
    verdict.note("misplaced", len(moved), (name, [(n, history.receipts[n], places[n]) for n in moved[:3]]))


def _check_order(verdict: Verdict, where: str, log: Log) -> None:
    late = [(a, b) for a, b in itertools.pairwise(log.values()) if 0 <= b < a]
    verdict.note("reordered", len(late), (where, late[:3]))


def _check_agreement(verdict: Verdict, views: Mapping[str, View]) -> None:
    first: dict[Where, tuple[str, int]] = {}
    for name, view in views.items():
        apart = []
        for partition, log in view.items():
            for offset, n in log.items():
                other, there = first.setdefault(Where(partition, offset), (name, n))
                if there != n:
                    apart.append((Where(partition, offset), n, other, there))
        verdict.note("diverged", len(apart), (name, apart[:3]))


def _check_copies(verdict: Verdict, history: History, disks: Mapping[str, View], copies: int) -> None:
    def count(where: Where) -> int:
        return sum(where.offset in disk.get(where.partition, {}) for disk in disks.values())

    few = [(n, where, count(where)) for n, where in history.receipts.items() if count(where) < copies]
    verdict.note("lost", len(few), ("not on enough disks", few[:3]))


def longest_gap(times: Sequence[float], since: float, until: float) -> float:
    inside = [since, *(t for t in times if since <= t <= until), until]
    return max(b - a for a, b in itertools.pairwise(inside))


def _first_hole(log: Log) -> object:
    return next(((i, offset) for i, offset in enumerate(log) if i != offset), None)


def by_partition(rows: Iterable[tuple[int, int, int]]) -> dict[int, dict[int, int]]:
    """A view of (partition, offset, number), as they were handed out. An offset handed out twice stays in the
    order as -1 at no offset there is: a gap."""
    view: dict[int, dict[int, int]] = defaultdict(dict)
    for partition, offset, n in rows:
        log = view[partition]
        if offset in log:
            log[-1 - len(log)] = n
        else:
            log[offset] = n
    return view
