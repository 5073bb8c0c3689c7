"""How long a record waits before it is handed out again: longer with each attempt, and not all at once.

Whatever made it fail (a service that is away, a lock somebody holds) is most often over soon or not for a
while: the wait doubles from 0.1 s to a minute. It is drawn from the upper half, so that a thousand records
that failed together do not come back together (AWS, "Exponential backoff and jitter": equal jitter).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random

FIRST_MS: Final = 100
MOST_MS: Final = 60_000


def redelivery_delay_ms(attempts: int, rng: random.Random) -> int:
    """After this many attempts."""
    most = min(FIRST_MS << min(max(attempts - 1, 0), 20), MOST_MS)
    return round(most * rng.uniform(0.5, 1.0))
