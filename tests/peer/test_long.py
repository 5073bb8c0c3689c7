"""What takes minutes: many more schedules of the exactly-once world (`make check-long`)."""

from __future__ import annotations

import pytest

from tests.peer import test_exactly_once as once

SEEDS = 10_000


@pytest.mark.long
def test_ten_thousand_schedules_lose_and_double_nothing() -> None:
    for seed in range(SEEDS):
        once.test_a_receipt_means_once_at_its_offset_and_a_refusal_means_never(seed)
