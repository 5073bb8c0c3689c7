"""Rewound: dead letters that a reset has made void.

A reset hands the records from `start` on out again, also those that had become dead letters: what becomes of
them now is what counts. To put such a letter back afterwards would hand its record out once more, although
it may have been acknowledged since. So a reset notes how many letters there were and where it began: a letter
below that number, of a record from there on, is passed over by `redrive`.

Of two notes the later one has more letters; one that also begins earlier says all that the other did. So
those kept rise in both, and are few: who resets again and again, never further back and never with a redrive,
is the only one to fill it. The oldest is forgotten then: its letters may be put back, which is at least once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

REWOUND_MAX: Final = 64  # resets that left dead letters behind; the oldest is forgotten


class Rewound:
    """Notes (letters, start), rising in both."""

    __slots__ = ("notes",)

    def __init__(self, notes: Iterable[tuple[int, int]] = ()) -> None:
        self.notes = list(notes)  # REWOUND_MAX

    def on_reset(self, letters: int, start: int) -> None:
        """There were so many letters when the group went on at `start`."""
        self.notes = [note for note in self.notes if note[1] < start][-(REWOUND_MAX - 1) :]
        self.notes.append((letters, start))

    def on_redriven(self, letters: int) -> None:
        """Those below are done with."""
        self.notes = [note for note in self.notes if note[0] > letters]

    def covers(self, letter: int, offset: int) -> bool:
        """Whether the record of this letter was handed out again by a reset after it."""
        return any(letter < letters and offset >= start for letters, start in self.notes)
