"""What a replica keeps as rows of its slot's state, and how it begins again from them.

    H   term and vote, written with every Persist that changes them
    R   where the log stood when the state was saved: the applied position, where terms begin, configurations

The rows and the state they belong to are saved in one transaction; what is in the log behind the applied
position is appended again at a start. So nothing has to be read through to know what is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from meshq.entries import EntryKind
from meshq.errors import StoreCorrupt
from meshq.ids import PeerId
from meshq.replication.quorum import Config, Node, decode_config, encode_config
from meshq.replication.window import Log
from meshq.replication.words import GENESIS, Hard, Item, Position

HARD_ROW: Final = b"H"
REPLICA_ROW: Final = b"R"


class _Hard(msgspec.Struct, frozen=True, array_like=True):
    term: int
    vote: tuple[bytes, bytes] | None
    repair_until: int = 0


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
    return HARD_ROW, _encoder.encode(_Hard(hard.term, vote, hard.repair_until))


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


def restored(
    rows: Mapping[bytes, bytes], genesis: Config, tail: Iterable[Item]
) -> tuple[Hard, Log, list[tuple[int, Config]]]:
    """Term and vote, the log, the configurations. `tail` are the entries behind the applied position.

    Raises: StoreCorrupt.
    """
    try:
        hard = msgspec.msgpack.decode(rows[HARD_ROW], type=_Hard) if HARD_ROW in rows else _Hard(0, None)
        saved = msgspec.msgpack.decode(rows[REPLICA_ROW], type=_Saved) if REPLICA_ROW in rows else None
    except msgspec.MsgspecError as e:
        raise StoreCorrupt(f"a replica's row cannot be read: {e}") from None
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
    return Hard(hard.term, vote, hard.repair_until), log, configs
