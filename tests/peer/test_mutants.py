"""The checks can fail: each of these lies, told by otherwise good code, is caught.

A mutant is one line of the machines gone wrong. The simulated world has to notice it within a bounded number
of seeds, or a model within a bounded number of examples; a check that does not is not looking.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, find, settings

from meshq.errors import MeshqError
from meshq.peer.core.mending import Mending
from meshq.peer.core.reading import Reading
from meshq.peer.core.receipts import Receipts
from meshq.peer.core.slots import Slots
from meshq.streams import slot as streams_slot
from meshq.streams.applied import Stored
from meshq.streams.delivery import Deliveries
from meshq.streams.producers import BatchReceipt, ProducerTable
from meshq.streams.publish import payload_of
from meshq.streams.slot import SlotStream
from tests.peer import disk, test_all_faults, test_exactly_once, test_readers
from tests.streams import test_delivery, test_slot

SEEDS = 60
Patch = pytest.MonkeyPatch


# ------------------------------------------------------------------------------------------------- publishing
def appends_repeats(patch: Patch) -> None:
    """A repeat is appended again."""
    judge = streams_slot.judge

    def lie(*args: Any, **about: Any) -> Any:
        said = judge(*args, **about)
        return None if isinstance(said, BatchReceipt) else said

    patch.setattr(streams_slot, "judge", lie)


def receipts_before_the_disk(patch: Patch) -> None:
    propose = Slots._propose

    def lie(self: Slots, host: Any, kind: Any, body: bytes, payload: Any = b"") -> Any:
        entry = propose(self, host, kind, body, payload)
        stored = payload_of(entry, payload)
        if stored is not None:
            for ref in self.asking:
                where = stored.partition, stored.base_offset, stored.count, stored.timestamp_ms
                self.react.on_stored(
                    host, Stored(*where, entry.index, (ref,)), payload, {self.me: entry.index}
                )
        return entry

    publish = Slots.publish

    def noting(self: Slots, *args: Any, ref: Any, **more: Any) -> Any:
        self.asking = [ref]
        return publish(self, *args, ref=ref, **more)

    patch.setattr(Slots, "asking", [], raising=False)
    patch.setattr(Slots, "_propose", lie)
    patch.setattr(Slots, "publish", noting)


def forgets_producers(patch: Patch) -> None:
    patch.setattr(ProducerTable, "put", lambda self, key, state: None)


def forgets_producers_at_restart(patch: Patch) -> None:
    patch.setattr(ProducerTable, "restore", lambda self, states: None)


def keeps_what_the_disk_refused(patch: Patch) -> None:
    """A failed append is not rolled back in the proposed view."""

    def lie(self: SlotStream) -> list[Any]:
        refs = [ref for w in self._waiting.values() for ref in w.refs]
        self._waiting.clear()
        return refs

    patch.setattr(SlotStream, "on_append_failed", lie)


def names_another_offset(patch: Patch) -> None:
    answer = Receipts._answer
    patch.setattr(
        Receipts,
        "_answer",
        lambda self, ref, offset, copies: answer(self, ref, max(0, offset - 1), copies),
    )


def refuses_what_it_stores(patch: Patch) -> None:
    """A repeat of a batch on its way is told that it failed."""
    judge = SlotStream.judge

    def lie(self: SlotStream, *args: Any, **about: Any) -> Any:
        said = judge(self, *args, **about)
        return MeshqError("no") if isinstance(said, BatchReceipt) else said

    patch.setattr(SlotStream, "judge", lie)


def writes_rows_it_will_not_have(patch: Patch) -> None:
    """State rows run ahead of the log: their applied index is one too high."""
    take_rows = SlotStream.take_rows

    def lie(self: SlotStream) -> Any:
        self.applied_index += 1
        rows = take_rows(self)
        self.applied_index -= 1
        return rows

    patch.setattr(SlotStream, "take_rows", lie)


# ---------------------------------------------------------------------------------------------------- reading
def skips_after_a_reread(patch: Patch) -> None:
    start = Reading._start

    def lie(self: Reading, sub: Any, partition: Any, position: int, end: int) -> Any:
        return start(self, sub, partition, min(position + 1, end) if position else 0, end)

    patch.setattr(Reading, "_start", lie)


def loses_what_a_slow_reader_missed(patch: Patch) -> None:
    """Readers without credit are taken for level."""
    committed = Deliveries.on_committed

    def lie(self: Deliveries, partition: Any, base_offset: int, count: int, *rest: Any) -> None:
        committed(self, partition, base_offset, count, *rest)
        for reader in self._of_partition.get(partition, {}).values():
            reader.position = base_offset + count

    patch.setattr(Deliveries, "on_committed", lie)


def wakes_nobody(patch: Patch) -> None:
    """Credit starts no fetch."""
    on_credit = Deliveries.on_credit

    def lie(self: Deliveries, sub: Any, **more: int) -> list[Any]:
        on_credit(self, sub, **more)
        return []

    patch.setattr(Deliveries, "on_credit", lie)


def ignores_credit(patch: Patch) -> None:
    collect = Deliveries._collect

    def lie(self: Deliveries, sub: Any, s: Any, reader: Any, item: Any, count: int) -> None:
        before = s.bytes
        collect(self, sub, s, reader, item, count)
        s.bytes = before

    patch.setattr(Deliveries, "_collect", lie)


def leaves_sessions_behind(patch: Patch) -> None:
    patch.setattr(Deliveries, "on_session_gone", lambda self, session: None)


# ---------------------------------------------------------------------------------------------------- mending
def hands_on_what_is_damaged(patch: Patch) -> None:
    """A batch's checksums are not looked at when it is read."""
    patch.setattr(disk, "fault_of", lambda data, key: "")


