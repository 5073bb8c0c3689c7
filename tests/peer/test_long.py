"""What takes minutes: many more schedules of the exactly-once world (`make check-long`)."""

from __future__ import annotations

import pytest

from tests.peer import test_all_faults as faults
from tests.peer import test_exactly_once as once
from tests.peer import test_groups_simulated as queues
from tests.peer import test_keyed_simulated as keyed
from tests.peer import test_ordered_simulated as ordered
from tests.peer import test_placing as placing
from tests.peer import test_snapshots as snapshots

SEEDS = 10_000


@pytest.mark.long
def test_ten_thousand_schedules_lose_and_double_nothing() -> None:
    for seed in range(SEEDS):
        once.test_a_receipt_means_once_at_its_offset_and_a_refusal_means_never(seed)


@pytest.mark.long
def test_two_thousand_schedules_with_snapshots_in_nearly_all(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots.squeeze(monkeypatch.setattr)
    for seed in range(2_000):
        once.test_a_receipt_means_once_at_its_offset_and_a_refusal_means_never(seed)
        if seed % 8 == 0:
            placing.test_a_join_loses_nothing_and_ends_where_the_ring_wants_it(seed)


@pytest.mark.long
def test_two_thousand_schedules_of_queue_groups() -> None:
    for seed in range(2_000):
        queues.check_seed(seed)


@pytest.mark.long
def test_two_thousand_schedules_of_ordered_groups() -> None:
    for seed in range(2_000):
        ordered.check_seed(seed)


@pytest.mark.long
def test_five_hundred_schedules_of_keyed_groups() -> None:
    for seed in range(500):
        keyed.check(seed)


@pytest.mark.long
@pytest.mark.parametrize("little", (False, True))
def test_a_thousand_schedules_under_all_faults(little: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if little:
        snapshots.squeeze(monkeypatch.setattr)
    for seed in range(100, 600):
        faults.check_seed(seed)
