"""The groups of one slot: from entries to states, and from states to rows.

A row is one group in one partition, `C` + topic id + partition + name. It is written whole when it changed,
with the applied index it belongs to, and travels in snapshots as every row does that replicas share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from meshq.ids import PartitionKey, TopicId
from meshq.streams.groups.ordered_state import OrderedState, decode_ordered
from meshq.streams.groups.state import GroupState, decode_state
from meshq.streams.groups.words import Delete, GroupBody, Mode, Open, Range, decode_group

ROW: Final = b"C"

AnyState = GroupState | OrderedState


class GroupKey(NamedTuple):
    """A group in one partition."""

    partition: PartitionKey
    group: str


@dataclass(frozen=True, slots=True)
class GroupApplied:
    """An entry about a group counts now. `refused`: by operation, what of it did not; None: no such group."""

    key: GroupKey
    index: int
    body: GroupBody
    refused: tuple[tuple[Range, ...] | None, ...]


class GroupTable:
    """`changed(row)`: this row has to be written. `low(partition)`: where it begins."""

    def __init__(self, changed: Callable[[bytes], None], low: Callable[[PartitionKey], int]) -> None:
        self._states: dict[GroupKey, AnyState] = {}  # GROUPS_PER_SLOT_MAX, held by who proposes
        self._changed = changed
        self._low = low

    def __len__(self) -> int:
        return len(self._states)

    def get(self, key: GroupKey) -> AnyState | None:
        return self._states.get(key)

    def __iter__(self) -> Iterator[GroupKey]:
        return iter(self._states)

    def apply(self, data: bytes, index: int) -> GroupApplied:
        return self.apply_body(decode_group(data), index)

    def apply_body(self, body: GroupBody, index: int) -> GroupApplied:
        key = GroupKey(PartitionKey(TopicId(body.topic_id), body.partition), body.group)
        self._changed(row_of(key))
        return GroupApplied(key, index, body, tuple(self._apply(key, op, index) for op in body.ops))

    def _apply(self, key: GroupKey, op: object, index: int) -> tuple[Range, ...] | None:
        state = self._states.get(key)
        if isinstance(op, Open) and state is None and op.start >= 0:
            state = OrderedState(op) if op.mode == Mode.ORDERED else GroupState(op)
            state.expire(self._low(key.partition))
            self._states[key] = state
            return ()
        if isinstance(op, Delete):
            return () if self._states.pop(key, None) is not None else None
        return state.apply(op, index) if state is not None else None  # type: ignore[arg-type]

    def of_partition(self, partition: PartitionKey) -> list[GroupKey]:
        return [k for k in self._states if k.partition == partition]

    def expire(self, partition: PartitionKey, low: int) -> None:
        """The partition begins here now."""
        for key in self.of_partition(partition):
            self._states[key].expire(low)
            self._changed(row_of(key))

    def drop_topic(self, topic_id: TopicId) -> None:
        for key in [k for k in self._states if k.partition.topic_id == topic_id]:
            del self._states[key]
            self._changed(row_of(key))

    # -------------------------------------------------------------------------------------- on disk
    def restore(self, row: bytes, value: bytes) -> None:
        """Raises: msgspec.MsgspecError."""
        ordered = _mode_of(value) == Mode.ORDERED
        self._states[_key_of(row)] = decode_ordered(value) if ordered else decode_state(value)

    def encoded(self, row: bytes) -> bytes | None:
        state = self._states.get(_key_of(row))
        return None if state is None else state.encode()


class _Head(msgspec.Struct, frozen=True, array_like=True):
    """How every row begins; what follows is the mode's own."""

    mode: int


_head = msgspec.msgpack.Decoder(_Head)


def _mode_of(row: bytes) -> int:
    return _head.decode(row).mode


def row_of(key: GroupKey) -> bytes:
    topic_id, partition = key.partition
    return ROW + topic_id + partition.to_bytes(4, "big") + key.group.encode()


def _key_of(row: bytes) -> GroupKey:
    partition = PartitionKey(TopicId(row[1:17]), int.from_bytes(row[17:21], "big"))
    return GroupKey(partition, row[21:].decode())
