"""Runs of offsets, against a dict of single ones."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from meshq.streams.groups.intervals import Intervals

BOUND = 40
changes = st.lists(
    st.tuples(st.integers(0, BOUND), st.integers(0, 12), st.sampled_from(["a", "b", None])), max_size=40
)


@given(changes, st.integers(0, BOUND), st.integers(0, BOUND))
def test_as_a_dict_of_single_offsets(made: list[tuple[int, int, str | None]], start: int, end: int) -> None:
    runs: Intervals[str] = Intervals()
    twin: dict[int, str] = {}
    for first, length, value in made:
        if value is None:
            runs.remove(first, first + length)
        else:
            runs.set(first, first + length, value)
        for offset in range(first, first + length):
            twin.pop(offset, None)
            if value is not None:
                twin[offset] = value
    found = list(runs.runs(start, end))
    assert {o: v for s, e, v in found for o in range(s, e)} == {
        o: v for o, v in twin.items() if start <= o < end
    }
    assert [o for s, e in runs.gaps(start, end) for o in range(s, e)] == [
        o for o in range(start, end) if o not in twin
    ]
    assert runs.count == len(twin)
    assert runs.first == min(twin, default=None)
    assert all(runs.get(o) == twin.get(o) for o in range(BOUND + 14))
    whole = list(runs.runs())
    for (_, before, value), (behind, _, other) in pairwise(whole):
        assert before < behind or (before == behind and value != other), "neighbours of equal value are one"
