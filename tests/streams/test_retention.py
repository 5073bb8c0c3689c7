"""What has expired: by age, bytes and count, beside a twin that forgets one record after the other."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from meshq.entries import Mark
from meshq.messages import Retain
from meshq.streams.retention import Cut, cut, due_ms, exceeds

BATCHES = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4), st.integers(1, 50)), max_size=8)
LIMITS = st.builds(
    Retain,
    age_ms=st.integers(0, 12),
    bytes=st.integers(0, 200),
    records=st.integers(0, 25),
)


def marks_of(batches: list[tuple[int, int, int]]) -> list[Mark]:
    """(count, ms since the one before, size) each."""
    starts = accumulate((count for count, *_ in batches), initial=0)
    times = list(accumulate(ms for _, ms, _ in batches))
    return [Mark(b, c, t, s) for b, (c, _, s), t in zip(starts, batches, times, strict=False)]


def twin(retain: Retain, marks: list[Mark], low: int, end: int, now_ms: int | None) -> Cut | None:
    """One step after the other, from everything there is."""
    start, left = low, [m for m in marks if m.end > low]
    stored = left[:]
    while left:
        first = left[0]
        old = now_ms is not None and retain.age_ms > 0 and now_ms - first.timestamp_ms >= retain.age_ms
        big = retain.bytes > 0 and sum(m.size for m in left) > retain.bytes and len(left) > 1
        many = retain.records > 0 and end - first.end >= retain.records
        if not (old or big or many):
            break
        low = left.pop(0).end
    if retain.records and left:
        low = max(low, end - retain.records)
    return Cut(low, sum(m.size for m in stored if m.end <= low)) if low > start else None


@given(BATCHES, LIMITS, st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_the_same_as_forgetting_one_after_the_other(
    batches: list[tuple[int, int, int]], retain: Retain, begin: int, now_ms: int, trusted: bool
) -> None:
    marks = marks_of(batches)
    end = marks[-1].end if marks else 0
    low = min(begin, end)
    here = [m for m in marks if m.end > low]
    now = now_ms if trusted else None
    found = cut(retain, here, low=low, end=end, size=sum(m.size for m in here), now_ms=now)
    assert found == twin(retain, marks, low, end, now)


@given(BATCHES, LIMITS, st.integers(0, 40), st.integers(1, 3))
def test_in_slices_it_comes_to_the_same(
    batches: list[tuple[int, int, int]], retain: Retain, now_ms: int, count_max: int
) -> None:
    marks = marks_of(batches)
    end = marks[-1].end if marks else 0
    size = sum(m.size for m in marks)
    whole = cut(retain, marks, low=0, end=end, size=size, now_ms=now_ms)
    low, freed = 0, 0
    while True:
        here = [m for m in marks if m.end > low][:count_max]
        found = cut(retain, here, low=low, end=end, size=size - freed, now_ms=now_ms)
        if found is None:
            break
        low, freed = found.low, freed + found.size
    assert (Cut(low, freed) if low else None) == whole


@given(BATCHES, LIMITS)
def test_what_exceeds_is_cut_and_what_does_not_is_not_but_for_age(
    batches: list[tuple[int, int, int]], retain: Retain
) -> None:
    marks = marks_of(batches)
    end, size = (marks[-1].end if marks else 0), sum(m.size for m in marks)
    found = cut(retain, marks, low=0, end=end, size=size, now_ms=None)
    too_much = exceeds(retain, low=0, end=end, size=size)
    assert (found is not None) <= too_much
    if found is None and too_much:
        assert len(marks) == 1, "only the newest batch stays although it is more than may be kept"


def test_nothing_expires_by_age_before_its_time_and_the_last_batch_does() -> None:
    marks = [Mark(0, 2, 1_000, 10), Mark(2, 1, 5_000, 10)]
    retain = Retain(age_ms=3_000)
    assert due_ms(retain, marks[0]) == 4_000
    about = {"low": 0, "end": 3, "size": 20}
    assert cut(retain, marks, **about, now_ms=3_999) is None
    assert cut(retain, marks, **about, now_ms=4_000) == Cut(2, 10)
    assert cut(retain, marks, **about, now_ms=8_000) == Cut(3, 20)
    assert cut(retain, marks, **about, now_ms=None) is None, "nobody knows what time it is"


def test_count_is_exact_within_a_batch_whose_bytes_go_with_its_last_record() -> None:
    marks = [Mark(0, 10, 0, 100), Mark(10, 10, 0, 100)]
    assert cut(Retain(records=15), marks, low=0, end=20, size=200, now_ms=None) == Cut(5, 0)
    assert cut(Retain(records=7), marks, low=5, end=20, size=200, now_ms=None) == Cut(13, 100)
