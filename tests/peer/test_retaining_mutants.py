"""The tests of retention can fail: each of these lies, told by otherwise good code, is caught by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from meshq.peer.core import retaining
from meshq.peer.core.desks import Desks
from meshq.peer.core.retaining import Retaining
from meshq.peer.core.saving import Saving
from meshq.streams.delivery import Deliveries, Skip
from meshq.streams.groups.state import GroupState
from meshq.streams.retention import cut
from meshq.streams.slot import SlotStream
from tests.peer import test_core_retaining as tests
from tests.streams import test_slot

Patch = pytest.MonkeyPatch


def decides_as_a_follower(patch: Patch) -> None:
    patch.setattr(Retaining, "_led", lambda self, p: self.slots.hosts.get(self.ctx.slot_of(p)))


def believes_a_clock_that_is_off(patch: Patch) -> None:
    patch.setattr(
        retaining,
        "cut",
        lambda *args, now_ms, **about: cut(*args, now_ms=now_ms or 1 << 62, **about),
    )


def lets_expire_a_second_early(patch: Patch) -> None:
    early = 1_000
    patch.setattr(retaining, "cut", lambda *args, now_ms, **about: cut(*args, now_ms=now_ms + early, **about))
    patch.setattr(retaining, "due_ms", lambda retain, mark: mark.timestamp_ms + retain.age_ms - early)


def says_nothing_of_a_hole(patch: Patch) -> None:
    on_expired = Deliveries.on_expired

    def lie(self: Deliveries, *where: Any) -> Any:
        fetches = on_expired(self, *where)
        for s in self._subs.values():
            s.going = [x for x in s.going if not isinstance(x, Skip)]
        return fetches

    patch.setattr(Deliveries, "on_expired", lie)


def hands_out_what_was_being_fetched(patch: Patch) -> None:
    """The fetch of before is taken for the reader's new place."""
    patch.setattr(Deliveries, "on_expired", lambda self, partition, low: [])


def tells_groups_nothing(patch: Patch) -> None:
    patch.setattr(Desks, "_tell_expired", lambda self, part, desk: [])


def tells_groups_again_and_again(patch: Patch) -> None:
    apply = GroupState.apply
    patch.setattr(
        GroupState, "apply", lambda self, op, index: () if hasattr(op, "expired") else apply(self, op, index)
    )


def forgets_what_a_group_missed(patch: Patch) -> None:
    def lie(self: GroupState, low: int) -> None:
        self.low, self.next = low, max(self.next, low)
        self.back.remove(0, low)

    patch.setattr(GroupState, "expire", lie)


def hands_out_what_came_back_and_is_gone(patch: Patch) -> None:
    patch.setattr(GroupState, "_pass_by", lambda self, first, end: first)


def deletes_before_it_is_saved(patch: Patch) -> None:
    on_applied = Saving.on_applied

    def lie(self: Saving, host: Any, *, now: bool) -> None:
        self.delete(host, self.deletions(host))
        on_applied(self, host, now=now)

    patch.setattr(Saving, "on_applied", lie)


def forgets_to_go_on_deleting(patch: Patch) -> None:
    restore = SlotStream.restore
    patch.setattr(
        SlotStream, "restore", lambda self, rows: restore(self, [r for r in rows if r[0][:1] != b"E"])
    )


def counts_what_two_leaders_said(patch: Patch) -> None:
    """An entry holds wherever the partition begins."""
    apply_retain = SlotStream._apply_retain

    def lie(self: SlotStream, entry: Any) -> Any:
        for partition, state in self.partitions.items():
            self.partitions[partition] = replace(state, low=0)
        return apply_retain(self, entry)

    patch.setattr(SlotStream, "_apply_retain", lie)


CAUGHT: list[tuple[Callable[[Patch], None], Callable[[], None]]] = [
    (decides_as_a_follower, tests.test_a_follower_decides_nothing_whatever_its_clock_says),
    (
        believes_a_clock_that_is_off,
        tests.test_a_clock_that_is_not_trusted_lets_nothing_expire_by_age_and_count_goes_on,
    ),
    (
        lets_expire_a_second_early,
        tests.test_by_age_a_record_goes_when_it_was_appended_so_long_ago_and_not_before,
    ),
    (
        says_nothing_of_a_hole,
        tests.test_a_reader_that_is_behind_is_told_how_much_it_missed_and_goes_on_behind_it,
    ),
    (hands_out_what_was_being_fetched, tests.test_what_is_being_fetched_when_it_expires_is_not_handed_out),
    (tells_groups_nothing, tests.test_a_group_is_told_what_it_never_got_once_and_goes_on),
    (tells_groups_again_and_again, tests.test_a_group_is_told_what_it_never_got_once_and_goes_on),
    (forgets_what_a_group_missed, tests.test_a_group_whose_members_were_all_away_is_told_when_one_comes),
    (
        hands_out_what_came_back_and_is_gone,
        tests.test_a_record_that_comes_back_and_has_expired_is_told_as_well,
    ),
    (deletes_before_it_is_saved, tests.test_payloads_go_only_when_the_state_without_them_is_on_disk),
    (forgets_to_go_on_deleting, tests.test_a_deletion_that_a_crash_cut_short_is_asked_for_again),
    (counts_what_two_leaders_said, test_slot.test_what_two_leaders_say_of_the_same_records_counts_once),
]


@pytest.mark.parametrize(("mutant", "test"), CAUGHT, ids=[mutant.__name__ for mutant, _ in CAUGHT])
def test_a_mutant_is_caught(
    mutant: Callable[[Patch], None], test: Callable[[], None], monkeypatch: Patch
) -> None:
    mutant(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        test()
