"""Which dead letters resets have made void, beside a twin that remembers every reset."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshq.streams.groups import rewound
from meshq.streams.groups.rewound import REWOUND_MAX, Rewound

resets = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), max_size=30)


@given(resets, st.integers(0, 40))
def test_a_letter_is_void_when_a_reset_after_it_began_at_its_record_or_before(
    steps: list[tuple[int, int]], redriven: int
) -> None:
    found, every, letters = Rewound(), list[tuple[int, int]](), 0
    for more, start in steps:
        letters += more
        found.on_reset(letters, start)
        every.append((letters, start))
    found.on_redriven(redriven)
    for letter in range(redriven, letters + 1):
        for offset in range(22):
            void = any(letter < end and offset >= start for end, start in every)
            assert found.covers(letter, offset) == void
    assert found.notes == sorted(found.notes)


def test_no_more_is_noted_than_may_be_and_the_oldest_is_forgotten() -> None:
    found = Rewound()
    for n in range(2 * REWOUND_MAX):
        found.on_reset(n + 1, n)
    assert len(found.notes) == rewound.REWOUND_MAX
    assert not found.covers(0, 0), "put back: at least once"
    assert found.covers(2 * REWOUND_MAX - 1, 2 * REWOUND_MAX)
