"""Generations: how a slot goes on when its majority is lost for good, and nobody takes the old for the new.

When most of a slot's voters are gone, what they alone had is gone with them, and only a person can say that
they are. Then the most advanced of those that are left goes on alone, under a new *generation* of the slot.
What that must never do is to mix with the old one: the voters may come back, with entries that were decided
and that the new generation has never seen, and elect one another.

A generation is the upper part of a term, so all that compares terms compares generations first:

    bit 63                  48                    32                            0
      | generation's number  |  drawn at random    |  terms of the generation    |

Whoever hears of a newer generation follows it, by the rule of any newer term. Its log is *stale* until it has
an entry of that generation: up to then it does not campaign, and nobody votes for a stale log. Before its log
goes on it is compared with the leader's from what was decided here: where that differs the copy begins again
with nothing (following.py). The drawn part tells two recoveries apart that did not know of each other: one of
them wins, and the other's copies begin again.
"""

from __future__ import annotations

from typing import Final

from meshq.entries import TERM_BITS, generation_of

__all__ = ["generation_of", "next_generation", "number_of", "show_term"]
DRAW_BITS: Final = 16


def next_generation(term: int, draw: int) -> int:
    """The first term of the generation after this term's."""
    number = number_of(generation_of(term)) + 1
    return ((number << DRAW_BITS | draw % (1 << DRAW_BITS)) << TERM_BITS) + 1


def number_of(generation: int) -> int:
    """How often the slot was recovered: what people are shown."""
    return generation >> DRAW_BITS


def show_term(term: int) -> str:
    """`7`, or `1:7` in the first generation after the slot's beginning."""
    number = number_of(generation_of(term))
    rest = term % (1 << TERM_BITS)
    return f"{number}:{rest}" if number else str(rest)
