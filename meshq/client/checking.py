"""What an application passes is checked at the door, so that what is wrong is told where it was done."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal

from meshq.batch import CODECS, HEADER_BYTES, Buffer
from meshq.client.facts import Group, Start
from meshq.errors import TooLarge, UsageError
from meshq.limits import (
    ACK_WAIT_MS_MAX,
    BATCH_BYTES_MAX,
    GROUP_BYTES_MAX,
    HEADERS_MAX,
    PRODUCER_RECEIPTS_KEPT,
)
from meshq.messages import (
    ACKS_LEADER,
    ACKS_NONE,
    ACKS_QUORUM,
    EARLIEST,
    KEYED,
    LATEST,
    OFFSET,
    ORDERED,
    QUEUE,
    TIMESTAMP,
)

RECORD_OVERHEAD_BYTES: Final = 25  # most that msgpack adds to a record without headers
_HEADER_OVERHEAD_BYTES: Final = 10
BATCH_ROOM_BYTES: Final = BATCH_BYTES_MAX - HEADER_BYTES - 16

Headers = Mapping[str, bytes]
ACK_WAIT_S: Final = 30.0
MAX_DELIVER: Final = 10
SESSION_TIMEOUT_S: Final = 10.0
_MODES: Final = {"queue": QUEUE, "ordered": ORDERED, "keyed": KEYED}
_GROUP: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
Acks = Literal["quorum", "leader", "none"]
_ACKS: Final = {"quorum": ACKS_QUORUM, "leader": ACKS_LEADER, "none": ACKS_NONE}


def check_value(value: Buffer) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise UsageError(
        f"a record's value must be bytes, not {type(value).__name__}: encode it first, as in text.encode()"
    )


def check_key(key: bytes | None) -> bytes | None:
    if key is None or isinstance(key, bytes):
        return key
    raise UsageError(
        f"a record's key must be bytes or None, not {type(key).__name__}: "
        "encode it first, as in text.encode()"
    )


def check_acks(acks: str) -> int:
    """As the wire has it."""
    if acks in _ACKS:
        return _ACKS[acks]
    raise UsageError(f"acks must be one of {', '.join(_ACKS)}, not {acks!r}")


def check_headers(headers: Headers | None) -> dict[str, bytes] | None:
    if not headers:
        return None
    if not isinstance(headers, Mapping):
        raise UsageError(f"headers must be a dict of str to bytes, not {type(headers).__name__}")
    if len(headers) > HEADERS_MAX:
        raise TooLarge(
            f"a record has {len(headers)} headers; the limit is {HEADERS_MAX}: put them in the value"
        )
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, bytes):
            raise UsageError(
                f"header {name!r} is {type(name).__name__} to {type(value).__name__}: names must be str and "
                "values bytes, so encode the value first, as in text.encode()"
            )
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UsageError(f"header name {name!r} is not text that UTF-8 can hold") from None
    return dict(headers)


def check_group(
    name: str,
    mode: str,
    member: bytes,
    *,
    ack_wait: float | None,
    session_timeout: float | None,
    max_deliver: int | None,
) -> Group:
    if not isinstance(name, str) or not 1 <= len(name) <= GROUP_BYTES_MAX or not _GROUP.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a group's name: letters, digits, _ and -, at most {GROUP_BYTES_MAX}"
        )
    if mode not in _MODES:
        raise UsageError(f"mode must be one of {', '.join(_MODES)}, not {mode!r}")
    ordered = mode == "ordered"
    if ordered and ack_wait is not None:
        raise UsageError("ack_wait is of a record, and an ordered group leases partitions: session_timeout")
    if ordered and max_deliver != MAX_DELIVER:
        raise UsageError("an ordered group has no max_deliver: what is behind a record waits for it")
    if not ordered and session_timeout is not None:
        raise UsageError("session_timeout is of an ordered group; in others a record has its ack_wait")
    given = session_timeout if ordered else ack_wait
    seconds = (SESSION_TIMEOUT_S if ordered else ACK_WAIT_S) if given is None else given
    if not isinstance(seconds, int | float) or not 0.001 <= seconds <= ACK_WAIT_MS_MAX / 1000:
        which = "session_timeout" if ordered else "ack_wait"
        raise UsageError(f"{which} must be 0.001 to {ACK_WAIT_MS_MAX // 1000} seconds, not {seconds!r}")
    if max_deliver is not None and (
        isinstance(max_deliver, bool) or not isinstance(max_deliver, int) or not 1 <= max_deliver < 1 << 32
    ):
        raise UsageError(f"max_deliver must be a whole number above 0, or None for no limit: {max_deliver!r}")
    return Group(name, member, _MODES[mode], round(seconds * 1000), 0 if ordered else max_deliver or 0)


def record_bytes(value: bytes, key: bytes | None, headers: dict[str, bytes] | None) -> tuple[int, int]:
    """What counts against `record_bytes_max`, and the most it takes in a batch."""
    size = len(value) + len(key or b"")
    encoded = size + RECORD_OVERHEAD_BYTES
    if headers:
        for name, header in headers.items():
            size += len(name) + len(header)
            encoded += len(name.encode()) + len(header) + _HEADER_OVERHEAD_BYTES
    return size, encoded


def too_large(size: int, limit: int, topic: str) -> TooLarge:
    return TooLarge(
        f"a record of {size} bytes is over the limit of {limit} of topic {topic}: "
        "make it smaller, or raise the topic's record_bytes_max"
    )


def check_producer(compression: str, in_flight: int, batch_bytes: int, buffer_bytes: int) -> None:
    if compression not in CODECS:
        raise UsageError(f"unknown compression {compression!r}: one of {', '.join(CODECS)}")
    if not 1 <= in_flight <= PRODUCER_RECEIPTS_KEPT:
        raise UsageError(f"in_flight must be 1 to {PRODUCER_RECEIPTS_KEPT}, not {in_flight}")
    if not 0 < batch_bytes <= BATCH_ROOM_BYTES:
        raise UsageError(f"batch_bytes must be 1 to {BATCH_ROOM_BYTES}, not {batch_bytes}")
    if buffer_bytes <= 0:
        raise UsageError(f"buffer_bytes must be more than 0, not {buffer_bytes}")


def check_seconds(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise UsageError(f"{name} must be a number of seconds above 0, not {value!r}")
    return float(value)


def check_start(start: Any) -> Start:
    """Where a subscription begins, from "latest", "earliest", an offset or a datetime."""
    match start:
        case "latest":
            return Start(LATEST)
        case "earliest":
            return Start(EARLIEST)
        case datetime():
            return Start(TIMESTAMP, max(0, int(start.timestamp() * 1000)))
        case int() if not isinstance(start, bool) and 0 <= start < 1 << 63:
            return Start(OFFSET, start)
        case _:
            raise UsageError(f'start must be "latest", "earliest", an offset or a datetime, not {start!r}')