def leaves_damage_as_it_is(patch: Patch) -> None:
    """What another replica has is not put in place of what is damaged here."""
    patch.setattr(Mending, "_write", lambda self, mend, spot, whole: self._settle(spot, None))


# ------------------------------------------------------------------------------------------------------ state
def saves_no_producers(patch: Patch) -> None:
    take_rows = SlotStream.take_rows
    patch.setattr(
        SlotStream, "take_rows", lambda self: tuple(r for r in take_rows(self) if not r[0].startswith(b"Q"))
    )


def ignores_what_is_proposed(patch: Patch) -> None:
    """Batches on their way to disk are not thought of when the next one is judged."""
    patch.setattr(SlotStream, "on_proposed", lambda self, entry, body, ref: None)


WORLD: list[tuple[Callable[[Patch], None], Callable[[int], None]]] = [
    *(
        (mutant, test_exactly_once.test_a_receipt_means_once_at_its_offset_and_a_refusal_means_never)
        for mutant in (
            appends_repeats,
            receipts_before_the_disk,
            forgets_producers,
            keeps_what_the_disk_refused,
            names_another_offset,
            refuses_what_it_stores,
            writes_rows_it_will_not_have,
        )
    ),
    *((mutant, test_readers.check_seed) for mutant in (skips_after_a_reread, wakes_nobody)),
    *((mutant, test_all_faults.check_seed) for mutant in (hands_on_what_is_damaged, leaves_damage_as_it_is)),
]
MODELS: list[tuple[Callable[[Patch], None], Any, Callable[[Any], None]]] = [
    (ignores_credit, test_delivery.STEPS, test_delivery.play),
    (leaves_sessions_behind, test_delivery.STEPS, test_delivery.play),
    (loses_what_a_slow_reader_missed, test_delivery.STEPS, test_delivery.play),
    (forgets_producers_at_restart, test_slot.STEPS, test_slot.check_rebuilt),
    (saves_no_producers, test_slot.STEPS, test_slot.check_rebuilt),
    (ignores_what_is_proposed, test_slot.STEPS, test_slot.check_proposed),
    (keeps_what_the_disk_refused, test_slot.STEPS, test_slot.check_proposed),
]


def fails(check: Callable[[Any], None], argument: Any) -> bool:
    try:
        check(argument)
    except Exception:
        return True
    return False


@pytest.mark.parametrize(("mutant", "check"), WORLD, ids=[m.__name__ for m, _ in WORLD])
def test_the_simulated_world_notices(
    mutant: Callable[[Patch], None], check: Callable[[int], None], monkeypatch: Patch
) -> None:
    mutant(monkeypatch)
    assert any(fails(check, seed) for seed in range(SEEDS)), f"{mutant.__name__} went unnoticed"


@pytest.mark.parametrize(("mutant", "steps", "check"), MODELS, ids=[m.__name__ for m, *_ in MODELS])
def test_a_model_notices(
    mutant: Callable[[Patch], None], steps: Any, check: Callable[[Any], None], monkeypatch: Patch
) -> None:
    mutant(monkeypatch)
    bounded = settings(database=None, derandomize=True, max_examples=300, phases=[Phase.generate])
    find(steps, lambda x: fails(check, x), settings=bounded)


def test_without_a_lie_the_same_checks_pass() -> None:
    for check in {check for _, check in WORLD}:
        assert not any(fails(check, seed) for seed in range(200, 205))
