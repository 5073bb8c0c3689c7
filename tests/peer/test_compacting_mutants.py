"""The tests of compaction can fail: each of these lies, told by otherwise good code, is caught by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from meshq.peer.core import compacting
from meshq.peer.core.disk import Disk
from meshq.peer.core.receiving import Incoming
from meshq.streams.compaction import Latest, compact
from meshq.streams.slot import SlotStream
from tests.peer import test_compacting_simulated as worlds
from tests.peer import test_core_compacting as tests

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def soon(monkeypatch: Patch) -> None:
    tests.squeeze(monkeypatch.setattr)


def drops_the_latest(patch: Patch) -> None:
    def lie(batches: Any, latest: Any, **about: Any) -> Any:
        return compact(batches, {k: offset + 1 for k, offset in latest.items()}, **about)

    patch.setattr(compacting, "compact", lie)


def drops_what_came_in_the_same_batch_as_its_successor_only(patch: Patch) -> None:
    """The first place of a key is taken for its last."""
    learn = Latest.learn

    def lie(self: Latest, batch: Any) -> None:
        known = dict(self.offsets)
        learn(self, batch)
        self.offsets |= known

    patch.setattr(Latest, "learn", lie)


def drops_tombstones_at_once(patch: Patch) -> None:
    patch.setattr(
        compacting,
        "compact",
        lambda *args, tombstones_before_ms: compact(*args, tombstones_before_ms=1 << 62),
    )


def keeps_tombstones_for_ever(patch: Patch) -> None:
    patch.setattr(
        compacting, "compact", lambda *args, tombstones_before_ms: compact(*args, tombstones_before_ms=None)
    )


def forgets_to_write_what_it_says(patch: Patch) -> None:
    submit = Disk.submit

    def lie(self: Disk, *where: Any, rewritten: Any = (), payloads: Any = (), **about: Any) -> None:
        submit(self, *where, payloads=() if rewritten else payloads, **about)

    patch.setattr(Disk, "submit", lie)


def counts_no_bytes(patch: Patch) -> None:
    apply_compact = SlotStream._apply_compact

    def lie(self: SlotStream, entry: Any) -> Any:
        before = dict(self.partitions)
        found = apply_compact(self, entry)
        if found is not None:
            p = found.partition
            self.partitions[p] = replace(self.partitions[p], bytes=before[p].bytes)
        return found

    patch.setattr(SlotStream, "_apply_compact", lie)


CAUGHT: list[tuple[Callable[[Patch], None], Callable[[], None]]] = [
    (drops_the_latest, tests.test_of_each_key_the_last_record_is_left_at_its_offset_and_the_end_stays),
    (
        drops_what_came_in_the_same_batch_as_its_successor_only,
        tests.test_of_each_key_the_last_record_is_left_at_its_offset_and_the_end_stays,
    ),
    (drops_tombstones_at_once, tests.test_a_tombstone_takes_what_was_before_it_and_stays_for_its_time),
    (drops_tombstones_at_once, tests.test_a_clock_that_is_not_trusted_ends_no_tombstone),
    (keeps_tombstones_for_ever, tests.test_a_tombstone_takes_what_was_before_it_and_stays_for_its_time),
    (
        forgets_to_write_what_it_says,
        tests.test_of_each_key_the_last_record_is_left_at_its_offset_and_the_end_stays,
    ),
    (counts_no_bytes, tests.test_of_each_key_the_last_record_is_left_at_its_offset_and_the_end_stays),
]


@pytest.mark.parametrize(("mutant", "test"), CAUGHT, ids=[mutant.__name__ for mutant, _ in CAUGHT])
def test_a_mutant_is_caught(
    mutant: Callable[[Patch], None], test: Callable[[], None], monkeypatch: Patch
) -> None:
    mutant(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        test()


def skips_what_may_have_become_another_batch(patch: Patch) -> None:
    """A snapshot's batches are not asked for where old ones are."""
    patch.setattr(Incoming, "may_differ", lambda self, partition: False)


def test_the_simulated_world_notices_a_replica_that_kept_what_was_compacted(monkeypatch: Patch) -> None:
    skips_what_may_have_become_another_batch(monkeypatch)
    worlds.little(monkeypatch.setattr)

    def fails(seed: int) -> bool:
        try:
            worlds.check(seed)
        except AssertionError:
            return True
        return False

    assert any(fails(seed) for seed in range(20, 40))
