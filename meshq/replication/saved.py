"""What a replica keeps as rows of its slot's state, and how it begins again from them.

    H   term and vote, written with every Persist that changes them
    R   where the log stood when the state was saved: the applied position, where terms begin, configurations

The rows and the state they belong to are saved in one transaction; what is in the log behind the applied
position is appended again at a start. So nothing has to be read through to know what is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from meshq.entries import EntryKind
from meshq.errors import StoreCorrupt
from meshq.ids import PeerId
from meshq.replication.quorum import Config, Node, decode_config, encode_config
from meshq.replication.window import Log
from meshq.replication.words import GENESIS, Hard, Item, Position, SnapshotMeta

HARD_ROW: Final = b"H"
REPLICA_ROW: Final = b"R"


class _Hard(msgspec.Struct, frozen=True, array_like=True):
    term: int
    vote: tuple[bytes, bytes] | None
    repair_until: int = 0
    bare_until: int = 0
    repair_term: int = 0


class _Saved(msgspec.Struct, frozen=True, array_like=True):
    start: tuple[int, int]  # index and term before the first entry kept
    applied: tuple[int, int, bytes]
    timestamp_ms: int
    terms: list[tuple[int, int]]
    config_index: int
    config: bytes


_encoder = msgspec.msgpack.Encoder()


def hard_row(hard: Hard) -> tuple[bytes, bytes]:
    vote = (hard.vote.peer, hard.vote.disk) if hard.vote else None
    return HARD_ROW, _encoder.encode(_Hard(hard.term, vote, *hard[2:]))


def bare_until(rows: Mapping[bytes, bytes]) -> int:
    """Up to where entries may be without their payloads. Raises: StoreCorrupt."""
    return _decoded(rows[HARD_ROW], _Hard).bare_until if HARD_ROW in rows else 0


def replica_row(
    log: Log, applied: int, config: tuple[int, Config], *, start: Position
) -> tuple[bytes, bytes]:
    """`config` is the newest one at or before `applied`; `start` is where the log is trimmed to with this."""
    position = log.position(applied)
    if position is None:
        raise StoreCorrupt(f"entry {applied} was applied, and its place is not known")
    terms = [t for t in log.terms if t[0] <= applied]
    saved = _Saved(
        (start.index, start.term),
        (position.index, position.term, position.chain),
        log.last_timestamp_ms,
        terms,
        config[0],
        encode_config(config[1]),
    )
    return REPLICA_ROW, _encoder.encode(saved)


def meta_of(rows: Mapping[bytes, bytes]) -> SnapshotMeta | None:
    """What a snapshot of these rows is of; None of rows that were never saved. Raises: StoreCorrupt."""
    if REPLICA_ROW not in rows:
        return None
    saved: _Saved = _decoded(rows[REPLICA_ROW], _Saved)
    return SnapshotMeta(Position(*saved.applied), decode_config(saved.config), saved.timestamp_ms)


def snapshot_row(meta: SnapshotMeta) -> tuple[bytes, bytes]:
    """The row of a replica whose log begins behind this snapshot."""
    last = meta.last
    saved = _Saved(
        (last.index, last.term), (last.index, last.term, last.chain), meta.timestamp_ms, [],
        last.index, encode_config(meta.config),
    )  # fmt: skip
    return REPLICA_ROW, _encoder.encode(saved)


def encode_partial(meta: SnapshotMeta, position: int) -> bytes:
    """Of which snapshot something is put aside, and up to where."""
    return _encoder.encode((meta, position))


def decode_partial(data: bytes) -> tuple[SnapshotMeta, int]:
    """Raises: StoreCorrupt."""
    meta, position = _decoded(data, tuple[SnapshotMeta, int])
    return meta, position


def _decoded(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except msgspec.MsgspecError as e:
        raise StoreCorrupt(f"a replica's row cannot be read: {e}") from None


def restored(
    rows: Mapping[bytes, bytes], genesis: Config, tail: Iterable[Item]
) -> tuple[Hard, Log, list[tuple[int, Config]]]:
    """Term and vote, the log, the configurations. `tail` are the entries behind the applied position.

    Raises: StoreCorrupt.
    """
    hard: _Hard = _decoded(rows[HARD_ROW], _Hard) if HARD_ROW in rows else _Hard(0, None)
    saved: _Saved | None = _decoded(rows[REPLICA_ROW], _Saved) if REPLICA_ROW in rows else None
    vote = Node(PeerId(hard.vote[0]), hard.vote[1]) if hard.vote else None
    if saved is None:
        log, configs = Log(GENESIS), [(0, genesis)]
    else:
        base = Position(*saved.applied)
        start = Position(*saved.start, base.chain if saved.start[0] == base.index else b"")
        log = Log(start, base=base, terms=saved.terms)
        log.last_timestamp_ms = saved.timestamp_ms
        configs = [(saved.config_index, decode_config(saved.config))]
    for item in tail:
        log.append(item)
        if item.entry.kind is EntryKind.CONFIG:
            configs.append((item.entry.index, decode_config(item.entry.body)))
    log.durable = log.last.index
    # Who wrote no `repair_term` did not say in which: it was in none that is later than this.
    repair_term = hard.repair_term or (hard.term if hard.repair_until else 0)
    return Hard(hard.term, vote, hard.repair_until, hard.bare_until, repair_term), log, configs
