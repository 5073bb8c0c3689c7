"""How long to wait before trying again: 50 ms, doubled up to 2 s, each spread by half either way.

The spread keeps a thousand clients from coming back in the same millisecond (AWS Architecture Blog,
"Exponential Backoff And Jitter").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random

FIRST_S: Final = 0.05
MOST_S: Final = 2.0


def delay_s(attempt: int, rng: random.Random) -> float:
    """Seconds to wait after the attempt of this number (the first is 0) failed."""
    return min(MOST_S, FIRST_S * (1 << min(attempt, 10))) * rng.uniform(0.5, 1.5)
